// One tile of a matrix product through shared memory: the heart of the convolutions and of their gradients.
//
// A block of 256 threads owns 64 x 64 results, 4 x 4 in each thread's registers, and walks the depth in steps of 16. While it
// multiplies one pair of tiles it already fetches the next into registers, and the tiles alternate between two halves of shared
// memory, so one barrier a step is enough. Where the operands come from is the business of two loaders; each has
//     void fetch(unsigned k, float (&v)[4]) const   four values of this thread from depth k on, zeros beyond the edges
//     void put(float *tile, const float (&v)[4]) const   the same four into tile[TILE_K][TILE_STRIDE]
#pragma once
#include "common.cuh"

constexpr unsigned GEMM_THREADS = 256u;
constexpr unsigned TILE = 64u;          // rows and columns of a block
constexpr unsigned TILE_K = 16u;        // depth of a step
constexpr unsigned TILE_STRIDE = 68u;   // 64 and 4 more: keeps rows 16-byte aligned and spreads them over the banks
constexpr unsigned TILE_VALUES = TILE_K * TILE_STRIDE;

// This thread's four rows and four columns begin here.
__device__ __forceinline__ unsigned thread_row() { return threadIdx.x / 16u * 4u; }
__device__ __forceinline__ unsigned thread_column() { return threadIdx.x % 16u * 4u; }

// Loader of a matrix whose rows are contiguous along the depth: a thread takes four neighbours of one row.
template <typename T> struct RowLoader {
    const T *row; // this thread's row; null beyond the last one
    unsigned depth;
    bool vector; // rows begin on a multiple of four values, and so does their end

    __device__ static unsigned thread_index() { return threadIdx.x / 4u; }
    __device__ static unsigned thread_depth() { return threadIdx.x % 4u * 4u; }

    __device__ void fetch(unsigned k, float (&v)[4]) const {
        const unsigned first = k + thread_depth();
        if (row && vector && first < depth) {
            load4(row + first, v);
            return;
        }
#pragma unroll
        for (unsigned i = 0; i < 4; i++) v[i] = row && first + i < depth ? to_float(row[first + i]) : 0.0f;
    }

    __device__ void put(float *tile, const float (&v)[4]) const {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) tile[(thread_depth() + i) * TILE_STRIDE + thread_index()] = v[i];
    }
};

// Adds the product of the two matrices to `sum`. All threads of the block call it with the same depth; `shared` holds four
// tiles, and is free again when it returns.
template <typename A, typename B>
__device__ void multiply(const A &a, const B &b, unsigned depth, float *shared, float (&sum)[4][4]) {
    float *const tiles_a = shared, *const tiles_b = shared + 2 * TILE_VALUES;
    float next_a[4], next_b[4];
    a.fetch(0, next_a);
    b.fetch(0, next_b);
    a.put(tiles_a, next_a);
    b.put(tiles_b, next_b);
    __syncthreads();
    unsigned half = 0;
    for (unsigned k = 0; k < depth; k += TILE_K) {
        const bool more = k + TILE_K < depth;
        if (more) {
            a.fetch(k + TILE_K, next_a);
            b.fetch(k + TILE_K, next_b);
        }
        const float *rows = tiles_a + half * TILE_VALUES + thread_row();
        const float *columns = tiles_b + half * TILE_VALUES + thread_column();
#pragma unroll
        for (unsigned step = 0; step < TILE_K; step++) {
            float row[4], column[4];
            load4(rows + step * TILE_STRIDE, row);
            load4(columns + step * TILE_STRIDE, column);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(row[i], column[j], sum[i][j]);
        }
        half ^= 1u;
        if (more) {
            a.put(tiles_a + half * TILE_VALUES, next_a);
            b.put(tiles_b + half * TILE_VALUES, next_b);
        }
        __syncthreads();
    }
}

// Which sample, group and tiles a block of a convolution works on: blockIdx.x runs over tiles of `columns` within groups
// within samples, blockIdx.y over tiles of rows.
struct Place {
    unsigned sample, group, row, column;

    __device__ Place(const ConvParams &p, unsigned columns) {
        const unsigned tiles = (columns + TILE - 1) / TILE, plane = blockIdx.x / tiles;
        sample = plane / p.groups;
        group = plane % p.groups;
        row = blockIdx.y * TILE;
        column = blockIdx.x % tiles * TILE;
    }
};

// Writes this thread's results as pixels of an output map, after the epilogue.
template <typename T>
__device__ void store_pixels(const ConvParams &p, const Place &at, const float (&sum)[4][4], const T *bias, const T *scale,
                             const T *shift, T *y) {
    const unsigned pixels = p.out_height * p.out_width, column = at.column + thread_column();
    if (column >= pixels) return;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = at.row + thread_row() + i;
        if (row >= p.out_per_group) return;
        const unsigned channel = at.group * p.out_per_group + row;
        float factor, offset, v[4];
        channel_terms(p, bias, scale, shift, at.sample, channel, factor, offset);
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = finish(sum[i][j], factor, offset, p.flags);
        T *to = y + (size_t(at.sample) * p.groups * p.out_per_group + channel) * pixels + column;
        if (p.flags & VECTOR && pixels % 4u == 0) {
            store4(to, v);
        } else {
#pragma unroll
            for (unsigned j = 0; j < 4; j++)
                if (column + j < pixels) to[j] = from_float<T>(v[j]);
        }
    }
}

// The kernels' row for this thread of a forward convolution, as the left matrix.
template <typename T>
__device__ RowLoader<T> kernel_rows(const ConvParams &p, const Place &at, const T *kernels, unsigned taps) {
    const unsigned row = at.row + RowLoader<T>::thread_index();
    const T *from = kernels + size_t(at.sample) * p.kernel_stride + size_t(at.group * p.out_per_group + row) * taps;
    return {row < p.out_per_group ? from : nullptr, taps, (p.flags & VECTOR) && taps % 4u == 0};
}
