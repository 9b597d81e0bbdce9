// What every kernel shares: storage types, vector loads, sums over a warp and a block, the epilogue.
//
// Values are stored as T (float, __half, __nv_bfloat16) and computed in float. All shared memory is dynamic, so that its
// size stands in the launch description. Nothing here needs the C++ library: NVRTC compiles it as it is.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../params.h"

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ __half from_float<__half>(float v) { return __float2half(v); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16(v); }

// Four neighbours, moved by one instruction; only where `VECTOR` promises the alignment.
template <typename T> struct __align__(4 * sizeof(T)) Four {
    T v[4];
};

template <typename T> __device__ __forceinline__ void load4(const T *from, float (&to)[4]) {
    const Four<T> four = *reinterpret_cast<const Four<T> *>(from);
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = to_float(four.v[i]);
}

template <typename T> __device__ __forceinline__ void store4(T *to, const float (&from)[4]) {
    Four<T> four;
#pragma unroll
    for (int i = 0; i < 4; i++) four.v[i] = from_float<T>(from[i]);
    *reinterpret_cast<Four<T> *>(to) = four;
}

// n / d by one multiplication; `multiplier` is 2^32 / d + 1, or 0 for d = 1. Exact while n * d < 2^32, which the host checks.
__device__ __forceinline__ unsigned divide(unsigned n, unsigned multiplier) {
    return multiplier ? __umulhi(n, multiplier) : n;
}

constexpr unsigned WARP = 32u;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Sum over the lanes of a warp, in every lane.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (unsigned step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

__device__ __forceinline__ float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }

// What follows a convolution's sum: the channel's bias, scale and shift, then SiLU.
template <typename T>
__device__ __forceinline__ void channel_terms(const ConvParams &p, const T *bias, const T *scale, const T *shift, unsigned sample,
                                              unsigned channel, float &factor, float &offset) {
    factor = p.flags & HAS_SCALE ? to_float(scale[channel]) : 1.0f;
    offset = p.flags & HAS_SHIFT ? to_float(shift[channel]) : 0.0f;
    if (p.flags & HAS_BIAS) {
        const size_t row = p.flags & BIAS_PER_SAMPLE ? size_t(sample) * p.groups * p.out_per_group : 0;
        offset = fmaf(to_float(bias[row + channel]), factor, offset);
    }
}

__device__ __forceinline__ float finish(float v, float factor, float offset, unsigned flags) {
    v = fmaf(v, factor, offset);
    return flags & SILU ? v * sigmoid(v) : v;
}

// Stamps a kernel for each storage type; its name ends in the type's.
#define FOR_EACH_TYPE(KERNEL)                                                                                                   \
    KERNEL(float, f32)                                                                                                          \
    KERNEL(__half, f16)                                                                                                         \
    KERNEL(__nv_bfloat16, bf16)
