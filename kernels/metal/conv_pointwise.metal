// Convolution with 1 x 1 kernels, stride 1 and no padding: for a sample and group the plain matrix product
//     y[out_per_group, pixels] = kernels[out_per_group, in_per_group] * x[in_per_group, pixels]
// in which the map itself is the right matrix.
#include "gemm.h"

// Loader of the map: a thread takes four neighbouring pixels of one channel, so that a vector goes straight to threadgroup memory.
template <typename T> struct PixelLoader {
    device const T *x; // this thread's first pixel in the group's first plane
    uint pixels, channels;
    uint left; // pixels from this thread's first to the end of the plane, 0 beyond it
    bool vectors;
    uint me;

    static uint thread_index(uint me) { return me % 16 * 4; }
    static uint thread_depth(uint me) { return me / 16; }

    float4 fetch(uint k) const {
        const uint channel = k + thread_depth(me);
        device const T *from = x + size_t(channel) * pixels;
        if (vectors && left && channel < channels) return load4(from);
        float4 v;
        for (uint i = 0; i < 4; i++) v[i] = i < left && channel < channels ? float(from[i]) : 0.0f;
        return v;
    }

    void put(threadgroup float *tile, float4 v) const {
        *(threadgroup float4 *)(tile + thread_depth(me) * TILE_STRIDE + thread_index(me)) = v;
    }
};

template <typename T> inline PixelLoader<T> pixels_of(constant ConvParams &p, At at, uint me, device const T *map) {
    PixelLoader<T> loader;
    loader.pixels = p.height * p.width;
    loader.channels = p.in_per_group;
    const uint pixel = at.column + PixelLoader<T>::thread_index(me);
    loader.left = pixel < loader.pixels ? loader.pixels - pixel : 0;
    loader.x = map + (size_t(at.sample) * p.groups + at.group) * loader.channels * loader.pixels + pixel;
    loader.vectors = (p.flags & VECTOR) && loader.pixels % 4 == 0;
    loader.me = me;
    return loader;
}

#define CONV_POINTWISE(T, NAME)                                                                                                \
    KERNEL(GEMM_THREADS) conv_pointwise_##NAME(                                                                                \
        device const T *x [[buffer(0)]], device const T *kernels [[buffer(1)]], device const T *bias [[buffer(2)]],            \
        device const T *scale [[buffer(3)]], device const T *shift [[buffer(4)]], device T *y [[buffer(5)]],                   \
        constant ConvParams &p [[buffer(6)]], SHARED, PLACE) {                                                                 \
        const At at = place(p, p.out_height * p.out_width, block);                                                             \
        float4 sum[4] = {float4(0.0f), float4(0.0f), float4(0.0f), float4(0.0f)};                                              \
        multiply(kernel_rows(p, at, me, kernels, p.in_per_group), pixels_of(p, at, me, x), p.in_per_group, shared, me, sum);   \
        store_pixels(p, at, me, sum, bias, scale, shift, y);                                                                   \
    }
FOR_EACH_TYPE(CONV_POINTWISE)
