// Checks every access of a kernel. The kernel is compiled with -fsanitize=thread, which puts a call before each load and store;
// the functions called are these, not those of ThreadSanitizer's library. So nothing depends on timing: two accesses of a byte
// are a race unless a barrier lies between them, in whatever order they happened to run.
#include "engine.h"

#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <string>
#include <vector>

// The block's shared memory, under the name that the kernels give it.
alignas(16) char shared[emulator::MAX_SHARED];

// The ends of this module's image, which holds constants that kernels may read.
extern const char __ehdr_start __attribute__((visibility("hidden")));
extern const char _end __attribute__((visibility("hidden")));

namespace {
using emulator::Moment;

enum class Kind { Read, Write };

// Bytes that are watched as one: the smallest value that a kernel stores.
constexpr size_t GRAIN = 2;

// What is known of one grain.
struct Cell {
    Moment written, read, read_too; // the last write, and reads since then by up to two threads
    bool initialised = false;
};

struct Region {
    std::string name;
    char *base;
    size_t length;
    bool is_shared, writable;
    std::vector<Cell> cells;

    bool holds(const char *p) const { return p >= base && p < base + length; }
};

std::vector<Region> regions;

// Whether no barrier lies between two accesses of the same grain.
bool unordered(const Moment &before, const Moment &after, bool is_shared) {
    if (!before.block) return false;
    if (before.block != after.block) return !is_shared; // each block has its own shared memory; blocks are in no order
    if (before.thread == after.thread || before.epoch < after.epoch) return false;
    const bool same_warp = before.thread / emulator::WARP == after.thread / emulator::WARP;
    return !(same_warp && before.warp_epoch < after.warp_epoch);
}

// File and line of an address in the kernel, by the debugging information of this module.
std::string place(const void *address) {
    Dl_info info;
    if (!dladdr(address, &info)) return "?";
    const bool movable = static_cast<const Elf64_Ehdr *>(info.dli_fbase)->e_type == ET_DYN;
    const size_t offset = size_t(address) - (movable ? size_t(info.dli_fbase) : 0) - 1;
    char text[1024];
    snprintf(text, sizeof text, "addr2line -e '%s' %#zx", info.dli_fname, offset);
    FILE *pipe = popen(text, "r");
    if (!pipe) return "?";
    if (!fgets(text, sizeof text, pipe)) text[0] = 0;
    pclose(pipe);
    text[strcspn(text, " \n")] = 0;
    const char *name = strrchr(text, '/');
    return name ? name + 1 : text;
}

void complain(const char *what, const Region *region, const char *p, const void *caller, const Moment *other = nullptr) {
    // A mistake is mostly made close to the buffer that was meant.
    constexpr long NEAR = 4096;
    for (const Region &candidate : regions)
        if (!region && p + NEAR >= candidate.base && p < candidate.base + candidate.length + NEAR) region = &candidate;
    char where[256] = "no buffer", with[64] = "";
    if (region) snprintf(where, sizeof where, "%s[byte %ld of %zu]", region->name.c_str(), long(p - region->base), region->length);
    if (other) snprintf(with, sizeof with, ", with thread %u", other->thread);
    const bool shown = emulator::findings() < 4; // looking up the line takes a process
    emulator::report("%s: %s at %s%s", what, where, shown ? place(caller).c_str() : "", with);
}

// For what would harm this process or crash a real device.
[[noreturn]] void refuse(const char *what, const Region *region, const char *p, const void *caller) {
    complain(what, region, p, caller);
    emulator::abandon();
}

void check_grain(Region &region, size_t at, Kind kind, const Moment &me, const void *caller) {
    Cell &cell = region.cells[at];
    const char *const p = region.base + at * GRAIN;
    const bool known = region.is_shared ? cell.written.block == me.block : cell.initialised;
    if (kind == Kind::Read) {
        if (!known) complain("read of uninitialised memory", &region, p, caller);
        else if (unordered(cell.written, me, region.is_shared)) complain("race: read after write", &region, p, caller, &cell.written);
        if (cell.read.block != me.block || cell.read.thread == me.thread || cell.read.epoch < me.epoch) cell.read = me;
        else cell.read_too = me;
        return;
    }
    if (unordered(cell.written, me, region.is_shared)) complain("race: write after write", &region, p, caller, &cell.written);
    for (const Moment *read : {&cell.read, &cell.read_too})
        if (unordered(*read, me, region.is_shared)) complain("race: write after read", &region, p, caller, read);
    cell = {me, {}, {}, true};
}

std::vector<Cell> cells(size_t bytes) { return std::vector<Cell>((bytes + GRAIN - 1) / GRAIN); }

void access(const void *address, size_t size, Kind kind, size_t alignment, const void *caller) {
    if (!emulator::running() || emulator::on_stack(address)) return;
    const char *p = static_cast<const char *>(address);
    Region *region = nullptr;
    for (Region &candidate : regions)
        if (candidate.holds(p)) region = &candidate;
    if (!region) {
        const bool in_shared = p >= shared && p < shared + sizeof shared;
        const bool constant = kind == Kind::Read && !in_shared && p >= &__ehdr_start && p < &_end;
        if (!constant) refuse(kind == Kind::Read ? "out-of-bounds read" : "out-of-bounds write", nullptr, p, caller);
        return;
    }
    if (p + size > region->base + region->length) refuse("access across the end", region, p, caller);
    if (size_t(p) % alignment) refuse("misaligned access", region, p, caller);
    if (kind == Kind::Write && !region->writable) refuse("write to an input", region, p, caller);
    const Moment me = emulator::now(region->is_shared);
    const unsigned before = emulator::findings();
    const size_t first = size_t(p - region->base) / GRAIN, end = (size_t(p - region->base) + size + GRAIN - 1) / GRAIN;
    for (size_t i = first; i < end && emulator::findings() == before; i++) check_grain(*region, i, kind, me, caller);
}

} // namespace

void emulator::start_block_checks() {
    // Garbage of the last block, and NaN as floats: nobody may count on zeros.
    for (Region &region : regions)
        if (region.is_shared) memset(region.base, 0xff, region.length);
}

// --- The host's interface; see src/module.rs.

extern "C" {
// Forgets all buffers; the next launch has this much shared memory.
void emulator_begin(size_t shared_bytes) {
    regions.clear();
    if (shared_bytes) regions.push_back({"shared memory", shared, shared_bytes, true, true, cells(shared_bytes)});
}

// A buffer that the next launch may touch.
void emulator_buffer(const char *name, void *base, size_t length, int initialised, int writable) {
    regions.push_back({name, static_cast<char *>(base), length, false, writable != 0, cells(length)});
    if (initialised)
        for (Cell &cell : regions.back().cells) cell.initialised = true;
}

// Bytes of a buffer that nobody has written.
size_t emulator_unwritten(const void *base) {
    size_t count = 0;
    for (const Region &region : regions)
        if (region.base == base)
            for (const Cell &cell : region.cells) count += cell.initialised ? 0 : GRAIN;
    return count;
}

// --- What the compiler calls.

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
#define ACCESSES(n)                                                                                                             \
    void __tsan_read##n(void *p) { access(p, n, Kind::Read, n, __builtin_return_address(0)); }                                  \
    void __tsan_write##n(void *p) { access(p, n, Kind::Write, n, __builtin_return_address(0)); }                                \
    void __tsan_unaligned_read##n(void *p) { access(p, n, Kind::Read, 1, __builtin_return_address(0)); }                        \
    void __tsan_unaligned_write##n(void *p) { access(p, n, Kind::Write, 1, __builtin_return_address(0)); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void *p, size_t n) { access(p, n, Kind::Read, 1, __builtin_return_address(0)); }
void __tsan_write_range(void *p, size_t n) { access(p, n, Kind::Write, 1, __builtin_return_address(0)); }
void *__tsan_memcpy(void *to, const void *from, size_t n) {
    access(from, n, Kind::Read, 1, __builtin_return_address(0));
    access(to, n, Kind::Write, 1, __builtin_return_address(0));
    return memcpy(to, from, n);
}
void *__tsan_memset(void *to, int value, size_t n) {
    access(to, n, Kind::Write, 1, __builtin_return_address(0));
    return memset(to, value, n);
}
}
