// Runs the thread blocks of a GPU kernel on one thread of a CPU, each GPU thread a fibre; shared by the shims of the languages.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
    size_t count() const { return size_t(x) * y * z; }
};

// Bytes of shared memory that a block may ask for: the most of any device.
constexpr size_t MAX_SHARED = 227 << 10;
constexpr unsigned WARP = 32;

// Where the running fibre is. By value: what a kernel reads from its own stack needs no check.
Dim3 thread_index();
Dim3 block_index();
Dim3 block_size();
Dim3 grid_size();
unsigned lane();
unsigned warp();
unsigned warps();
// Lanes of the running fibre's warp that have not returned.
uint32_t live_lanes();

// Which memory a barrier puts in order.
enum Spaces : unsigned { GLOBAL_MEMORY = 1, SHARED_MEMORY = 2, ALL_MEMORY = 3 };

// Waits for all threads of the block. `line` tells barriers apart, so that threads waiting at two different ones are found.
void block_barrier(int line, unsigned spaces = ALL_MEMORY);

// The lanes of `mask` meet; each leaves `value` and gets that of lane `source` (below 0: one bit a lane whose value is not 0).
uint64_t warp_meet(uint32_t mask, uint64_t value, int source, bool orders_memory, int line);

// Runs all blocks of a grid. `body(argument)` is one thread's run.
void run_grid(const char *kernel, Dim3 grid, Dim3 block, void (*body)(void *), void *argument);

// Notes something that is wrong, with the kernel, block and thread that runs.
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));

// How the host calls a kernel: the arguments' addresses, as for cuLaunchKernel, and their sizes where it knows them.
using Entry = void (*)(const char *name, Dim3 grid, Dim3 block, void **arguments, const size_t *sizes, size_t count);
struct Kernel {
    const char *name;
    Entry entry;
};

// --- What the checks need to know of the machine.

constexpr size_t STACK_BYTES = 64 << 10;

// A moment of one thread: two accesses are in order where a barrier lies between them.
struct Moment {
    uint32_t block = 0, thread = 0, epoch = 0, warp_epoch = 0;
};

// Whether a fibre runs.
bool running();
// Whether `p` is in the running fibre's stack.
bool on_stack(const void *p);
// The running fibre's moment, in one kind of memory.
Moment now(bool shared);
// Reports so far.
unsigned findings();
// Gives up the launch: what the running fibre would do next must not happen.
[[noreturn]] void abandon();
// Called before each block.
void start_block_checks();

} // namespace emulator

// The kernels of the module, ended by a null name; written by the builder of the module.
extern "C" const emulator::Kernel emulator_kernels[];
