// Gradients of the convolution as implicit matrix products, for any kernel, stride, padding, dilation and groups.
#include "gemm.h"

// --- Of the map: dx[in_per_group, pixels] = turned[in_per_group, depth] * spread[depth, pixels], where the depth runs over
// output channels and taps.

// Loader of the kernels by input channel: a thread takes four neighbours of the depth.
template <typename T> struct TurnedLoader {
    constant ConvParams *p;
    device const T *kernels; // the group's first kernel at this thread's channel
    bool inside;             // not beyond the last channel
    uint depth;
    uint me;

    float4 fetch(uint k) const {
        const uint window = p->kernel_h * p->kernel_w;
        float4 v;
        for (uint i = 0; i < 4; i++) {
            const uint at = k + RowLoader<T>::thread_depth(me) + i, channel = quotient(at, p->by_window);
            const size_t from = size_t(channel) * p->in_per_group * window + (at - channel * window);
            v[i] = inside && at < depth ? float(kernels[from]) : 0.0f;
        }
        return v;
    }

    void put(threadgroup float *tile, float4 v) const {
        const uint row = RowLoader<T>::thread_depth(me), column = RowLoader<T>::thread_index(me);
        for (uint i = 0; i < 4; i++) tile[(row + i) * TILE_STRIDE + column] = v[i];
    }
};

template <typename T>
inline TurnedLoader<T> turned_kernels(constant ConvParams &p, At at, uint me, device const T *all, uint depth) {
    const uint channel = at.row + RowLoader<T>::thread_index(me), window = p.kernel_h * p.kernel_w;
    const size_t taps = size_t(p.in_per_group) * window;
    TurnedLoader<T> loader;
    loader.p = &p;
    loader.kernels = all + size_t(at.sample) * p.kernel_stride + at.group * p.out_per_group * taps + channel * window;
    loader.inside = channel < p.in_per_group;
    loader.depth = depth;
    loader.me = me;
    return loader;
}

// Loader of the output's gradient as each input pixel met it under each tap: a thread takes four depths of one pixel.
template <typename T> struct SpreadLoader {
    constant ConvParams *p;
    device const T *dy; // the group's first plane
    bool inside;        // not beyond the last pixel
    uint depth;
    int bottom, right; // the pixel in the padded map
    uint me;

    static uint thread_index(uint me) { return me % TILE; }
    static uint thread_depth(uint me) { return me / TILE * 4; }

    float4 fetch(uint k) const {
        float4 v;
        for (uint i = 0; i < 4; i++) {
            const uint at = k + thread_depth(me) + i;
            const uint channel = quotient(at, p->by_window), in_window = at - channel * p->kernel_h * p->kernel_w;
            const uint row = quotient(in_window, p->by_kernel_w), column = in_window - row * p->kernel_w;
            const int down = bottom - int(row * p->dilation_h), along = right - int(column * p->dilation_w);
            const uint oy = quotient(uint(down), p->by_stride_h), ox = quotient(uint(along), p->by_stride_w);
            const bool met = inside && at < depth && down >= 0 && along >= 0 && oy < p->out_height && ox < p->out_width &&
                             oy * p->stride_h == uint(down) && ox * p->stride_w == uint(along);
            v[i] = met ? float(dy[size_t(channel) * p->out_height * p->out_width + oy * p->out_width + ox]) : 0.0f;
        }
        return v;
    }

    void put(threadgroup float *tile, float4 v) const {
        for (uint i = 0; i < 4; i++) tile[(thread_depth(me) + i) * TILE_STRIDE + thread_index(me)] = v[i];
    }
};

template <typename T>
inline SpreadLoader<T> spread_gradient(constant ConvParams &p, At at, uint me, device const T *map, uint depth) {
    const uint pixel = at.column + SpreadLoader<T>::thread_index(me);
    const size_t plane = (size_t(at.sample) * p.groups + at.group) * p.out_per_group;
    SpreadLoader<T> loader;
    loader.p = &p;
    loader.dy = map + plane * p.out_height * p.out_width;
    loader.inside = pixel < p.height * p.width;
    loader.depth = depth;
    loader.bottom = int(pixel / p.width + p.pad_h);
    loader.right = int(pixel % p.width + p.pad_w);
    loader.me = me;
    return loader;
}

template <typename T>
inline void grad_input(device const T *dy, device const T *kernels, device T *dx, constant ConvParams &p, threadgroup float *shared,
                       uint3 block, uint me) {
    const uint pixels = p.height * p.width, depth = p.out_per_group * p.kernel_h * p.kernel_w;
    const At at = place(p, pixels, block);
    float4 sum[4] = {float4(0.0f), float4(0.0f), float4(0.0f), float4(0.0f)};
    multiply(turned_kernels(p, at, me, kernels, depth), spread_gradient(p, at, me, dy, depth), depth, shared, me, sum);
    for (uint i = 0; i < 4; i++) {
        const uint row = at.row + thread_row(me) + i, column = at.column + thread_column(me);
        if (row >= p.in_per_group) return;
        device T *to = dx + ((size_t(at.sample) * p.groups + at.group) * p.in_per_group + row) * pixels + column;
        for (uint j = 0; j < 4; j++)
            if (column + j < pixels) to[j] = T(sum[i][j]);
    }
}

// --- Of the kernels: dk[out_per_group, taps] = sum over samples of dy[out_per_group, pixels] * patches[pixels, taps].

constant constexpr uint CHUNK_PIXELS = 1024; // depth of one unit of the work, which several blocks may share

// Loader of the patches by tap: a thread takes one pixel under four taps, so that a SIMD group reads neighbours of a row.
template <typename T> struct TapLoader {
    constant ConvParams *p;
    device const T *x;  // the first plane of the sample's group
    uint first, pixels; // of the chunk: its begin and its end
    uint taps, tap;     // this thread's first of four, TILE_K apart
    uint me;

    static uint thread_index(uint me) { return me / TILE_K; }
    static uint thread_depth(uint me) { return me % TILE_K; }

    float4 fetch(uint k) const {
        const uint pixel = first + k + thread_depth(me);
        const int top = int(pixel / p->out_width * p->stride_h) - int(p->pad_h);
        const int left = int(pixel % p->out_width * p->stride_w) - int(p->pad_w);
        float4 v;
        for (uint i = 0; i < 4; i++) {
            const uint at = tap + i * TILE_K;
            const uint channel = quotient(at, p->by_window), in_window = at - channel * p->kernel_h * p->kernel_w;
            const uint row = quotient(in_window, p->by_kernel_w), column = in_window - row * p->kernel_w;
            const int iy = top + int(row * p->dilation_h), ix = left + int(column * p->dilation_w);
            const bool on_map = pixel < pixels && at < taps && iy >= 0 && iy < int(p->height) && ix >= 0 && ix < int(p->width);
            v[i] = on_map ? float(x[(channel * p->height + uint(iy)) * p->width + uint(ix)]) : 0.0f;
        }
        return v;
    }

    void put(threadgroup float *tile, float4 v) const {
        for (uint i = 0; i < 4; i++) tile[thread_depth(me) * TILE_STRIDE + thread_index(me) + i * TILE_K] = v[i];
    }
};

// parts[part, set, :] over the chunks of that part, as floats. Grid: tiles of taps within groups within sets within parts; tiles
// of output channels. A set is one sample's kernels, or those that all samples share.
template <typename T>
inline void grad_kernels(device const T *dy, device const T *x, device float *parts, constant ConvParams &p,
                         threadgroup float *shared, uint3 block, uint me) {
    const uint taps = p.in_per_group * p.kernel_h * p.kernel_w, pixels = p.out_height * p.out_width;
    const At at = place(p, taps, block); // its sample counts the sets of all parts
    const uint sets = p.kernel_stride ? p.batch : 1, set = at.sample % sets, part = at.sample / sets;
    const uint begin = part * p.part_chunks, end = min(begin + p.part_chunks, p.set_chunks);
    const uint row = at.row + RowLoader<T>::thread_index(me);
    float4 sum[4] = {float4(0.0f), float4(0.0f), float4(0.0f), float4(0.0f)};
    for (uint chunk = begin; chunk < end; chunk++) {
        const uint sample = set + chunk / p.sample_chunks, first = chunk % p.sample_chunks * CHUNK_PIXELS;
        const uint depth = min(CHUNK_PIXELS, pixels - first);
        const size_t plane = size_t(sample) * p.groups + at.group;
        RowLoader<T> rows;
        rows.row = dy + (plane * p.out_per_group + row) * pixels + first;
        rows.inside = row < p.out_per_group;
        rows.depth = depth;
        rows.vectors = (p.flags & VECTOR) && pixels % 4 == 0;
        rows.me = me;
        TapLoader<T> patches;
        patches.p = &p;
        patches.x = x + plane * p.in_per_group * p.height * p.width;
        patches.first = first;
        patches.pixels = first + depth;
        patches.taps = taps;
        patches.tap = at.column + TapLoader<T>::thread_index(me);
        patches.me = me;
        multiply(rows, patches, depth, shared, me, sum);
    }
    for (uint i = 0; i < 4; i++) {
        const uint channel = at.row + thread_row(me) + i, column = at.column + thread_column(me);
        if (channel >= p.out_per_group) return;
        device float *to = parts + ((size_t(at.sample) * p.groups + at.group) * p.out_per_group + channel) * taps + column;
        for (uint j = 0; j < 4; j++)
            if (column + j < taps) to[j] = sum[i][j];
    }
}

#define CONV_GRAD(T, NAME)                                                                                                     \
    KERNEL(GEMM_THREADS) conv_grad_input_##NAME(                                                                               \
        device const T *dy [[buffer(0)]], device const T *kernels [[buffer(1)]], device T *dx [[buffer(2)]],                   \
        constant ConvParams &p [[buffer(3)]], SHARED, PLACE) {                                                                 \
        grad_input(dy, kernels, dx, p, shared, block, me);                                                                     \
    }                                                                                                                          \
    KERNEL(GEMM_THREADS) conv_grad_kernels_##NAME(                                                                             \
        device const T *dy [[buffer(0)]], device const T *x [[buffer(1)]], device float *parts [[buffer(2)]],                  \
        constant ConvParams &p [[buffer(3)]], SHARED, PLACE) {                                                                 \
        grad_kernels(dy, x, parts, p, shared, block, me);                                                                      \
    }
FOR_EACH_TYPE(CONV_GRAD)
