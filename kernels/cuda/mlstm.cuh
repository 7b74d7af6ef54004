// Shapes, parameters and the software pipeline shared by the chunkwise mLSTM kernels.
//
// Per head (exponential input gate, sigmoid forget gate), with b the sum of log sigmoid(f) from the chunk's
// start, u = i - b and M_t = max(m_before, max of u up to t), where m_before is the stabilizer of the
// state that enters the chunk, every exponent of the chunkwise form becomes a difference of two terms:
//     weight of pair (t, j <= t)       exp(u_j - M_t)
//     weight of the entering state     exp(m_before - M_t)          ("carry")
//     weight of token j in the state   exp(u_j - M_last)            ("keep")
//     decay of the entering state      exp(m_before - M_last)
//     stabilizer of token t            m_t = b_t + M_t
// All are at most 1, and all follow from the gates alone: one cheap scan fixes every stabilizer
// before any matrix product starts, so that no kernel needs an online maximum.
//
// A reset at token r (a document begins there) cuts the chunk into segments: b starts anew at r, M_t is the maximum of u
// from r on, and no weight above passes r: pairs (t, j) count where j is not before t's segment, `carry` is 0 for all but
// the segment that the chunk began in, `keep` for all but the last. `segment_start` says where a token's segment starts,
// counted from the chunk's first token, -1 where that is before the chunk.
//
// States that enter the first chunk and leave the last one are fp32, by the convention of the Rust side: the matrix is
// k v^T / sqrt(K) divided by exp(maximum). In here it is without the 1 / sqrt(K) (`key_scale`), which goes with q.
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
static_assert(CHUNK % WARP == 0 && DQK % 8 == 0 && DV % 8 == 0, "chunk and head sizes");

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
    const unsigned char* resets;            // [B, T], nonzero: everything before this token is forgotten; or null
    // The state before the first token, or null: [B * H, K, V], [B * H, K], [B * H].
    const float *initial_matrix, *initial_norm, *initial_maximum;
    float *final_matrix, *final_norm, *final_maximum;  // the state after the last token, likewise, or null
    const float *final_matrix_gradient, *final_norm_gradient;  // d loss / d final state, or null; its maximum has none
    float *initial_matrix_gradient, *initial_norm_gradient;    // d loss / d initial state, or null
    // From the gates.
    float *log_forget_sum, *exponent, *local_maximum;  // b, u, running maximum of u: [B * H, P]
    float *maximum, *carry, *keep;                     // M, carry, keep: [B * H, P]
    float *chunk_forget, *chunk_maximum, *decay;       // [B * H, N]
    bf16* state_weight;                                // keep as bf16: [B * H, P]
    int* segment_start;                                // [B * H, P]; null without resets: -1 everywhere
    // Forward.
    bf16* states;        // state entering each chunk, [B * H, N, K, V]; chunk 0's is read with an initial state only
    float* norm_states;  // [B * H, N, K]
    bf16* scores;        // [B * H, N, L, L], lower triangle of tiles
    float* row_sums;     // per column tile of the chunk: [ROW_TILES, B * H, P]
    float* query_norm;   // n . q, saved for the backward pass: [B * H, P]
    // What rounding took from the output, in 1/256 of its last place: with it the backward pass forms dh . h
    // to 2^-17, where h and v may agree to the last bit and only their difference matters. [B, H, T, V] as output.
    signed char* output_rest;
    float* inverse_denominator;  // 1 / den, for the backward pass: [B, T, H]
    // Backward. Whoever makes dh may divide it by den before rounding and give the dots: then the three are the same, 1, and
    // given. Otherwise the pass begins with a divided copy for dv, where rounding twice is harmless; where dh meets v in one
    // sum per score it is not, and rows are divided after that product.
    const bf16* output_gradient;  // dh, or dh / den: [B, H, T, V]
    bf16* divided_gradient;       // dh / den: [B, H, T, V] as output
    float* gradient_scale;        // what `output_gradient` lacks, 1 / den, or null: [B * H, P]
    bf16 *query_gradient, *key_gradient, *value_gradient;
    float *input_gate_gradient, *forget_gate_gradient;  // as the gates
    float* norm_gradient;                     // d loss / d (n . q): [B * H, P]
    bf16 *gradient_weight, *gradient_column;  // of the state gradient's sum: [B * H, P]
    const float* output_dot;                  // dh / den . h where dh came divided: [B, T, H]
    bf16* state_gradients;                              // gradient of the state leaving each chunk
    float* norm_state_gradients;
    bf16* score_gradients;                                            // [B * H, N, L, L]
    float *query_dot, *key_carry_dot, *key_dot;  // [K_TILES, B * H, P]
    float* decay_gradient;                                            // [K_TILES * V_TILES, B * H, N]
    // For the copy engine, of the tensors of these names; activations as [B, H, T, K or V], the others [1, B * H * N, ..].
    TensorMap query_map, key_map, value_map, output_gradient_map, divided_gradient_map, states_map, state_gradients_map, scores_map,
        score_gradients_map;

    DEVICE i64 padded() const { return (i64)chunks * CHUNK; }
    DEVICE i64 token_index(int batch_head, int chunk) const { return batch_head * padded() + (i64)chunk * CHUNK; }
    // Place of a token and head in an array [B, T, H].
    DEVICE i64 token_major(int batch_head, i64 token) const {
        return ((i64)(batch_head / heads) * tokens + token) * heads + batch_head % heads;
    }
    DEVICE i64 state_index(int batch_head, int chunk) const {
        return ((i64)batch_head * chunks + chunk) * DQK * DV;
    }
    DEVICE i64 score_index(int batch_head, int chunk) const {
        return ((i64)batch_head * chunks + chunk) * CHUNK * CHUNK;
    }
    DEVICE i64 norm_index(int batch_head, int chunk) const { return ((i64)batch_head * chunks + chunk) * DQK; }

    // Whether a state enters the chunk, and whether a gradient comes back from the one that leaves it.
    DEVICE bool entered(int chunk) const { return chunk > 0 || initial_matrix != nullptr; }
    DEVICE bool left(int chunk) const { return chunk + 1 < chunks || final_matrix_gradient != nullptr; }
    DEVICE int segment(i64 token) const { return segment_start == nullptr ? -1 : segment_start[token]; }
    DEVICE float scale_of_gradient(i64 row) const { return gradient_scale == nullptr ? 1.0f : gradient_scale[row]; }

    // Operands of the products.
    DEVICE Operand of_keys(const TensorMap& map, const bf16* data, int batch_head) const {
        return {&map, data + qk.offset(batch_head, heads, 0), qk.token, tokens, DQK, batch_head % heads, batch_head / heads};
    }
    DEVICE Operand of_values(const TensorMap& map, const bf16* data, int batch_head) const {
        return {&map, data + v.offset(batch_head, heads, 0), v.token, tokens, DV, batch_head % heads, batch_head / heads};
    }
    DEVICE Operand state(const TensorMap& map, const bf16* data, int batch_head, int chunk) const {
        return {&map, data + state_index(batch_head, chunk), DV, DQK, DV, batch_head * chunks + chunk, 0};
    }
    DEVICE Operand score(const TensorMap& map, const bf16* data, int batch_head, int chunk) const {
        return {&map, data + score_index(batch_head, chunk), CHUNK, CHUNK, CHUNK, batch_head * chunks + chunk, 0};
    }
};

// Where a step's two operand tiles lie, and what beside them (a ring's `EXTRA` bytes).
struct Slot {
    u32 tiles, extra, barrier;
    DEVICE u32 second() const { return tiles + OPERAND_BYTES; }
};

#if BULK
// A ring of STAGES pairs of operand tiles, each with two barriers: all bytes have come; all warps that read them are
// done. `issue(step, slot)` starts the copies of one of `total` steps; all threads call it, and each warp copies its
// quarter (and the first, what is EXTRA).
template <int EXTRA, class Issue>
struct Ring {
    static constexpr int WARPS = THREADS / WARP;
    u32 base, parity;
    int total, step, index;
    Issue issue;

    DEVICE Ring(u32 memory, int total, Issue issue)
        : base((memory + 1023) & ~1023u), parity(0), total(total), step(0), index(0), issue(issue) {
        if (threadIdx.x == 0) {
#pragma unroll
            for (int slot = 0; slot < STAGES; slot++) {
                barrier_init(full(slot), WARPS);
                barrier_init(empty(slot), WARPS);
            }
            barrier_init_fence();
        }
        __syncthreads();
#pragma unroll
        for (int ahead = 0; ahead < STAGES; ahead++)
            if (ahead < total) start(ahead, ahead);
    }
    DEVICE u32 full(int slot) const { return base + STAGES * (STAGE_BYTES + EXTRA) + slot * 16; }
    DEVICE u32 empty(int slot) const { return full(slot) + 8; }
    DEVICE Slot slot(int index) const {
        return {base + index * STAGE_BYTES, base + STAGES * STAGE_BYTES + index * EXTRA, full(index)};
    }
    DEVICE void start(int which, int into) {
        const u32 bytes = STAGE_BYTES / WARPS + (warp_number() == 0 ? EXTRA : 0);
        if (opaque_lane() == 0) barrier_expect(full(into), bytes);
        issue(which, slot(into));
    }
    // Waits for the next step's operands.
    DEVICE Slot next() {
        barrier_wait(full(index), parity);
        const Slot ready = slot(index);
        step++;
        if (++index == STAGES) {
            index = 0;
            parity ^= 1;
        }
        return ready;
    }
    // Gives back the slot that `next` handed out LAG calls before the last, and starts the copies of the step that takes
    // it as soon as all its readers are done.
    template <int LAG>
    DEVICE void recycle() {
        const int used = step - 1 - LAG, later = used + STAGES;
        if (used < 0 || later >= total) return;
        const bool wrapped = index < 1 + LAG;
        const int last = index - 1 - LAG + (wrapped ? STAGES : 0), lane = opaque_lane();
        __syncwarp();
        if (lane == 0) {
            barrier_arrive(empty(last));
            barrier_wait(empty(last), wrapped ? parity ^ 1 : parity);
        }
        __syncwarp();
        start(later, last);
    }
};
#else
// A ring of STAGES pairs of operand tiles: `issue(step, slot)` starts the copies of one of `total` steps, STAGES - 1
// steps ahead of the step that is computed; all threads call it.
template <int EXTRA, class Issue>
struct Ring {
    u32 base;
    int total, step, read, write;
    Issue issue;

    DEVICE Ring(u32 base, int total, Issue issue) : base(base), total(total), step(0), read(0), write(0), issue(issue) {
#pragma unroll
        for (int ahead = 0; ahead < STAGES - 1; ahead++) start();
    }
    DEVICE Slot slot(int index) const {
        return {base + index * STAGE_BYTES, base + STAGES * STAGE_BYTES + index * EXTRA, 0};
    }
    DEVICE void start() {
        if (step < total) issue(step, slot(write));
        step++;
        copy_async_commit();
        write = write + 1 == STAGES ? 0 : write + 1;
    }
    // Waits for the next step's operands, starts a later step's, and returns where the operands lie.
    DEVICE Slot next() {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        start();
        const Slot ready = slot(read);
        read = read + 1 == STAGES ? 0 : read + 1;
        return ready;
    }
    template <int LAG>
    DEVICE void recycle() {}
};
#endif
