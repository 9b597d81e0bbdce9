// Mixing of experts, and what its gradient needs.
#include "common.cuh"

constexpr unsigned MIX_THREADS = 256u;
constexpr unsigned MIX_ROWS = 8u;   // rows written by a block: each value of `in` is read once for all of them
constexpr unsigned MIX_CHUNK = 32u; // coefficients of a row that are in shared memory at a time

// out[i, :] = sum over j of coefficient[i, j] * in[j, :]. With coefficients as they are it mixes experts into the kernels of
// each sample; transposed (by its steps) it turns the gradient of those kernels into the gradient of the experts.
template <typename T> __device__ void mix_experts(const T *coefficients, const T *in, T *out, const MixParams &p) {
    extern __shared__ __align__(16) float shared[]; // [MIX_ROWS][MIX_CHUNK]
    const unsigned first = (blockIdx.x * MIX_THREADS + threadIdx.x) * 4u, row = blockIdx.y * MIX_ROWS;
    const unsigned rows = min(MIX_ROWS, p.rows_out - row);
    const bool vector = (p.flags & VECTOR) && p.length % 4u == 0;
    float sum[MIX_ROWS][4] = {};
    for (unsigned start = 0; start < p.rows_in; start += MIX_CHUNK) {
        const unsigned chunk = min(MIX_CHUNK, p.rows_in - start);
        __syncthreads(); // the last chunk has been read
        const unsigned i = threadIdx.x / MIX_CHUNK, j = threadIdx.x % MIX_CHUNK;
        if (j < chunk) {
            const size_t at = size_t(row + i) * p.row_step + size_t(start + j) * p.column_step;
            shared[threadIdx.x] = i < rows ? to_float(coefficients[at]) : 0.0f;
        }
        __syncthreads();
        if (first >= p.length) continue;
        for (unsigned j = 0; j < chunk; j++) {
            const T *from = in + size_t(start + j) * p.length + first;
            float v[4];
            if (vector) {
                load4(from, v);
            } else {
#pragma unroll
                for (unsigned e = 0; e < 4; e++) v[e] = first + e < p.length ? to_float(from[e]) : 0.0f;
            }
#pragma unroll
            for (unsigned i = 0; i < MIX_ROWS; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum[i][e] = fmaf(shared[i * MIX_CHUNK + j], v[e], sum[i][e]);
        }
    }
    if (first >= p.length) return;
#pragma unroll
    for (unsigned i = 0; i < MIX_ROWS; i++) {
        if (i >= rows) return;
        T *to = out + size_t(row + i) * p.length + first;
        if (vector) {
            store4(to, sum[i]);
        } else {
#pragma unroll
            for (unsigned e = 0; e < 4; e++)
                if (first + e < p.length) to[e] = from_float<T>(sum[i][e]);
        }
    }
}

constexpr unsigned DOT_THREADS = 256u;
constexpr unsigned DOT_WARPS = DOT_THREADS / WARP;
constexpr unsigned DOT_VALUES = 8u; // values of a row in a thread's registers
constexpr unsigned DOT_ROWS = 4u;   // rows of `grad` of a block: each expert value is read once for all of them
constexpr unsigned DOT_CHUNK = 32u; // experts whose sums are in shared memory at a time

// parts[chunk, i, j] = sum over the chunk of grad[i, :] * experts[j, :], the gradient of the routing weights in parts, one a
// chunk of DOT_THREADS * DOT_VALUES values; `sum_parts` adds them in order. Grid: chunks, tiles of rows.
template <typename T> __device__ void mix_grad_routing(const T *grad, const T *experts, float *parts, const MixParams &p) {
    extern __shared__ __align__(16) float shared[]; // [DOT_CHUNK][DOT_ROWS][DOT_WARPS]
    const unsigned first = blockIdx.x * DOT_THREADS * DOT_VALUES + threadIdx.x, row = blockIdx.y * DOT_ROWS;
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float g[DOT_ROWS][DOT_VALUES];
#pragma unroll
    for (unsigned i = 0; i < DOT_ROWS; i++)
#pragma unroll
        for (unsigned e = 0; e < DOT_VALUES; e++) {
            const unsigned at = first + e * DOT_THREADS;
            g[i][e] = row + i < p.rows_out && at < p.length ? to_float(grad[size_t(row + i) * p.length + at]) : 0.0f;
        }
    for (unsigned start = 0; start < p.rows_in; start += DOT_CHUNK) {
        const unsigned chunk = min(DOT_CHUNK, p.rows_in - start);
        for (unsigned j = 0; j < chunk; j++) {
            float sum[DOT_ROWS] = {};
#pragma unroll
            for (unsigned e = 0; e < DOT_VALUES; e++) {
                const unsigned at = first + e * DOT_THREADS;
                const float v = at < p.length ? to_float(experts[size_t(start + j) * p.length + at]) : 0.0f;
#pragma unroll
                for (unsigned i = 0; i < DOT_ROWS; i++) sum[i] = fmaf(g[i][e], v, sum[i]);
            }
#pragma unroll
            for (unsigned i = 0; i < DOT_ROWS; i++) {
                const float total = warp_sum(sum[i]);
                if (lane == 0) shared[(j * DOT_ROWS + i) * DOT_WARPS + warp] = total;
            }
        }
        __syncthreads();
        for (unsigned at = threadIdx.x; at < chunk * DOT_ROWS; at += DOT_THREADS) {
            const unsigned i = at % DOT_ROWS, j = at / DOT_ROWS;
            float total = 0.0f;
#pragma unroll
            for (unsigned w = 0; w < DOT_WARPS; w++) total += shared[at * DOT_WARPS + w];
            if (row + i < p.rows_out) parts[(size_t(blockIdx.x) * p.rows_out + row + i) * p.rows_in + start + j] = total;
        }
        __syncthreads(); // before the next chunk writes
    }
}

#define MIX(T, NAME)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(MIX_THREADS)                                                                   \
        mix_experts_##NAME(const T *coefficients, const T *in, T *out, MixParams p) {                                           \
        mix_experts<T>(coefficients, in, out, p);                                                                               \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(DOT_THREADS)                                                                   \
        mix_grad_routing_##NAME(const T *grad, const T *experts, float *parts, MixParams p) {                                   \
        mix_grad_routing<T>(grad, experts, parts, p);                                                                           \
    }
FOR_EACH_TYPE(MIX)
