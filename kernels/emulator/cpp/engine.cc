// Blocks run one after another, the fibres of a block until each waits or returns; both in an order drawn from a seed.
#include "engine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {
namespace {

enum class State { Ready, AtBarrier, InWarp, Done };

struct Fibre {
    char *stack = nullptr;
#if defined(__x86_64__)
    void *stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    Dim3 index;
    unsigned linear = 0;
    State state = State::Ready;
    int line = 0;        // of the barrier or the meeting that it waits at
    unsigned spaces = 0; // that the barrier orders
    uint32_t mask = 0;   // of the meeting
    uint64_t value = 0, result = 0;
    int source = 0;

    unsigned lane() const { return linear % WARP; }
    unsigned warp() const { return linear / WARP; }
};

struct Machine {
    const char *kernel = "";
    Dim3 grid, block, block_index;
    void (*body)(void *) = nullptr;
    void *argument = nullptr;
    std::vector<Fibre> fibres;
    Fibre *current = nullptr;
    uint32_t block_number = 0;             // counts all blocks ever run, from 1
    uint32_t epochs[2] = {0, 0};           // barriers passed by global and by shared memory
    std::vector<uint32_t> warp_epochs;     // meetings that ordered a warp's memory
    std::mt19937 random{1};
    bool abandoned = false;
    unsigned findings = 0;
    std::string text;
#if defined(__x86_64__)
    void *stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
} machine;

#if defined(__x86_64__)
// Saves the callee's registers on the running stack and continues on another, about fifty times faster than swapcontext, which
// asks the kernel about signals.
extern "C" void emulator_switch(void **save, void *load);
asm(R"(
    .text
    .weak emulator_switch
    .hidden emulator_switch
emulator_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");
constexpr int SAVED_REGISTERS = 6;

void leave() { emulator_switch(&machine.current->stack_pointer, machine.stack_pointer); }
void enter(Fibre &fibre) { emulator_switch(&machine.stack_pointer, fibre.stack_pointer); }
#else
void leave() { swapcontext(&machine.current->context, &machine.context); }
void enter(Fibre &fibre) { swapcontext(&machine.context, &fibre.context); }
#endif

void fibre_main() {
    machine.body(machine.argument);
    machine.current->state = State::Done;
    leave();
    abort(); // a fibre that is done is not entered again
}

void prepare(Fibre &fibre, unsigned linear) {
    fibre.linear = linear;
    fibre.state = State::Ready;
    fibre.index = {linear % machine.block.x, linear / machine.block.x % machine.block.y, linear / machine.block.x / machine.block.y};
#if defined(__x86_64__)
    // As if `emulator_switch` had been called from the start of `fibre_main`; the slot above keeps the stack aligned as after a call.
    void **top = reinterpret_cast<void **>(fibre.stack + STACK_BYTES) - 2;
    *top = reinterpret_cast<void *>(fibre_main);
    fibre.stack_pointer = top - SAVED_REGISTERS;
#else
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack;
    fibre.context.uc_stack.ss_size = STACK_BYTES;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, fibre_main, 0);
#endif
}

void resume(Fibre &fibre) {
    machine.current = &fibre;
    enter(fibre);
    machine.current = nullptr;
}

// Lets all threads that wait at the block's barrier pass, if it is their turn. False where the block cannot go on.
bool pass_barrier() {
    unsigned waiting = 0, done = 0;
    const Fibre *first = nullptr;
    for (const Fibre &fibre : machine.fibres) {
        done += fibre.state == State::Done;
        if (fibre.state != State::AtBarrier) continue;
        waiting++;
        if (!first) first = &fibre;
        if (fibre.line != first->line) {
            report("threads wait at two barriers, in lines %d and %d", first->line, fibre.line);
            return false;
        }
    }
    if (waiting + done != machine.fibres.size()) {
        report("deadlock: some threads wait for their warp, the others at a barrier or have returned");
        return false;
    }
    if (waiting && done) report("barrier in line %d after %u threads of the block returned", first->line, done);
    unsigned spaces = ALL_MEMORY;
    for (Fibre &fibre : machine.fibres)
        if (fibre.state == State::AtBarrier) {
            spaces &= fibre.spaces;
            fibre.state = State::Ready;
        }
    for (unsigned space = 0; space < 2; space++) machine.epochs[space] += spaces >> space & 1;
    return waiting > 0;
}

void run_block() {
    machine.block_number++;
    machine.epochs[0] = machine.epochs[1] = 0;
    std::fill(machine.warp_epochs.begin(), machine.warp_epochs.end(), 0u);
    std::vector<unsigned> order(machine.fibres.size());
    for (unsigned i = 0; i < order.size(); i++) {
        order[i] = i;
        prepare(machine.fibres[i], i);
    }
    start_block_checks();
    do {
        std::shuffle(order.begin(), order.end(), machine.random);
        for (bool ran = true; ran;) { // a meeting makes the lanes ready that came first
            ran = false;
            for (unsigned i : order)
                if (machine.fibres[i].state == State::Ready) {
                    resume(machine.fibres[i]);
                    if (machine.abandoned) return;
                    ran = true;
                }
        }
    } while (pass_barrier());
}

} // namespace

Dim3 thread_index() { return machine.current->index; }
Dim3 block_index() { return machine.block_index; }
Dim3 block_size() { return machine.block; }
Dim3 grid_size() { return machine.grid; }
unsigned lane() { return machine.current->lane(); }
unsigned warp() { return machine.current->warp(); }
unsigned warps() { return unsigned(machine.warp_epochs.size()); }

uint32_t live_lanes() {
    uint32_t lanes = 0;
    for (unsigned l = 0, i = warp() * WARP; l < WARP && i < machine.fibres.size(); l++, i++)
        if (machine.fibres[i].state != State::Done) lanes |= 1u << l;
    return lanes;
}

void block_barrier(int line, unsigned spaces) {
    machine.current->state = State::AtBarrier;
    machine.current->line = line;
    machine.current->spaces = spaces;
    leave();
}

uint64_t warp_meet(uint32_t mask, uint64_t value, int source, bool orders_memory, int line) {
    Fibre &me = *machine.current;
    me.mask = mask;
    me.value = value;
    me.source = source;
    me.line = line;
    me.state = State::InWarp;
    if (!(mask >> me.lane() & 1)) report("a lane calls a warp function with a mask that it is not in");
    Fibre *lanes = &machine.fibres[me.warp() * WARP];
    const unsigned count = std::min<size_t>(WARP, machine.fibres.size() - me.warp() * WARP);
    const auto here = [&](unsigned l) {
        return lanes[l].state == State::InWarp && lanes[l].mask == mask && lanes[l].line == line;
    };
    for (unsigned l = 0; l < count; l++)
        if ((mask >> l & 1) && lanes[l].state != State::Done && !here(l)) {
            leave(); // the last one that comes answers for all
            return me.result;
        }
    uint32_t ballot = 0;
    for (unsigned l = 0; l < count; l++)
        if ((mask >> l & 1) && here(l) && lanes[l].value) ballot |= 1u << l;
    for (unsigned l = 0; l < count; l++) {
        if (!(mask >> l & 1) || !here(l)) continue;
        const int from = lanes[l].source;
        if (from < 0) {
            lanes[l].result = ballot;
        } else if (unsigned(from) < count && (mask >> from & 1) && here(unsigned(from))) {
            lanes[l].result = lanes[from].value;
        } else {
            report("a shuffle reads from lane %d, which has returned or is not in the mask", from);
            lanes[l].result = ~uint64_t(0); // NaN
        }
    }
    for (unsigned l = 0; l < count; l++)
        if ((mask >> l & 1) && lanes[l].state == State::InWarp) lanes[l].state = State::Ready;
    if (orders_memory) machine.warp_epochs[me.warp()]++;
    return me.result;
}

void run_grid(const char *kernel, Dim3 grid, Dim3 block, void (*body)(void *), void *argument) {
    machine.kernel = kernel;
    machine.grid = grid;
    machine.block = block;
    machine.body = body;
    machine.argument = argument;
    if (!grid.count() || !block.count() || block.count() > 1024) return report("a grid or block of this size cannot be launched");
    while (machine.fibres.size() > block.count()) {
        free(machine.fibres.back().stack);
        machine.fibres.pop_back();
    }
    while (machine.fibres.size() < block.count()) {
        machine.fibres.emplace_back();
        machine.fibres.back().stack = static_cast<char *>(aligned_alloc(64, STACK_BYTES));
    }
    machine.warp_epochs.assign((block.count() + WARP - 1) / WARP, 0);
    std::vector<unsigned> order(grid.count());
    for (unsigned i = 0; i < order.size(); i++) order[i] = i;
    std::shuffle(order.begin(), order.end(), machine.random);
    for (unsigned i : order) {
        machine.block_index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
        run_block();
        if (machine.abandoned) return;
    }
}

void report(const char *format, ...) {
    constexpr unsigned SHOWN = 4; // one mistake shows in thousands of threads
    if (machine.findings++ >= SHOWN) return;
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    machine.text += std::string(machine.text.empty() ? "" : "\n") + machine.kernel + ": " + line;
    if (!machine.current) return;
    const Dim3 b = machine.block_index, t = machine.current->index;
    snprintf(line, sizeof line, " (block %u,%u,%u thread %u,%u,%u)", b.x, b.y, b.z, t.x, t.y, t.z);
    machine.text += line;
}

bool running() { return machine.current; }

bool on_stack(const void *p) {
    const char *stack = machine.current->stack;
    return p >= stack && p < stack + STACK_BYTES;
}

Moment now(bool shared) {
    return {machine.block_number, machine.current->linear, machine.epochs[shared], machine.warp_epochs[machine.current->warp()]};
}

unsigned findings() { return machine.findings; }

void abandon() {
    machine.abandoned = true;
    leave();
    abort(); // its stack is given up
}

} // namespace emulator

// --- The host's interface; see src/module.rs.

extern "C" {
void emulator_seed(unsigned seed) { emulator::machine.random.seed(seed); }
const char *emulator_findings() { return emulator::machine.text.c_str(); }

// The number of findings; -1 where the module has no such kernel.
int emulator_launch(const char *name, const unsigned *grid, const unsigned *block, void **arguments, const size_t *sizes, size_t count) {
    for (const emulator::Kernel *kernel = emulator_kernels; kernel->name; kernel++)
        if (!std::string(kernel->name).compare(name)) {
            emulator::machine.abandoned = false;
            emulator::machine.findings = 0;
            emulator::machine.text.clear();
            kernel->entry(kernel->name, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, arguments, sizes, count);
            return int(emulator::findings());
        }
    return -1;
}
}
