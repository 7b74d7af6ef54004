// Shapes, parameters and the software pipeline shared by the chunkwise mLSTM kernels.
//
// Per head (exponential input gate, sigmoid forget gate), with b the sum of log sigmoid(f) from the chunk's
// start, u = i - b and M_t = max(m_before, max of u up to t), where m_before is the stabiliser of the
// state that enters the chunk, every exponent of the chunkwise form becomes a difference of two terms:
//     weight of pair (t, j <= t)       exp(u_j - M_t)
//     weight of the entering state     exp(m_before - M_t)          ("carry")
//     weight of token j in the state   exp(u_j - M_last)            ("keep")
//     decay of the entering state      exp(m_before - M_last)
//     stabiliser of token t            m_t = b_t + M_t
// All are at most 1, and all follow from the gates alone: one cheap scan fixes every stabiliser
// before any matrix product starts, so that no kernel needs an online maximum.
//
// Legend: B batch, H heads, T tokens, N chunks, L tokens per chunk, P = N * L, K and V head sizes of
// queries/keys and of values. Per-token arrays are [B * H, P]; padding tokens have u = -infinity.
#pragma once
#include "gemm.cuh"

#ifndef DQK
#define DQK 128
#endif
#ifndef DV
#define DV 128
#endif
#ifndef CHUNK
#define CHUNK 128
#endif

static constexpr int K_TILES = (DQK + TILE - 1) / TILE;
static constexpr int V_TILES = (DV + TILE - 1) / TILE;
static constexpr int ROW_TILES = CHUNK / TILE;
static_assert(CHUNK % TILE == 0 && DQK % 8 == 0 && DV % 8 == 0, "chunk and head sizes");

// Where element (batch, head, token, 0) of an activation lies, in elements; the last axis is contiguous.
struct Strides {
    i64 batch, head, token;
    DEVICE i64 offset(int batch_head, int heads, i64 token_index) const {
        return (i64)(batch_head / heads) * batch + (i64)(batch_head % heads) * head + token_index * token;
    }
};

// One block of parameters for all kernels of the layer (the launcher fills what a pass uses).
struct MlstmParameters {
    int batch_heads, heads, tokens, chunks;
    float key_scale, epsilon;
    Strides qk, v, gate;              // queries, keys and their gradients; values, output and theirs; gates
    const bf16 *query, *key, *value;  // [B, H, T, K], [B, H, T, K], [B, H, T, V] in any stride order
    const float *input_gate, *forget_gate;  // [B, H, T] in any stride order, before exp and before log sigmoid
    bf16* output;                           // [B, H, T, V]
    // From the gates.
    float *log_forget_sum, *exponent, *local_maximum;  // b, u, running maximum of u: [B * H, P]
    float *maximum, *carry, *keep;                     // M, carry, keep: [B * H, P]
    float *chunk_forget, *chunk_maximum, *decay;       // [B * H, N]
    bf16* state_weight;                                // keep as bf16: [B * H, P]
    // Forward.
    bf16* states;        // state entering each chunk, [B * H, N, K, V]; chunk 0's is zero and never read
    float* norm_states;  // [B * H, N, K]
    bf16* scores;        // [B * H, N, L, L], lower triangle of tiles
    float* row_sums;     // per column tile of the chunk: [ROW_TILES, B * H, P]
    float* query_norm;   // n . q, saved for the backward pass: [B * H, P]
    // What rounding took from the output, in 1/256 of its last place: with it the backward pass forms dh . h
    // to 2^-17, where h and v may agree to the last bit and only their difference matters. [B, H, T, V] as output.
    signed char* output_rest;
    // Backward.
    const bf16* output_gradient;  // [B, H, T, V]
    bf16 *query_gradient, *key_gradient, *value_gradient;
    float *input_gate_gradient, *forget_gate_gradient;  // as the gates
    float *inverse_denominator, *norm_gradient;         // 1 / den and d loss / d (n . q): [B * H, P]
    bf16 *gradient_weight, *gradient_column;            // of the state gradient's sum: [B * H, P]
    const float* output_dot;  // dh . h where whoever made dh has it already, [B, T, H], or null
    bf16* state_gradients;                              // gradient of the state leaving each chunk
    float* norm_state_gradients;
    bf16* score_gradients;                                            // [B * H, N, L, L]
    bf16* kept_scores;  // those of the forward pass where they were kept, to be divided in place; else null
    float *query_dot, *key_carry_dot, *key_dot;  // [K_TILES, B * H, P]
    float* decay_gradient;                                            // [K_TILES * V_TILES, B * H, N]

    DEVICE i64 padded() const { return (i64)chunks * CHUNK; }
    DEVICE i64 token_index(int batch_head, int chunk) const { return batch_head * padded() + (i64)chunk * CHUNK; }
    DEVICE i64 state_index(int batch_head, int chunk) const {
        return ((i64)batch_head * chunks + chunk) * DQK * DV;
    }
    DEVICE i64 score_index(int batch_head, int chunk) const {
        return ((i64)batch_head * chunks + chunk) * CHUNK * CHUNK;
    }
    DEVICE i64 norm_index(int batch_head, int chunk) const { return ((i64)batch_head * chunks + chunk) * DQK; }
};

// A ring of STAGES operand tiles: `issue(step, stage)` starts the copies of one of `total` steps, STAGES - 1
// steps ahead of the step that is computed.
template <class Issue>
struct Ring {
    u32 base, end, read, write;
    int bytes, total, step;
    Issue issue;

    DEVICE Ring(u32 base, int bytes, int total, Issue issue)
        : base(base), end(base + STAGES * bytes), read(base), write(base), bytes(bytes), total(total), step(0), issue(issue) {
#pragma unroll
        for (int ahead = 0; ahead < STAGES - 1; ahead++) start();
    }
    DEVICE void start() {
        if (step < total) issue(step, write);
        step++;
        copy_async_commit();
        write = write + bytes == end ? base : write + bytes;
    }
    // Waits for the next step's operands, starts a later step's, and returns where the operands lie.
    DEVICE u32 next() {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        start();
        const u32 stage = read;
        read = read + bytes == end ? base : read + bytes;
        return stage;
    }
};
