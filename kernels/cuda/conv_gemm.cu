// Convolution of any kernel, stride, padding, dilation and groups as an implicit matrix product: for a sample and group,
//     y[out_per_group, pixels] = kernels[out_per_group, taps] * patches[taps, pixels]
// where the patches are gathered from the map while a tile is loaded and never stored in memory.
#include "gemm.cuh"

// Loader of the patches: a thread takes four taps of one output pixel, so that a warp reads neighbours of a row.
template <typename T> struct PatchLoader {
    const ConvParams &p;
    const T *x; // the first plane of the group; null beyond the last pixel
    int top, left;
    unsigned taps;

    __device__ static unsigned thread_index() { return threadIdx.x % TILE; }
    __device__ static unsigned thread_depth() { return threadIdx.x / TILE * 4u; }

    __device__ PatchLoader(const ConvParams &p, const Place &at, const T *map, unsigned taps) : p(p), taps(taps) {
        const unsigned pixel = at.column + thread_index();
        const size_t plane = (size_t(at.sample) * p.groups + at.group) * p.in_per_group;
        x = pixel < p.out_height * p.out_width ? map + plane * p.height * p.width : nullptr;
        top = int(pixel / p.out_width * p.stride_h) - int(p.pad_h);
        left = int(pixel % p.out_width * p.stride_w) - int(p.pad_w);
    }

    __device__ void fetch(unsigned k, float (&v)[4]) const {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const unsigned tap = k + thread_depth() + i;
            const unsigned channel = divide(tap, p.by_window), in_window = tap - channel * p.kernel_h * p.kernel_w;
            const unsigned row = divide(in_window, p.by_kernel_w), column = in_window - row * p.kernel_w;
            const int iy = top + int(row * p.dilation_h), ix = left + int(column * p.dilation_w);
            const bool inside = x && tap < taps && iy >= 0 && iy < int(p.height) && ix >= 0 && ix < int(p.width);
            v[i] = inside ? to_float(x[(channel * p.height + iy) * p.width + ix]) : 0.0f;
        }
    }

    __device__ void put(float *tile, const float (&v)[4]) const {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) tile[(thread_depth() + i) * TILE_STRIDE + thread_index()] = v[i];
    }
};

template <typename T>
__device__ void conv_gemm(const T *x, const T *kernels, const T *bias, const T *scale, const T *shift, T *y, const ConvParams &p) {
    extern __shared__ __align__(16) float shared[];
    const Place at(p, p.out_height * p.out_width);
    const unsigned taps = p.in_per_group * p.kernel_h * p.kernel_w;
    float sum[4][4] = {};
    multiply(kernel_rows(p, at, kernels, taps), PatchLoader<T>(p, at, x, taps), taps, shared, sum);
    store_pixels(p, at, sum, bias, scale, shift, y);
}

#define CONV_GEMM(T, NAME)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS) conv_gemm_##NAME(                                                \
        const T *x, const T *kernels, const T *bias, const T *scale, const T *shift, T *y, ConvParams p) {                      \
        conv_gemm<T>(x, kernels, bias, scale, shift, y, p);                                                                     \
    }
FOR_EACH_TYPE(CONV_GEMM)
