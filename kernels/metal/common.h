// What every kernel shares: storage types, vector loads, sums over a SIMD group, the epilogue. The counterpart of
// kernels/cuda/common.cuh: kernels of the same name take the same arguments in the same grid.
//
// Values are stored as T (float, half, bfloat) and computed in float. All threadgroup memory comes as an argument, so that its
// size stands in the launch description.
#pragma once
#include <metal_stdlib>

#include "../params.h"

using namespace metal;

// The ends of every kernel's list of arguments: memory of the block, the block's place and this thread's number in it. Where
// another compiler than Metal's reads this text, its metal_stdlib says how.
#ifndef SHARED
#define SHARED threadgroup float *shared [[threadgroup(0)]]
#define PLACE uint3 block [[threadgroup_position_in_grid]], uint me [[thread_index_in_threadgroup]]
#endif

// Four neighbours, moved by one instruction; only where `VECTOR` promises the alignment.
template <typename T> inline float4 load4(device const T *from) {
    const vec<T, 4> four = *(device const vec<T, 4> *)from;
    float4 to;
    for (uint i = 0; i < 4; i++) to[i] = float(four[i]);
    return to;
}

template <typename T> inline void store4(device T *to, float4 from) {
    vec<T, 4> four;
    for (uint i = 0; i < 4; i++) four[i] = T(from[i]);
    *(device vec<T, 4> *)to = four;
}

// n / d by one multiplication; `multiplier` is 2^32 / d + 1, or 0 for d = 1. Exact while n * d < 2^32, which the host checks.
inline uint quotient(uint n, uint multiplier) { return multiplier ? mulhi(n, multiplier) : n; }

constant constexpr uint WARP = 32;

// Sum over the lanes of a SIMD group, in every lane.
inline float warp_sum(float v) {
    for (ushort step = WARP / 2; step > 0; step /= 2) v += simd_shuffle_xor(v, step);
    return v;
}

inline float sigmoid(float v) { return 1.0f / (1.0f + exp(-v)); }

// What follows a convolution's sum: the channel's bias, scale and shift, then SiLU.
struct Terms {
    float factor, offset;
};

template <typename T>
inline Terms channel_terms(constant ConvParams &p, device const T *bias, device const T *scale, device const T *shift, uint sample,
                           uint channel) {
    Terms terms;
    terms.factor = p.flags & HAS_SCALE ? float(scale[channel]) : 1.0f;
    terms.offset = p.flags & HAS_SHIFT ? float(shift[channel]) : 0.0f;
    if (p.flags & HAS_BIAS) {
        const size_t row = p.flags & BIAS_PER_SAMPLE ? size_t(sample) * p.groups * p.out_per_group : 0;
        terms.offset = fma(float(bias[row + channel]), terms.factor, terms.offset);
    }
    return terms;
}

inline float finish(float v, Terms terms, uint flags) {
    v = fma(v, terms.factor, terms.offset);
    return flags & SILU ? v * sigmoid(v) : v;
}

// The head of a kernel for blocks of so many threads.
#define KERNEL(THREADS) [[kernel, max_total_threads_per_threadgroup(THREADS)]] void

// Stamps a kernel for each storage type; its name ends in the type's. Metal before 3.1 has no bfloat.
#ifdef __HAVE_BFLOAT__
#define FOR_EACH_TYPE(STAMP) STAMP(float, f32) STAMP(half, f16) STAMP(bfloat, bf16)
#else
#define FOR_EACH_TYPE(STAMP) STAMP(float, f32) STAMP(half, f16)
#endif
