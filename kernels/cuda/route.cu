// Routing: global average pool, linear layer and sigmoid or softmax, and the gradients of them.
#include "common.cuh"

constexpr unsigned ROUTE_THREADS = 256u;
constexpr unsigned POOL_THREADS = 128u;

// Logits and weights of one sample from its pooled channels in shared memory: one warp an expert, then all threads the
// activation. `logits` is shared memory for `experts` values.
template <typename T>
__device__ void weigh(const float *pooled, float *logits, const T *weight, const T *bias, T *r, const RouteParams &p) {
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, sample = blockIdx.x;
    for (unsigned k = warp; k < p.experts; k += ROUTE_THREADS / WARP) {
        float sum = 0.0f;
        for (unsigned c = lane; c < p.channels; c += WARP) sum = fmaf(pooled[c], to_float(weight[size_t(k) * p.channels + c]), sum);
        sum = warp_sum(sum);
        if (lane == 0) logits[k] = (sum + to_float(bias[k])) * p.logit_scale;
    }
    __syncthreads();
    // A handful of experts: every thread sums them itself, in the same order.
    float most = logits[0], total = 0.0f;
    if (p.flags & SOFTMAX) {
        for (unsigned k = 1; k < p.experts; k++) most = fmaxf(most, logits[k]);
        for (unsigned k = 0; k < p.experts; k++) total += expf(logits[k] - most);
    }
    for (unsigned k = threadIdx.x; k < p.experts; k += ROUTE_THREADS) {
        const float v = p.flags & SOFTMAX ? expf(logits[k] - most) / total : sigmoid(logits[k]);
        r[size_t(sample) * p.experts + k] = from_float<T>(v);
    }
}

// All of the routing for small maps, one block a sample. Shared: [channels + experts].
template <typename T> __device__ void route(const T *x, const T *weight, const T *bias, T *r, const RouteParams &p) {
    extern __shared__ __align__(16) float shared[];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (unsigned c = warp; c < p.channels; c += ROUTE_THREADS / WARP) {
        const T *plane = x + (size_t(blockIdx.x) * p.channels + c) * p.pixels;
        float sum = 0.0f;
        for (unsigned i = lane; i < p.pixels; i += WARP) sum += to_float(plane[i]);
        sum = warp_sum(sum);
        if (lane == 0) shared[c] = sum * p.pool_scale;
    }
    __syncthreads();
    weigh(shared, shared + p.channels, weight, bias, r, p);
}

// The second half of the routing where the map was pooled before. Shared: [channels + experts].
template <typename T> __device__ void route_pooled(const float *pooled, const T *weight, const T *bias, T *r, const RouteParams &p) {
    extern __shared__ __align__(16) float shared[];
    for (unsigned c = threadIdx.x; c < p.channels; c += ROUTE_THREADS) shared[c] = pooled[size_t(blockIdx.x) * p.channels + c];
    __syncthreads();
    weigh(shared, shared + p.channels, weight, bias, r, p);
}

// Sum of each plane times `pool_scale`, one block a plane: the mean of large maps, and the gradient of a bias.
template <typename T> __device__ void pool(const T *x, float *pooled, const RouteParams &p) {
    extern __shared__ __align__(16) float shared[]; // one value a warp
    const T *plane = x + size_t(blockIdx.x) * p.pixels;
    float sum = 0.0f;
    if ((p.flags & VECTOR) && p.pixels % 4u == 0) {
        for (unsigned i = threadIdx.x * 4u; i < p.pixels; i += POOL_THREADS * 4u) {
            float v[4];
            load4(plane + i, v);
            sum += (v[0] + v[1]) + (v[2] + v[3]);
        }
    } else {
        for (unsigned i = threadIdx.x; i < p.pixels; i += POOL_THREADS) sum += to_float(plane[i]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0.0f;
#pragma unroll
        for (unsigned w = 0; w < POOL_THREADS / WARP; w++) total += shared[w];
        pooled[blockIdx.x] = total * p.pool_scale;
    }
}

// Gradient of the logits from the weights `r` and their gradient, one thread a sample and expert.
template <typename T> __device__ void route_grad_logits(const T *r, const T *grad, float *logits, const RouteParams &p) {
    const unsigned at = blockIdx.x * ROUTE_THREADS + threadIdx.x;
    if (at >= p.batch * p.experts) return;
    const float weight = to_float(r[at]), g = to_float(grad[at]);
    if (p.flags & SOFTMAX) {
        const unsigned row = at / p.experts * p.experts;
        float mean = 0.0f;
        for (unsigned k = 0; k < p.experts; k++) mean = fmaf(to_float(r[row + k]), to_float(grad[row + k]), mean);
        logits[at] = weight * (g - mean) * p.logit_scale;
    } else {
        logits[at] = weight * (1.0f - weight) * g * p.logit_scale;
    }
}

// Gradient of the map from that of the logits: the same value for all pixels of a plane, one block a plane.
template <typename T> __device__ void route_grad_input(const float *logits, const T *weight, T *dx, const RouteParams &p) {
    const unsigned sample = blockIdx.x / p.channels, channel = blockIdx.x % p.channels;
    float sum = 0.0f;
    for (unsigned k = 0; k < p.experts; k++) {
        sum = fmaf(logits[size_t(sample) * p.experts + k], to_float(weight[size_t(k) * p.channels + channel]), sum);
    }
    const T value = from_float<T>(sum * p.pool_scale);
    for (unsigned i = threadIdx.x; i < p.pixels; i += POOL_THREADS) dx[size_t(blockIdx.x) * p.pixels + i] = value;
}

#define ROUTE(T, NAME)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(ROUTE_THREADS)                                                                 \
        route_##NAME(const T *x, const T *weight, const T *bias, T *r, RouteParams p) {                                         \
        route<T>(x, weight, bias, r, p);                                                                                        \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(ROUTE_THREADS)                                                                 \
        route_pooled_##NAME(const float *pooled, const T *weight, const T *bias, T *r, RouteParams p) {                         \
        route_pooled<T>(pooled, weight, bias, r, p);                                                                            \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(POOL_THREADS) pool_##NAME(const T *x, float *pooled, RouteParams p) {          \
        pool<T>(x, pooled, p);                                                                                                  \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(ROUTE_THREADS)                                                                 \
        route_grad_logits_##NAME(const T *r, const T *grad, float *logits, RouteParams p) {                                     \
        route_grad_logits<T>(r, grad, logits, p);                                                                               \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(POOL_THREADS)                                                                  \
        route_grad_input_##NAME(const float *logits, const T *weight, T *dx, RouteParams p) {                                   \
        route_grad_input<T>(logits, weight, dx, p);                                                                             \
    }
FOR_EACH_TYPE(ROUTE)
