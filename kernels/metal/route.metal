// Routing: global average pool, linear layer and sigmoid or softmax, and the gradients of them.
#include "common.h"

constant constexpr uint ROUTE_THREADS = 256;
constant constexpr uint POOL_THREADS = 128;

// Logits and weights of one sample from its pooled channels in threadgroup memory: one SIMD group an expert, then all threads
// the activation. `logits` is threadgroup memory for `experts` values.
template <typename T>
inline void weigh(threadgroup const float *pooled, threadgroup float *logits, device const T *weight, device const T *bias,
                  device T *r, constant RouteParams &p, uint sample, uint me) {
    const uint lane = me % WARP, warp = me / WARP;
    for (uint k = warp; k < p.experts; k += ROUTE_THREADS / WARP) {
        float sum = 0.0f;
        for (uint c = lane; c < p.channels; c += WARP) sum = fma(pooled[c], float(weight[size_t(k) * p.channels + c]), sum);
        sum = warp_sum(sum);
        if (lane == 0) logits[k] = (sum + float(bias[k])) * p.logit_scale;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // A handful of experts: every thread sums them itself, in the same order.
    float most = logits[0], total = 0.0f;
    if (p.flags & SOFTMAX) {
        for (uint k = 1; k < p.experts; k++) most = max(most, logits[k]);
        for (uint k = 0; k < p.experts; k++) total += exp(logits[k] - most);
    }
    for (uint k = me; k < p.experts; k += ROUTE_THREADS) {
        const float v = p.flags & SOFTMAX ? exp(logits[k] - most) / total : sigmoid(logits[k]);
        r[size_t(sample) * p.experts + k] = T(v);
    }
}

// All of the routing for small maps, one block a sample. Threadgroup memory: [channels + experts].
template <typename T>
inline void route_map(device const T *x, device const T *weight, device const T *bias, device T *r, constant RouteParams &p,
                      threadgroup float *shared, uint sample, uint me) {
    const uint lane = me % WARP, warp = me / WARP;
    for (uint c = warp; c < p.channels; c += ROUTE_THREADS / WARP) {
        device const T *plane = x + (size_t(sample) * p.channels + c) * p.pixels;
        float sum = 0.0f;
        for (uint i = lane; i < p.pixels; i += WARP) sum += float(plane[i]);
        sum = warp_sum(sum);
        if (lane == 0) shared[c] = sum * p.pool_scale;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    weigh(shared, shared + p.channels, weight, bias, r, p, sample, me);
}

// The second half of the routing where the map was pooled before. Threadgroup memory: [channels + experts].
template <typename T>
inline void route_means(device const float *pooled, device const T *weight, device const T *bias, device T *r,
                        constant RouteParams &p, threadgroup float *shared, uint sample, uint me) {
    for (uint c = me; c < p.channels; c += ROUTE_THREADS) shared[c] = pooled[size_t(sample) * p.channels + c];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    weigh(shared, shared + p.channels, weight, bias, r, p, sample, me);
}

// Sum of each plane times `pool_scale`, one block a plane: the mean of large maps, and the gradient of a bias.
template <typename T>
inline void pool_plane(device const T *x, device float *pooled, constant RouteParams &p, threadgroup float *shared, uint at,
                       uint me) { // shared: one value a SIMD group
    device const T *plane = x + size_t(at) * p.pixels;
    float sum = 0.0f;
    if ((p.flags & VECTOR) && p.pixels % 4 == 0) {
        for (uint i = me * 4; i < p.pixels; i += POOL_THREADS * 4) {
            const float4 v = load4(plane + i);
            sum += (v[0] + v[1]) + (v[2] + v[3]);
        }
    } else {
        for (uint i = me; i < p.pixels; i += POOL_THREADS) sum += float(plane[i]);
    }
    sum = warp_sum(sum);
    if (me % WARP == 0) shared[me / WARP] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (me == 0) {
        float total = 0.0f;
        for (uint w = 0; w < POOL_THREADS / WARP; w++) total += shared[w];
        pooled[at] = total * p.pool_scale;
    }
}

// Gradient of the logits from the weights `r` and their gradient, one thread a sample and expert.
template <typename T>
inline void grad_logits(device const T *r, device const T *grad, device float *logits, constant RouteParams &p, uint3 block,
                        uint me) {
    const uint at = block.x * ROUTE_THREADS + me;
    if (at >= p.batch * p.experts) return;
    const float weight = float(r[at]), g = float(grad[at]);
    if (p.flags & SOFTMAX) {
        const uint row = at / p.experts * p.experts;
        float mean = 0.0f;
        for (uint k = 0; k < p.experts; k++) mean = fma(float(r[row + k]), float(grad[row + k]), mean);
        logits[at] = weight * (g - mean) * p.logit_scale;
    } else {
        logits[at] = weight * (1.0f - weight) * g * p.logit_scale;
    }
}

// Gradient of the map from that of the logits: the same value for all pixels of a plane, one block a plane.
template <typename T>
inline void grad_map(device const float *logits, device const T *weight, device T *dx, constant RouteParams &p, uint plane,
                     uint me) {
    const uint sample = plane / p.channels, channel = plane % p.channels;
    float sum = 0.0f;
    for (uint k = 0; k < p.experts; k++) {
        sum = fma(logits[size_t(sample) * p.experts + k], float(weight[size_t(k) * p.channels + channel]), sum);
    }
    const T value = T(sum * p.pool_scale);
    for (uint i = me; i < p.pixels; i += POOL_THREADS) dx[size_t(plane) * p.pixels + i] = value;
}

#define ROUTE(T, NAME)                                                                                                         \
    KERNEL(ROUTE_THREADS) route_##NAME(                                                                                        \
        device const T *x [[buffer(0)]], device const T *weight [[buffer(1)]], device const T *bias [[buffer(2)]],             \
        device T *r [[buffer(3)]], constant RouteParams &p [[buffer(4)]], SHARED, PLACE) {                                     \
        route_map(x, weight, bias, r, p, shared, block.x, me);                                                                 \
    }                                                                                                                          \
    KERNEL(ROUTE_THREADS) route_pooled_##NAME(                                                                                 \
        device const float *pooled [[buffer(0)]], device const T *weight [[buffer(1)]], device const T *bias [[buffer(2)]],    \
        device T *r [[buffer(3)]], constant RouteParams &p [[buffer(4)]], SHARED, PLACE) {                                     \
        route_means(pooled, weight, bias, r, p, shared, block.x, me);                                                          \
    }                                                                                                                          \
    KERNEL(POOL_THREADS) pool_##NAME(                                                                                          \
        device const T *x [[buffer(0)]], device float *pooled [[buffer(1)]], constant RouteParams &p [[buffer(2)]], SHARED,    \
        PLACE) {                                                                                                               \
        pool_plane(x, pooled, p, shared, block.x, me);                                                                         \
    }                                                                                                                          \
    KERNEL(ROUTE_THREADS) route_grad_logits_##NAME(                                                                            \
        device const T *r [[buffer(0)]], device const T *grad [[buffer(1)]], device float *logits [[buffer(2)]],               \
        constant RouteParams &p [[buffer(3)]], PLACE) {                                                                        \
        grad_logits(r, grad, logits, p, block, me);                                                                            \
    }                                                                                                                          \
    KERNEL(POOL_THREADS) route_grad_input_##NAME(                                                                              \
        device const float *logits [[buffer(0)]], device const T *weight [[buffer(1)]], device T *dx [[buffer(2)]],            \
        constant RouteParams &p [[buffer(3)]], PLACE) {                                                                        \
        grad_map(logits, weight, dx, p, block.x, me);                                                                          \
    }
FOR_EACH_TYPE(ROUTE)
