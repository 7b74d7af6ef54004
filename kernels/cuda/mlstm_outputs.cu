// The four results with a row for each token, one two-part product each:
//
//   h   row i:  [ carry_i s q_i C            + sum_j S_ij v_j        ] / den_i
//   dq  row i:  carry_i s (C g_i + d(n.q)_i n)   + sum_j G_ij k_j           g_i = dh_i / den_i
//   dk  row j:  keep_j (dC v_j + dn)         + sum_i G_ij q_i
//   dv  row j:  keep_j dC^T k_j              + sum_i S_ij g_i
//
// The first product runs over a head's size against the chunk's entering state (leaving state's gradient
// below), then the accumulator's rows are scaled in place, and the second product, over the tokens of the
// chunk that the triangle leaves, adds to the same accumulator: one store, no intermediate in memory, and
// one pipeline whose copies run on through the change of operands. Blocks of one chunk are neighbors in
// launch order, so that what they share (rows, state, scores) is read from the L2 cache.
// dq and dk also leave q . dq and k . dk, from which the gate gradients follow.
#include "mlstm.cuh"

static_assert(CHUNK % TILE == 0, "a chunk is whole tiles");

enum Mode { OUTPUT, QUERY_GRADIENT, KEY_GRADIENT, VALUE_GRADIENT };

// The signed byte below a float's upper half once that is rounded: the fifth to eighth hex digit's top.
DEVICE u32 rest_of(float value, u32 upper) {
    const int rest = ((int)__float_as_uint(value) - (int)upper + 128) >> 8;
    return (u32)(rest > 127 ? 127 : rest) & 0xffu;
}

template <Mode MODE>
struct Result {
    static constexpr bool BY_QUERY = MODE == OUTPUT || MODE == QUERY_GRADIENT;
    static constexpr bool TO_VALUE = MODE == OUTPUT || MODE == VALUE_GRADIENT;
    static constexpr int COLUMN_TILES = TO_VALUE ? V_TILES : K_TILES, WIDTH = TO_VALUE ? DV : DQK;
    static constexpr int DEPTH = TO_VALUE ? DQK : DV;
    static constexpr Order STATE_ORDER = TO_VALUE ? ACROSS_K : ALONG_K;
    static constexpr Order SCORE_ORDER = BY_QUERY ? ALONG_K : ACROSS_K;
    static constexpr bool CHECK_WIDTH = WIDTH % TILE != 0, CHECK_DEPTH = DEPTH % BLOCK_K != 0;

    const MlstmParameters& p;
    const Place at;
    float* row_scratch;
    const int column, row_tile, chunk, batch_head, chunk_token, row_token, rows_left;
    bool with_state;
    int state_steps, between, sum_first, sum_steps;
    i64 token;
    Accumulator c;

    DEVICE Result(const MlstmParameters& p, float* row_scratch)
        : p(p), row_scratch(row_scratch), column(blockIdx.x % COLUMN_TILES * TILE), row_tile(blockIdx.x / COLUMN_TILES),
          chunk(blockIdx.y), batch_head(blockIdx.z), chunk_token(chunk * CHUNK), row_token(chunk_token + row_tile * TILE),
          rows_left(p.tokens - row_token) {
        // Queries meet the columns up to their own tile, keys and values the rows from their own tile on;
        // tiles past the last token hold nothing.
        const int tiles_inside = min(ROW_TILES, (p.tokens - chunk_token + TILE - 1) / TILE);
        with_state = BY_QUERY ? p.entered(chunk) : p.left(chunk);
        state_steps = with_state ? (DEPTH + BLOCK_K - 1) / BLOCK_K : 0;
        between = BULK && MODE == KEY_GRADIENT && with_state ? 1 : 0;
        sum_first = BY_QUERY ? 0 : row_tile * TILE;
        sum_steps = ((BY_QUERY ? row_tile + 1 : tiles_inside) * TILE - sum_first) / BLOCK_K;
        token = p.token_index(batch_head, chunk) + row_tile * TILE;
    }

    DEVICE Operand row_side() const {
        return MODE == OUTPUT           ? p.of_keys(p.query_map, p.query, batch_head)
               : MODE == QUERY_GRADIENT ? p.of_values(p.output_gradient_map, p.output_gradient, batch_head)
               : MODE == KEY_GRADIENT   ? p.of_values(p.value_map, p.value, batch_head)
                                        : p.of_keys(p.key_map, p.key, batch_head);
    }
    // What dq's and dk's rows are multiplied by.
    DEVICE Operand own_side() const {
        return MODE == KEY_GRADIENT ? p.of_keys(p.key_map, p.key, batch_head) : p.of_keys(p.query_map, p.query, batch_head);
    }
    DEVICE Operand sum_side() const {
        return MODE == OUTPUT           ? p.of_values(p.value_map, p.value, batch_head)
               : MODE == QUERY_GRADIENT ? p.of_keys(p.key_map, p.key, batch_head)
               : MODE == KEY_GRADIENT   ? p.of_keys(p.query_map, p.query, batch_head)
                                        : p.of_values(p.divided_gradient_map, p.divided_gradient, batch_head);
    }

    // Copies of one step: of the state's product, then of the sum over tokens. On sm_90 a step of their own brings the rows
    // that dq's and dk's are multiplied by, between the products (dk) and at the end. The operands are made once: a warp
    // waits for every instruction here.
    struct Operands {
        Operand rows, state, score, sum, own;
    };
    DEVICE void issue(int step, const Slot& slot, const Operands& from) const {
        if (step < state_steps) {
            const int k = step * BLOCK_K;
            copy_tile<FIRST, ALONG_K, CHECK_DEPTH>(slot.tiles, from.rows, row_token, k, slot.barrier);
            if (STATE_ORDER == ACROSS_K)
                copy_tile<SECOND, ACROSS_K, CHECK_WIDTH>(slot.second(), from.state, k, column, slot.barrier);
            else
                copy_tile<SECOND, ALONG_K, CHECK_DEPTH>(slot.second(), from.state, column, k, slot.barrier);
            return;
        }
        const int of_sum = step - state_steps - between;
        if (of_sum < 0 || of_sum >= sum_steps) {
            copy_tile<FIRST, ALONG_K, CHECK_WIDTH>(slot.tiles, from.own, row_token, column, slot.barrier);
            copy_tile<SECOND, ALONG_K, CHECK_WIDTH>(slot.second(), from.own, row_token, column + TILE / 2, slot.barrier);
            return;
        }
        const int k = sum_first + of_sum * BLOCK_K, row = row_tile * TILE;
        copy_tile<FIRST, SCORE_ORDER, false>(slot.tiles, from.score, BY_QUERY ? row : k, BY_QUERY ? k : row, slot.barrier);
        copy_tile<SECOND, ACROSS_K, CHECK_WIDTH>(slot.second(), from.sum, chunk_token + k, column, slot.barrier);
    }

    // Row sums of the accumulator times the same columns of the block's own side, for thread r's row r.
    template <class Steps>
    DEVICE float row_dots(Steps& ring) const {
        float sums[FRAGMENT_ROWS][2];
#if BULK
        const Slot slot = ring.next();
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) sums[m][half] = quad_sum(row_dot(slot.tiles, slot.second(), c, m, half, at));
        ring.template recycle<1>();
#else
        const Operand own = own_side();
        const bf16* source = own.first + row_token * own.stride + column;
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = at.row(m, half);
                sums[m][half] = quad_sum(row_dot<CHECK_WIDTH>(source + row * own.stride, row < rows_left, WIDTH - column, c, m,
                                                              half, at));
            }
#endif
        return combine_rows(row_scratch, sums, at);
    }

    // Between the two products of a result.
    DEVICE void scale_rows() {
        const float* norm = (MODE == QUERY_GRADIENT ? p.norm_states : p.norm_state_gradients) +
                            p.norm_index(batch_head, chunk) + column;
        float norm_pair[FRAGMENT_COLUMNS][2];
        if (!TO_VALUE)
#pragma unroll
            for (int n = 0; n < FRAGMENT_COLUMNS; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    norm_pair[n][e] = !CHECK_WIDTH || at.column(n) < WIDTH - column ? norm[at.column(n) + e] : 0.0f;
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const i64 row = token + at.row(m, half);
                float factor = BY_QUERY ? p.carry[row] * p.key_scale : p.keep[row], added = factor;
                if (MODE == QUERY_GRADIENT) {
                    added = factor * p.norm_gradient[row];
                    factor *= p.scale_of_gradient(row);
                }
#pragma unroll
                for (int n = 0; n < FRAGMENT_COLUMNS; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float& value = c.value[m][n][2 * half + e];
                        value *= factor;
                        if (!TO_VALUE) value += added * norm_pair[n][e];
                    }
            }
    }

    DEVICE void store_dots(float* dots, float dot) const {
        dots[(i64)(column / TILE) * p.batch_heads * p.padded() + token + threadIdx.x] = dot;
    }

    // h = accumulator / den, with what rounding takes from it beside it.
    DEVICE void store_output() {
        const i64 offset = p.v.offset(batch_head, p.heads, row_token) + column;
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = at.row(m, half);
                float query_norm = 0.0f;
                for (int part = 0; part <= row_tile; part++)
                    query_norm += p.row_sums[(i64)part * p.batch_heads * p.padded() + token + row];
                const float floor = expf(-(p.log_forget_sum[token + row] + p.maximum[token + row]));
                const float inverse = 1.0f / (fmaxf(fabsf(query_norm), floor) + p.epsilon);
                if (column == 0 && at.warp_column == 0 && (at.lane & 3) == 0) {
                    p.query_norm[token + row] = query_norm;
                    if (row < rows_left) p.inverse_denominator[p.token_major(batch_head, row_token + row)] = inverse;
                }
#pragma unroll
                for (int group = 0; group < GROUPS; group++) {
                    u32 pairs[4], rests[4];
#pragma unroll
                    for (int n = 0; n < 4; n++) {
                        const float low = c.value[m][4 * group + n][2 * half] * inverse;
                        const float high = c.value[m][4 * group + n][2 * half + 1] * inverse;
                        pairs[n] = pack_bf16(low, high);
                        rests[n] = rest_of(low, pairs[n] << 16) | rest_of(high, pairs[n] & 0xffff0000u) << 8;
                    }
                    const i64 line = offset + row * p.v.token;
                    store_row_pairs<CHECK_WIDTH>(p.output + line, pairs, row < rows_left, WIDTH - column, group, at);
                    quad_transpose(rests, at.lane);
                    const int place = at.warp_column + group * 32 + (at.lane & 3) * 8;
                    if (row < rows_left && (!CHECK_WIDTH || place < WIDTH - column))
                        store_8(p.output_rest + line + place, rests[0] | rests[1] << 16, rests[2] | rests[3] << 16);
                }
            }
    }

    DEVICE void store_result() {
        if (MODE == OUTPUT) return store_output();
        bf16* destination = MODE == QUERY_GRADIENT ? p.query_gradient : MODE == KEY_GRADIENT ? p.key_gradient : p.value_gradient;
        const Strides& strides = TO_VALUE ? p.v : p.qk;
        store_tile<CHECK_WIDTH>(destination + strides.offset(batch_head, p.heads, row_token) + column, strides.token,
                                rows_left, WIDTH - column, c, at);
    }

    DEVICE void run(u32 base) {
        if (rows_left <= 0) return;
        const Operand state = BY_QUERY ? p.state(p.states_map, p.states, batch_head, chunk)
                                       : p.state(p.state_gradients_map, p.state_gradients, batch_head, chunk);
        const Operand score = TO_VALUE ? p.score(p.scores_map, p.scores, batch_head, chunk)
                                       : p.score(p.score_gradients_map, p.score_gradients, batch_head, chunk);
        const Operands from = {row_side(), state, score, sum_side(), own_side()};
        auto start = [&](int step, const Slot& slot) { issue(step, slot, from); };
        const int total = state_steps + between + sum_steps + (BULK && !TO_VALUE ? 1 : 0);
        Ring<0, decltype(start)> ring(base, total, start);
        c.clear();
        for (int step = 0; step < state_steps; step++) {
            multiply_tile<ALONG_K, STATE_ORDER>(c, ring.next().tiles, at);
            product_wait<1>();
            ring.template recycle<1>();
        }
        product_wait<0>();
        if (with_state) {
            scale_rows();
            if (MODE == KEY_GRADIENT) store_dots(p.key_carry_dot, row_dots(ring));
        }
        for (int step = 0; step < sum_steps; step++) {
            multiply_tile<SCORE_ORDER, ACROSS_K>(c, ring.next().tiles, at);
            product_wait<1>();
            ring.template recycle<1>();
        }
        product_wait<0>();
        if (!TO_VALUE) store_dots(MODE == QUERY_GRADIENT ? p.query_dot : p.key_dot, row_dots(ring));
        store_result();
    }
};

#define RESULT_KERNEL(NAME, MODE)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(const __grid_constant__ MlstmParameters p) { \
        extern __shared__ __align__(128) unsigned char shared[];                                                \
        __shared__ float row_scratch[2 * TILE];                                                                 \
        Result<MODE> result(p, row_scratch);                                                                    \
        result.run(shared_address(shared));                                                                     \
    }
RESULT_KERNEL(mlstm_output, OUTPUT)
RESULT_KERNEL(mlstm_query_gradient, QUERY_GRADIENT)
RESULT_KERNEL(mlstm_key_gradient, KEY_GRADIENT)
RESULT_KERNEL(mlstm_value_gradient, VALUE_GRADIENT)
