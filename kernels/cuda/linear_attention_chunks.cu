// Gated linear attention in chunks of 64 tokens, for queries, keys and values of bf16: the recurrence of linear_attention.cu as products
// of matrices, with operands rounded to bf16 and sums in float32.
//
// Within a chunk, b_t is the sum of log a up to token t and b_C of all; c_t = b_t, or b_{t-1} where the state is read before the update
// (BONUS). With S the state that enters and dS the gradient of the one that leaves:
//
//     A_ts  = scale sum_k q_tk k_sk exp(c_tk - b_sk)   s <= t (BONUS: s < t, and A_tt = scale sum_k q_tk u_k k_tk)
//     D_ts  = scale do_t . v_s                         the same pairs
//     o_t   = scale (q_t exp(c_t)) S + sum_s A_ts v_s
//     dv_s  = (k_s exp(b_C - b_s)) dS + sum_t A_ts do_t
//     dq_t  = scale exp(c_t) (S do_t) + sum_s D_ts k_s exp(c_t - b_s)
//     dk_s  = exp(b_C - b_s) (dS v_s) + sum_t D_ts q_t exp(c_t - b_s)
//     S    <- diag(exp(b_C)) S + sum_s (k_s exp(b_C - b_s)) v_s^T             chunks ascending: linear_attention_chunk_states
//     dS   <- diag(exp(b_C)) dS + sum_t (scale q_t exp(c_t)) do_t^T           descending: linear_attention_chunk_state_gradients
//
// All exponents above are at most 0. A product over k needs each exp(c_t - b_s) as a product of a factor of the query's and one of the
// key's, exp(c_t - r) exp(r - b_s), and no factor may overflow. So a chunk is cut into four parts of 16 tokens. Between two parts r is
// the sum where the later one begins: both exponents are at most 0. Within a part r is its middle, unless what is lost in it is
// more than exp(-60) for some key; then each row has its own r (16 times the products, and exact for any decay).
//
// The gradient of log a_j is what pairs of a token before j and a token from j on have in common: over the chunk
//     sum_{t >= j} q_t dq_t - sum_{s >= j} k_s dk_s + (exp(b_C) sum_v S dS + sum_s k_s exp(b_C - b_s) (dS v_s)).
//
// A reset before token r forgets everything: pairs count that have none between them, the entering state up to the first reset, and
// what is written into the leaving one from the last reset on.
//
// Legend: B batch, T tokens, H heads, K keys and V values of a head, N chunks.
#include "common.cuh"
#include "tiles.cuh"

#ifndef KEYS
#define KEYS 128  // K: 64 or 128 (checked: 64 x 64; without BONUS 128 x 128 and 128 x 256)
#endif
#ifndef VALUES
#define VALUES 256  // V: a multiple of 64
#endif
#ifndef BONUS
#define BONUS 0  // 1: the state is read before the update, and the current step by u
#endif

static constexpr int CHUNK = 64, PART = 16, PARTS = CHUNK / PART;
static constexpr int SUMS_STRIDE = KEYS + 4;  // floats between two tokens' sums in shared memory
static constexpr float SAFE = 60.0f;          // exponent up to which a factor is taken as it is
static constexpr float LEAST = -100.0f;       // log of a decay that leaves nothing: sums of it stay exact enough

DEVICE float bounded(float log_decay) { return log_decay < LEAST ? LEAST : log_decay; }

struct LinearAttentionChunkParameters {
    int tokens, heads, chunks;
    int token_decay;  // 1: log decays are [B, T, H, K], 0: [H, K]
    float scale;
    const bf16* query;            // [B, T, H, K]
    const bf16* key;              // [B, T, H, K]
    const bf16* value;            // [B, T, H, V]
    const float* log_decay;       // log a, at most 0
    const float* bonus;           // u: [H, K]
    const unsigned char* resets;  // [B, T], or null
    const float* initial;         // S before the first token: [B, H, K, V], or null for zeros
    bf16* output;                 // [B, T, H, V]
    float* last;                  // S after the last token, or null
    float* sums;                  // b, where decays are by token: [B, T, H, K]
    bf16* states;                 // S that enters each chunk: [B, H, N, K, V]
    bf16* scores;                 // A: [B, H, N, 64, 64], or null where nobody differentiates
    const bf16* output_gradient;  // as `output`
    const float* last_gradient;   // as `last`, or null for zeros
    bf16* state_gradients;        // dS of the state that leaves each chunk: as `states`
    bf16* query_gradient;
    bf16* key_gradient;
    bf16* value_gradient;
    float* decay_gradient;    // of log a: [B, T, H, K] or, summed over a chunk, [B, N, H, K]; or null
    float* bonus_gradient;    // [B, N, H, K], or null
    float* initial_gradient;  // or null
};

// One chunk of one head of one sequence.
struct Chunk {
    const LinearAttentionChunkParameters& p;
    int number, head, batch;
    int first, inside;  // its first token, and how many there are
    u64 resets;         // bit i: token i begins a document

    DEVICE Chunk(const LinearAttentionChunkParameters& p, int number, int head, int batch)
        : p(p), number(number), head(head), batch(batch), first(number * CHUNK), inside(min(CHUNK, p.tokens - first)), resets(0) {
        if (p.resets == nullptr) return;
        const unsigned char* of = p.resets + (i64)batch * p.tokens + first;
        const int lane = threadIdx.x % WARP;
        const u32 low = __ballot_sync(0xffffffffu, lane < inside && of[lane] != 0);
        const u32 high = __ballot_sync(0xffffffffu, lane + WARP < inside && of[lane + WARP] != 0);
        resets = (u64)high << 32 | low;
    }
    DEVICE i64 row(int i) const { return ((i64)batch * p.tokens + first + i) * p.heads + head; }
    DEVICE i64 index() const { return ((i64)batch * p.heads + head) * p.chunks + number; }
    DEVICE u64 resets_through(int t) const { return resets & (((u64)2 << t) - 1); }
    // Whether the entering state is read at t, whether token s is in the leaving one, whether t reads what s wrote.
    DEVICE bool is_entered(int t) const { return resets_through(t) == 0; }
    DEVICE bool is_left(int s) const { return resets >> s >> 1 == 0; }
    DEVICE bool meet(int s, int t) const {
        return (BONUS ? s < t : s <= t) && t < inside && resets_through(t) >> s >> 1 == 0;
    }
    DEVICE bool is_reset(int t) const { return resets >> t & 1; }

    // Starts the copy of 64 tokens' numbers of this head from `column` on, of vectors `width` long.
    template <int COLUMNS, int THREADS>
    DEVICE void load(u32 to, const bf16* from, int width, int column) const {
        load_tile<CHUNK, COLUMNS, THREADS>(to, from + row(0) * width + column, (i64)p.heads * width, inside);
    }
    // The sums b of COUNT keys from `first_key` on, tokens `stride` floats apart.
    template <int COUNT, int THREADS>
    DEVICE void load_sums(float* to, int stride, int first_key) const {
        constexpr int UNITS = COUNT / 4;
        for (int index = threadIdx.x; index < CHUNK * UNITS; index += THREADS) {
            const int i = index / UNITS, key = index % UNITS * 4;
            float* place = to + i * stride + key;
            if (p.token_decay) {
                const bool valid = i < inside;
                copy_async_16(shared_address(place), p.sums + row(valid ? i : 0) * KEYS + first_key + key, valid);
            } else {
                const float* log_decay = p.log_decay + head * KEYS + first_key + key;
#pragma unroll
                for (int e = 0; e < 4; e++) place[e] = (float)(i + 1) * bounded(log_decay[e]);
            }
        }
    }
};

// The sums b of a chunk in shared memory; c are those that queries have.
template <int STRIDE>
struct Sums {
    const float* tile;
    DEVICE float key(int s, int k) const { return tile[s * STRIDE + k]; }
    DEVICE float query(int t, int k) const { return !BONUS ? key(t, k) : t == 0 ? 0.0f : key(t - 1, k); }
    DEVICE float before(int t, int k) const { return t == 0 ? 0.0f : key(t - 1, k); }
};
typedef Sums<SUMS_STRIDE> AllSums;

// A NaN stays one, as below: what went wrong is to be seen.
DEVICE float power(float exponent, float limit) { return __expf(exponent > limit ? limit : exponent); }
DEVICE u32 weigh(u32 pair, float low, float high) { return pack_bf16(low_float(pair) * low, high_float(pair) * high); }

// Where the rows and columns of a lane's fragments lie: rows `row` and `row` + 8, columns `column`, `column` + 1 (and + 8, + 9).
struct Lane {
    int lane, row, column;
    DEVICE Lane() : lane(threadIdx.x % WARP), row(lane / 4), column(lane % 4 * 2) {}
};

// Which r a part's own pairs are weighed by: one for all rows, or each row's own.
struct Reference {
    int middle;
    bool one;
    // Of `count` keys from `first_key` on; all lanes of a warp call.
    DEVICE static Reference of(const AllSums& sums, int part, int inside, int first_key, int count) {
        const int last = min(part * PART + PART - 1, inside - 1);
        bool lost = false;
        for (int k = first_key + threadIdx.x % WARP; k < first_key + count && part * PART <= last; k += WARP)
            lost |= sums.before(part * PART, k) - sums.key(last, k) > SAFE;
        return {min(part * PART + PART / 2 - 1, inside - 1), !__any_sync(0xffffffffu, lost)};
    }
};

// Leaves one row of a fragment of A.
DEVICE void keep_row(u32 (&a)[4], int row, const Lane& lane) {
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (lane.row + e % 2 * 8 != row) a[e] = 0;
}

extern __shared__ __align__(128) unsigned char shared[];

// --- b: the sums of decays that are given by token.

extern "C" __global__ void __launch_bounds__(KEYS) linear_attention_chunk_sums(const __grid_constant__ LinearAttentionChunkParameters p) {
    const Chunk at(p, blockIdx.x, blockIdx.y, blockIdx.z);
    constexpr int AHEAD = 8;
    float sum = 0.0f;
    for (int first = 0; first < at.inside; first += AHEAD) {
        float read[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            read[i] = first + i < at.inside ? p.log_decay[at.row(first + i) * KEYS + threadIdx.x] : 0.0f;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            sum += bounded(read[i]);
            if (first + i < at.inside) p.sums[at.row(first + i) * KEYS + threadIdx.x] = sum;
        }
    }
}

// --- S and dS: a block has 64 keys and up to 128 values of one head's matrix in registers for the whole sequence, a warp 16 of the keys
// and 64 of the values.

static constexpr int VALUE_TILE = VALUES >= 128 ? 128 : 64, STATE_THREADS = 2 * VALUE_TILE, STATE_SUMS_STRIDE = 64 + 4;
static constexpr int STATE_STAGE = CHUNK * (64 + VALUE_TILE) * 2;

// Multiplies the queries or keys of a tile by what each counts in the state, where they lie.
template <bool REVERSE>
DEVICE void weigh_tile(const Chunk& at, unsigned char* tile, const Sums<STATE_SUMS_STRIDE>& sums) {
#pragma unroll
    for (int index = 0; index < CHUNK * 8 / STATE_THREADS; index++) {
        const int unit = index * STATE_THREADS + threadIdx.x, i = unit / 8, k = unit % 8 * 8;
        const float factor = !REVERSE ? at.is_left(i) : at.is_entered(i) ? at.p.scale : 0.0f;
        auto weight = [&](int key) {
            const float exponent = REVERSE ? sums.query(i, key) : sums.key(at.inside - 1, key) - sums.key(i, key);
            return factor * power(exponent, 0.0f);
        };
        uint4& eight = *reinterpret_cast<uint4*>(tile + place<CHUNK>(i, unit % 8));
        eight = make_uint4(weigh(eight.x, weight(k), weight(k + 1)), weigh(eight.y, weight(k + 2), weight(k + 3)),
                           weigh(eight.z, weight(k + 4), weight(k + 5)), weigh(eight.w, weight(k + 6), weight(k + 7)));
    }
}

template <bool REVERSE>
DEVICE void states(const LinearAttentionChunkParameters& p) {
    const int first_key = blockIdx.x / (VALUES / VALUE_TILE) * 64, first_value = blockIdx.x % (VALUES / VALUE_TILE) * VALUE_TILE;
    const int head = blockIdx.y, batch = blockIdx.z, warp = threadIdx.x / WARP;
    const Lane lane;
    const bf16 *x = REVERSE ? p.query : p.key, *y = REVERSE ? p.output_gradient : p.value;
    bf16* stored = REVERSE ? p.state_gradients : p.states;
    const float* given = REVERSE ? p.last_gradient : p.initial;
    float* asked = REVERSE ? p.initial_gradient : p.last;
    const int key = warp % 4 * 16 + lane.row, value = warp / 4 * 64;
    const i64 line = (i64)(first_key + key) * VALUES + first_value + value;
    const i64 whole = ((i64)batch * p.heads + head) * KEYS * VALUES + line;

    float c[8][4];  // keys `key` (+ 8), values `value` + 8 n + column
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            c[n][e] = given == nullptr ? 0.0f : given[whole + e / 2 * 8 * VALUES + 8 * n + lane.column + e % 2];

    auto number_of = [&](int index) { return REVERSE ? p.chunks - 1 - index : index; };
    float* sums_tile = reinterpret_cast<float*>(shared + 2 * STATE_STAGE);
    auto fetch = [&](int index) {
        const Chunk at(p, number_of(index), head, batch);
        const u32 stage = shared_address(shared) + (index & 1) * STATE_STAGE;
        at.load<64, STATE_THREADS>(stage, x, KEYS, first_key);
        at.load<VALUE_TILE, STATE_THREADS>(stage + CHUNK * 128, y, VALUES, first_value);
        // Sums of decays that are not by token are the same in every chunk.
        if (p.token_decay || index == 0) at.load_sums<64, STATE_THREADS>(sums_tile, STATE_SUMS_STRIDE, first_key);
        copy_async_commit();
    };
    fetch(0);
    for (int index = 0; index < p.chunks; index++) {
        copy_async_wait<0>();
        __syncthreads();
        const Chunk at(p, number_of(index), head, batch);
        unsigned char* stage = shared + (index & 1) * STATE_STAGE;
        const u32 x_tile = shared_address(stage), y_tile = x_tile + CHUNK * 128;
        const Sums<STATE_SUMS_STRIDE> sums = {sums_tile};
        weigh_tile<REVERSE>(at, stage, sums);
        const float total[2] = {sums.key(at.inside - 1, key), sums.key(at.inside - 1, key + 8)};
        __syncthreads();  // the tile is weighed, sums have been read
        if (index + 1 < p.chunks) fetch(index + 1);

        bf16* to = stored + at.index() * KEYS * VALUES + line;
        store_row(to, c, 0, true);
        store_row(to + 8 * VALUES, c, 1, true);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float decay = at.resets != 0 ? 0.0f : __expf(total[half]);
#pragma unroll
            for (int n = 0; n < 8; n++) c[n][2 * half] *= decay, c[n][2 * half + 1] *= decay;
        }
#pragma unroll
        for (int k16 = 0; k16 < PARTS; k16++) {
            u32 a[4];
            a_across<CHUNK>(a, x_tile, warp % 4 * 16, 16 * k16);
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
                u32 b[4];
                b_across<CHUNK>(b, y_tile, value + 16 * pair, 16 * k16);
                multiply_columns(c[2 * pair], c[2 * pair + 1], a, b);
            }
        }
    }
    if (asked == nullptr) return;
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) asked[whole + e / 2 * 8 * VALUES + 8 * n + lane.column + e % 2] = c[n][e];
}

// --- o and dv: a block has a chunk of a head, each of its four warps a part.

static constexpr int RESULT_THREADS = 128, STEPS = KEYS / 16;
static constexpr int TOKENS_BYTES = CHUNK * KEYS * 2, SCORES_BYTES = CHUNK * CHUNK * 2;
static constexpr int RESULT_STAGE = KEYS * 128 + CHUNK * 128;
__device__ constexpr int at_least(int a, int b) { return a > b ? a : b; }

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

// --- dq, dk and the gradients of log a and u: a block has a chunk of a head; each of its warps has a part of the tokens and 32 of the
// keys.

static constexpr int OWN_KEYS = 32, FRAGMENTS = OWN_KEYS / 8, KEY_GROUPS = KEYS / OWN_KEYS;
static constexpr int GRADIENT_THREADS = PARTS * KEY_GROUPS * WARP, SEGMENTS = GRADIENT_THREADS / KEYS;
static constexpr int OWN_PARTS = PARTS / KEY_GROUPS;  // columns of D that a warp computes

struct Gradients {
    const Chunk& at;
    const u32 queries, keys, products;  // tiles of q, k and D
    const AllSums sums;
    const int part, first_key;
    const Lane lane;
    float dq[FRAGMENTS][4], dk[FRAGMENTS][4];

    // Row and key of element e of fragment n.
    DEVICE int token(int e) const { return part * PART + lane.row + e / 2 * 8; }
    DEVICE int key(int n, int e) const { return first_key + 8 * n + lane.column + e % 2; }

    // Keys (or queries) of part `other`, sixteen from `first` on, times exp(exponent(token, key)), as B of a product over tokens: rounded,
    // and what rounding left. In the gradient of a decay terms of dq and of dk cancel that were weighed apart: rounded
    // once, their errors would be as large as what is left.
    template <class Exponent>
    DEVICE void load(u32 (&b)[4], u32 (&rest)[4], u32 tile, int other, int first, const Exponent& exponent, float limit) const {
        b_across<CHUNK>(b, tile, first, other * PART);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int i = other * PART + lane.column + e % 2 * 8, k = first + lane.row + e / 2 * 8;
            const float low = low_float(b[e]) * power(exponent(i, k), limit);
            const float high = high_float(b[e]) * power(exponent(i + 1, k), limit);
            b[e] = pack_bf16(low, high);
            rest[e] = pack_bf16(low - low_float(b[e]), high - high_float(b[e]));
        }
    }
    // to += exp(row's exponent) (D or D^T of one part with parts [begin, end)) (weighed keys or queries)
    template <bool OF_KEYS, class ByRow, class ByToken>
    DEVICE void add(float (&to)[FRAGMENTS][4], int begin, int end, const ByRow& by_row, const ByToken& by_token, float limit,
                    int only_row) const {
#pragma unroll
        for (int pair = 0; pair < FRAGMENTS / 2; pair++) {
            const int first = first_key + 16 * pair;
            float c[2][4] = {};
            for (int other = begin; other < end; other++) {
                u32 a[4], b[4], rest[4];
                if (OF_KEYS)
                    a_across<CHUNK>(a, products, part * PART, other * PART);
                else
                    a_along<CHUNK>(a, products, part * PART, other * PART);
                if (only_row >= 0) keep_row(a, only_row, lane);
                load(b, rest, OF_KEYS ? queries : keys, other, first, by_token, limit);
                multiply_columns(c[0], c[1], a, b);
                multiply_columns(c[0], c[1], a, rest);
            }
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    to[2 * pair + n][e] += c[n][e] * power(by_row(token(e), key(2 * pair + n, e)), limit);
        }
    }
    // What pairs within the chunk add.
    DEVICE void add_pairs() {
        const int last = part * PART + PART - 1;
        // The sum where this part begins, and where it ends.
        auto begin = [&](int k) { return sums.before(part * PART, k); };
        auto end = [&](int k) { return sums.key(last, k); };
        add<false>(
            dq, 0, part, [&](int t, int k) { return sums.query(t, k) - begin(k); },
            [&](int s, int k) { return begin(k) - sums.key(s, k); }, 0.0f, -1);
        if (last < at.inside)
            add<true>(
                dk, part + 1, PARTS, [&](int s, int k) { return end(k) - sums.key(s, k); },
                [&](int t, int k) { return sums.query(t, k) - end(k); }, 0.0f, -1);
        const Reference reference = Reference::of(sums, part, at.inside, first_key, OWN_KEYS);
        if (reference.one) {
            auto middle = [&](int k) { return sums.key(reference.middle, k); };
            auto of_query = [&](int t, int k) { return sums.query(t, k) - middle(k); };
            auto of_key = [&](int s, int k) { return middle(k) - sums.key(s, k); };
            add<false>(dq, part, part + 1, of_query, of_key, SAFE, -1);
            add<true>(dk, part, part + 1, of_key, of_query, SAFE, -1);
            return;
        }
        auto nothing = [](int, int) { return 0.0f; };
        for (int row = 0; row < PART; row++) {
            const int i = part * PART + row;
            add<false>(
                dq, part, part + 1, nothing, [&](int s, int k) { return sums.query(i, k) - sums.key(s, k); }, 0.0f, row);
            add<true>(
                dk, part, part + 1, nothing, [&](int t, int k) { return sums.query(t, k) - sums.key(i, k); }, 0.0f, row);
        }
    }
    // Sums over this warp's rows of terms(fragment, half) -> (of the two columns), left in sums_of_parts[part].
    template <class Terms>
    DEVICE void sum_rows(float (*sums_of_parts)[KEYS], const Terms& terms) const {
#pragma unroll
        for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float sum = terms(n, e) + terms(n, e + 2);
#pragma unroll
                for (int offset = 4; offset < WARP; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
                if (lane.row == 0) sums_of_parts[part][key(n, e)] = sum;
            }
    }
    DEVICE float number_of(u32 tile, int n, int e) const {
        const u32 pair = load_pair<CHUNK>(tile, token(e), key(n, 0));
        return e % 2 ? high_float(pair) : low_float(pair);
    }
};

extern "C" __global__ void __launch_bounds__(GRADIENT_THREADS, 128 / KEYS)
    linear_attention_chunk_keys(const __grid_constant__ LinearAttentionChunkParameters p) {
    __shared__ float own[CHUNK];                        // D_tt
    __shared__ float written[PARTS][KEYS];              // sum_s k_s exp(b_C - b_s) (dS v_s), by part
    __shared__ float of_bonus[BONUS ? PARTS : 1][KEYS];  // sum_t D_tt q_t k_t
    __shared__ float kept[SEGMENTS][KEYS];              // sum_v S dS, by segment of the values
    const Chunk at(p, blockIdx.x, blockIdx.y, blockIdx.z);
    const int warp = threadIdx.x / WARP, part = warp % PARTS;
    const u32 products = shared_address(shared), memory = products + SCORES_BYTES;
    float* sums_tile = reinterpret_cast<float*>(shared + SCORES_BYTES + 2 * TOKENS_BYTES);
    Gradients of = {at, memory, memory + TOKENS_BYTES, products, {sums_tile}, part, warp / PARTS * OWN_KEYS, Lane(), {}, {}};
    const Lane& lane = of.lane;

    // What passes through the states, 64 values at a time; and D, of some of the tokens that are read.
    const u32 gradients = memory, values = memory + CHUNK * 128, states = values + CHUNK * 128, state_gradients = states + KEYS * 128;
    const int key = threadIdx.x % KEYS, segment = threadIdx.x / KEYS, first_part = warp / PARTS * OWN_PARTS;
    float d[2 * OWN_PARTS][4] = {}, through = 0.0f;
    for (int tile = 0; tile < VALUES / 64; tile++) {
        at.load<64, GRADIENT_THREADS>(gradients, p.output_gradient, VALUES, tile * 64);
        at.load<64, GRADIENT_THREADS>(values, p.value, VALUES, tile * 64);
        const i64 matrix = at.index() * KEYS * VALUES + tile * 64;
        load_tile<KEYS, 64, GRADIENT_THREADS>(states, p.states + matrix, VALUES, KEYS);
        load_tile<KEYS, 64, GRADIENT_THREADS>(state_gradients, p.state_gradients + matrix, VALUES, KEYS);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int k16 = 0; k16 < 4; k16++) {
            u32 of_output[4], of_value[4], b[4];
            a_along<CHUNK>(of_output, gradients, part * PART, 16 * k16);
            a_along<CHUNK>(of_value, values, part * PART, 16 * k16);
#pragma unroll
            for (int pair = 0; pair < FRAGMENTS / 2; pair++) {
                b_along<KEYS>(b, states, of.first_key + 16 * pair, 16 * k16);
                multiply_columns(of.dq[2 * pair], of.dq[2 * pair + 1], of_output, b);
                b_along<KEYS>(b, state_gradients, of.first_key + 16 * pair, 16 * k16);
                multiply_columns(of.dk[2 * pair], of.dk[2 * pair + 1], of_value, b);
            }
#pragma unroll
            for (int other = 0; other < OWN_PARTS; other++) {
                if (first_part + other > part) continue;
                b_along<CHUNK>(b, values, (first_part + other) * PART, 16 * k16);
                multiply_columns(d[2 * other], d[2 * other + 1], of_output, b);
            }
        }
#pragma unroll
        for (int unit = segment * (8 / SEGMENTS); unit < (segment + 1) * (8 / SEGMENTS); unit++)
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
                const u32 a = load_pair<KEYS>(states, key, 8 * unit + 2 * pair);
                const u32 b = load_pair<KEYS>(state_gradients, key, 8 * unit + 2 * pair);
                through += low_float(a) * low_float(b) + high_float(a) * high_float(b);
            }
        __syncthreads();
    }
    at.load<KEYS, GRADIENT_THREADS>(of.queries, p.query, KEYS, 0);
    at.load<KEYS, GRADIENT_THREADS>(of.keys, p.key, KEYS, 0);
    at.load_sums<KEYS, GRADIENT_THREADS>(sums_tile, SUMS_STRIDE, 0);
    copy_async_commit();
    kept[segment][key] = through;
#pragma unroll
    for (int n = 0; n < 2 * OWN_PARTS; n++) {
        if (first_part + n / 2 > part) continue;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int t = part * PART + lane.row + 8 * half, s = first_part * PART + 8 * n + lane.column;
            float value[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float sum = p.scale * d[n][2 * half + e];
                value[e] = at.meet(s + e, t) ? sum : 0.0f;
                if (BONUS && s + e == t) own[t] = sum;
            }
            store_pair<CHUNK>(products, t, s, pack_bf16(value[0], value[1]));
        }
    }
    copy_async_wait<0>();
    __syncthreads();
    const float total = of.sums.key(at.inside - 1, key);
#pragma unroll
    for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int i = of.token(e), k = of.key(n, e);
            of.dq[n][e] *= at.is_entered(i) ? p.scale * power(of.sums.query(i, k), 0.0f) : 0.0f;
            of.dk[n][e] *= at.is_left(i) ? power(of.sums.key(at.inside - 1, k) - of.sums.key(i, k), 0.0f) : 0.0f;
        }
    of.sum_rows(written, [&](int n, int e) { return of.number_of(of.keys, n, e) * of.dk[n][e]; });
    of.add_pairs();

    // The terms of the sums over tokens, before the bonus adds what no decay has part in.
    float term[FRAGMENTS][4], of_key[BONUS ? FRAGMENTS : 1][4];
#pragma unroll
    for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float q = of.number_of(of.queries, n, e), k = of.number_of(of.keys, n, e);
            const float by_key = k * of.dk[n][e];
            term[n][e] = q * of.dq[n][e] - by_key;
            if constexpr (BONUS) {
                of_key[n][e] = by_key;
                const float u = p.bonus[at.head * KEYS + of.key(n, e)], product = own[of.token(e)];
                of.dq[n][e] += product * u * k;
                of.dk[n][e] += product * u * q;
            }
        }
    if (BONUS && p.bonus_gradient != nullptr)
        of.sum_rows(of_bonus, [&](int n, int e) {
            return own[of.token(e)] * of.number_of(of.queries, n, e) * of.number_of(of.keys, n, e);
        });
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int i = of.token(2 * half);
        const bool valid = i < at.inside;
        const i64 line = at.row(valid ? i : 0) * KEYS + of.first_key;
        store_row(p.query_gradient + line, of.dq, half, valid);
        store_row(p.key_gradient + line, of.dk, half, valid);
    }
    __syncthreads();  // queries, keys and sums have been read
    float* terms_of_keys = reinterpret_cast<float*>(shared + SCORES_BYTES);
#pragma unroll
    for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            sums_tile[of.token(e) * SUMS_STRIDE + of.key(n, e)] = term[n][e];
            if constexpr (BONUS) terms_of_keys[of.token(e) * KEYS + of.key(n, e)] = of_key[n][e];
        }
    __syncthreads();
    if (threadIdx.x >= KEYS) return;
    const i64 of_chunk = (((i64)at.batch * p.chunks + at.number) * p.heads + at.head) * KEYS + key;
    if (BONUS && p.bonus_gradient != nullptr) {
        float sum = 0.0f;
        for (int other = 0; other < PARTS; other++) sum += of_bonus[other][key];
        p.bonus_gradient[of_chunk] = sum;
    }
    if (p.decay_gradient == nullptr) return;
    float later = 0.0f, whole = 0.0f;
    for (int other = 0; other < SEGMENTS; other++) later += kept[other][key];
    later *= at.resets != 0 ? 0.0f : __expf(total);
    for (int other = 0; other < PARTS; other++) later += written[other][key];
    for (int i = at.inside - 1; i >= 0; i--) {
        const float here = sums_tile[i * SUMS_STRIDE + key];
        float gradient = BONUS ? later - terms_of_keys[i * KEYS + key] : later + here;
        later += here;
        if (at.is_reset(i)) gradient = later = 0.0f;
        if (p.token_decay) p.decay_gradient[at.row(i) * KEYS + key] = gradient;
        whole += gradient;
    }
    if (!p.token_decay) p.decay_gradient[of_chunk] = whole;
}

extern "C" __global__ void __launch_bounds__(STATE_THREADS, VALUES == 64 ? 3 : 2)
    linear_attention_chunk_states(const __grid_constant__ LinearAttentionChunkParameters p) {
    states<false>(p);
}
extern "C" __global__ void __launch_bounds__(STATE_THREADS, VALUES == 64 ? 3 : 2)
    linear_attention_chunk_state_gradients(const __grid_constant__ LinearAttentionChunkParameters p) {
    states<true>(p);
}
