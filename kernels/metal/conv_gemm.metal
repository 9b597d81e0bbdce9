// Convolution of any kernel, stride, padding, dilation and groups as an implicit matrix product: for a sample and group,
//     y[out_per_group, pixels] = kernels[out_per_group, taps] * patches[taps, pixels]
// where the patches are gathered from the map while a tile is loaded and never stored in memory.
#include "gemm.h"

// Loader of the patches: a thread takes four taps of one output pixel, so that a SIMD group reads neighbours of a row.
template <typename T> struct PatchLoader {
    constant ConvParams *p;
    device const T *x; // the first plane of the group
    bool inside;       // not beyond the last pixel
    int top, left;
    uint taps;
    uint me;

    static uint thread_index(uint me) { return me % TILE; }
    static uint thread_depth(uint me) { return me / TILE * 4; }

    float4 fetch(uint k) const {
        float4 v;
        for (uint i = 0; i < 4; i++) {
            const uint tap = k + thread_depth(me) + i;
            const uint channel = quotient(tap, p->by_window), in_window = tap - channel * p->kernel_h * p->kernel_w;
            const uint row = quotient(in_window, p->by_kernel_w), column = in_window - row * p->kernel_w;
            const int iy = top + int(row * p->dilation_h), ix = left + int(column * p->dilation_w);
            const bool on_map = inside && tap < taps && iy >= 0 && iy < int(p->height) && ix >= 0 && ix < int(p->width);
            v[i] = on_map ? float(x[(channel * p->height + uint(iy)) * p->width + uint(ix)]) : 0.0f;
        }
        return v;
    }

    void put(threadgroup float *tile, float4 v) const {
        for (uint i = 0; i < 4; i++) tile[(thread_depth(me) + i) * TILE_STRIDE + thread_index(me)] = v[i];
    }
};

template <typename T>
inline PatchLoader<T> patches(constant ConvParams &p, At at, uint me, device const T *map, uint taps) {
    const uint pixel = at.column + PatchLoader<T>::thread_index(me);
    PatchLoader<T> loader;
    loader.p = &p;
    loader.x = map + (size_t(at.sample) * p.groups + at.group) * p.in_per_group * p.height * p.width;
    loader.inside = pixel < p.out_height * p.out_width;
    loader.top = int(pixel / p.out_width * p.stride_h) - int(p.pad_h);
    loader.left = int(pixel % p.out_width * p.stride_w) - int(p.pad_w);
    loader.taps = taps;
    loader.me = me;
    return loader;
}

#define CONV_GEMM(T, NAME)                                                                                                     \
    KERNEL(GEMM_THREADS) conv_gemm_##NAME(                                                                                     \
        device const T *x [[buffer(0)]], device const T *kernels [[buffer(1)]], device const T *bias [[buffer(2)]],            \
        device const T *scale [[buffer(3)]], device const T *shift [[buffer(4)]], device T *y [[buffer(5)]],                   \
        constant ConvParams &p [[buffer(6)]], SHARED, PLACE) {                                                                 \
        const At at = place(p, p.out_height * p.out_width, block);                                                             \
        const uint taps = p.in_per_group * p.kernel_h * p.kernel_w;                                                            \
        float4 sum[4] = {float4(0.0f), float4(0.0f), float4(0.0f), float4(0.0f)};                                              \
        multiply(kernel_rows(p, at, me, kernels, taps), patches(p, at, me, x, taps), taps, shared, me, sum);                   \
        store_pixels(p, at, me, sum, bias, scale, shift, y);                                                                   \
    }
FOR_EACH_TYPE(CONV_GEMM)
