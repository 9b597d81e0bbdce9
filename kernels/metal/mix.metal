// Mixing of experts, and what its gradient needs.
#include "common.h"

constant constexpr uint MIX_THREADS = 256;
constant constexpr uint MIX_ROWS = 8;   // rows written by a block: each value of `in` is read once for all of them
constant constexpr uint MIX_CHUNK = 32; // coefficients of a row that are in threadgroup memory at a time

// out[i, :] = sum over j of coefficient[i, j] * in[j, :]. With coefficients as they are it mixes experts into the kernels of
// each sample; transposed (by its steps) it turns the gradient of those kernels into the gradient of the experts.
template <typename T>
inline void mix_rows(device const T *coefficients, device const T *in, device T *out, constant MixParams &p,
                     threadgroup float *shared, uint3 block, uint me) { // shared: [MIX_ROWS][MIX_CHUNK]
    const uint first = (block.x * MIX_THREADS + me) * 4, row = block.y * MIX_ROWS;
    const uint rows = min(MIX_ROWS, p.rows_out - row);
    const bool vectors = (p.flags & VECTOR) && p.length % 4 == 0;
    float4 sum[MIX_ROWS];
    for (uint i = 0; i < MIX_ROWS; i++) sum[i] = float4(0.0f);
    for (uint start = 0; start < p.rows_in; start += MIX_CHUNK) {
        const uint chunk = min(MIX_CHUNK, p.rows_in - start);
        threadgroup_barrier(mem_flags::mem_threadgroup); // the last chunk has been read
        const uint i = me / MIX_CHUNK, j = me % MIX_CHUNK;
        if (j < chunk) {
            const size_t at = size_t(row + i) * p.row_step + size_t(start + j) * p.column_step;
            shared[me] = i < rows ? float(coefficients[at]) : 0.0f;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (first >= p.length) continue;
        for (uint j = 0; j < chunk; j++) {
            device const T *from = in + size_t(start + j) * p.length + first;
            float4 v;
            if (vectors) {
                v = load4(from);
            } else {
                for (uint e = 0; e < 4; e++) v[e] = first + e < p.length ? float(from[e]) : 0.0f;
            }
            for (uint i = 0; i < MIX_ROWS; i++) sum[i] = fma(float4(shared[i * MIX_CHUNK + j]), v, sum[i]);
        }
    }
    if (first >= p.length) return;
    for (uint i = 0; i < rows; i++) {
        device T *to = out + size_t(row + i) * p.length + first;
        if (vectors) {
            store4(to, sum[i]);
        } else {
            for (uint e = 0; e < 4; e++)
                if (first + e < p.length) to[e] = T(sum[i][e]);
        }
    }
}

constant constexpr uint DOT_THREADS = 256;
constant constexpr uint DOT_WARPS = DOT_THREADS / WARP;
constant constexpr uint DOT_VALUES = 8; // values of a row in a thread's registers
constant constexpr uint DOT_ROWS = 4;   // rows of `grad` of a block: each expert value is read once for all of them
constant constexpr uint DOT_CHUNK = 32; // experts whose sums are in threadgroup memory at a time

// parts[chunk, i, j] = sum over the chunk of grad[i, :] * experts[j, :], the gradient of the routing weights in parts, one a
// chunk of DOT_THREADS * DOT_VALUES values; `sum_parts` adds them in order. Grid: chunks, tiles of rows.
template <typename T>
inline void grad_routing(device const T *grad, device const T *experts, device float *parts, constant MixParams &p,
                         threadgroup float *shared, uint3 block, uint me) { // shared: [DOT_CHUNK][DOT_ROWS][DOT_WARPS]
    const uint first = block.x * DOT_THREADS * DOT_VALUES + me, row = block.y * DOT_ROWS;
    const uint lane = me % WARP, warp = me / WARP;
    float g[DOT_ROWS][DOT_VALUES];
    for (uint i = 0; i < DOT_ROWS; i++)
        for (uint e = 0; e < DOT_VALUES; e++) {
            const uint at = first + e * DOT_THREADS;
            g[i][e] = row + i < p.rows_out && at < p.length ? float(grad[size_t(row + i) * p.length + at]) : 0.0f;
        }
    for (uint start = 0; start < p.rows_in; start += DOT_CHUNK) {
        const uint chunk = min(DOT_CHUNK, p.rows_in - start);
        for (uint j = 0; j < chunk; j++) {
            float sum[DOT_ROWS] = {};
            for (uint e = 0; e < DOT_VALUES; e++) {
                const uint at = first + e * DOT_THREADS;
                const float v = at < p.length ? float(experts[size_t(start + j) * p.length + at]) : 0.0f;
                for (uint i = 0; i < DOT_ROWS; i++) sum[i] = fma(g[i][e], v, sum[i]);
            }
            for (uint i = 0; i < DOT_ROWS; i++) {
                const float total = warp_sum(sum[i]);
                if (lane == 0) shared[(j * DOT_ROWS + i) * DOT_WARPS + warp] = total;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint at = me; at < chunk * DOT_ROWS; at += DOT_THREADS) {
            const uint i = at % DOT_ROWS, j = at / DOT_ROWS;
            float total = 0.0f;
            for (uint w = 0; w < DOT_WARPS; w++) total += shared[at * DOT_WARPS + w];
            if (row + i < p.rows_out) parts[(size_t(block.x) * p.rows_out + row + i) * p.rows_in + start + j] = total;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup); // before the next chunk writes
    }
}

#define MIX(T, NAME)                                                                                                           \
    KERNEL(MIX_THREADS) mix_experts_##NAME(                                                                                    \
        device const T *coefficients [[buffer(0)]], device const T *in [[buffer(1)]], device T *out [[buffer(2)]],             \
        constant MixParams &p [[buffer(3)]], SHARED, PLACE) {                                                                  \
        mix_rows(coefficients, in, out, p, shared, block, me);                                                                 \
    }                                                                                                                          \
    KERNEL(DOT_THREADS) mix_grad_routing_##NAME(                                                                               \
        device const T *grad [[buffer(0)]], device const T *experts [[buffer(1)]], device float *parts [[buffer(2)]],          \
        constant MixParams &p [[buffer(3)]], SHARED, PLACE) {                                                                  \
        grad_routing(grad, experts, parts, p, shared, block, me);                                                              \
    }
FOR_EACH_TYPE(MIX)
