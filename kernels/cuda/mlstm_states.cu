// The states between chunks, and their gradients: one block holds a 128 x 128 tile of one head's
// matrix memory in registers for the whole sequence, and streams tokens past it.
//
//   forward   C <- decay C + sum_j keep_j k_j v_j^T          chunks ascending, stored as the next chunk's
//   backward  dC <- decay dC + sum_i carry_i s / den_i q_i dh_i^T   descending, stored as the chunk before's
//
// The sum runs over tokens, which are rows of both operands in memory: both fragments are read across k,
// and the weight of a token multiplies the fragment of A in registers (16 packed products for 32 `mma`).
// The normaliser is one more column of B, ones forward, d(n . q) den backward: four more `mma` for the
// blocks of the first column tile. Running one block over the sequence needs no second pass over states
// and keeps the accumulator in fp32 throughout; with H heads of K x V there are B H K V / 16384 blocks.
// Only stored states are rounded, to bf16.
#include "mlstm.cuh"

static constexpr int STATE_STAGE_BYTES = STAGE_BYTES + 2 * BLOCK_K * 2;
static constexpr int STEPS_PER_CHUNK = CHUNK / BLOCK_K;

template <bool BACKWARD>
DEVICE void states(const MlstmParameters& p) {
    extern __shared__ __align__(128) unsigned char shared[];
    const u32 base = shared_address(shared);
    const int k_tile = blockIdx.x / V_TILES, v_tile = blockIdx.x % V_TILES, batch_head = blockIdx.y;
    const Place at;
    const bf16* a_source = (BACKWARD ? p.query : p.key) + p.qk.offset(batch_head, p.heads, 0) + k_tile * TILE;
    const bf16* b_source = (BACKWARD ? p.output_gradient : p.value) + p.v.offset(batch_head, p.heads, 0) + v_tile * TILE;
    const bf16* weights = BACKWARD ? p.gradient_weight : p.state_weight;
    bf16* stored = BACKWARD ? p.state_gradients : p.states;
    float* norm_stored = BACKWARD ? p.norm_state_gradients : p.norm_states;
    const bool with_norm = v_tile == 0 && at.warp_column == 0;
    const int k_left = DQK - k_tile * TILE, v_left = DV - v_tile * TILE;

    Accumulator c;
    c.clear();
    float norm[4][4] = {};

    auto chunk_of = [&](int step) {
        const int index = step / STEPS_PER_CHUNK;
        return BACKWARD ? p.chunks - 1 - index : index;
    };
    auto issue = [&](int step, u32 stage) {
        const int chunk = chunk_of(step);
        const int token = chunk * CHUNK + (step % STEPS_PER_CHUNK) * BLOCK_K;
        copy_tile<ACROSS_K, (DQK % TILE != 0)>(stage, a_source + token * p.qk.token, p.qk.token, p.tokens - token, k_left);
        copy_tile<ACROSS_K, (DV % TILE != 0)>(stage + OPERAND_BYTES, b_source + token * p.v.token, p.v.token,
                                              p.tokens - token, v_left);
        constexpr int UNITS = BLOCK_K / 8;
        if (threadIdx.x < UNITS * (BACKWARD ? 2 : 1)) {
            const bf16* source = threadIdx.x < UNITS ? weights : p.gradient_column;
            const i64 offset = (i64)batch_head * p.padded() + token + (threadIdx.x % UNITS) * 8;
            copy_async_16(stage + STAGE_BYTES + threadIdx.x * 16, source + offset, true);
        }
    };
    auto compute = [&](int step, u32 stage) {
        const int within = step % STEPS_PER_CHUNK, chunk = chunk_of(step);
        if (within == 0 && step > 0) {
            const float decay = p.decay[(i64)batch_head * p.chunks + chunk];
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    norm[m][e] *= decay;
#pragma unroll
                    for (int n = 0; n < 8; n++) c.value[m][n][e] *= decay;
                }
        }
        const unsigned char* vectors = shared + (stage - base) + STAGE_BYTES;
#pragma unroll
        for (int k16 = 0; k16 < BLOCK_K / 16; k16++) {
            u32 a[4][4], b[4][4];
            load_a<ACROSS_K>(a, stage, k16, at);
#pragma unroll
            for (int pair = 0; pair < 4; pair++) load_b<ACROSS_K>(b[pair], stage + OPERAND_BYTES, k16, pair, at);
            const u32* pairs = reinterpret_cast<const u32*>(vectors) + k16 * 8 + (at.lane & 3);
            const u32 low = pairs[0], high = pairs[4];
#pragma unroll
            for (int m = 0; m < 4; m++) {
                a[m][0] = multiply_bf16x2(a[m][0], low);
                a[m][1] = multiply_bf16x2(a[m][1], low);
                a[m][2] = multiply_bf16x2(a[m][2], high);
                a[m][3] = multiply_bf16x2(a[m][3], high);
            }
            multiply_fragments(c, a, b);
            if (with_norm) {
                const u32* column = pairs + BLOCK_K / 2;
                const u32 first = BACKWARD ? column[0] : 0x3f803f80u, second = BACKWARD ? column[4] : 0x3f803f80u;
#pragma unroll
                for (int m = 0; m < 4; m++) matrix_multiply(norm[m], a[m], first, second);
            }
        }
        if (within != STEPS_PER_CHUNK - 1) return;
        const int slot = BACKWARD ? chunk - 1 : chunk + 1;
        const i64 state = p.state_index(batch_head, slot) + (i64)k_tile * TILE * DV + v_tile * TILE;
        store_tile<(DV % TILE != 0)>(stored + state, DV, k_left, v_left, c, at);
        const i64 norm_at = p.norm_index(batch_head, slot) + k_tile * TILE;
        if (with_norm && (at.lane & 3) == 0)
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (at.row(m, half) < k_left) norm_stored[norm_at + at.row(m, half)] = norm[m][2 * half];
        if (BACKWARD && slot > 0) {
            // d loss / d log decay of chunk `slot`: what its entering state passes on to its leaving state.
            float dot = 0.0f;
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = at.row(m, half);
                    dot += row_dot<(DV % TILE != 0)>(p.states + state + (i64)row * DV, row < k_left, v_left, c, m, half, at);
                    if (with_norm && (at.lane & 3) == 0 && row < k_left) dot += norm[m][2 * half] * p.norm_states[norm_at + row];
                }
            dot = warp_sum(dot);
            __shared__ float partial[THREADS / WARP];
            __syncthreads();
            if (at.lane == 0) partial[threadIdx.x >> 5] = dot;
            __syncthreads();
            const i64 chunk_at = (i64)batch_head * p.chunks + slot;
            if (threadIdx.x == 0)
                p.decay_gradient[(i64)blockIdx.x * p.batch_heads * p.chunks + chunk_at] =
                    (partial[0] + partial[1] + partial[2] + partial[3]) * p.decay[chunk_at];
        }
    };
    const int total = (p.chunks - 1) * STEPS_PER_CHUNK;
    Ring<decltype(issue)> ring(base, STATE_STAGE_BYTES, total, issue);
    for (int step = 0; step < total; step++) compute(step, ring.next());
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) mlstm_states(const __grid_constant__ MlstmParameters p) {
    states<false>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    mlstm_state_gradients(const __grid_constant__ MlstmParameters p) {
    states<true>(p);
}
