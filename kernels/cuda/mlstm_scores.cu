// The products inside a chunk, tile by tile of the lower triangle, with the gates applied:
//
//   forward     S_ij = s q_i . k_j exp(u_j - M_i)                        and its row sums, n . q
//   gradient    G_ij = (dh_i . v_j / den_i + d(n.q)_i) s exp(u_j - M_i)  for query and key gradients
//
// and zero for j after i or before i's segment.
// They are stored in bf16: L values a token and head beside K + V, and each is used by K / 128 or V / 128
// blocks that would otherwise compute it again. Tiles above the diagonal are neither computed nor read.
// Tried and slower at every size but 128 x 256 (where it was even): a block that keeps its strip of scores in
// shared memory and then walks over all columns of the result. Blocks of one chunk then no longer run side by
// side, and what they share falls out of the L2 cache: 4.3 ms against 2.6 ms forward at 1024 x 1024.
#include "mlstm.cuh"

static_assert(CHUNK % TILE == 0, "a chunk is whole tiles");

enum ScoreMode { FORWARD, GRADIENT };

// Adds q . n of the entering state, an extra column of the scores.
DEVICE void multiply_norm(float (&norm)[FRAGMENT_ROWS][4], const float* state, int step, u32 stage, const Place& at) {
#pragma unroll
    for (int k16 = 0; k16 < BLOCK_K / 16; k16++) {
        const int k = step * BLOCK_K + k16 * 16 + (at.lane & 3) * 2;
        u32 a[FRAGMENT_ROWS][4];
        load_a<ALONG_K>(a, stage, k16, at);
        const u32 b0 = DQK % BLOCK_K == 0 || k < DQK ? pack_bf16(state[k], state[k + 1]) : 0;
        const u32 b1 = DQK % BLOCK_K == 0 || k + 8 < DQK ? pack_bf16(state[k + 8], state[k + 9]) : 0;
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++) matrix_multiply(norm[m], a[m], b0, b1);
    }
}

// Applies the gates to a tile of products and stores it; forward, adds up its rows.
template <ScoreMode MODE>
DEVICE void store_scores(const MlstmParameters& p, const Accumulator& c, float (&sums)[FRAGMENT_ROWS][2], i64 token, int row_tile,
                         int column_tile, bf16* destination, const Place& at) {
    float exponent[FRAGMENT_COLUMNS][2];
#pragma unroll
    for (int n = 0; n < FRAGMENT_COLUMNS; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) exponent[n][e] = p.exponent[token + column_tile * TILE + at.column(n) + e];
#pragma unroll
    for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = at.row(m, half);
            const i64 row_at = token + row_tile * TILE + row;
            const float maximum = p.maximum[row_at];
            const int first_column = p.segment(row_at) - column_tile * TILE;
            const float scale = MODE == GRADIENT ? p.scale_of_gradient(row_at) : 1.0f;
            const float added = MODE == GRADIENT ? p.norm_gradient[row_at] : 0.0f;
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                u32 pairs[4];
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const int fragment = 4 * group + n;
                    float value[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const int column = at.column(fragment) + e;
                        const bool counts = (row_tile > column_tile || column <= row) && column >= first_column;
                        const float gate = counts ? __expf(exponent[fragment][e] - maximum) * p.key_scale : 0.0f;
                        value[e] = c.value[m][fragment][2 * half + e];
                        value[e] = MODE == GRADIENT ? (value[e] * scale + added) * gate : value[e] * gate;
                    }
                    pairs[n] = pack_bf16(value[0], value[1]);
                    // Row sums are of the rounded scores: they err together.
                    if (MODE == FORWARD) sums[m][half] += low_float(pairs[n]) + high_float(pairs[n]);
                }
                store_row_pairs<false>(destination + (i64)row * CHUNK, pairs, true, TILE, group, at);
            }
        }
}

template <ScoreMode MODE>
DEVICE void scores(const MlstmParameters& p) {
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float row_scratch[2 * TILE];
    // blockIdx.x counts the lower triangle row by row: (0,0), (1,0), (1,1), ...
    int row_tile = 0, column_tile = blockIdx.x;
    while (column_tile > row_tile) column_tile -= ++row_tile;
    const int chunk = blockIdx.y, batch_head = blockIdx.z;
    const int row_token = chunk * CHUNK + row_tile * TILE, column_token = chunk * CHUNK + column_tile * TILE;
    constexpr int DEPTH = MODE == GRADIENT ? DV : DQK, STEPS = (DEPTH + BLOCK_K - 1) / BLOCK_K;
    constexpr bool CHECK_DEPTH = DEPTH % BLOCK_K != 0;
    const Operand a_source = MODE == GRADIENT ? p.of_values(p.output_gradient_map, p.output_gradient, batch_head)
                                              : p.of_keys(p.query_map, p.query, batch_head);
    const Operand b_source = MODE == GRADIENT ? p.of_values(p.value_map, p.value, batch_head)
                                              : p.of_keys(p.key_map, p.key, batch_head);
    const Place at;
    const bool with_norm = MODE == FORWARD && column_tile == 0 && p.entered(chunk) && at.warp_column == 0;

    auto issue = [&](int step, const Slot& slot) {
        copy_tile<FIRST, ALONG_K, CHECK_DEPTH>(slot.tiles, a_source, row_token, step * BLOCK_K, slot.barrier);
        copy_tile<SECOND, ALONG_K, CHECK_DEPTH>(slot.second(), b_source, column_token, step * BLOCK_K, slot.barrier);
    };
    Ring<0, decltype(issue)> ring(shared_address(shared), STEPS, issue);
    Accumulator c;
    c.clear();
    float norm[FRAGMENT_ROWS][4] = {}, sums[FRAGMENT_ROWS][2] = {};
    for (int step = 0; step < STEPS; step++) {
        const Slot slot = ring.next();
        multiply_tile<ALONG_K, ALONG_K>(c, slot.tiles, at);
        if (with_norm) multiply_norm(norm, p.norm_states + p.norm_index(batch_head, chunk), step, slot.tiles, at);
        product_wait<1>();
        ring.template recycle<1>();
    }
    product_wait<0>();
    const i64 token = p.token_index(batch_head, chunk);
    bf16* destination = (MODE == GRADIENT ? p.score_gradients : p.scores) + p.score_index(batch_head, chunk) +
                        (i64)row_tile * TILE * CHUNK + column_tile * TILE;
    store_scores<MODE>(p, c, sums, token, row_tile, column_tile, destination, at);
    if constexpr (MODE == FORWARD) {
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                sums[m][half] = quad_sum(sums[m][half]);
                if (with_norm)
                    sums[m][half] += norm[m][2 * half] * p.key_scale * p.carry[token + row_tile * TILE + at.row(m, half)];
            }
        const float sum = combine_rows(row_scratch, sums, at);
        p.row_sums[(i64)column_tile * p.batch_heads * p.padded() + token + row_tile * TILE + threadIdx.x] = sum;
    }
}

#define SCORE_KERNEL(NAME, MODE) \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(const __grid_constant__ MlstmParameters p) { scores<MODE>(p); }
SCORE_KERNEL(mlstm_scores, FORWARD)
SCORE_KERNEL(mlstm_score_gradients, GRADIENT)
