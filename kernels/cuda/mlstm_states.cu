// The states between chunks, and their gradients: one block holds a 128 x 128 tile of one head's
// matrix memory in registers for the whole sequence, and streams tokens past it.
//
//   forward   C <- decay C + sum_j keep_j k_j v_j^T          chunks ascending, stored as the next chunk's
//   backward  dC <- decay dC + sum_i carry_i s / den_i q_i dh_i^T   descending, stored as the chunk before's
//
// The sum runs over tokens, which are rows of both operands in memory: both are read across k, and the weight
// of a token multiplies the fragment of A in registers (16 packed products for 32 `mma`, 8 for 2 `wgmma`).
// The normalizer is one more column of B, ones forward, d(n . q) den backward: four (two) more `mma` for the
// blocks of the first column tile. Running one block over the sequence needs no second pass over states
// and keeps the accumulator in fp32 throughout; with H heads of K x V there are B H K V / 16384 blocks.
// Only stored states are rounded, to bf16; those that the caller gives or asks for are fp32, and so is what is carried
// through the sequence.
#include "mlstm.cuh"

static_assert(CHUNK % TILE == 0, "a chunk is whole tiles");

static constexpr int VECTOR_BYTES = BLOCK_K * 2;
static constexpr int STEPS_PER_CHUNK = CHUNK / BLOCK_K;

// This block's part of a state of fp32 that the caller gives or asks for, times `factor`.
struct OuterState {
    const Place& at;
    int batch_head, first_row, first_column;
    bool with_norm;

    DEVICE i64 line(int row) const { return ((i64)batch_head * DQK + first_row + row) * DV + first_column; }
    DEVICE i64 norm_at(int row) const { return (i64)batch_head * DQK + first_row + row; }
    DEVICE void read(const float* matrix, const float* norm_state, float factor, Accumulator& c,
                     float (&norm)[FRAGMENT_ROWS][4]) const {
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = at.row(m, half);
                if (row >= DQK - first_row) continue;
#pragma unroll
                for (int n = 0; n < FRAGMENT_COLUMNS; n++) {
                    if (at.column(n) >= DV - first_column) continue;
                    const float2 pair = *reinterpret_cast<const float2*>(matrix + line(row) + at.column(n));
                    c.value[m][n][2 * half] = pair.x * factor;
                    c.value[m][n][2 * half + 1] = pair.y * factor;
                }
                // Every lane of a row holds its sum.
                if (with_norm) norm[m][2 * half] = norm_state[norm_at(row)] * factor;
            }
    }
    DEVICE void write(float* matrix, float* norm_state, float factor, const Accumulator& c,
                      const float (&norm)[FRAGMENT_ROWS][4]) const {
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = at.row(m, half);
                if (row >= DQK - first_row) continue;
#pragma unroll
                for (int n = 0; n < FRAGMENT_COLUMNS; n++)
                    if (at.column(n) < DV - first_column)
                        *reinterpret_cast<float2*>(matrix + line(row) + at.column(n)) =
                            make_float2(c.value[m][n][2 * half] * factor, c.value[m][n][2 * half + 1] * factor);
                if (with_norm && (at.lane & 3) == 0) norm_state[norm_at(row)] = norm[m][2 * half] * factor;
            }
    }
};

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

    // Chunks that are summed over: forward all but the last, which only a final state needs; backward all but the first,
    // which only an initial state needs.
    const bool started = BACKWARD ? p.final_matrix_gradient != nullptr : p.initial_matrix != nullptr;
    const bool whole = BACKWARD ? p.initial_matrix != nullptr : p.final_matrix != nullptr;
    const int count = whole ? p.chunks : p.chunks - 1;
    // Backward, a chunk's steps begin with one that brings the state before it, where the gradient of the state after it is
    // there already (and weights that nobody reads, because every step of a ring counts the same bytes).
    constexpr bool BRING = BACKWARD && BULK;
    constexpr int PERIOD = STEPS_PER_CHUNK + (BRING ? 1 : 0);
    const int skipped = BRING && !started ? 1 : 0;
    auto chunk_of = [&](int index) { return BACKWARD ? p.chunks - 1 - index : index; };
    auto issue = [&](int step, const Slot& slot) {
        const int chunk = chunk_of((step + skipped) / PERIOD), within = (step + skipped) % PERIOD - (BRING ? 1 : 0);
        const int token = chunk * CHUNK + max(within, 0) * BLOCK_K;
        if (BRING && within < 0) {
            const Operand state = p.state(p.states_map, p.states, batch_head, chunk);
            copy_tile<FIRST, ALONG_K, false>(slot.tiles, state, k_tile * TILE, v_tile * TILE, slot.barrier);
            copy_tile<SECOND, ALONG_K, false>(slot.second(), state, k_tile * TILE, v_tile * TILE + BOX_COLUMNS, slot.barrier);
        } else {
            copy_tile<FIRST, ACROSS_K, (DQK % TILE != 0)>(slot.tiles, a_source, token, k_tile * TILE, slot.barrier);
            copy_tile<SECOND, ACROSS_K, (DV % TILE != 0)>(slot.second(), b_source, token, v_tile * TILE, slot.barrier);
        }
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
    const int total = count * PERIOD - skipped;
    Ring<VECTOR_BYTES*(BACKWARD ? 2 : 1), decltype(issue)> ring(shared_address(shared), total, issue);

    auto decay_by = [&](float decay) {
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                norm[m][e] *= decay;
#pragma unroll
                for (int n = 0; n < FRAGMENT_COLUMNS; n++) c.value[m][n][e] *= decay;
            }
    };
    auto add_tokens = [&](const Slot& slot) {
        constexpr int STEPS = BLOCK_K / 16;
        u32 a[STEPS][FRAGMENT_ROWS][4];
#pragma unroll
        for (int k16 = 0; k16 < STEPS; k16++) {
            load_a<ACROSS_K>(a[k16], slot.tiles, k16, at);
            const u32 pairs = slot.extra + k16 * 32 + (at.lane & 3) * 4;
            const u32 low = load_shared(pairs), high = load_shared(pairs + 16);
#pragma unroll
            for (int m = 0; m < FRAGMENT_ROWS; m++) {
                a[k16][m][0] = multiply_bf16x2(a[k16][m][0], low);
                a[k16][m][1] = multiply_bf16x2(a[k16][m][1], low);
                a[k16][m][2] = multiply_bf16x2(a[k16][m][2], high);
                a[k16][m][3] = multiply_bf16x2(a[k16][m][3], high);
            }
            multiply_fragments<ACROSS_K>(c, a[k16], slot.second(), k16, at);
            if (with_norm) {
                const u32 first = BACKWARD ? load_shared(pairs + VECTOR_BYTES) : 0x3f803f80u;
                const u32 second = BACKWARD ? load_shared(pairs + VECTOR_BYTES + 16) : 0x3f803f80u;
#pragma unroll
                for (int m = 0; m < FRAGMENT_ROWS; m++) matrix_multiply(norm[m], a[k16][m], first, second);
            }
        }
        finish_products(a);
    };
    // d loss / d log decay of a chunk: what its entering state passes on to its leaving state.
    auto add_decay_gradient = [&](int chunk) {
        float dot = 0.0f;
        const i64 norm_at = p.norm_index(batch_head, chunk) + k_tile * TILE;
#if BULK
        const Slot slot = ring.next();
#else
        const i64 state = p.state_index(batch_head, chunk) + (i64)k_tile * TILE * DV + v_tile * TILE;
#endif
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = at.row(m, half);
#if BULK
                dot += row_dot(slot.tiles, slot.second(), c, m, half, at);
#else
                dot += row_dot<(DV % TILE != 0)>(p.states + state + (i64)row * DV, row < k_left, v_left, c, m, half, at);
#endif
                if (with_norm && (at.lane & 3) == 0 && row < k_left) dot += norm[m][2 * half] * p.norm_states[norm_at + row];
            }
        ring.template recycle<0>();
        dot = warp_sum(dot);
        __shared__ float partial[THREADS / WARP];
        __syncthreads();
        if (at.lane == 0) partial[threadIdx.x >> 5] = dot;
        __syncthreads();
        const i64 chunk_at = (i64)batch_head * p.chunks + chunk;
        if (threadIdx.x == 0)
            p.decay_gradient[(i64)blockIdx.x * p.batch_heads * p.chunks + chunk_at] =
                (partial[0] + partial[1] + partial[2] + partial[3]) * p.decay[chunk_at];
    };
    // The state (gradient) that enters (leaves) a chunk, as the other kernels read it.
    auto store_for = [&](int chunk) {
        const i64 state = p.state_index(batch_head, chunk) + (i64)k_tile * TILE * DV + v_tile * TILE;
        const i64 norm_at = p.norm_index(batch_head, chunk) + k_tile * TILE;
        store_tile<(DV % TILE != 0)>(stored + state, DV, k_left, v_left, c, at);
        if (with_norm && (at.lane & 3) == 0)
#pragma unroll
            for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (at.row(m, half) < k_left) norm_stored[norm_at + at.row(m, half)] = norm[m][2 * half];
    };
    const OuterState outer = {at, batch_head, k_tile * TILE, v_tile * TILE, with_norm};
    const float given = BACKWARD ? p.key_scale : 1.0f / p.key_scale, asked = 1.0f / given;
    if (started) {
        outer.read(BACKWARD ? p.final_matrix_gradient : p.initial_matrix, BACKWARD ? p.final_norm_gradient : p.initial_norm,
                   given, c, norm);
        store_for(BACKWARD ? p.chunks - 1 : 0);
    }
    for (int index = 0; index < count; index++) {
        const int chunk = chunk_of(index), next = BACKWARD ? chunk - 1 : chunk + 1;
        if (index > 0 || started) {
            if (BACKWARD) add_decay_gradient(chunk);
            decay_by(p.decay[(i64)batch_head * p.chunks + chunk]);
        }
        for (int within = 0; within < STEPS_PER_CHUNK; within++) {
            add_tokens(ring.next());
            ring.template recycle<0>();
        }
        if (next >= 0 && next < p.chunks)
            store_for(next);
        else if (!BACKWARD || p.initial_matrix_gradient != nullptr)
            outer.write(BACKWARD ? p.initial_matrix_gradient : p.final_matrix,
                        BACKWARD ? p.initial_norm_gradient : p.final_norm, asked, c, norm);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) mlstm_states(const __grid_constant__ MlstmParameters p) {
    states<false>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    mlstm_state_gradients(const __grid_constant__ MlstmParameters p) {
    states<true>(p);
}
