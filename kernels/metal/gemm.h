// One tile of a matrix product through threadgroup memory: the heart of the convolutions and of their gradients.
//
// A block of 256 threads owns 64 x 64 results, 4 x 4 in each thread's registers, and walks the depth in steps of 16. While it
// multiplies one pair of tiles it already fetches the next into registers, and the tiles alternate between two halves of
// threadgroup memory, so one barrier a step is enough. Where the operands come from is the business of two loaders; each has
//     float4 fetch(uint k) const                      four values of this thread from depth k on, zeros beyond the edges
//     void put(threadgroup float *tile, float4 v) const    the same four into tile[TILE_K][TILE_STRIDE]
#pragma once
#include "common.h"

constant constexpr uint GEMM_THREADS = 256;
constant constexpr uint TILE = 64;        // rows and columns of a block
constant constexpr uint TILE_K = 16;      // depth of a step
constant constexpr uint TILE_STRIDE = 68; // 64 and 4 more: keeps rows 16-byte aligned and spreads them over the banks
constant constexpr uint TILE_VALUES = TILE_K * TILE_STRIDE;

// A thread's four rows and four columns begin here.
inline uint thread_row(uint me) { return me / 16 * 4; }
inline uint thread_column(uint me) { return me % 16 * 4; }

// Loader of a matrix whose rows are contiguous along the depth: a thread takes four neighbours of one row.
template <typename T> struct RowLoader {
    device const T *row; // this thread's row
    bool inside;         // not beyond the last row
    uint depth;
    bool vectors; // rows begin on a multiple of four values, and so does their end
    uint me;

    static uint thread_index(uint me) { return me / 4; }
    static uint thread_depth(uint me) { return me % 4 * 4; }

    float4 fetch(uint k) const {
        const uint first = k + thread_depth(me);
        if (inside && vectors && first < depth) return load4(row + first);
        float4 v;
        for (uint i = 0; i < 4; i++) v[i] = inside && first + i < depth ? float(row[first + i]) : 0.0f;
        return v;
    }

    void put(threadgroup float *tile, float4 v) const {
        for (uint i = 0; i < 4; i++) tile[(thread_depth(me) + i) * TILE_STRIDE + thread_index(me)] = v[i];
    }
};

// Adds the product of the two matrices to `sum`. All threads of the block call it with the same depth; `shared` holds four
// tiles, and is free again when it returns.
template <typename A, typename B>
inline void multiply(thread const A &a, thread const B &b, uint depth, threadgroup float *shared, uint me, thread float4 *sum) {
    threadgroup float *tiles_a = shared;
    threadgroup float *tiles_b = shared + 2 * TILE_VALUES;
    float4 next_a = a.fetch(0), next_b = b.fetch(0);
    a.put(tiles_a, next_a);
    b.put(tiles_b, next_b);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint side = 0;
    for (uint k = 0; k < depth; k += TILE_K) {
        const bool more = k + TILE_K < depth;
        if (more) {
            next_a = a.fetch(k + TILE_K);
            next_b = b.fetch(k + TILE_K);
        }
        threadgroup const float *rows = tiles_a + side * TILE_VALUES + thread_row(me);
        threadgroup const float *columns = tiles_b + side * TILE_VALUES + thread_column(me);
        for (uint step = 0; step < TILE_K; step++) {
            const float4 row = *(threadgroup const float4 *)(rows + step * TILE_STRIDE);
            const float4 column = *(threadgroup const float4 *)(columns + step * TILE_STRIDE);
            for (uint i = 0; i < 4; i++) sum[i] = fma(float4(row[i]), column, sum[i]);
        }
        side ^= 1;
        if (more) {
            a.put(tiles_a + side * TILE_VALUES, next_a);
            b.put(tiles_b + side * TILE_VALUES, next_b);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
}

// Which sample, group and tiles a block of a convolution works on: block.x runs over tiles of `columns` within groups within
// samples, block.y over tiles of rows.
struct At {
    uint sample, group, row, column;
};

inline At place(constant ConvParams &p, uint columns, uint3 block) {
    const uint tiles = (columns + TILE - 1) / TILE, plane = block.x / tiles;
    At at;
    at.sample = plane / p.groups;
    at.group = plane % p.groups;
    at.row = block.y * TILE;
    at.column = block.x % tiles * TILE;
    return at;
}

// Writes this thread's results as pixels of an output map, after the epilogue.
template <typename T>
inline void store_pixels(constant ConvParams &p, At at, uint me, thread const float4 *sum, device const T *bias,
                         device const T *scale, device const T *shift, device T *y) {
    const uint pixels = p.out_height * p.out_width, column = at.column + thread_column(me);
    if (column >= pixels) return;
    for (uint i = 0; i < 4; i++) {
        const uint row = at.row + thread_row(me) + i;
        if (row >= p.out_per_group) return;
        const uint channel = at.group * p.out_per_group + row;
        const Terms terms = channel_terms(p, bias, scale, shift, at.sample, channel);
        float4 v;
        for (uint j = 0; j < 4; j++) v[j] = finish(sum[i][j], terms, p.flags);
        device T *to = y + (size_t(at.sample) * p.groups * p.out_per_group + channel) * pixels + column;
        if (p.flags & VECTOR && pixels % 4 == 0) {
            store4(to, v);
        } else {
            for (uint j = 0; j < 4; j++)
                if (column + j < pixels) to[j] = T(v[j]);
        }
    }
}

// The kernels' row for this thread of a forward convolution, as the left matrix.
template <typename T>
inline RowLoader<T> kernel_rows(constant ConvParams &p, At at, uint me, device const T *kernels, uint taps) {
    const uint row = at.row + RowLoader<T>::thread_index(me);
    RowLoader<T> loader;
    loader.row = kernels + size_t(at.sample) * p.kernel_stride + size_t(at.group * p.out_per_group + row) * taps;
    loader.inside = row < p.out_per_group;
    loader.depth = taps;
    loader.vectors = (p.flags & VECTOR) && taps % 4 == 0;
    loader.me = me;
    return loader;
}
