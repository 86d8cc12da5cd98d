// Kernels of the fused operations on a CUDA device.
//
// T is the element type of tensors and sums (float, double), F that of the factors of matrix products (T itself, or
// bf16). Sums run in an order that depends on shapes alone; nothing is added atomically, so a run repeats bit for bit.
// Matrices are row-major. Names end in the types: `rms_norm_f32_bf16`.

#include <cuda_bf16.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef __nv_bfloat16 bf16;

template <class F, class T> __device__ inline F narrow(T x);
template <> __device__ inline float narrow<float, float>(float x) { return x; }
template <> __device__ inline double narrow<double, double>(double x) { return x; }
template <> __device__ inline bf16 narrow<bf16, float>(float x) { return __float2bfloat16_rn(x); }

template <class T, class F> __device__ inline T widen(F x);
template <> __device__ inline float widen<float, float>(float x) { return x; }
template <> __device__ inline double widen<double, double>(double x) { return x; }
template <> __device__ inline float widen<float, bf16>(bf16 x) { return __bfloat162float(x); }

__device__ inline float power(float x) { return expf(x); }
__device__ inline double power(double x) { return exp(x); }
__device__ inline float root(float x) { return sqrtf(x); }
__device__ inline double root(double x) { return sqrt(x); }
template <class T> __device__ inline T least() { return -(T)INFINITY; }
template <class T> __device__ inline T lowest();
template <> __device__ inline float lowest<float>() { return -3.402823466e38f; }
template <> __device__ inline double lowest<double>() { return -1.7976931348623157e308; }

// Sums and maxima of a warp and of a block; every thread gets the result.
template <class T> __device__ inline T warp_sum(T x) {
    for (int lanes = 16; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}

template <class T> __device__ inline T warp_max(T x) {
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
        T other = __shfl_xor_sync(0xffffffffu, x, lanes);
        // A NaN stays, and with it the row is not finite.
        x = (other > x || other != other) ? other : x;
    }
    return x;
}

template <class T> __device__ inline T block_sum(T x) {
    __shared__ T parts[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    x = warp_sum(x);
    __syncthreads();  // an earlier call may still be reading
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_sum(lane < (int)(blockDim.x >> 5) ? parts[lane] : (T)0);
}

template <class T> __device__ inline T block_max(T x) {
    __shared__ T parts[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_max(lane < (int)(blockDim.x >> 5) ? parts[lane] : least<T>());
}

__device__ inline u64 thread_index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

// Elements that one thread takes where a kernel only passes over memory: so many loads are under way at once.
constexpr int SPREAD = 4;

// store(i, load(i)) for the SPREAD elements of this thread, neighbours in neighbouring threads, all loads first.
template <class Load, class Store> __device__ inline void spread(u64 count, Load load, Store store) {
    u64 first = (u64)blockIdx.x * blockDim.x * SPREAD + threadIdx.x;
    if (first + (u64)(SPREAD - 1) * blockDim.x < count) {
        decltype(load(first)) loaded[SPREAD];
#pragma unroll
        for (int k = 0; k < SPREAD; k++) loaded[k] = load(first + (u64)k * blockDim.x);
#pragma unroll
        for (int k = 0; k < SPREAD; k++) store(first + (u64)k * blockDim.x, loaded[k]);
    } else {
        for (u64 i = first; i < count; i += blockDim.x) store(i, load(i));
    }
}

// One block per row: out = x / sqrt(mean x^2 + eps) * w, and the inverse root.
template <class T, class F>
__device__ inline void rms_norm(const T *x, const T *w, double eps, F *out, T *inverse, int dim) {
    u64 start = (u64)blockIdx.x * dim;
    T sum = 0;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) sum += x[start + i] * x[start + i];
    T inv = (T)1 / root(block_sum(sum) / (T)dim + (T)eps);
    if (threadIdx.x == 0) inverse[blockIdx.x] = inv;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) out[start + i] = narrow<F, T>(x[start + i] * inv * w[i]);
}

// One block per row: dx = residual + inv * (w g - x inv^2 mean(g w x)); `residual` may be null.
template <class T>
__device__ inline void rms_norm_back(const T *grad, const T *x, const T *w, const T *inverse, const T *residual,
                                     T *dx, int dim) {
    u64 start = (u64)blockIdx.x * dim;
    T inv = inverse[blockIdx.x], sum = 0;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) sum += grad[start + i] * w[i] * x[start + i];
    T along = block_sum(sum) / (T)dim * inv * inv;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        T of_norm = inv * (grad[start + i] * w[i] - x[start + i] * along);
        dx[start + i] = residual ? residual[start + i] + of_norm : of_norm;
    }
}

// Gradient of the norm's weights, in parts of `span` rows: blocks of 32 columns by 8 rows; grid (columns / 32, parts).
template <class T>
__device__ inline void rms_norm_weights_back(const T *grad, const T *x, const T *inverse, T *parts, int rows, int dim,
                                             int span) {
    __shared__ T sums[8][33];
    int column = blockIdx.x * 32 + threadIdx.x;
    int first = blockIdx.y * span, last = min(first + span, rows);
    T sum = 0;
    if (column < dim)
        for (int row = first + threadIdx.y; row < last; row += 8) {
            u64 at = (u64)row * dim + column;
            sum += grad[at] * x[at] * inverse[row];
        }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < dim) {
        for (int part = 1; part < 8; part++) sum += sums[part][threadIdx.x];
        parts[(u64)blockIdx.y * dim + column] = sum;
    }
}

// out[i] = the sum of parts[p][i] over p, in order.
template <class T> __device__ inline void sum_parts(const T *parts, T *out, int count, u64 width) {
    u64 i = thread_index();
    if (i >= width) return;
    T sum = 0;
    for (int part = 0; part < count; part++) sum += parts[part * width + i];
    out[i] = sum;
}

// Rows [b s, (h + 2 g) e] of queries, keys and values into [b, h, s, e], [b, g, s, e] twice, queries and keys turned by
// the angles [s, e / 2]. One thread per pair.
template <class T, class F>
__device__ inline void split_heads(const T *qkv, const T *cosines, const T *sines, F *q, F *k, F *v, int sequence,
                                   int heads, int kv_heads, int half, u64 pairs) {
    u64 index = thread_index();
    if (index >= pairs) return;
    int pair = index % half, width = heads + 2 * kv_heads;
    int head = index / half % width;
    u64 row = index / half / width;
    u64 batch = row / sequence;
    int position = row % sequence;
    T even = qkv[2 * index], odd = qkv[2 * index + 1];
    if (head < heads + kv_heads) {
        T c = cosines[position * half + pair], s = sines[position * half + pair], turned = even * c - odd * s;
        odd = even * s + odd * c;
        even = turned;
    }
    F *to;
    u64 slot;
    if (head < heads) {
        to = q, slot = batch * heads + head;
    } else if (head < heads + kv_heads) {
        to = k, slot = batch * kv_heads + head - heads;
    } else {
        to = v, slot = batch * kv_heads + head - heads - kv_heads;
    }
    u64 at = ((slot * sequence + position) * half + pair) * 2;
    to[at] = narrow<F, T>(even);
    to[at + 1] = narrow<F, T>(odd);
}

// The way back of `split_heads`: gradients by head into rows, turned back.
template <class T, class F>
__device__ inline void join_heads(const T *q, const T *k, const T *v, const T *cosines, const T *sines, F *qkv,
                                  int sequence, int heads, int kv_heads, int half, u64 pairs) {
    u64 index = thread_index();
    if (index >= pairs) return;
    int pair = index % half, width = heads + 2 * kv_heads;
    int head = index / half % width;
    u64 row = index / half / width;
    u64 batch = row / sequence;
    int position = row % sequence;
    const T *from;
    u64 slot;
    if (head < heads) {
        from = q, slot = batch * heads + head;
    } else if (head < heads + kv_heads) {
        from = k, slot = batch * kv_heads + head - heads;
    } else {
        from = v, slot = batch * kv_heads + head - heads - kv_heads;
    }
    u64 at = ((slot * sequence + position) * half + pair) * 2;
    T even = from[at], odd = from[at + 1];
    if (head < heads + kv_heads) {
        T c = cosines[position * half + pair], s = sines[position * half + pair], turned = even * c + odd * s;
        odd = odd * c - even * s;
        even = turned;
    }
    qkv[2 * index] = narrow<F, T>(even);
    qkv[2 * index + 1] = narrow<F, T>(odd);
}

// [b, s, h, e] into [b, h, s, e].
template <class T, class F>
__device__ inline void heads_first(const T *x, F *out, int sequence, int heads, int width, u64 count) {
    u64 index = thread_index();
    if (index >= count) return;
    int column = index % width, head = index / width % heads;
    u64 row = index / width / heads;
    u64 batch = row / sequence, position = row % sequence;
    out[((batch * heads + head) * sequence + position) * width + column] = narrow<F, T>(x[index]);
}

// [b, h, s, e] into [b, s, h, e].
template <class T> __device__ inline void heads_last(const T *x, T *out, int sequence, int heads, int width, u64 count) {
    u64 index = thread_index();
    if (index >= count) return;
    int column = index % width, head = index / width % heads;
    u64 row = index / width / heads;
    u64 batch = row / sequence, position = row % sequence;
    out[index] = x[((batch * heads + head) * sequence + position) * width + column];
}

// Causal softmax of score rows [.., s] whose position is their number modulo s; what lies ahead becomes 0.
// One warp per row.
template <class T, class F> __device__ inline void causal_softmax(const T *scores, F *out, int sequence, u64 rows) {
    u64 row = thread_index() / 32;
    if (row >= rows) return;
    int lane = threadIdx.x & 31, end = row % sequence + 1;
    const T *from = scores + row * sequence;
    F *to = out + row * sequence;
    T top = least<T>();
    for (int i = lane; i < end; i += 32) {
        T x = from[i];
        top = (x > top || x != x) ? x : top;
    }
    top = warp_max(top);
    T sum = 0;
    for (int i = lane; i < end; i += 32) sum += power(from[i] - top);
    T share = (T)1 / warp_sum(sum);
    for (int i = lane; i < sequence; i += 32) to[i] = narrow<F, T>(i < end ? power(from[i] - top) * share : (T)0);
}

// Gradient of the scores: p (dp - sum p dp), one warp per row.
template <class T, class F>
__device__ inline void causal_softmax_back(const F *probabilities, const T *grad, F *out, int sequence, u64 rows) {
    u64 row = thread_index() / 32;
    if (row >= rows) return;
    int lane = threadIdx.x & 31, end = row % sequence + 1;
    const F *p = probabilities + row * sequence;
    const T *dp = grad + row * sequence;
    F *to = out + row * sequence;
    T sum = 0;
    for (int i = lane; i < end; i += 32) sum += widen<T, F>(p[i]) * dp[i];
    sum = warp_sum(sum);
    for (int i = lane; i < sequence; i += 32)
        to[i] = narrow<F, T>(i < end ? widen<T, F>(p[i]) * (dp[i] - sum) : (T)0);
}

// silu(gate) * up for rows [gate f | up f].
template <class T, class F> __device__ inline void swiglu(const T *gate_up, F *out, int ffn, u64 count) {
    struct Halves {
        T gate, up;
    };
    spread(
        count,
        [&](u64 index) {
            u64 at = index / ffn * 2 * ffn + index % ffn;
            return Halves{gate_up[at], gate_up[at + ffn]};
        },
        [&](u64 index, Halves x) { out[index] = narrow<F, T>(x.gate / ((T)1 + power(-x.gate)) * x.up); });
}

// Gradient of both halves, and the activation once more.
template <class T, class F>
__device__ inline void swiglu_back(const T *gate_up, const T *grad, F *d_gate_up, F *act, int ffn, u64 count) {
    struct Halves {
        u64 at;
        T gate, up, d;
    };
    spread(
        count,
        [&](u64 index) {
            u64 at = index / ffn * 2 * ffn + index % ffn;
            return Halves{at, gate_up[at], gate_up[at + ffn], grad[index]};
        },
        [&](u64 index, Halves x) {
            T sigmoid = (T)1 / ((T)1 + power(-x.gate)), silu = x.gate * sigmoid;
            d_gate_up[x.at] = narrow<F, T>(x.d * x.up * sigmoid * ((T)1 + x.gate * ((T)1 - sigmoid)));
            d_gate_up[x.at + ffn] = narrow<F, T>(x.d * silu);
            act[index] = narrow<F, T>(silu * x.up);
        });
}

// One block per row of logits: ce = log sum exp(z) - z_target; where `out` is not null, weight * (softmax - onehot).
template <class T, class F>
__device__ inline void cross_entropy(const T *logits, const u32 *targets, const double *weights, double *ce, F *out,
                                     int vocab) {
    u64 start = (u64)blockIdx.x * vocab;
    const T *row = logits + start;
    // One pass for both: the exponentials below the largest number so far.
    T top = lowest<T>(), sum = 0;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        T x = row[i];
        if (x > top) {
            sum = sum * power(top - x) + (T)1;
            top = x;
        } else {
            sum += power(x - top);
        }
    }
    T most = block_max(top);
    sum = block_sum(sum * power(top - most));
    top = most;
    int target = targets[blockIdx.x];
    if (threadIdx.x == 0) ce[blockIdx.x] = log((double)sum) + ((double)top - (double)row[target]);
    if (!out) return;
    T factor = (T)weights[blockIdx.x], share = factor / sum;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        T p = power(row[i] - top) * share;
        out[start + i] = narrow<F, T>(i == target ? p - factor : p);
    }
}

// out[i] = table[ids[i]], one block per row.
template <class T> __device__ inline void gather_rows(const T *table, const u32 *ids, T *out, int dim) {
    u64 from = (u64)ids[blockIdx.x] * dim, to = (u64)blockIdx.x * dim;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) out[to + i] = table[from + i];
}

// out[ids[u]] = the sum of grad[order[j]] for j in starts[u]..starts[u + 1], in order; one block per distinct id.
template <class T>
__device__ inline void scatter_rows(const T *grad, const u32 *order, const u32 *starts, const u32 *ids, T *out, int dim) {
    u32 first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
    u64 to = (u64)ids[blockIdx.x] * dim;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        T sum = 0;
        for (u32 j = first; j < last; j++) sum += grad[(u64)order[j] * dim + i];
        out[to + i] = sum;
    }
}

// Decoding: each row belongs to a sequence of its own. `places` has four numbers a row: the addresses of its sequence's
// keys and values [positions, g, e], its position there, and its number among the rows [(h + 2 g) e].

// Turns queries where they lie; puts keys, turned, and values at their places. One thread per pair.
template <class T>
__device__ inline void store_rows(T *qkv, const T *cosines, const T *sines, const u64 *places, int heads, int kv_heads,
                                  int half, u64 pairs) {
    u64 index = thread_index();
    if (index >= pairs) return;
    int pair = index % half, width = heads + 2 * kv_heads;
    int head = index / half % width;
    const u64 *place = places + index / half / width * 4;
    u64 position = place[2];
    T *from = qkv + ((place[3] * width + head) * half + pair) * 2;
    T even = from[0], odd = from[1];
    if (head < heads + kv_heads) {
        T c = cosines[position * half + pair], s = sines[position * half + pair], turned = even * c - odd * s;
        odd = even * s + odd * c;
        even = turned;
    }
    T *to = from;
    if (head >= heads) {
        int slot = head - heads;
        T *cache = (T *)place[slot < kv_heads ? 0 : 1];
        to = cache + ((position * kv_heads + slot % kv_heads) * half + pair) * 2;
    }
    to[0] = even;
    to[1] = odd;
}

// Numbers of a head's row that one lane holds at most, warps of a block, and positions whose keys and values a warp
// loads at once.
constexpr int HELD = 8, READERS = 8, AHEAD = 4;

// Mixtures [rows, h, e] of the values up to each row's own position, softmax(q k / sqrt e); one block per row and head.
// Each warp passes over every eighth position with a running maximum; the order of its sums, and that of the warps',
// depends on the position alone.
template <class T>
__device__ inline void attend_rows(const T *qkv, const u64 *places, T *out, int heads, int kv_heads, int width) {
    __shared__ T tops[READERS], sums[READERS], parts[READERS][HELD * 32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.x % heads;
    const u64 *place = places + blockIdx.x / heads * 4;
    u64 line = (u64)kv_heads * width, own = (u64)(head / (heads / kv_heads)) * width;
    const T *keys = (const T *)place[0] + own, *values = (const T *)place[1] + own;
    const T *query = qkv + (place[3] * (heads + 2 * kv_heads) + head) * width;
    int end = (int)place[2] + 1;
    T scale = (T)1 / root((T)width), q[HELD], mixed[HELD], top = lowest<T>(), sum = 0;
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        int i = lane + 32 * k;
        q[k] = i < width ? query[i] * scale : (T)0;
        mixed[k] = 0;
    }
    for (int first = warp; first < end; first += READERS * AHEAD) {
        T scores[AHEAD], most = top;
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            int t = first + a * READERS;
            T dot = 0;
#pragma unroll
            for (int k = 0; k < HELD; k++) {
                int i = lane + 32 * k;
                if (t < end && i < width) dot += q[k] * keys[t * line + i];
            }
            scores[a] = warp_sum(dot);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            T x = scores[a];
            // A NaN stays, and with it the row is not finite.
            if (first + a * READERS < end && (x > most || x != x)) most = x;
        }
        T keep = power(top - most);
        sum *= keep;
#pragma unroll
        for (int k = 0; k < HELD; k++) mixed[k] *= keep;
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            int t = first + a * READERS;
            T share = t < end ? power(scores[a] - most) : (T)0;
            sum += share;
#pragma unroll
            for (int k = 0; k < HELD; k++) {
                int i = lane + 32 * k;
                if (t < end && i < width) mixed[k] += share * values[t * line + i];
            }
        }
        top = most;
    }
    if (lane == 0) tops[warp] = top, sums[warp] = sum;
#pragma unroll
    for (int k = 0; k < HELD; k++) parts[warp][lane + 32 * k] = mixed[k];
    __syncthreads();
    int column = threadIdx.x;
    if (column >= width) return;
    T most = tops[0], total = 0, mixture = 0;
    for (int w = 1; w < READERS; w++) most = (tops[w] > most || tops[w] != tops[w]) ? tops[w] : most;
    for (int w = 0; w < READERS; w++) {
        T share = power(tops[w] - most);
        total += sums[w] * share;
        mixture += parts[w][column] * share;
    }
    out[(u64)blockIdx.x * width + column] = mixture / total;
}

// Factors in their own type.
template <class T, class F> __device__ inline void cast(const T *x, F *out, u64 count) {
    spread(count, [&](u64 index) { return x[index]; }, [&](u64 index, T x) { out[index] = narrow<F, T>(x); });
}

template <class T> __device__ inline void add_into(T *sum, const T *x, u64 count) {
    u64 index = thread_index();
    if (index < count) sum[index] += x[index];
}

// One partial sum per block; blocks of 256 threads stride over the values.
template <class T> __device__ inline void sum_of_squares(const T *x, double *parts, u64 count) {
    double sums[SPREAD] = {};
    u64 step = (u64)gridDim.x * blockDim.x, i = thread_index();
    for (; i + (SPREAD - 1) * step < count; i += SPREAD * step)
#pragma unroll
        for (int k = 0; k < SPREAD; k++) sums[k] += (double)x[i + k * step] * (double)x[i + k * step];
    for (; i < count; i += step) sums[0] += (double)x[i] * (double)x[i];
    double sum = block_sum(sums[0] + sums[1] + sums[2] + sums[3]);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// AdamW with decoupled decay; the constants as the host's loop takes them.
template <class T>
__device__ inline void adamw(T *value, const T *gradient, T *first, T *second, u64 count, T keep, T beta1, T fresh1,
                             T beta2, T fresh2, T rate, T root_correction2, T eps, T scale) {
    u64 i = thread_index();
    if (i >= count) return;
    T g = gradient[i] * scale, m = beta1 * first[i] + fresh1 * g, v = beta2 * second[i] + fresh2 * g * g;
    first[i] = m;
    second[i] = v;
    value[i] = value[i] * keep - rate * m / (root(v) / root_correction2 + eps);
}

#define OF_TENSORS(T, t)                                                                                               \
    extern "C" __global__ void rms_norm_back_##t(const T *grad, const T *x, const T *w, const T *inverse,              \
                                                 const T *residual, T *dx, int dim) {                                  \
        rms_norm_back<T>(grad, x, w, inverse, residual, dx, dim);                                                      \
    }                                                                                                                  \
    extern "C" __global__ void rms_norm_weights_back_##t(const T *grad, const T *x, const T *inverse, T *parts,        \
                                                         int rows, int dim, int span) {                                \
        rms_norm_weights_back<T>(grad, x, inverse, parts, rows, dim, span);                                            \
    }                                                                                                                  \
    extern "C" __global__ void sum_parts_##t(const T *parts, T *out, int count, u64 width) {                           \
        sum_parts<T>(parts, out, count, width);                                                                        \
    }                                                                                                                  \
    extern "C" __global__ void heads_last_##t(const T *x, T *out, int sequence, int heads, int width, u64 count) {     \
        heads_last<T>(x, out, sequence, heads, width, count);                                                          \
    }                                                                                                                  \
    extern "C" __global__ void gather_rows_##t(const T *table, const u32 *ids, T *out, int dim) {                      \
        gather_rows<T>(table, ids, out, dim);                                                                          \
    }                                                                                                                  \
    extern "C" __global__ void scatter_rows_##t(const T *grad, const u32 *order, const u32 *starts, const u32 *ids,    \
                                                T *out, int dim) {                                                     \
        scatter_rows<T>(grad, order, starts, ids, out, dim);                                                           \
    }                                                                                                                  \
    extern "C" __global__ void store_rows_##t(T *qkv, const T *cosines, const T *sines, const u64 *places, int heads,  \
                                              int kv_heads, int half, u64 pairs) {                                     \
        store_rows<T>(qkv, cosines, sines, places, heads, kv_heads, half, pairs);                                      \
    }                                                                                                                  \
    extern "C" __global__ void attend_rows_##t(const T *qkv, const u64 *places, T *out, int heads, int kv_heads,       \
                                               int width) {                                                            \
        attend_rows<T>(qkv, places, out, heads, kv_heads, width);                                                      \
    }                                                                                                                  \
    extern "C" __global__ void add_into_##t(T *sum, const T *x, u64 count) { add_into<T>(sum, x, count); }             \
    extern "C" __global__ void sum_of_squares_##t(const T *x, double *parts, u64 count) {                              \
        sum_of_squares<T>(x, parts, count);                                                                            \
    }                                                                                                                  \
    extern "C" __global__ void adamw_##t(T *value, const T *gradient, T *first, T *second, u64 count, T keep, T beta1, \
                                         T fresh1, T beta2, T fresh2, T rate, T root_correction2, T eps, T scale) {    \
        adamw<T>(value, gradient, first, second, count, keep, beta1, fresh1, beta2, fresh2, rate, root_correction2,    \
                 eps, scale);                                                                                          \
    }

#define OF_FACTORS(T, F, tf)                                                                                           \
    extern "C" __global__ void rms_norm_##tf(const T *x, const T *w, double eps, F *out, T *inverse, int dim) {        \
        rms_norm<T, F>(x, w, eps, out, inverse, dim);                                                                  \
    }                                                                                                                  \
    extern "C" __global__ void split_heads_##tf(const T *qkv, const T *cosines, const T *sines, F *q, F *k, F *v,      \
                                                int sequence, int heads, int kv_heads, int half, u64 pairs) {          \
        split_heads<T, F>(qkv, cosines, sines, q, k, v, sequence, heads, kv_heads, half, pairs);                       \
    }                                                                                                                  \
    extern "C" __global__ void join_heads_##tf(const T *q, const T *k, const T *v, const T *cosines, const T *sines,   \
                                               F *qkv, int sequence, int heads, int kv_heads, int half, u64 pairs) {   \
        join_heads<T, F>(q, k, v, cosines, sines, qkv, sequence, heads, kv_heads, half, pairs);                        \
    }                                                                                                                  \
    extern "C" __global__ void heads_first_##tf(const T *x, F *out, int sequence, int heads, int width, u64 count) {   \
        heads_first<T, F>(x, out, sequence, heads, width, count);                                                      \
    }                                                                                                                  \
    extern "C" __global__ void causal_softmax_##tf(const T *scores, F *out, int sequence, u64 rows) {                  \
        causal_softmax<T, F>(scores, out, sequence, rows);                                                             \
    }                                                                                                                  \
    extern "C" __global__ void causal_softmax_back_##tf(const F *probabilities, const T *grad, F *out, int sequence,   \
                                                        u64 rows) {                                                    \
        causal_softmax_back<T, F>(probabilities, grad, out, sequence, rows);                                           \
    }                                                                                                                  \
    extern "C" __global__ void swiglu_##tf(const T *gate_up, F *out, int ffn, u64 count) {                             \
        swiglu<T, F>(gate_up, out, ffn, count);                                                                        \
    }                                                                                                                  \
    extern "C" __global__ void swiglu_back_##tf(const T *gate_up, const T *grad, F *d_gate_up, F *act, int ffn,        \
                                                u64 count) {                                                           \
        swiglu_back<T, F>(gate_up, grad, d_gate_up, act, ffn, count);                                                  \
    }                                                                                                                  \
    extern "C" __global__ void cross_entropy_##tf(const T *logits, const u32 *targets, const double *weights,          \
                                                  double *ce, F *out, int vocab) {                                     \
        cross_entropy<T, F>(logits, targets, weights, ce, out, vocab);                                                 \
    }                                                                                                                  \
    extern "C" __global__ void cast_##tf(const T *x, F *out, u64 count) { cast<T, F>(x, out, count); }

OF_TENSORS(float, f32)
OF_TENSORS(double, f64)
OF_FACTORS(float, float, f32_f32)
OF_FACTORS(double, double, f64_f64)
OF_FACTORS(float, bf16, f32_bf16)

#include "flash.cuh"
