// Gated linear attention in chunks (linear_attention_chunks.cuh): the outputs o with the scores A, and the gradients dv. A block has a
// chunk of a head, each of its four warps a part.
#include "linear_attention_chunks.cuh"

static constexpr int RESULT_THREADS = 128, STEPS = KEYS / 16;
static constexpr int RESULT_STAGE = KEYS * 128 + CHUNK * 128;

// A of one part's rows, as `scores` has it, from all queries, keys and sums.
struct Scores {
    const Chunk& at;
    const u32 queries, keys;
    const AllSums sums;
    const int part;
    const Lane lane;

    // Queries of this part, keys 16 step on, times exp(c - r).
    template <class Exponent>
    DEVICE void load_queries(u32 (&a)[4], int step, float limit, const Exponent& r) const {
        a_along<CHUNK>(a, queries, part * PART, 16 * step);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int t = part * PART + lane.row + e % 2 * 8, k = 16 * step + lane.column + e / 2 * 8;
            a[e] = weigh(a[e], power(sums.query(t, k) - r(k), limit), power(sums.query(t, k + 1) - r(k + 1), limit));
        }
    }
    // Keys of part `other`, times exp(r - b).
    template <class Exponent>
    DEVICE void load_keys(u32 (&b)[4], int step, int other, float limit, const Exponent& r) const {
        b_along<CHUNK>(b, keys, other * PART, 16 * step);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int s = other * PART + lane.row + e / 2 * 8, k = 16 * step + lane.column + e % 2 * 8;
            b[e] = weigh(b[e], power(r(k) - sums.key(s, k), limit), power(r(k + 1) - sums.key(s, k + 1), limit));
        }
    }
    DEVICE void with_earlier_parts(float (&c)[2 * PARTS][4]) const {
        auto r = [&](int k) { return sums.before(part * PART, k); };
        for (int step = 0; step < STEPS; step++) {
            u32 a[4];
            load_queries(a, step, 0.0f, r);
#pragma unroll
            for (int other = 0; other < PARTS - 1; other++) {
                if (other >= part) continue;
                u32 b[4];
                load_keys(b, step, other, 0.0f, r);
                multiply_columns(c[2 * other], c[2 * other + 1], a, b);
            }
        }
    }
    DEVICE void within(float (&c)[2][4]) const {
        const Reference reference = Reference::of(sums, part, at.inside, 0, KEYS);
        for (int row = 0; row < (reference.one ? 1 : PART); row++) {
            const int t = part * PART + row;
            auto r = [&](int k) { return reference.one ? sums.key(reference.middle, k) : sums.query(t, k); };
            const float limit = reference.one ? SAFE : 0.0f;
            for (int step = 0; step < STEPS; step++) {
                u32 a[4], b[4];
                load_queries(a, step, limit, r);
                if (!reference.one) keep_row(a, row, lane);
                load_keys(b, step, part, limit, r);
                multiply_columns(c[0], c[1], a, b);
            }
        }
    }
    // sum_k q_t u_k k_t, for the two lanes that share row `lane % 16` of the part.
    DEVICE float of_bonus(const float* bonus) const {
        const int t = part * PART + lane.lane % 16, first = lane.lane / 16 * (KEYS / 2);
        float sum = 0.0f;
        for (int k = first; k < first + KEYS / 2; k += 2) {
            const u32 q = load_pair<CHUNK>(queries, t, k), key = load_pair<CHUNK>(keys, t, k);
            sum += low_float(q) * bonus[k] * low_float(key) + high_float(q) * bonus[k + 1] * high_float(key);
        }
        return sum + __shfl_xor_sync(0xffffffffu, sum, 16);
    }
};

// o = x S + A v, or dv = x dS + A^T do; x are this warp's rows of weighed queries or keys, A is in shared memory. `memory` holds
// two stages of 64 values each.
template <bool REVERSE>
DEVICE void multiply_results(const Chunk& at, const u32 (&x)[STEPS][4], u32 scores, u32 memory, int part) {
    const LinearAttentionChunkParameters& p = at.p;
    const bf16* matrix = (REVERSE ? p.state_gradients : p.states) + at.index() * KEYS * VALUES;
    const bf16* rows = REVERSE ? p.output_gradient : p.value;
    bf16* result = REVERSE ? p.value_gradient : p.output;
    const Lane lane;
    auto fetch = [&](int tile) {
        const u32 stage = memory + (tile & 1) * RESULT_STAGE;
        load_tile<KEYS, 64, RESULT_THREADS>(stage, matrix + tile * 64, VALUES, KEYS);
        at.load<64, RESULT_THREADS>(stage + KEYS * 128, rows, VALUES, tile * 64);
        copy_async_commit();
    };
    fetch(0);
    for (int tile = 0; tile < VALUES / 64; tile++) {
        if (tile + 1 < VALUES / 64) {
            fetch(tile + 1);
            copy_async_wait<1>();
        } else {
            copy_async_wait<0>();
        }
        __syncthreads();
        const u32 stage = memory + (tile & 1) * RESULT_STAGE;
        float c[8][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++)
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
                u32 b[4];
                b_across<KEYS>(b, stage, 16 * pair, 16 * step);
                multiply_columns(c[2 * pair], c[2 * pair + 1], x[step], b);
            }
        for (int other = REVERSE ? part : 0; other < (REVERSE ? PARTS : part + 1); other++) {
            u32 a[4];
            if (REVERSE)
                a_across<CHUNK>(a, scores, part * PART, other * PART);
            else
                a_along<CHUNK>(a, scores, part * PART, other * PART);
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
                u32 b[4];
                b_across<CHUNK>(b, stage + KEYS * 128, 16 * pair, other * PART);
                multiply_columns(c[2 * pair], c[2 * pair + 1], a, b);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = part * PART + lane.row + 8 * half;
            const bool valid = i < at.inside;
            store_row(result + at.row(valid ? i : 0) * VALUES + tile * 64, c, half, valid);
        }
        __syncthreads();
    }
}

// Copies A between shared and global memory, sixteen bytes a thread and time.
DEVICE bf16* score_unit(const Chunk& at, int unit) { return at.p.scores + at.index() * CHUNK * CHUNK + unit * 8; }

extern "C" __global__ void __launch_bounds__(RESULT_THREADS, KEYS == 64 ? 5 : 3)
    linear_attention_chunk_outputs(const __grid_constant__ LinearAttentionChunkParameters p) {
    __shared__ float own[CHUNK];  // A_tt, BONUS
    const Chunk at(p, blockIdx.x, blockIdx.y, blockIdx.z);
    const int part = threadIdx.x / WARP;
    const u32 scores = shared_address(shared), memory = scores + SCORES_BYTES;
    float* sums = reinterpret_cast<float*>(shared + SCORES_BYTES + 2 * TOKENS_BYTES);
    at.load<KEYS, RESULT_THREADS>(memory, p.query, KEYS, 0);
    at.load<KEYS, RESULT_THREADS>(memory + TOKENS_BYTES, p.key, KEYS, 0);
    at.load_sums<KEYS, RESULT_THREADS>(sums, SUMS_STRIDE, 0);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();

    const Scores of = {at, memory, memory + TOKENS_BYTES, {sums}, part, Lane()};
    const Lane& lane = of.lane;
    float c[2 * PARTS][4] = {}, within[2][4] = {};
    of.with_earlier_parts(c);
    of.within(within);
    if (BONUS) {
        const float sum = of.of_bonus(p.bonus + at.head * KEYS);
        if (lane.lane < PART) own[part * PART + lane.lane] = p.scale * sum;
        __syncwarp();
    }
#pragma unroll
    for (int n = 0; n < 2 * PARTS; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int t = part * PART + lane.row + 8 * half, s = 8 * n + lane.column;
            float value[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float sum = n / 2 == part ? within[n % 2][2 * half + e] : c[n][2 * half + e];
                value[e] = at.meet(s + e, t) ? p.scale * sum : BONUS && s + e == t ? own[t] : 0.0f;
            }
            store_pair<CHUNK>(scores, t, s, pack_bf16(value[0], value[1]));
        }
    u32 x[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        a_along<CHUNK>(x[step], of.queries, part * PART, 16 * step);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int t = part * PART + lane.row + e % 2 * 8, k = 16 * step + lane.column + e / 2 * 8;
            const float factor = at.is_entered(t) ? p.scale : 0.0f;
            x[step][e] = weigh(x[step][e], factor * power(of.sums.query(t, k), 0.0f), factor * power(of.sums.query(t, k + 1), 0.0f));
        }
    }
    __syncthreads();  // queries, keys and sums have been read, A has been written
    if (p.scores != nullptr)
#pragma unroll
        for (int index = 0; index < CHUNK * 8 / RESULT_THREADS; index++) {
            const int unit = index * RESULT_THREADS + threadIdx.x;
            const uint4 from = *reinterpret_cast<const uint4*>(shared + place<CHUNK>(unit / 8, unit % 8));
            store_16(score_unit(at, unit), from.x, from.y, from.z, from.w);
        }
    multiply_results<false>(at, x, scores, memory, part);
}

extern "C" __global__ void __launch_bounds__(RESULT_THREADS, KEYS == 64 ? 5 : 3)
    linear_attention_chunk_values(const __grid_constant__ LinearAttentionChunkParameters p) {
    const Chunk at(p, blockIdx.x, blockIdx.y, blockIdx.z);
    const int part = threadIdx.x / WARP;
    const u32 scores = shared_address(shared), memory = scores + SCORES_BYTES;
    const AllSums sums = {reinterpret_cast<float*>(shared + SCORES_BYTES + TOKENS_BYTES)};
    at.load<KEYS, RESULT_THREADS>(memory, p.key, KEYS, 0);
    at.load_sums<KEYS, RESULT_THREADS>(const_cast<float*>(sums.tile), SUMS_STRIDE, 0);
#pragma unroll
    for (int index = 0; index < CHUNK * 8 / RESULT_THREADS; index++) {
        const int unit = index * RESULT_THREADS + threadIdx.x;
        copy_async_16(scores + place<CHUNK>(unit / 8, unit % 8), score_unit(at, unit), true);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    const Lane lane;
    u32 x[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        a_along<CHUNK>(x[step], memory, part * PART, 16 * step);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int s = part * PART + lane.row + e % 2 * 8, k = 16 * step + lane.column + e / 2 * 8;
            auto weight = [&](int key) { return power(sums.key(at.inside - 1, key) - sums.key(s, key), 0.0f); };
            x[step][e] = at.is_left(s) ? weigh(x[step][e], weight(k), weight(k + 1)) : 0;
        }
    }
    __syncthreads();  // keys and sums have been read
    multiply_results<true>(at, x, scores, memory, part);
}
