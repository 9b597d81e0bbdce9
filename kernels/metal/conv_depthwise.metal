// Convolution of single channels (in_per_group = 1; each makes out_per_group channels) and its gradients, directly: an output
// depends on so few values that the memory, not the arithmetic, is the limit, and neighbours share them through the cache.
#include "common.h"

constant constexpr uint PLANE_THREADS = 256;
constant constexpr uint PLANE_PIXELS = 4; // pixels of a thread

// Blocks that share a plane of so many pixels.
inline uint plane_tiles(uint pixels) { return (pixels + PLANE_THREADS * PLANE_PIXELS - 1) / (PLANE_THREADS * PLANE_PIXELS); }

// One of the pixels of this thread.
inline uint plane_pixel(uint tile, uint i, uint me) { return (tile * PLANE_PIXELS + i) * PLANE_THREADS + me; }

// The kernels of this block's plane as floats in threadgroup memory.
template <typename T> inline void stage_kernels(device const T *kernels, threadgroup float *shared, uint values, uint me) {
    for (uint i = me; i < values; i += PLANE_THREADS) shared[i] = float(kernels[i]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Window sizes as constants where they are common, so that the loops unroll; zeros where they are read from `p`.
template <uint KERNEL_H, uint KERNEL_W, typename T>
inline float window_sum(constant ConvParams &p, device const T *x, threadgroup const float *kernels, uint oy, uint ox) {
    const uint height = KERNEL_H ? KERNEL_H : p.kernel_h, width = KERNEL_W ? KERNEL_W : p.kernel_w;
    const int top = int(oy * p.stride_h) - int(p.pad_h), left = int(ox * p.stride_w) - int(p.pad_w);
    float sum = 0.0f;
    for (uint row = 0; row < height; row++) {
        const int iy = top + int(row * p.dilation_h);
        if (iy < 0 || iy >= int(p.height)) continue;
        for (uint column = 0; column < width; column++) {
            const int ix = left + int(column * p.dilation_w);
            if (ix < 0 || ix >= int(p.width)) continue;
            sum = fma(float(x[size_t(iy) * p.width + ix]), kernels[row * width + column], sum);
        }
    }
    return sum;
}

// Grid: tiles of a plane within output channels within samples. Threadgroup memory: one kernel.
template <typename T>
inline void depthwise(device const T *x, device const T *kernels, device const T *bias, device const T *scale,
                      device const T *shift, device T *y, constant ConvParams &p, threadgroup float *shared, uint3 block, uint me) {
    const uint pixels = p.out_height * p.out_width, tiles = plane_tiles(pixels), plane = block.x / tiles;
    const uint channels = p.groups * p.out_per_group, sample = plane / channels, channel = plane % channels;
    const uint window = p.kernel_h * p.kernel_w;
    stage_kernels(kernels + size_t(sample) * p.kernel_stride + size_t(channel) * window, shared, window, me);
    x += (size_t(sample) * p.groups + channel / p.out_per_group) * p.height * p.width;
    y += size_t(plane) * pixels;
    const Terms terms = channel_terms(p, bias, scale, shift, sample, channel);
    for (uint i = 0; i < PLANE_PIXELS; i++) {
        const uint pixel = plane_pixel(block.x % tiles, i, me);
        if (pixel >= pixels) return;
        const uint oy = pixel / p.out_width, ox = pixel % p.out_width;
        const float sum = p.kernel_h == 3 && p.kernel_w == 3 ? window_sum<3, 3>(p, x, shared, oy, ox)
                                                             : window_sum<0, 0>(p, x, shared, oy, ox);
        y[pixel] = T(finish(sum, terms, p.flags));
    }
}

// The output row or column whose window holds `at` under a tap at `tap`, or `limit` where there is none.
inline uint reached(uint at, uint pad, uint tap, uint stride, uint by_stride, uint limit) {
    const int distance = int(at + pad) - int(tap);
    if (distance < 0) return limit;
    const uint index = quotient(uint(distance), by_stride);
    return index * stride == uint(distance) && index < limit ? index : limit;
}

// Gradient of the map: each pixel gathers what it gave to. Grid: tiles of a plane within channels within samples. Threadgroup
// memory: the kernels that read the channel.
template <typename T>
inline void depthwise_grad_input(device const T *dy, device const T *kernels, device T *dx, constant ConvParams &p,
                                 threadgroup float *shared, uint3 block, uint me) {
    const uint pixels = p.height * p.width, tiles = plane_tiles(pixels), plane = block.x / tiles;
    const uint sample = plane / p.groups, channel = plane % p.groups;
    const uint window = p.kernel_h * p.kernel_w, values = p.out_per_group * window, out_pixels = p.out_height * p.out_width;
    stage_kernels(kernels + size_t(sample) * p.kernel_stride + size_t(channel) * values, shared, values, me);
    dy += size_t(plane) * p.out_per_group * out_pixels;
    dx += size_t(plane) * pixels;
    for (uint i = 0; i < PLANE_PIXELS; i++) {
        const uint pixel = plane_pixel(block.x % tiles, i, me);
        if (pixel >= pixels) return;
        const uint iy = pixel / p.width, ix = pixel % p.width;
        float sum = 0.0f;
        for (uint row = 0; row < p.kernel_h; row++) {
            const uint oy = reached(iy, p.pad_h, row * p.dilation_h, p.stride_h, p.by_stride_h, p.out_height);
            if (oy == p.out_height) continue;
            for (uint column = 0; column < p.kernel_w; column++) {
                const uint ox = reached(ix, p.pad_w, column * p.dilation_w, p.stride_w, p.by_stride_w, p.out_width);
                if (ox == p.out_width) continue;
                for (uint m = 0; m < p.out_per_group; m++) {
                    const float g = float(dy[size_t(m) * out_pixels + oy * p.out_width + ox]);
                    sum = fma(g, shared[m * window + row * p.kernel_w + column], sum);
                }
            }
        }
        dx[pixel] = T(sum);
    }
}

// Gradient of the kernels of each sample, as floats [batch, channels, window]: one block an output plane, one SIMD group a tap.
template <typename T>
inline void depthwise_grad_kernels(device const T *dy, device const T *x, device float *parts, constant ConvParams &p, uint3 block,
                                   uint me) {
    const uint channels = p.groups * p.out_per_group, sample = block.x / channels, channel = block.x % channels;
    const uint window = p.kernel_h * p.kernel_w, pixels = p.out_height * p.out_width;
    const uint lane = me % WARP, warp = me / WARP;
    dy += size_t(block.x) * pixels;
    x += (size_t(sample) * p.groups + channel / p.out_per_group) * p.height * p.width;
    for (uint tap = warp; tap < window; tap += PLANE_THREADS / WARP) {
        const int top = int(tap / p.kernel_w * p.dilation_h) - int(p.pad_h);
        const int left = int(tap % p.kernel_w * p.dilation_w) - int(p.pad_w);
        float sum = 0.0f;
        for (uint pixel = lane; pixel < pixels; pixel += WARP) {
            const int iy = top + int(pixel / p.out_width * p.stride_h), ix = left + int(pixel % p.out_width * p.stride_w);
            if (iy < 0 || iy >= int(p.height) || ix < 0 || ix >= int(p.width)) continue;
            sum = fma(float(dy[pixel]), float(x[size_t(iy) * p.width + ix]), sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) parts[size_t(block.x) * window + tap] = sum;
    }
}

#define CONV_DEPTHWISE(T, NAME)                                                                                                \
    KERNEL(PLANE_THREADS) conv_depthwise_##NAME(                                                                               \
        device const T *x [[buffer(0)]], device const T *kernels [[buffer(1)]], device const T *bias [[buffer(2)]],            \
        device const T *scale [[buffer(3)]], device const T *shift [[buffer(4)]], device T *y [[buffer(5)]],                   \
        constant ConvParams &p [[buffer(6)]], SHARED, PLACE) {                                                                 \
        depthwise(x, kernels, bias, scale, shift, y, p, shared, block, me);                                                    \
    }                                                                                                                          \
    KERNEL(PLANE_THREADS) conv_depthwise_grad_input_##NAME(                                                                    \
        device const T *dy [[buffer(0)]], device const T *kernels [[buffer(1)]], device T *dx [[buffer(2)]],                   \
        constant ConvParams &p [[buffer(3)]], SHARED, PLACE) {                                                                 \
        depthwise_grad_input(dy, kernels, dx, p, shared, block, me);                                                           \
    }                                                                                                                          \
    KERNEL(PLANE_THREADS) conv_depthwise_grad_kernels_##NAME(                                                                  \
        device const T *dy [[buffer(0)]], device const T *x [[buffer(1)]], device float *parts [[buffer(2)]],                  \
        constant ConvParams &p [[buffer(3)]], PLACE) {                                                                         \
        depthwise_grad_kernels(dy, x, parts, p, block, me);                                                                    \
    }
FOR_EACH_TYPE(CONV_DEPTHWISE)
