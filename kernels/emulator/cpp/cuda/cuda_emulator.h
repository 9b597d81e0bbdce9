// What a .cu file sees when a C++ compiler builds it for the emulator: the part of CUDA that the kernels use.
#pragma once
#include "../engine.h"

#include <cmath>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// `extern __shared__ float shared[]` in a kernel names the block's memory, which lies in checks.cc.
#define __shared__

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())

// The caller's line, without the caller's doing: a default argument is evaluated where the call stands.
#define EMULATOR_LINE int line = __builtin_LINE()

inline void __syncthreads(EMULATOR_LINE) { emulator::block_barrier(line); }
inline void __syncwarp(uint32_t mask = ~0u, EMULATOR_LINE) { emulator::warp_meet(mask, 0, -1, true, line); }

template <typename T> inline T emulator_shuffle(uint32_t mask, T value, int source, int line) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = emulator::warp_meet(mask, bits, source, false, line);
    memcpy(&value, &bits, sizeof(T));
    return value;
}
template <typename T> inline T __shfl_sync(uint32_t mask, T value, int source, EMULATOR_LINE) {
    return emulator_shuffle(mask, value, source & 31, line);
}
template <typename T> inline T __shfl_xor_sync(uint32_t mask, T value, int bits, EMULATOR_LINE) {
    return emulator_shuffle(mask, value, int(emulator::lane()) ^ bits, line);
}
template <typename T> inline T __shfl_down_sync(uint32_t mask, T value, unsigned step, EMULATOR_LINE) {
    const unsigned lane = emulator::lane(), from = lane + step;
    return emulator_shuffle(mask, value, int(from < emulator::WARP ? from : lane), line);
}

inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

// Storage types: conversion only, as the kernels compute in float. Both round to the nearest, ties to even.
struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __half2float(__half h) {
    _Float16 v;
    memcpy(&v, &h.bits, 2);
    return float(v);
}
inline __half __float2half(float v) {
    const _Float16 narrow = _Float16(v);
    __half h;
    memcpy(&h.bits, &narrow, 2);
    return h;
}
inline float __bfloat162float(__nv_bfloat16 h) {
    const uint32_t bits = uint32_t(h.bits) << 16;
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
inline __nv_bfloat16 __float2bfloat16(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff}; // NaN
    return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

// Calls a kernel with arguments given by their addresses.
namespace emulator {
template <typename... A> struct Call {
    void (*kernel)(A...);
    void **arguments;

    template <size_t... I> __attribute__((no_sanitize("thread"))) void run(std::index_sequence<I...>) {
        kernel(*static_cast<A *>(arguments[I])...);
    }
    static void body(void *call) { static_cast<Call *>(call)->run(std::index_sequence_for<A...>{}); }
};

template <typename... A>
void call(const char *name, Dim3 grid, Dim3 block, void (*kernel)(A...), void **arguments, const size_t *sizes, size_t count) {
    const size_t expected[] = {sizeof(A)...};
    if (sizes && count != sizeof...(A)) return report("%s takes %zu arguments, got %zu", name, sizeof...(A), count);
    for (size_t i = 0; sizes && i < count; i++)
        if (sizes[i] != expected[i]) return report("argument %zu of %s has %zu bytes, got %zu", i, name, expected[i], sizes[i]);
    Call<A...> call{kernel, arguments};
    run_grid(name, grid, block, Call<A...>::body, &call);
}
} // namespace emulator

#define EMULATOR_KERNEL(kernel)                                                                                                 \
    {#kernel, [](const char *name, emulator::Dim3 grid, emulator::Dim3 block, void **arguments, const size_t *sizes,            \
                 size_t count) { emulator::call(name, grid, block, kernel, arguments, sizes, count); }}
