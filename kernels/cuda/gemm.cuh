// A 128 x 128 tile of C += A B by one block of four warps, each warp owning 64 x 64.
//
// Operands reach shared memory by `cp.async`, STAGES tiles deep, in whichever order they lie in
// global memory; which way round a fragment is read decides the transposition, so that no matrix
// is ever transposed in memory:
//   ALONG_K   the tile is [128 rows of m or n][BLOCK_K], k contiguous;
//   ACROSS_K  the tile is [BLOCK_K rows][128 columns of m or n], m or n contiguous.
// Sixteen-byte units are XOR-swizzled within a row, so that the eight addresses of one `ldmatrix`
// phase always fall in eight different bank groups. A 64 x 64 warp tile is the smallest whose
// shared-memory reads (8 x 512 bytes per k of 16) stay below the time of its 32 `mma`.
#pragma once
#include "common.cuh"

#ifndef BLOCK_K
#define BLOCK_K 32
#endif
#ifndef STAGES
#define STAGES 4
#endif

static constexpr int TILE = 128;
static constexpr int THREADS = 128;
static constexpr int OPERAND_BYTES = TILE * BLOCK_K * 2;
static constexpr int STAGE_BYTES = 2 * OPERAND_BYTES;

enum Order { ALONG_K, ACROSS_K };

// Byte offset of 16-byte unit `unit` of row `row` in a tile of that order.
template <Order ORDER>
DEVICE u32 swizzled(int row, int unit) {
    if (ORDER == ACROSS_K) return row * (TILE * 2) + ((unit ^ (row & 7)) << 4);
    if (BLOCK_K == 64) return row * 128 + ((unit ^ (row & 7)) << 4);
    return row * 64 + ((unit ^ ((row >> 1) & 3)) << 4);
}

// Starts the copy of one operand tile. `source` points at the tile's first element; rows from
// `rows_left` and columns from `columns_left` on (both may exceed the tile) are read as zero.
template <Order ORDER, bool CHECK_COLUMNS>
DEVICE void copy_tile(u32 destination, const bf16* source, i64 stride, int rows_left, int columns_left) {
    constexpr int UNITS = (ORDER == ALONG_K ? BLOCK_K : TILE) / 8;
    constexpr int ROWS_PER_PASS = THREADS / UNITS;
    constexpr int ROWS = ORDER == ALONG_K ? TILE : BLOCK_K;
    const int unit = threadIdx.x % UNITS, first = threadIdx.x / UNITS;
    const bool column_valid = !CHECK_COLUMNS || unit * 8 < columns_left;
    const bf16* pointer = source + (i64)first * stride + unit * 8;
#pragma unroll
    for (int pass = 0; pass < ROWS / ROWS_PER_PASS; pass++) {
        const int row = first + pass * ROWS_PER_PASS;
        copy_async_16(destination + swizzled<ORDER>(row, unit), pointer + (i64)pass * ROWS_PER_PASS * stride,
                      column_valid && row < rows_left);
    }
}

struct Accumulator {
    float value[4][8][4];
    DEVICE void clear() {
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) value[m][n][e] = 0.0f;
    }
};

// Where this thread's accumulator elements lie in the 128 x 128 tile.
struct Place {
    int lane, warp_row, warp_column;
    DEVICE Place() {
        lane = threadIdx.x & 31;
        warp_row = (threadIdx.x >> 6) * 64;
        warp_column = ((threadIdx.x >> 5) & 1) * 64;
    }
    // Row of elements 0, 1 (half 0) or 2, 3 (half 1) of fragment m.
    DEVICE int row(int m, int half) const { return warp_row + m * 16 + half * 8 + (lane >> 2); }
    // Column of element 0 or 2 of fragment n; elements 1 and 3 lie one to the right.
    DEVICE int column(int n) const { return warp_column + n * 8 + (lane & 3) * 2; }
};

template <Order ORDER>
DEVICE void load_a(u32 (&a)[4][4], u32 tile, int k16, const Place& at) {
#pragma unroll
    for (int m = 0; m < 4; m++) {
        if (ORDER == ALONG_K) {
            const int row = at.warp_row + m * 16 + (at.lane & 15);
            load_matrices(a[m], tile + swizzled<ALONG_K>(row, k16 * 2 + (at.lane >> 4)));
        } else {
            const int row = k16 * 16 + (at.lane & 7) + ((at.lane >> 4) << 3);
            const int unit = (at.warp_row >> 3) + m * 2 + ((at.lane >> 3) & 1);
            load_matrices_transposed(a[m], tile + swizzled<ACROSS_K>(row, unit));
        }
    }
}

// A from a 128 x 128 tile that a kernel left in shared memory, rows of 256 bytes: m along its rows
// (ALONG_K) or across them (ACROSS_K, the layout `load_a` knows).
DEVICE void load_a_wide(u32 (&a)[4][4], u32 tile, int k16, const Place& at) {
#pragma unroll
    for (int m = 0; m < 4; m++) {
        const int row = at.warp_row + m * 16 + (at.lane & 15);
        load_matrices(a[m], tile + swizzled<ACROSS_K>(row, k16 * 2 + (at.lane >> 4)));
    }
}

template <Order ORDER>
DEVICE void load_b(u32 (&b)[4], u32 tile, int k16, int pair, const Place& at) {
    if (ORDER == ALONG_K) {
        const int row = at.warp_column + pair * 16 + (at.lane & 7) + ((at.lane >> 4) << 3);
        load_matrices(b, tile + swizzled<ALONG_K>(row, k16 * 2 + ((at.lane >> 3) & 1)));
    } else {
        const int row = k16 * 16 + (at.lane & 7) + (((at.lane >> 3) & 1) << 3);
        const int unit = (at.warp_column >> 3) + pair * 2 + (at.lane >> 4);
        load_matrices_transposed(b, tile + swizzled<ACROSS_K>(row, unit));
    }
}

DEVICE void multiply_fragments(Accumulator& c, const u32 (&a)[4][4], const u32 (&b)[4][4]) {
#pragma unroll
    for (int pair = 0; pair < 4; pair++)
#pragma unroll
        for (int m = 0; m < 4; m++) {
            matrix_multiply(c.value[m][2 * pair], a[m], b[pair][0], b[pair][1]);
            matrix_multiply(c.value[m][2 * pair + 1], a[m], b[pair][2], b[pair][3]);
        }
}

// One BLOCK_K step from the operand tiles at `stage`.
template <Order A_ORDER, Order B_ORDER>
DEVICE void multiply_tile(Accumulator& c, u32 stage, const Place& at) {
#pragma unroll
    for (int k16 = 0; k16 < BLOCK_K / 16; k16++) {
        u32 a[4][4], b[4][4];
        load_a<A_ORDER>(a, stage, k16, at);
#pragma unroll
        for (int pair = 0; pair < 4; pair++) load_b<B_ORDER>(b[pair], stage + OPERAND_BYTES, k16, pair, at);
        multiply_fragments(c, a, b);
    }
}

// Turns four registers of each of the four lanes that share a row: lane t's register s becomes lane s's
// register t. An accumulator row that a lane holds as one column pair of four fragments becomes sixteen
// contiguous bytes, and back.
DEVICE void quad_transpose(u32 (&r)[4], int lane) {
    const bool upper = lane & 2, odd = lane & 1;
    const u32 a = __shfl_xor_sync(0xffffffffu, upper ? r[0] : r[2], 2);
    const u32 b = __shfl_xor_sync(0xffffffffu, upper ? r[1] : r[3], 2);
    if (upper) {
        r[0] = a;
        r[1] = b;
    } else {
        r[2] = a;
        r[3] = b;
    }
    const u32 c = __shfl_xor_sync(0xffffffffu, odd ? r[0] : r[1], 1);
    const u32 d = __shfl_xor_sync(0xffffffffu, odd ? r[2] : r[3], 1);
    if (odd) {
        r[0] = c;
        r[2] = d;
    } else {
        r[1] = c;
        r[3] = d;
    }
}

// The accumulator fragments' bf16 pairs of one row (fragments 4 * group to 4 * group + 3) of a row-major
// matrix, read sixteen bytes a lane. `line` points at the row's element under the tile's first column.
template <bool CHECK_COLUMNS>
DEVICE void load_row_pairs(u32 (&pairs)[4], const bf16* line, bool row_valid, int columns_left, int group, const Place& at) {
    const int column = at.warp_column + group * 32 + (at.lane & 3) * 8;
    uint4 raw = make_uint4(0, 0, 0, 0);
    if (row_valid && (!CHECK_COLUMNS || column < columns_left)) raw = *reinterpret_cast<const uint4*>(line + column);
    pairs[0] = raw.x;
    pairs[1] = raw.y;
    pairs[2] = raw.z;
    pairs[3] = raw.w;
    quad_transpose(pairs, at.lane);
}

// The same way out: `pairs` are turned and stored.
template <bool CHECK_COLUMNS>
DEVICE void store_row_pairs(bf16* line, u32 (&pairs)[4], bool row_valid, int columns_left, int group, const Place& at) {
    quad_transpose(pairs, at.lane);
    const int column = at.warp_column + group * 32 + (at.lane & 3) * 8;
    if (row_valid && (!CHECK_COLUMNS || column < columns_left))
        *reinterpret_cast<uint4*>(line + column) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// Rounds the accumulator to bf16 and stores what lies inside `rows` x `columns` of a tile at `destination`.
template <bool CHECK_COLUMNS>
DEVICE void store_tile(bf16* destination, i64 stride, int rows, int columns, const Accumulator& c, const Place& at) {
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = at.row(m, half);
#pragma unroll
            for (int group = 0; group < 2; group++) {
                u32 pairs[4];
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const float(&value)[4] = c.value[m][4 * group + n];
                    pairs[n] = pack_bf16(value[2 * half], value[2 * half + 1]);
                }
                store_row_pairs<CHECK_COLUMNS>(destination + row * stride, pairs, row < rows, columns, group, at);
            }
        }
}

// One row's sum of the accumulator times `line`, this lane's part.
template <bool CHECK_COLUMNS>
DEVICE float row_dot(const bf16* line, bool row_valid, int columns_left, const Accumulator& c, int m, int half,
                     const Place& at) {
    float sum = 0.0f;
#pragma unroll
    for (int group = 0; group < 2; group++) {
        u32 pairs[4];
        load_row_pairs<CHECK_COLUMNS>(pairs, line, row_valid, columns_left, group, at);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float(&value)[4] = c.value[m][4 * group + n];
            sum += value[2 * half] * low_float(pairs[n]) + value[2 * half + 1] * high_float(pairs[n]);
        }
    }
    return sum;
}

// Sums `value` over the four lanes that share a row; every lane gets the sum.
DEVICE float quad_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

// Adds the two warp columns' row sums in a fixed order and hands row r's to thread r.
// `scratch` holds 2 * TILE floats; all threads call.
DEVICE float combine_rows(float* scratch, const float (&sums)[4][2], const Place& at) {
    __syncthreads();
    if ((at.lane & 3) == 0)
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                scratch[(at.warp_column >> 6) * TILE + at.row(m, half)] = sums[m][half];
    __syncthreads();
    return scratch[threadIdx.x] + scratch[TILE + threadIdx.x];
}
