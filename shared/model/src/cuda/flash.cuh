// Causal attention without score matrices in memory (Dao 2023, "FlashAttention-2", algorithms 1 and 2), in bf16 factors
// and f32 sums, for heads of 64 or 128 numbers.
//
// Queries, keys and values are [b, h, s, E] and [b, g, s, E], query head h reading key/value head h / (h / g). Tiles are
// 64 rows; one warp of four computes 16 of them. Gradients of queries and of keys and values are two kernels, so that
// nothing is added atomically and a run repeats bit for bit: the scores are computed once more for it.
//
// Fragments are those of `mma.m16n8k16` (PTX ISA): of a 16 x 8 result a thread holds rows g and g + 8, columns 2t and
// 2t + 1, with g = lane / 4 and t = lane % 4.

constexpr int TILE = 64;
constexpr int WARPS = 4;

__device__ inline u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// 16 bytes into shared memory; zeros where `there` is false.
__device__ inline void copy_async(u32 to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}
__device__ inline void commit() { asm volatile("cp.async.commit_group;"); }
template <int LEFT> __device__ inline void arrived() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT)); }

__device__ inline void load_matrices(u32 (&r)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}
__device__ inline void load_turned(u32 (&r)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}
__device__ inline void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline u32 pair(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<u32 *>(&both);
}

// Address of 8 numbers of a tile's row; rows are rotated against each other so that 8 of them lie in different banks.
template <int E> __device__ inline u32 at(u32 tile, int row, int eighth) {
    return tile + (row * E + ((eighth ^ (row & 7)) << 3)) * 2;
}

// Rows first .. first + 64 of a head's [s, E] into a tile; zeros behind the end.
template <int E> __device__ inline void load_tile(u32 tile, const bf16 *head, int first, int sequence) {
    constexpr int EIGHTHS = E / 8;
    for (int i = threadIdx.x; i < TILE * EIGHTHS; i += 32 * WARPS) {
        int row = i / EIGHTHS, eighth = i % EIGHTHS;
        bool there = first + row < sequence;
        copy_async(at<E>(tile, row, eighth), head + (u64)(there ? first + row : 0) * E + eighth * 8, there);
    }
}

// The 16 x E rows of a warp as left factors, from memory; zeros behind the end.
template <int E>
__device__ inline void load_rows(u32 (&f)[E / 16][4], const bf16 *head, int row, int t, int sequence) {
    for (int k = 0; k < E / 16; k++)
        for (int r = 0; r < 4; r++) {
            int from = row + (r & 1) * 8, column = 16 * k + 2 * t + (r >> 1) * 8;
            f[k][r] = from < sequence ? *reinterpret_cast<const u32 *>(head + (u64)from * E + column) : 0;
        }
}

// c [16, 64] += a · tileᵀ, the left factor in registers.
template <int E>
__device__ inline void times_turned(float (&c)[8][4], const u32 (&a)[E / 16][4], u32 tile, int lane) {
    for (int k = 0; k < E / 16; k++)
        for (int n = 0; n < 4; n++) {
            u32 b[4];
            load_matrices(b, at<E>(tile, n * 16 + (lane & 7) + ((lane >> 4) << 3), 2 * k + ((lane >> 3) & 1)));
            multiply(c[2 * n], a[k], b[0], b[1]);
            multiply(c[2 * n + 1], a[k], b[2], b[3]);
        }
}

// c [16, 64] += rows 16 w .. of `left` · tileᵀ, both in shared memory.
template <int E> __device__ inline void tiles_turned(float (&c)[8][4], u32 left, int first, u32 tile, int lane) {
    for (int k = 0; k < E / 16; k++) {
        u32 a[4];
        load_matrices(a, at<E>(left, first + (lane & 15), 2 * k + (lane >> 4)));
        for (int n = 0; n < 4; n++) {
            u32 b[4];
            load_matrices(b, at<E>(tile, n * 16 + (lane & 7) + ((lane >> 4) << 3), 2 * k + ((lane >> 3) & 1)));
            multiply(c[2 * n], a, b[0], b[1]);
            multiply(c[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// c [16, E] += p [16, 64] · tile, p rounded to factors.
template <int E> __device__ inline void times_tile(float (&c)[E / 8][4], const float (&p)[8][4], u32 tile, int lane) {
    for (int k = 0; k < TILE / 16; k++) {
        const u32 a[4] = {pair(p[2 * k][0], p[2 * k][1]), pair(p[2 * k][2], p[2 * k][3]),
                          pair(p[2 * k + 1][0], p[2 * k + 1][1]), pair(p[2 * k + 1][2], p[2 * k + 1][3])};
        for (int n = 0; n < E / 16; n++) {
            u32 b[4];
            load_turned(b, at<E>(tile, k * 16 + (lane & 15), 2 * n + (lane >> 4)));
            multiply(c[2 * n], a, b[0], b[1]);
            multiply(c[2 * n + 1], a, b[2], b[3]);
        }
    }
}

template <int N> __device__ inline void zero(float (&c)[N][4]) {
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 4; i++) c[n][i] = 0;
}

// out [b, s, h, E] and log2 of every row's sum of exponentials, log_sums [b, h, s]. `scale` is 1 / sqrt(E) * log2 e.
template <int E>
__device__ inline void attend(const bf16 *q, const bf16 *k, const bf16 *v, float *out, float *log_sums, int sequence,
                              int heads, int kv_heads, float scale) {
    extern __shared__ __align__(128) unsigned char memory[];
    u32 keys = shared_address(memory), values = keys + TILE * E * 2;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    // The longest rows go first.
    int tile = gridDim.x - 1 - blockIdx.x, batch = blockIdx.y / heads, head = blockIdx.y % heads;
    u64 kv = ((u64)batch * kv_heads + head / (heads / kv_heads)) * sequence * E;
    int row = tile * TILE + warp * 16 + g;
    u32 queries[E / 16][4];
    load_rows<E>(queries, q + (u64)blockIdx.y * sequence * E, row, t, sequence);
    float o[E / 8][4], top[2] = {least<float>(), least<float>()}, sum[2] = {0, 0};
    zero(o);
    load_tile<E>(keys, k + kv, 0, sequence);
    commit();
    for (int j = 0; j <= tile; j++) {
        load_tile<E>(values, v + kv, j * TILE, sequence);
        commit();
        arrived<1>();
        __syncthreads();
        float s[8][4];
        zero(s);
        times_turned<E>(s, queries, keys, lane);
        __syncthreads();
        if (j < tile) load_tile<E>(keys, k + kv, (j + 1) * TILE, sequence);
        commit();
        if (j == tile)
            for (int n = 0; n < 8; n++)
                for (int i = 0; i < 4; i++)
                    if (j * TILE + n * 8 + 2 * t + (i & 1) > row + (i >> 1) * 8) s[n][i] = least<float>();
        for (int r = 0; r < 2; r++) {
            float most = top[r];
            for (int n = 0; n < 8; n++) most = fmaxf(most, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            float shrink = exp2f((top[r] - most) * scale), part = 0;
            top[r] = most;
            for (int n = 0; n < 8; n++)
                for (int i = 2 * r; i < 2 * r + 2; i++) {
                    s[n][i] = exp2f((s[n][i] - most) * scale);
                    part += s[n][i];
                }
            sum[r] = sum[r] * shrink + part;
            for (int n = 0; n < E / 8; n++) o[n][2 * r] *= shrink, o[n][2 * r + 1] *= shrink;
        }
        arrived<1>();
        __syncthreads();
        times_tile<E>(o, s, values, lane);
        __syncthreads();
    }
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        int to = row + r * 8;
        if (to >= sequence) continue;
        float share = 1.0f / sum[r];
        float *place = out + (((u64)batch * sequence + to) * heads + head) * E;
        for (int n = 0; n < E / 8; n++)
            *reinterpret_cast<float2 *>(place + n * 8 + 2 * t) =
                make_float2(o[n][2 * r] * share, o[n][2 * r + 1] * share);
        if (t == 0) log_sums[(u64)blockIdx.y * sequence + to] = top[r] * scale + log2f(sum[r]);
    }
}

// For every row and head the sum of grad · out, [b, h, s], and the gradient [b, s, h, E] as factors [b, h, s, E]. One
// warp each.
__device__ inline void attend_back_begin(const float *out, const float *grad, bf16 *factors, float *along, int sequence,
                                         int heads, int width, u64 rows) {
    u64 index = thread_index() / 32;
    if (index >= rows) return;
    int lane = threadIdx.x & 31, head = index % heads;
    u64 row = index / heads, batch = row / sequence, position = row % sequence;
    u64 to = (batch * heads + head) * sequence + position;
    float sum = 0;
    for (int i = lane; i < width; i += 32) {
        float d = grad[index * width + i];
        sum += d * out[index * width + i];
        factors[to * width + i] = __float2bfloat16_rn(d);
    }
    sum = warp_sum(sum);
    if (lane == 0) along[to] = sum;
}

// Gradient of the queries, [b, h, s, E]. `factor` is 1 / sqrt(E), `scale` that times log2 e.
template <int E>
__device__ inline void attend_back_queries(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *grad,
                                           const float *log_sums, const float *along, float *dq, int sequence, int heads,
                                           int kv_heads, float scale, float factor) {
    extern __shared__ __align__(128) unsigned char memory[];
    u32 keys = shared_address(memory), values = keys + TILE * E * 2;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    int tile = gridDim.x - 1 - blockIdx.x, batch = blockIdx.y / heads, head = blockIdx.y % heads;
    u64 kv = ((u64)batch * kv_heads + head / (heads / kv_heads)) * sequence * E;
    u64 rows = (u64)blockIdx.y * sequence;
    int row = tile * TILE + warp * 16 + g;
    u32 queries[E / 16][4], grads[E / 16][4];
    load_rows<E>(queries, q + rows * E, row, t, sequence);
    load_rows<E>(grads, grad + rows * E, row, t, sequence);
    float log_sum[2], dot[2], d[E / 8][4];
    for (int r = 0; r < 2; r++) {
        bool there = row + r * 8 < sequence;
        log_sum[r] = there ? log_sums[rows + row + r * 8] : 0;
        dot[r] = there ? along[rows + row + r * 8] : 0;
    }
    zero(d);
    for (int j = 0; j <= tile; j++) {
        load_tile<E>(keys, k + kv, j * TILE, sequence);
        load_tile<E>(values, v + kv, j * TILE, sequence);
        commit();
        arrived<0>();
        __syncthreads();
        float s[8][4], dp[8][4];
        zero(s);
        zero(dp);
        times_turned<E>(s, queries, keys, lane);
        times_turned<E>(dp, grads, values, lane);
        for (int n = 0; n < 8; n++)
            for (int i = 0; i < 4; i++) {
                bool ahead = j * TILE + n * 8 + 2 * t + (i & 1) > row + (i >> 1) * 8;
                float p = ahead ? 0 : exp2f(s[n][i] * scale - log_sum[i >> 1]);
                s[n][i] = p * (dp[n][i] - dot[i >> 1]);
            }
        times_tile<E>(d, s, keys, lane);
        __syncthreads();
    }
    for (int r = 0; r < 2; r++) {
        int to = row + r * 8;
        if (to >= sequence) continue;
        for (int n = 0; n < E / 8; n++)
            *reinterpret_cast<float2 *>(dq + (rows + to) * E + n * 8 + 2 * t) =
                make_float2(d[n][2 * r] * factor, d[n][2 * r + 1] * factor);
    }
}

// Gradients of keys and values, [b, g, s, E], over all query heads that read them.
template <int E>
__device__ inline void attend_back_keys(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *grad,
                                        const float *log_sums, const float *along, float *dk, float *dv, int sequence,
                                        int heads, int kv_heads, float scale, float factor) {
    extern __shared__ __align__(128) unsigned char memory[];
    u32 keys = shared_address(memory), values = keys + TILE * E * 2;
    u32 queries = values + TILE * E * 2, grads = queries + TILE * E * 2;
    float *log_sum = reinterpret_cast<float *>(memory + 4 * TILE * E * 2), *dot = log_sum + TILE;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    int tile = blockIdx.x, batch = blockIdx.y / kv_heads, kv_head = blockIdx.y % kv_heads, copies = heads / kv_heads;
    u64 kv = (u64)blockIdx.y * sequence * E;
    int row = tile * TILE + warp * 16 + g;
    load_tile<E>(keys, k + kv, tile * TILE, sequence);
    load_tile<E>(values, v + kv, tile * TILE, sequence);
    float d_keys[E / 8][4], d_values[E / 8][4];
    zero(d_keys);
    zero(d_values);
    int tiles = (sequence + TILE - 1) / TILE;
    for (int copy = 0; copy < copies; copy++) {
        u64 rows = ((u64)batch * heads + kv_head * copies + copy) * sequence;
        for (int i = tile; i < tiles; i++) {
            load_tile<E>(queries, q + rows * E, i * TILE, sequence);
            load_tile<E>(grads, grad + rows * E, i * TILE, sequence);
            commit();
            if (threadIdx.x < TILE) {
                int from = i * TILE + threadIdx.x;
                log_sum[threadIdx.x] = from < sequence ? log_sums[rows + from] : 0;
                dot[threadIdx.x] = from < sequence ? along[rows + from] : 0;
            }
            arrived<0>();
            __syncthreads();
            float p[8][4], ds[8][4];
            zero(p);
            zero(ds);
            tiles_turned<E>(p, keys, warp * 16, queries, lane);
            tiles_turned<E>(ds, values, warp * 16, grads, lane);
            for (int n = 0; n < 8; n++)
                for (int c = 0; c < 4; c++) {
                    int column = n * 8 + 2 * t + (c & 1), query = i * TILE + column;
                    bool seen = query >= row + (c >> 1) * 8 && query < sequence;
                    p[n][c] = seen ? exp2f(p[n][c] * scale - log_sum[column]) : 0;
                    ds[n][c] = p[n][c] * (ds[n][c] - dot[column]);
                }
            times_tile<E>(d_values, p, grads, lane);
            times_tile<E>(d_keys, ds, queries, lane);
            __syncthreads();
        }
    }
    for (int r = 0; r < 2; r++) {
        int to = row + r * 8;
        if (to >= sequence) continue;
        u64 place = kv + (u64)to * E + 2 * t;
        for (int n = 0; n < E / 8; n++) {
            *reinterpret_cast<float2 *>(dk + place + n * 8) =
                make_float2(d_keys[n][2 * r] * factor, d_keys[n][2 * r + 1] * factor);
            *reinterpret_cast<float2 *>(dv + place + n * 8) = make_float2(d_values[n][2 * r], d_values[n][2 * r + 1]);
        }
    }
}

#define OF_WIDTH(E)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                           \
        attend_##E##_f32_bf16(const bf16 *q, const bf16 *k, const bf16 *v, float *out, float *log_sums, int sequence,  \
                              int heads, int kv_heads, float scale) {                                                  \
        attend<E>(q, k, v, out, log_sums, sequence, heads, kv_heads, scale);                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) attend_back_queries_##E##_f32_bf16(                       \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *grad, const float *log_sums, const float *along,      \
        float *dq, int sequence, int heads, int kv_heads, float scale, float factor) {                                 \
        attend_back_queries<E>(q, k, v, grad, log_sums, along, dq, sequence, heads, kv_heads, scale, factor);          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) attend_back_keys_##E##_f32_bf16(                          \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *grad, const float *log_sums, const float *along,      \
        float *dk, float *dv, int sequence, int heads, int kv_heads, float scale, float factor) {                      \
        attend_back_keys<E>(q, k, v, grad, log_sums, along, dk, dv, sequence, heads, kv_heads, scale, factor);         \
    }

OF_WIDTH(64)
OF_WIDTH(128)

extern "C" __global__ void attend_back_begin_f32_bf16(const float *out, const float *grad, bf16 *factors, float *along,
                                                      int sequence, int heads, int width, u64 rows) {
    attend_back_begin(out, grad, factors, along, sequence, heads, width, rows);
}
