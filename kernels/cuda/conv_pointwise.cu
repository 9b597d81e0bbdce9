// Convolution with 1 x 1 kernels, stride 1 and no padding: for a sample and group the plain matrix product
//     y[out_per_group, pixels] = kernels[out_per_group, in_per_group] * x[in_per_group, pixels]
// in which the map itself is the right matrix.
#include "gemm.cuh"

// Loader of the map: a thread takes four neighbouring pixels of one channel, so that a vector goes straight to shared memory.
template <typename T> struct PixelLoader {
    const T *x; // this thread's first pixel in the group's first plane
    unsigned pixels, channels;
    unsigned left; // pixels from this thread's first to the end of the plane, 0 beyond it
    bool vector;

    __device__ static unsigned thread_index() { return threadIdx.x % 16u * 4u; }
    __device__ static unsigned thread_depth() { return threadIdx.x / 16u; }

    __device__ PixelLoader(const ConvParams &p, const Place &at, const T *map)
        : pixels(p.height * p.width), channels(p.in_per_group), vector((p.flags & VECTOR) && pixels % 4u == 0) {
        const unsigned pixel = at.column + thread_index();
        left = pixel < pixels ? pixels - pixel : 0;
        x = map + (size_t(at.sample) * p.groups + at.group) * channels * pixels + pixel;
    }

    __device__ void fetch(unsigned k, float (&v)[4]) const {
        const unsigned channel = k + thread_depth();
        const T *from = x + size_t(channel) * pixels;
        if (vector && left && channel < channels) {
            load4(from, v);
            return;
        }
#pragma unroll
        for (unsigned i = 0; i < 4; i++) v[i] = i < left && channel < channels ? to_float(from[i]) : 0.0f;
    }

    __device__ void put(float *tile, const float (&v)[4]) const { store4(tile + thread_depth() * TILE_STRIDE + thread_index(), v); }
};

template <typename T>
__device__ void conv_pointwise(const T *x, const T *kernels, const T *bias, const T *scale, const T *shift, T *y,
                               const ConvParams &p) {
    extern __shared__ __align__(16) float shared[];
    const Place at(p, p.out_height * p.out_width);
    float sum[4][4] = {};
    multiply(kernel_rows(p, at, kernels, p.in_per_group), PixelLoader<T>(p, at, x), p.in_per_group, shared, sum);
    store_pixels(p, at, sum, bias, scale, shift, y);
}

#define CONV_POINTWISE(T, NAME)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS) conv_pointwise_##NAME(                                           \
        const T *x, const T *kernels, const T *bias, const T *scale, const T *shift, T *y, ConvParams p) {                      \
        conv_pointwise<T>(x, kernels, bias, scale, shift, y, p);                                                                \
    }
FOR_EACH_TYPE(CONV_POINTWISE)
