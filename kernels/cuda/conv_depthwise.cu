// Convolution of single channels (in_per_group = 1; each makes out_per_group channels) and its gradients, directly: an output
// depends on so few values that the memory, not the arithmetic, is the limit, and neighbours share them through the cache.
#include "common.cuh"

constexpr unsigned PLANE_THREADS = 256u;
constexpr unsigned PLANE_PIXELS = 4u; // pixels of a thread

// Window sizes as constants where they are common, so that the loops unroll; zeros where they are read from `p`.
template <unsigned KERNEL_H, unsigned KERNEL_W> struct Window {
    __device__ static unsigned height(const ConvParams &p) { return KERNEL_H ? KERNEL_H : p.kernel_h; }
    __device__ static unsigned width(const ConvParams &p) { return KERNEL_W ? KERNEL_W : p.kernel_w; }
};

// The kernels of this block's plane as floats in shared memory.
template <typename T> __device__ void stage_kernels(const T *kernels, float *shared, unsigned values) {
    for (unsigned i = threadIdx.x; i < values; i += PLANE_THREADS) shared[i] = to_float(kernels[i]);
    __syncthreads();
}

// Calls `each(pixel)` for this thread's pixels of a plane that `tiles` blocks share.
template <typename F> __device__ __forceinline__ void for_pixels(unsigned tile, unsigned pixels, F each) {
#pragma unroll
    for (unsigned i = 0; i < PLANE_PIXELS; i++) {
        const unsigned pixel = (tile * PLANE_PIXELS + i) * PLANE_THREADS + threadIdx.x;
        if (pixel < pixels) each(pixel);
    }
}

__device__ __forceinline__ unsigned plane_tiles(unsigned pixels) {
    return (pixels + PLANE_THREADS * PLANE_PIXELS - 1) / (PLANE_THREADS * PLANE_PIXELS);
}

template <typename W, typename T>
__device__ float window_sum(const ConvParams &p, const T *x, const float *kernel, unsigned oy, unsigned ox) {
    const int top = int(oy * p.stride_h) - int(p.pad_h), left = int(ox * p.stride_w) - int(p.pad_w);
    float sum = 0.0f;
#pragma unroll
    for (unsigned row = 0; row < W::height(p); row++) {
        const int iy = top + int(row * p.dilation_h);
        if (iy < 0 || iy >= int(p.height)) continue;
#pragma unroll
        for (unsigned column = 0; column < W::width(p); column++) {
            const int ix = left + int(column * p.dilation_w);
            if (ix < 0 || ix >= int(p.width)) continue;
            sum = fmaf(to_float(x[size_t(iy) * p.width + ix]), kernel[row * W::width(p) + column], sum);
        }
    }
    return sum;
}

// Grid: tiles of a plane within output channels within samples. Shared: one kernel.
template <typename T>
__device__ void conv_depthwise(const T *x, const T *kernels, const T *bias, const T *scale, const T *shift, T *y,
                               const ConvParams &p) {
    extern __shared__ __align__(16) float shared[];
    const unsigned pixels = p.out_height * p.out_width, tiles = plane_tiles(pixels), plane = blockIdx.x / tiles;
    const unsigned channels = p.groups * p.out_per_group, sample = plane / channels, channel = plane % channels;
    const unsigned window = p.kernel_h * p.kernel_w;
    stage_kernels(kernels + size_t(sample) * p.kernel_stride + size_t(channel) * window, shared, window);
    x += (size_t(sample) * p.groups + channel / p.out_per_group) * p.height * p.width;
    y += size_t(plane) * pixels;
    float factor, offset;
    channel_terms(p, bias, scale, shift, sample, channel, factor, offset);
    for_pixels(blockIdx.x % tiles, pixels, [&](unsigned pixel) {
        const unsigned oy = pixel / p.out_width, ox = pixel % p.out_width;
        const float sum = p.kernel_h == 3 && p.kernel_w == 3 ? window_sum<Window<3, 3>>(p, x, shared, oy, ox)
                                                             : window_sum<Window<0, 0>>(p, x, shared, oy, ox);
        y[pixel] = from_float<T>(finish(sum, factor, offset, p.flags));
    });
}

// The output row or column whose window holds `at` under a tap at `tap`, or `limit` where there is none.
__device__ __forceinline__ unsigned reached(unsigned at, unsigned pad, unsigned tap, unsigned stride, unsigned by_stride, unsigned limit) {
    const int distance = int(at + pad) - int(tap);
    if (distance < 0) return limit;
    const unsigned index = divide(unsigned(distance), by_stride);
    return index * stride == unsigned(distance) && index < limit ? index : limit;
}

// Gradient of the map: each pixel gathers what it gave to. Grid: tiles of a plane within channels within samples. Shared: the
// kernels that read the channel.
template <typename T> __device__ void conv_depthwise_grad_input(const T *dy, const T *kernels, T *dx, const ConvParams &p) {
    extern __shared__ __align__(16) float shared[];
    const unsigned pixels = p.height * p.width, tiles = plane_tiles(pixels), plane = blockIdx.x / tiles;
    const unsigned sample = plane / p.groups, channel = plane % p.groups;
    const unsigned window = p.kernel_h * p.kernel_w, values = p.out_per_group * window, out_pixels = p.out_height * p.out_width;
    stage_kernels(kernels + size_t(sample) * p.kernel_stride + size_t(channel) * values, shared, values);
    dy += size_t(plane) * p.out_per_group * out_pixels;
    dx += size_t(plane) * pixels;
    for_pixels(blockIdx.x % tiles, pixels, [&](unsigned pixel) {
        const unsigned iy = pixel / p.width, ix = pixel % p.width;
        float sum = 0.0f;
        for (unsigned row = 0; row < p.kernel_h; row++) {
            const unsigned oy = reached(iy, p.pad_h, row * p.dilation_h, p.stride_h, p.by_stride_h, p.out_height);
            if (oy == p.out_height) continue;
            for (unsigned column = 0; column < p.kernel_w; column++) {
                const unsigned ox = reached(ix, p.pad_w, column * p.dilation_w, p.stride_w, p.by_stride_w, p.out_width);
                if (ox == p.out_width) continue;
                for (unsigned m = 0; m < p.out_per_group; m++) {
                    const float g = to_float(dy[size_t(m) * out_pixels + oy * p.out_width + ox]);
                    sum = fmaf(g, shared[m * window + row * p.kernel_w + column], sum);
                }
            }
        }
        dx[pixel] = from_float<T>(sum);
    });
}

// Gradient of the kernels of each sample, as floats [batch, channels, window]: one block an output plane, one warp a tap.
template <typename T> __device__ void conv_depthwise_grad_kernels(const T *dy, const T *x, float *parts, const ConvParams &p) {
    const unsigned channels = p.groups * p.out_per_group, sample = blockIdx.x / channels, channel = blockIdx.x % channels;
    const unsigned window = p.kernel_h * p.kernel_w, pixels = p.out_height * p.out_width;
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    dy += size_t(blockIdx.x) * pixels;
    x += (size_t(sample) * p.groups + channel / p.out_per_group) * p.height * p.width;
    for (unsigned tap = warp; tap < window; tap += PLANE_THREADS / WARP) {
        const int top = int(tap / p.kernel_w * p.dilation_h) - int(p.pad_h);
        const int left = int(tap % p.kernel_w * p.dilation_w) - int(p.pad_w);
        float sum = 0.0f;
        for (unsigned pixel = lane; pixel < pixels; pixel += WARP) {
            const int iy = top + int(pixel / p.out_width * p.stride_h), ix = left + int(pixel % p.out_width * p.stride_w);
            if (iy < 0 || iy >= int(p.height) || ix < 0 || ix >= int(p.width)) continue;
            sum = fmaf(to_float(dy[pixel]), to_float(x[size_t(iy) * p.width + ix]), sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) parts[size_t(blockIdx.x) * window + tap] = sum;
    }
}

// The bound of 4 blocks lets the forward convolution have more than 32 registers: with 32 it spills on sm_100.
#define CONV_DEPTHWISE(T, NAME)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(PLANE_THREADS, 4) conv_depthwise_##NAME(                                       \
        const T *x, const T *kernels, const T *bias, const T *scale, const T *shift, T *y, ConvParams p) {                      \
        conv_depthwise<T>(x, kernels, bias, scale, shift, y, p);                                                                \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(PLANE_THREADS)                                                                 \
        conv_depthwise_grad_input_##NAME(const T *dy, const T *kernels, T *dx, ConvParams p) {                                  \
        conv_depthwise_grad_input<T>(dy, kernels, dx, p);                                                                       \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(PLANE_THREADS)                                                                 \
        conv_depthwise_grad_kernels_##NAME(const T *dy, const T *x, float *parts, ConvParams p) {                               \
        conv_depthwise_grad_kernels<T>(dy, x, parts, p);                                                                        \
    }
FOR_EACH_TYPE(CONV_DEPTHWISE)
