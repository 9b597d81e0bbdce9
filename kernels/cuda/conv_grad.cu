// Gradients of the convolution as implicit matrix products, for any kernel, stride, padding, dilation and groups.
#include "gemm.cuh"

// --- Of the map: dx[in_per_group, pixels] = turned[in_per_group, depth] * spread[depth, pixels], where the depth runs over
// output channels and taps.

// Loader of the kernels by input channel: a thread takes four neighbours of the depth.
template <typename T> struct TurnedLoader {
    const ConvParams &p;
    const T *kernels; // the group's first kernel at this thread's channel; null beyond the last one
    unsigned depth;

    __device__ TurnedLoader(const ConvParams &p, const Place &at, const T *all, unsigned depth) : p(p), depth(depth) {
        const unsigned channel = at.row + RowLoader<T>::thread_index(), window = p.kernel_h * p.kernel_w;
        const size_t taps = size_t(p.in_per_group) * window;
        kernels = channel < p.in_per_group
                      ? all + size_t(at.sample) * p.kernel_stride + at.group * p.out_per_group * taps + channel * window
                      : nullptr;
    }

    __device__ void fetch(unsigned k, float (&v)[4]) const {
        const unsigned window = p.kernel_h * p.kernel_w;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const unsigned at = k + RowLoader<T>::thread_depth() + i, channel = divide(at, p.by_window);
            v[i] = kernels && at < depth ? to_float(kernels[size_t(channel) * p.in_per_group * window + (at - channel * window)]) : 0.0f;
        }
    }

    __device__ void put(float *tile, const float (&v)[4]) const { RowLoader<T>{}.put(tile, v); }
};

// Loader of the output's gradient as each input pixel met it under each tap: a thread takes four depths of one pixel.
template <typename T> struct SpreadLoader {
    const ConvParams &p;
    const T *dy; // the group's first plane; null beyond the last pixel
    unsigned depth;
    int bottom, right; // the pixel in the padded map

    __device__ static unsigned thread_index() { return threadIdx.x % TILE; }
    __device__ static unsigned thread_depth() { return threadIdx.x / TILE * 4u; }

    __device__ SpreadLoader(const ConvParams &p, const Place &at, const T *map, unsigned depth) : p(p), depth(depth) {
        const unsigned pixel = at.column + thread_index();
        const size_t plane = (size_t(at.sample) * p.groups + at.group) * p.out_per_group;
        dy = pixel < p.height * p.width ? map + plane * p.out_height * p.out_width : nullptr;
        bottom = int(pixel / p.width + p.pad_h);
        right = int(pixel % p.width + p.pad_w);
    }

    __device__ void fetch(unsigned k, float (&v)[4]) const {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const unsigned at = k + thread_depth() + i;
            const unsigned channel = divide(at, p.by_window), in_window = at - channel * p.kernel_h * p.kernel_w;
            const unsigned row = divide(in_window, p.by_kernel_w), column = in_window - row * p.kernel_w;
            const int down = bottom - int(row * p.dilation_h), along = right - int(column * p.dilation_w);
            const unsigned oy = divide(unsigned(down), p.by_stride_h), ox = divide(unsigned(along), p.by_stride_w);
            const bool met = dy && at < depth && down >= 0 && along >= 0 && oy < p.out_height && ox < p.out_width &&
                             oy * p.stride_h == unsigned(down) && ox * p.stride_w == unsigned(along);
            v[i] = met ? to_float(dy[size_t(channel) * p.out_height * p.out_width + oy * p.out_width + ox]) : 0.0f;
        }
    }

    __device__ void put(float *tile, const float (&v)[4]) const {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) tile[(thread_depth() + i) * TILE_STRIDE + thread_index()] = v[i];
    }
};

template <typename T> __device__ void conv_grad_input(const T *dy, const T *kernels, T *dx, const ConvParams &p) {
    extern __shared__ __align__(16) float shared[];
    const unsigned pixels = p.height * p.width, depth = p.out_per_group * p.kernel_h * p.kernel_w;
    const Place at(p, pixels);
    float sum[4][4] = {};
    multiply(TurnedLoader<T>(p, at, kernels, depth), SpreadLoader<T>(p, at, dy, depth), depth, shared, sum);
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = at.row + thread_row() + i, column = at.column + thread_column();
        if (row >= p.in_per_group) return;
        T *to = dx + ((size_t(at.sample) * p.groups + at.group) * p.in_per_group + row) * pixels + column;
        for (unsigned j = 0; j < 4; j++)
            if (column + j < pixels) to[j] = from_float<T>(sum[i][j]);
    }
}

// --- Of the kernels: dk[out_per_group, taps] = sum over samples of dy[out_per_group, pixels] * patches[pixels, taps].

constexpr unsigned CHUNK_PIXELS = 1024u; // depth of one unit of the work, which several blocks may share

// Loader of the patches by tap: a thread takes one pixel under four taps, so that a warp reads neighbours of a row.
template <typename T> struct TapLoader {
    const ConvParams &p;
    const T *x; // the first plane of the sample's group
    unsigned first, pixels; // the chunk's first pixel and its end
    unsigned taps, tap;     // this thread's first of four, TILE_K apart

    __device__ static unsigned thread_index() { return threadIdx.x / TILE_K; }
    __device__ static unsigned thread_depth() { return threadIdx.x % TILE_K; }

    __device__ void fetch(unsigned k, float (&v)[4]) const {
        const unsigned pixel = first + k + thread_depth();
        const int top = int(pixel / p.out_width * p.stride_h) - int(p.pad_h), left = int(pixel % p.out_width * p.stride_w) - int(p.pad_w);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const unsigned at = tap + i * TILE_K;
            const unsigned channel = divide(at, p.by_window), in_window = at - channel * p.kernel_h * p.kernel_w;
            const unsigned row = divide(in_window, p.by_kernel_w), column = in_window - row * p.kernel_w;
            const int iy = top + int(row * p.dilation_h), ix = left + int(column * p.dilation_w);
            const bool inside = pixel < pixels && at < taps && iy >= 0 && iy < int(p.height) && ix >= 0 && ix < int(p.width);
            v[i] = inside ? to_float(x[(channel * p.height + iy) * p.width + ix]) : 0.0f;
        }
    }

    __device__ void put(float *tile, const float (&v)[4]) const {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) tile[thread_depth() * TILE_STRIDE + thread_index() + i * TILE_K] = v[i];
    }
};

// parts[part, set, :] over the chunks of that part, as floats. Grid: tiles of taps within groups within sets within parts; tiles
// of output channels. A set is one sample's kernels, or those that all samples share.
template <typename T> __device__ void conv_grad_kernels(const T *dy, const T *x, float *parts, const ConvParams &p) {
    extern __shared__ __align__(16) float shared[];
    const unsigned taps = p.in_per_group * p.kernel_h * p.kernel_w, pixels = p.out_height * p.out_width;
    const Place at(p, taps); // its sample counts the sets of all parts
    const unsigned sets = p.kernel_stride ? p.batch : 1u, set = at.sample % sets, part = at.sample / sets;
    const unsigned begin = part * p.part_chunks, end = min(begin + p.part_chunks, p.set_chunks);
    const unsigned row = at.row + RowLoader<T>::thread_index();
    float sum[4][4] = {};
    for (unsigned chunk = begin; chunk < end; chunk++) {
        const unsigned sample = set + chunk / p.sample_chunks, first = chunk % p.sample_chunks * CHUNK_PIXELS;
        const unsigned depth = min(CHUNK_PIXELS, pixels - first);
        const size_t plane = size_t(sample) * p.groups + at.group;
        const T *from = dy + (plane * p.out_per_group + row) * pixels + first;
        const RowLoader<T> rows{row < p.out_per_group ? from : nullptr, depth, (p.flags & VECTOR) && pixels % 4u == 0};
        const TapLoader<T> patches{p, x + plane * p.in_per_group * p.height * p.width, first, first + depth, taps,
                                   at.column + TapLoader<T>::thread_index()};
        multiply(rows, patches, depth, shared, sum);
    }
    for (unsigned i = 0; i < 4; i++) {
        const unsigned channel = at.row + thread_row() + i, column = at.column + thread_column();
        if (channel >= p.out_per_group) return;
        float *to = parts + ((size_t(at.sample) * p.groups + at.group) * p.out_per_group + channel) * taps + column;
        for (unsigned j = 0; j < 4; j++)
            if (column + j < taps) to[j] = sum[i][j];
    }
}

// The bound of 2 blocks gives the gradient of kernels the registers it needs: with 3 it spills on sm_100 and later.
#define CONV_GRAD(T, NAME)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS)                                                                  \
        conv_grad_input_##NAME(const T *dy, const T *kernels, T *dx, ConvParams p) {                                            \
        conv_grad_input<T>(dy, kernels, dx, p);                                                                                 \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 2)                                                               \
        conv_grad_kernels_##NAME(const T *dy, const T *x, float *parts, ConvParams p) {                                         \
        conv_grad_kernels<T>(dy, x, parts, p);                                                                                  \
    }
FOR_EACH_TYPE(CONV_GRAD)
