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

static constexpr int VECTOR_BYTES = BLOCK_K * 2;
static constexpr int STEPS_PER_CHUNK = CHUNK / BLOCK_K, PEERS = PEERS_OF<V_TILES>;

// c += A B with A in registers, k of 16 (BULK: started; `finish_products` waits for all of a step).
DEVICE void multiply_weighted(Accumulator& c, const u32 (&a)[FRAGMENT_ROWS][4], u32 tile, int k16, const Place& at) {
#if BULK
    product_fence();
#pragma unroll
    for (int m = 0; m < FRAGMENT_ROWS; m++)
        product<true>(c.value[m], a[m], descriptor<ACROSS_K>(tile + k16 * NEXT_K16<ACROSS_K>));
#else
    u32 b[4][4];
#pragma unroll
    for (int pair = 0; pair < 4; pair++) load_b<ACROSS_K>(b[pair], tile, k16, pair, at);
    multiply_fragments(c, a, b);
#endif
}
DEVICE void finish_products() {
#if BULK
    product_commit();
    product_wait<0>();
#endif
}

template <bool BACKWARD>
DEVICE void states(const MlstmParameters& p) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int k_tile = blockIdx.x / V_TILES, v_tile = blockIdx.x % V_TILES, batch_head = blockIdx.y;
    const Place at;
    const Operand a_source = BACKWARD ? p.of_keys(p.query_map, p.query, batch_head) : p.of_keys(p.key_map, p.key, batch_head);
    const Operand b_source = BACKWARD ? p.of_values(p.output_gradient_map, p.output_gradient, batch_head)
                                      : p.of_values(p.value_map, p.value, batch_head);
    const bf16* weights = BACKWARD ? p.gradient_weight : p.state_weight;
    bf16* stored = BACKWARD ? p.state_gradients : p.states;
    float* norm_stored = BACKWARD ? p.norm_state_gradients : p.norm_states;
    const bool with_norm = v_tile == 0 && at.warp_column == 0;
    const int k_left = DQK - k_tile * TILE, v_left = DV - v_tile * TILE;

    Accumulator c;
    c.clear();
    float norm[FRAGMENT_ROWS][4] = {};

    auto chunk_of = [&](int step) {
        const int index = step / STEPS_PER_CHUNK;
        return BACKWARD ? p.chunks - 1 - index : index;
    };
    auto issue = [&](int step, const Slot& slot) {
        const int token = chunk_of(step) * CHUNK + (step % STEPS_PER_CHUNK) * BLOCK_K;
        copy_tile<FIRST, ACROSS_K, (DQK % TILE != 0), PEERS>(slot.tiles, a_source, token, k_tile * TILE, slot.barrier);
        copy_tile<SECOND, ACROSS_K, (DV % TILE != 0)>(slot.second(), b_source, token, v_tile * TILE, slot.barrier);
        const i64 offset = (i64)batch_head * p.padded() + token;
#if BULK
        if (warp_number() != 0 || opaque_lane() != 0) return;
        copy_bulk(slot.extra, weights + offset, VECTOR_BYTES, slot.barrier);
        if (BACKWARD) copy_bulk(slot.extra + VECTOR_BYTES, p.gradient_column + offset, VECTOR_BYTES, slot.barrier);
#else
        constexpr int UNITS = BLOCK_K / 8;
        if (threadIdx.x < UNITS * (BACKWARD ? 2 : 1)) {
            const bf16* source = threadIdx.x < UNITS ? weights : p.gradient_column;
            copy_async_16(slot.extra + threadIdx.x * 16, source + offset + (threadIdx.x % UNITS) * 8, true);
        }
#endif
    };
    auto compute = [&](int step, const Slot& slot) {
        const int within = step % STEPS_PER_CHUNK, chunk = chunk_of(step);
        if (within == 0 && step > 0) {
            const float decay = p.decay[(i64)batch_head * p.chunks + chunk];
#pragma unroll
            for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    norm[m][e] *= decay;
#pragma unroll
                    for (int n = 0; n < FRAGMENT_COLUMNS; n++) c.value[m][n][e] *= decay;
                }
        }
#pragma unroll
        for (int k16 = 0; k16 < BLOCK_K / 16; k16++) {
            u32 a[FRAGMENT_ROWS][4];
            load_a<ACROSS_K>(a, slot.tiles, k16, at);
            const u32 pairs = slot.extra + k16 * 32 + (at.lane & 3) * 4;
            const u32 low = load_shared(pairs), high = load_shared(pairs + 16);
#pragma unroll
            for (int m = 0; m < FRAGMENT_ROWS; m++) {
                a[m][0] = multiply_bf16x2(a[m][0], low);
                a[m][1] = multiply_bf16x2(a[m][1], low);
                a[m][2] = multiply_bf16x2(a[m][2], high);
                a[m][3] = multiply_bf16x2(a[m][3], high);
            }
            multiply_weighted(c, a, slot.second(), k16, at);
            if (with_norm) {
                const u32 first = BACKWARD ? load_shared(pairs + VECTOR_BYTES) : 0x3f803f80u;
                const u32 second = BACKWARD ? load_shared(pairs + VECTOR_BYTES + 16) : 0x3f803f80u;
#pragma unroll
                for (int m = 0; m < FRAGMENT_ROWS; m++) matrix_multiply(norm[m], a[m], first, second);
            }
        }
        finish_products();
        if (within != STEPS_PER_CHUNK - 1) return;
        const int next = BACKWARD ? chunk - 1 : chunk + 1;
        const i64 state = p.state_index(batch_head, next) + (i64)k_tile * TILE * DV + v_tile * TILE;
        store_tile<(DV % TILE != 0)>(stored + state, DV, k_left, v_left, c, at);
        const i64 norm_at = p.norm_index(batch_head, next) + k_tile * TILE;
        if (with_norm && (at.lane & 3) == 0)
#pragma unroll
            for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (at.row(m, half) < k_left) norm_stored[norm_at + at.row(m, half)] = norm[m][2 * half];
        if (BACKWARD && next > 0) {
            // d loss / d log decay of chunk `next`: what its entering state passes on to its leaving state.
            float dot = 0.0f;
#pragma unroll
            for (int m = 0; m < FRAGMENT_ROWS; m++)
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
            const i64 chunk_at = (i64)batch_head * p.chunks + next;
            if (threadIdx.x == 0)
                p.decay_gradient[(i64)blockIdx.x * p.batch_heads * p.chunks + chunk_at] =
                    (partial[0] + partial[1] + partial[2] + partial[3]) * p.decay[chunk_at];
        }
    };
    const int total = (p.chunks - 1) * STEPS_PER_CHUNK;
    Ring<PEERS, VECTOR_BYTES*(BACKWARD ? 2 : 1), decltype(issue)> ring(shared_address(shared), total, issue);
    for (int step = 0; step < total; step++) {
        compute(step, ring.next());
        ring.template recycle<0>();
    }
}

extern "C" __global__ void CLUSTERED(PEERS) __launch_bounds__(THREADS, 2) mlstm_states(const __grid_constant__ MlstmParameters p) {
    states<false>(p);
}
extern "C" __global__ void CLUSTERED(PEERS) __launch_bounds__(THREADS, 2)
    mlstm_state_gradients(const __grid_constant__ MlstmParameters p) {
    states<true>(p);
}
