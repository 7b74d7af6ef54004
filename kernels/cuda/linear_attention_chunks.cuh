// Gated linear attention in chunks of 64 tokens, for queries, keys and values of bf16: the recurrence of linear_attention.cu as products
// of matrices, with operands rounded to bf16 and sums in float32. Here is what its kernels have in common; they are in
// linear_attention_chunk_states.cu (b, S, dS), linear_attention_chunk_results.cu (o, dv) and linear_attention_chunk_gradients.cu (dq, dk).
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
#pragma once
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
static constexpr int TOKENS_BYTES = CHUNK * KEYS * 2, SCORES_BYTES = CHUNK * CHUNK * 2;
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
