// What runs over values one by one: the epilogue of a convolution on its own, and sums of partial results in a fixed order.
#include "common.h"

constant constexpr uint MAP_THREADS = 256;

// y = SiLU((x + bias) * scale + shift), each part where it is asked for, on maps of `out_height` x `out_width`. Grid: groups of
// four pixels of a plane within channels within samples.
template <typename T>
inline void finish_map(device const T *x, device const T *bias, device const T *scale, device const T *shift, device T *y,
                       constant ConvParams &p, uint3 block, uint me) {
    const uint pixels = p.out_height * p.out_width, tiles = (pixels + 4 * MAP_THREADS - 1) / (4 * MAP_THREADS);
    const uint plane = block.x / tiles, channels = p.groups * p.out_per_group;
    const uint first = (block.x % tiles * MAP_THREADS + me) * 4;
    if (first >= pixels) return;
    const Terms terms = channel_terms(p, bias, scale, shift, plane / channels, plane % channels);
    const size_t at = size_t(plane) * pixels + first;
    if (p.flags & VECTOR && pixels % 4 == 0) {
        float4 v = load4(x + at);
        for (uint i = 0; i < 4; i++) v[i] = finish(v[i], terms, p.flags);
        store4(y + at, v);
    } else {
        for (uint i = 0; i < 4 && first + i < pixels; i++) y[at + i] = T(finish(float(x[at + i]), terms, p.flags));
    }
}

// out = sum of the rows of `parts`, the first to the last.
template <typename T>
inline void sum_rows(device const float *parts, device T *out, constant SumParams &p, uint3 block, uint me) {
    const uint at = block.x * MAP_THREADS + me;
    if (at >= p.length) return;
    float sum = parts[at];
    for (uint i = 1; i < p.parts; i++) sum += parts[size_t(i) * p.length + at];
    out[at] = T(sum);
}

#define EPILOGUE(T, NAME)                                                                                                      \
    KERNEL(MAP_THREADS) epilogue_##NAME(                                                                                       \
        device const T *x [[buffer(0)]], device const T *bias [[buffer(1)]], device const T *scale [[buffer(2)]],              \
        device const T *shift [[buffer(3)]], device T *y [[buffer(4)]], constant ConvParams &p [[buffer(5)]], PLACE) {         \
        finish_map(x, bias, scale, shift, y, p, block, me);                                                                    \
    }                                                                                                                          \
    KERNEL(MAP_THREADS) sum_parts_##NAME(                                                                                      \
        device const float *parts [[buffer(0)]], device T *out [[buffer(1)]], constant SumParams &p [[buffer(2)]], PLACE) {    \
        sum_rows(parts, out, p, block, me);                                                                                    \
    }
FOR_EACH_TYPE(EPILOGUE)
