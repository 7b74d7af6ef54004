// Tiles of bf16 in shared memory and the fragments that one warp's `mma` reads of them.
//
// A tile has ROWS rows and a multiple of 64 columns, in panels of 64: 128 bytes a row, whose units of 16 bytes are XOR-swizzled by the
// row, so that the eight addresses of one `ldmatrix` phase fall in eight different bank groups.
#pragma once
#include "common.cuh"

// Byte offset of unit `unit` (columns 8 unit to 8 unit + 7) of row `row`.
template <int ROWS>
DEVICE u32 place(int row, int unit) {
    return (unit >> 3) * (ROWS * 128) + row * 128 + (((unit ^ row) & 7) << 4);
}

// Starts the copy of ROWS x COLUMNS numbers whose rows are `stride` apart; rows from `inside` on are zeros.
template <int ROWS, int COLUMNS, int THREADS>
DEVICE void load_tile(u32 to, const bf16* from, i64 stride, int inside) {
    constexpr int UNITS = COLUMNS / 8;
    static_assert(ROWS * UNITS % THREADS == 0, "every thread copies as often");
#pragma unroll
    for (int index = 0; index < ROWS * UNITS / THREADS; index++) {
        const int at = index * THREADS + threadIdx.x, row = at / UNITS, unit = at % UNITS;
        const bool valid = row < inside;
        copy_async_16(to + place<ROWS>(row, unit), from + (valid ? row : 0) * stride + unit * 8, valid);
    }
}

// Fragments of A, 16 rows from `m` and 16 of k from `k`; of B, 16 of k and 16 columns from `n` (b[0], b[1] the first eight).
// ALONG: the tile's rows are those of m or n. ACROSS: the tile's rows are those of k.
template <int ROWS>
DEVICE void a_along(u32 (&a)[4], u32 tile, int m, int k) {
    const int lane = threadIdx.x % WARP;
    load_matrices(a, tile + place<ROWS>(m + (lane & 15), k / 8 + (lane >> 4)));
}
template <int ROWS>
DEVICE void a_across(u32 (&a)[4], u32 tile, int m, int k) {
    const int lane = threadIdx.x % WARP;
    load_matrices_transposed(a, tile + place<ROWS>(k + (lane & 7) + (lane >> 4 << 3), m / 8 + (lane >> 3 & 1)));
}
template <int ROWS>
DEVICE void b_along(u32 (&b)[4], u32 tile, int n, int k) {
    const int lane = threadIdx.x % WARP;
    load_matrices(b, tile + place<ROWS>(n + (lane & 7) + (lane >> 4 << 3), k / 8 + (lane >> 3 & 1)));
}
template <int ROWS>
DEVICE void b_across(u32 (&b)[4], u32 tile, int n, int k) {
    const int lane = threadIdx.x % WARP;
    load_matrices_transposed(b, tile + place<ROWS>(k + (lane & 15), n / 8 + (lane >> 4)));
}

// Sixteen columns of an accumulator.
DEVICE void multiply_columns(float (&first)[4], float (&second)[4], const u32 (&a)[4], const u32 (&b)[4]) {
    matrix_multiply(first, a, b[0], b[1]);
    matrix_multiply(second, a, b[2], b[3]);
}

// Two neighboring numbers of a row.
template <int ROWS>
DEVICE u32 load_pair(u32 tile, int row, int column) {
    return load_shared(tile + place<ROWS>(row, column / 8) + column % 8 * 2);
}
template <int ROWS>
DEVICE void store_pair(u32 tile, int row, int column, u32 pair) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(tile + place<ROWS>(row, column / 8) + column % 8 * 2), "r"(pair) : "memory");
}

// Rounds one row's (`half` 0 or 1) four fragments and stores them at `line`, 32 numbers, sixteen bytes a lane. All lanes call.
template <int FRAGMENTS>
DEVICE void store_row(bf16* line, const float (&c)[FRAGMENTS][4], int half, bool valid) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int group = 0; group < FRAGMENTS / 4; group++) {
        u32 pairs[4];
#pragma unroll
        for (int n = 0; n < 4; n++) pairs[n] = pack_bf16(c[4 * group + n][2 * half], c[4 * group + n][2 * half + 1]);
        quad_transpose(pairs, lane);
        if (valid) store_16(line + group * 32 + lane % 4 * 8, pairs[0], pairs[1], pairs[2], pairs[3]);
    }
}
