// A 128 x 128 tile of C += A B by one block of four warps.
//
// Operands reach shared memory STAGES tiles deep, in whichever order they lie in global memory; which way round a
// fragment is read decides the transposition, so that no matrix is ever transposed in memory:
//   ALONG_K   the tile is [128 rows of m or n][BLOCK_K], k contiguous;
//   ACROSS_K  the tile is [BLOCK_K rows][128 columns of m or n], m or n contiguous.
// Sixteen-byte units are XOR-swizzled within a row, so that the eight addresses of one `ldmatrix`
// phase always fall in eight different bank groups.
//
// Who multiplies: on sm_90 the four warps together, by `wgmma` on the tiles as they lie in shared memory; each warp owns
// 16 rows of either half of the tile. Elsewhere each warp by `mma` on fragments, owning 64 x 64, the smallest tile
// whose shared-memory reads (8 x 512 bytes per k of 16) stay below the time of its 32 `mma`.
// Who copies: on sm_90 the copy engine, in boxes of 64 rows of 128 bytes, one a warp. Elsewhere every thread copies its
// units by `cp.async`.
#pragma once
#include "bulk.cuh"

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
    if (BULK && ORDER == ACROSS_K) return (unit >> 3) * (BLOCK_K * 128) + row * 128 + (((unit ^ row) & 7) << 4);
    if (ORDER == ACROSS_K) return row * (TILE * 2) + ((unit ^ (row & 7)) << 4);
    if (BLOCK_K == 64) return row * 128 + ((unit ^ (row & 7)) << 4);
    return row * 64 + ((unit ^ ((row >> 1) & 3)) << 4);
}
static_assert(!BULK || BLOCK_K == 64, "a box of the copy engine is 64 columns wide");

// A matrix of bf16 in global memory, `rows` x `width`: one head's activation, or one chunk's state or scores.
struct Operand {
    const TensorMap* map;  // of the tensor that it is `slice` and `batch` of
    const bf16* first;
    i64 stride;  // from row to row
    int rows, width, slice, batch;
};

enum Which { FIRST, SECOND };

// Starts the copy of the operand tile whose first element is (row, column); what lies outside the matrix is read as
// zero. CHECK_COLUMNS: whether a tile may be cut there. All threads call. `barrier` counts the bytes (BULK): each of
// the four warps copies one of the two boxes of the first or the second operand.
template <Which WHICH, Order ORDER, bool CHECK_COLUMNS>
DEVICE void copy_tile(u32 destination, const Operand& from, int row, int column, u32 barrier) {
#if BULK
    static_assert(OPERAND_BYTES == 2 * BOX_BYTES && THREADS == 4 * WARP, "a warp for each box");
    const int warp = warp_number(), box = warp & 1;
    if (warp >> 1 != WHICH) return;
    if (opaque_lane() != 0) return;
    const int x = column + (ORDER == ACROSS_K ? box * BOX_COLUMNS : 0), y = row + (ORDER == ALONG_K ? box * BOX_ROWS : 0);
    copy_box(destination + box * BOX_BYTES, from.map, x, y, from.slice, from.batch, barrier);
#else
    constexpr int UNITS = (ORDER == ALONG_K ? BLOCK_K : TILE) / 8;
    constexpr int ROWS_PER_PASS = THREADS / UNITS;
    constexpr int ROWS = ORDER == ALONG_K ? TILE : BLOCK_K;
    const int unit = threadIdx.x % UNITS, first = threadIdx.x / UNITS;
    const bool column_valid = !CHECK_COLUMNS || unit * 8 < from.width - column;
    const bf16* pointer = from.first + (i64)(row + first) * from.stride + column + unit * 8;
#pragma unroll
    for (int pass = 0; pass < ROWS / ROWS_PER_PASS; pass++) {
        const int below = first + pass * ROWS_PER_PASS;
        copy_async_16(destination + swizzled<ORDER>(below, unit), pointer + (i64)pass * ROWS_PER_PASS * from.stride,
                      column_valid && below < from.rows - row);
    }
#endif
}

// What of the tile is a warp's: fragments of 16 rows and 8 columns.
static constexpr int FRAGMENT_ROWS = BULK ? 2 : 4, FRAGMENT_COLUMNS = BULK ? 16 : 8, GROUPS = FRAGMENT_COLUMNS / 4;

struct Accumulator {
    float value[FRAGMENT_ROWS][FRAGMENT_COLUMNS][4];
    DEVICE void clear() {
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
            for (int n = 0; n < FRAGMENT_COLUMNS; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) value[m][n][e] = 0.0f;
    }
};

// Where this thread's accumulator elements lie in the 128 x 128 tile.
struct Place {
    int lane, warp_row, warp_column;
    DEVICE Place() {
        lane = threadIdx.x & 31;
        warp_row = BULK ? (threadIdx.x >> 5) * 16 : (threadIdx.x >> 6) * 64;
        warp_column = BULK ? 0 : ((threadIdx.x >> 5) & 1) * 64;
    }
    // First row of fragment m.
    DEVICE int fragment_row(int m) const { return warp_row + m * (BULK ? 64 : 16); }
    // Row of elements 0, 1 (half 0) or 2, 3 (half 1) of fragment m.
    DEVICE int row(int m, int half) const { return fragment_row(m) + half * 8 + (lane >> 2); }
    // Column of element 0 or 2 of fragment n; elements 1 and 3 lie one to the right.
    DEVICE int column(int n) const { return warp_column + n * 8 + (lane & 3) * 2; }
};

// Fragments of A for `mma`, or for `wgmma` with A in registers.
template <Order ORDER>
DEVICE void load_a(u32 (&a)[FRAGMENT_ROWS][4], u32 tile, int k16, const Place& at) {
#pragma unroll
    for (int m = 0; m < FRAGMENT_ROWS; m++) {
        if (ORDER == ALONG_K) {
            const int row = at.fragment_row(m) + (at.lane & 15);
            load_matrices(a[m], tile + swizzled<ALONG_K>(row, k16 * 2 + (at.lane >> 4)));
        } else {
            const int row = k16 * 16 + (at.lane & 7) + ((at.lane >> 4) << 3);
            const int unit = (at.fragment_row(m) >> 3) + ((at.lane >> 3) & 1);
            load_matrices_transposed(a[m], tile + swizzled<ACROSS_K>(row, unit));
        }
    }
}

#if BULK

// c += A B for 64 rows and 128 columns, k of 16; A and B by descriptor, or A in registers. A transposed operand is
// ACROSS_K. Asynchronous: what is read or written may not be touched before `product_wait`.
#define PRODUCT_FLOATS()                                                                                                  \
    "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]), \
        "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]),            \
        "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]),            \
        "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]),            \
        "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]), "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]), "+f"(c[8][3]),            \
        "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]), "+f"(c[10][0]), "+f"(c[10][1]), "+f"(c[10][2]),         \
        "+f"(c[10][3]), "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]), "+f"(c[12][0]), "+f"(c[12][1]),     \
        "+f"(c[12][2]), "+f"(c[12][3]), "+f"(c[13][0]), "+f"(c[13][1]), "+f"(c[13][2]), "+f"(c[13][3]), "+f"(c[14][0]),     \
        "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]), "+f"(c[15][0]), "+f"(c[15][1]), "+f"(c[15][2]), "+f"(c[15][3])
#define PRODUCT_REGISTERS                                                                                               \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30," \
    "%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,"    \
    "%59,%60,%61,%62,%63}"
template <bool A_TRANSPOSED, bool B_TRANSPOSED>
DEVICE void product(float (&c)[16][4], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " PRODUCT_REGISTERS ", %64, %65, 1, 1, 1, %66, %67;"
                 : PRODUCT_FLOATS()
                 : "l"(a), "l"(b), "n"(A_TRANSPOSED ? 1 : 0), "n"(B_TRANSPOSED ? 1 : 0));
}
template <bool B_TRANSPOSED>
DEVICE void product(float (&c)[16][4], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " PRODUCT_REGISTERS
                 ", {%64,%65,%66,%67}, %68, 1, 1, 1, %69;"
                 : PRODUCT_FLOATS()
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(B_TRANSPOSED ? 1 : 0));
}
// Before the first product that reads registers written otherwise; after the last of a group; until PENDING groups are
// left unfinished.
DEVICE void product_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEVICE void product_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// What `wgmma` must know of an operand tile: address, distance between halves of 64 columns (ACROSS_K alone), distance
// between groups of eight rows, swizzling over 128 bytes; all in units of 16 bytes.
template <Order ORDER>
DEVICE u64 descriptor(u32 tile) {
    constexpr u64 HALVES = ORDER == ACROSS_K ? BOX_BYTES >> 4 : 1, EIGHT_ROWS = 1024 >> 4;
    return (u64)((tile & 0x3ffff) >> 4) | HALVES << 16 | EIGHT_ROWS << 32 | (u64)1 << 62;
}
// Bytes from one step of k of 16 to the next; the second 64 rows (columns, ACROSS_K) of a tile lie a box further.
template <Order ORDER>
static constexpr u32 NEXT_K16 = ORDER == ACROSS_K ? 16 * 128 : 32;

// One BLOCK_K step from the operand tiles at `stage`, started and not waited for.
template <Order A_ORDER, Order B_ORDER>
DEVICE void multiply_tile(Accumulator& c, u32 stage, const Place&) {
    product_fence();
#pragma unroll
    for (int k16 = 0; k16 < BLOCK_K / 16; k16++) {
        const u64 b = descriptor<B_ORDER>(stage + OPERAND_BYTES + k16 * NEXT_K16<B_ORDER>);
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
            product<A_ORDER == ACROSS_K, B_ORDER == ACROSS_K>(
                c.value[m], descriptor<A_ORDER>(stage + m * BOX_BYTES + k16 * NEXT_K16<A_ORDER>), b);
    }
    product_commit();
}

// c += A B with A in registers, k of 16, started and not waited for.
template <Order B_ORDER>
DEVICE void multiply_fragments(Accumulator& c, const u32 (&a)[FRAGMENT_ROWS][4], u32 tile, int k16, const Place&) {
    product_fence();
#pragma unroll
    for (int m = 0; m < FRAGMENT_ROWS; m++)
        product<B_ORDER == ACROSS_K>(c.value[m], a[m], descriptor<B_ORDER>(tile + k16 * NEXT_K16<B_ORDER>));
}
// Waits for a step's products. They read A's registers until then, which the compiler does not know.
template <int STEPS>
DEVICE void finish_products(const u32 (&a)[STEPS][FRAGMENT_ROWS][4]) {
    product_commit();
    product_wait<0>();
#pragma unroll
    for (int k16 = 0; k16 < STEPS; k16++)
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
            asm volatile("" ::"r"(a[k16][m][0]), "r"(a[k16][m][1]), "r"(a[k16][m][2]), "r"(a[k16][m][3]));
}

#else

template <int PENDING>
DEVICE void product_wait() {}
template <int STEPS>
DEVICE void finish_products(const u32 (&)[STEPS][FRAGMENT_ROWS][4]) {}

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

template <Order B_ORDER>
DEVICE void multiply_fragments(Accumulator& c, const u32 (&a)[4][4], u32 tile, int k16, const Place& at) {
    u32 b[4][4];
#pragma unroll
    for (int pair = 0; pair < 4; pair++) load_b<B_ORDER>(b[pair], tile, k16, pair, at);
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
        u32 a[4][4];
        load_a<A_ORDER>(a, stage, k16, at);
        multiply_fragments<B_ORDER>(c, a, stage + OPERAND_BYTES, k16, at);
    }
}

#endif

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
        store_16(line + column, pairs[0], pairs[1], pairs[2], pairs[3]);
}

// Rounds the accumulator to bf16 and stores what lies inside `rows` x `columns` of a tile at `destination`.
template <bool CHECK_COLUMNS>
DEVICE void store_tile(bf16* destination, i64 stride, int rows, int columns, const Accumulator& c, const Place& at) {
#pragma unroll
    for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = at.row(m, half);
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
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
    for (int group = 0; group < GROUPS; group++) {
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

#if BULK
// The same of a 128 x 128 tile in shared memory, columns from 64 on in the second half of its slot, each half ALONG_K.
DEVICE float row_dot(u32 first, u32 second, const Accumulator& c, int m, int half, const Place& at) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < FRAGMENT_COLUMNS; n++) {
        const u32 pair = load_shared((n < 8 ? first : second) + swizzled<ALONG_K>(at.row(m, half), n & 7) + (at.lane & 3) * 4);
        sum += c.value[m][n][2 * half] * low_float(pair) + c.value[m][n][2 * half + 1] * high_float(pair);
    }
    return sum;
}
#endif

// Sums `value` over the four lanes that share a row; every lane gets the sum.
DEVICE float quad_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

// Adds the warp columns' row sums in a fixed order and hands row r's to thread r.
// `scratch` holds 2 * TILE floats; all threads call.
DEVICE float combine_rows(float* scratch, const float (&sums)[FRAGMENT_ROWS][2], const Place& at) {
    __syncthreads();
    if ((at.lane & 3) == 0)
#pragma unroll
        for (int m = 0; m < FRAGMENT_ROWS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                scratch[(at.warp_column >> 6) * TILE + at.row(m, half)] = sums[m][half];
    __syncthreads();
    return BULK ? scratch[threadIdx.x] : scratch[threadIdx.x] + scratch[TILE + threadIdx.x];
}
