// What runs over values one by one: the epilogue of a convolution on its own, and sums of partial results in a fixed order.
#include "common.cuh"

constexpr unsigned MAP_THREADS = 256u;

// y = SiLU((x + bias) * scale + shift), each part where it is asked for, on maps of `out_height` x `out_width`. Grid: groups of
// four pixels of a plane within channels within samples.
template <typename T>
__device__ void epilogue(const T *x, const T *bias, const T *scale, const T *shift, T *y, const ConvParams &p) {
    const unsigned pixels = p.out_height * p.out_width, tiles = (pixels + 4u * MAP_THREADS - 1) / (4u * MAP_THREADS);
    const unsigned plane = blockIdx.x / tiles, channels = p.groups * p.out_per_group;
    const unsigned first = (blockIdx.x % tiles * MAP_THREADS + threadIdx.x) * 4u;
    if (first >= pixels) return;
    float factor, offset;
    channel_terms(p, bias, scale, shift, plane / channels, plane % channels, factor, offset);
    const size_t at = size_t(plane) * pixels + first;
    if (p.flags & VECTOR && pixels % 4u == 0) {
        float v[4];
        load4(x + at, v);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = finish(v[i], factor, offset, p.flags);
        store4(y + at, v);
    } else {
        for (unsigned i = 0; i < 4 && first + i < pixels; i++) y[at + i] = from_float<T>(finish(to_float(x[at + i]), factor, offset, p.flags));
    }
}

// out = sum of the rows of `parts`, the first to the last.
template <typename T> __device__ void sum_parts(const float *parts, T *out, const SumParams &p) {
    const unsigned at = blockIdx.x * MAP_THREADS + threadIdx.x;
    if (at >= p.length) return;
    float sum = parts[at];
    for (unsigned i = 1; i < p.parts; i++) sum += parts[size_t(i) * p.length + at];
    out[at] = from_float<T>(sum);
}

#define EPILOGUE(T, NAME)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(MAP_THREADS)                                                                   \
        epilogue_##NAME(const T *x, const T *bias, const T *scale, const T *shift, T *y, ConvParams p) {                        \
        epilogue<T>(x, bias, scale, shift, y, p);                                                                               \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(MAP_THREADS) sum_parts_##NAME(const float *parts, T *out, SumParams p) {       \
        sum_parts<T>(parts, out, p);                                                                                            \
    }
FOR_EACH_TYPE(EPILOGUE)
