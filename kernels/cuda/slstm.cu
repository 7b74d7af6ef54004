// sLSTM in bf16 over a whole sequence in one launch: a group of blocks holds one head's recurrent matrix.
//
// Per unit and step (paper eq. 8 to 17, stabilized; R is block-diagonal by head, so that heads never meet):
//     (i, f, z, o) = x_t + R h_{t-1}            m_t = max(log sigmoid(f) + m_{t-1}, i)
//     c_t = f' c_{t-1} + i' tanh(z)             i' = exp(i - m_t), f' = exp(log sigmoid(f) + m_{t-1} - m_t)
//     n_t = f' n_{t-1} + i'                     h_t = sigmoid(o) c_t / n_t
// h, c, n, m are zero before a step that is reset, and before the first where no state is given; a step with n = 0 before it
// takes m = i and ignores f.
//
// The recurrence is latency, not arithmetic: 16 x 256 x 1024 products a step are 0.1 us of one group's matrix rate, but R
// (8 D^2 bytes: 0.3 to 3 MB for D = 192 to 640) must not be fetched again each step. So each of the GROUP blocks keeps the
// rows of R for its D / GROUP units in registers, as `mma` fragments, for the whole sequence. What crosses between blocks in
// a step is h (backward: the gate gradients) of a batch tile, rounded to bf16.
//
// CLUSTERED (9.0 and 10.0, up to 16 blocks): the group is a thread-block cluster. One bulk copy goes from each block into each
// block's shared memory, which counts its bytes on the receiver's barrier. No cluster barrier is needed in the loop: a block
// sends step t only after it has received every block's step t - 1, hence two buffers never collide.
// Otherwise (8.x, 12.0, and heads of more than 512 units): the blocks write into device memory, which stays in the L2 cache,
// and count themselves there. All blocks of a launch must run at once: it is a cooperative one, for as many groups as fit.
//
// Legend: B batch, T tokens, H heads, D units of a head, U units of a block.
#include "bulk.cuh"

#ifndef UNITS
#define UNITS 256  // D
#endif
#ifndef GROUP
#define GROUP 4
#endif
#ifndef CLUSTERED
#define CLUSTERED 1
#endif
#ifndef BATCH_TILES
#define BATCH_TILES 1  // of 16 rows
#endif
#ifndef SPLIT
#define SPLIT 1  // parts of the sum over units, each in a warp of its own
#endif

static constexpr int D = UNITS, U = D / GROUP, ROWS = 16 * BATCH_TILES;
static_assert(D % GROUP == 0 && (U == 32 || U == 64), "a block owns 32 or 64 units of a head");

struct SlstmParameters {
    int batch, tokens, heads;
    int first_group;  // of this launch, where groups are not clusters; a group is a head of a batch tile
    const bf16* input;      // x_t with bias: [B, T, 4, H, D], gates in the order i, f, z, o
    const bf16* recurrent;  // R: [H, 4, D to, D from]
    bf16* output;           // h: [B, T, H, D]
    // Saved for the backward pass: i', f', tanh z, sigmoid o, sigmoid(-f); c, n.
    bf16* gates;    // [B, T, H, 5, D]
    float* states;  // [B, T, H, 2, D]
    const bf16* output_gradient;  // [B, T, H, D]
    bf16* input_gradient;         // as `input`; the gradient of R is its product with h of the step before
    const unsigned char* resets;  // [B, T], or null: nothing is forgotten
    const float* state;           // h, c, n, m before the first step: [4, B, H, D], or null for zeros
    float* last;                  // the same after the last step, or null
    // Where groups are not clusters: two messages of every block of every group, and how many were sent (zeros at first).
    unsigned char* messages;
    u32* sent;
};

// Which block of its group this is, and what the group computes.
struct Role {
    int rank, group, head, first_row;
    DEVICE Role(const SlstmParameters& p) {
#if CLUSTERED
        rank = cluster_rank(), group = 0, head = blockIdx.y, first_row = blockIdx.z * ROWS;
#else
        rank = blockIdx.x, group = p.first_group + blockIdx.y, head = group % p.heads, first_row = group / p.heads * ROWS;
#endif
    }
};

#if CLUSTERED
// Copies this block's shared memory into the same cluster's block `rank`, and counts the bytes there.
DEVICE void send(u32 destination, u32 source, u32 bytes, u32 barrier, u32 rank) {
    const u32 remote_destination = remote_address(destination, rank), remote_barrier = remote_address(barrier, rank);
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     remote_destination),
                 "r"(source), "r"(bytes), "r"(remote_barrier)
                 : "memory");
}
#endif

// Byte offset of 16-byte unit `unit` in row `row` of a block of rows ROW_BYTES long.
template <int ROW_BYTES>
DEVICE u32 place(int row, int unit) {
    return row * ROW_BYTES + ((ROW_BYTES == 64 ? unit ^ ((row >> 1) & 3) : unit ^ (row & 7)) << 4);
}

DEVICE void store_shared(u32 address, u32 value) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory"); }

#if CLUSTERED
// What both directions share: two receive buffers of GROUP blocks, two staging blocks, two barriers.
template <int ROW_BYTES>
struct Exchange {
    static constexpr u32 BLOCK = ROWS * ROW_BYTES, BUFFER = GROUP * BLOCK, BYTES = 2 * BUFFER + 2 * BLOCK + 16;
    // What arrives from the other blocks; a block's own part is stored, not copied.
    static constexpr u32 ARRIVES = BUFFER - BLOCK;
    u32 base, rank;
    DEVICE Exchange(u32 base, const Role& role, const SlstmParameters&) : base(base), rank(role.rank) {
        if (threadIdx.x == 0) {
            barrier_init(barrier(0), 1);
            barrier_init(barrier(1), 1);
            barrier_init_fence();
            barrier_expect(barrier(0), ARRIVES);
            barrier_expect(barrier(1), ARRIVES);
        }
        cluster_barrier();
    }
    DEVICE u32 barrier(int slot) const { return base + 2 * BUFFER + 2 * BLOCK + slot * 8; }
    DEVICE u32 buffer(int message) const { return base + (message & 1) * BUFFER; }
    DEVICE u32 staging(int message) const { return base + 2 * BUFFER + (message & 1) * BLOCK; }
    // Message number `message` (from 0) of every block has arrived; the barrier is armed for its next use.
    DEVICE void receive(int message) const {
        barrier_wait(barrier(message & 1), (message >> 1) & 1);
        if (threadIdx.x == 0) barrier_expect(barrier(message & 1), ARRIVES);
    }
    // Part of this block's message: into the staging block for the others, and where it would arrive here. Nobody reads
    // there any more: message - 2, which lay there, was read before the __syncthreads of broadcast(message - 1).
    DEVICE void put(int message, u32 offset, u32 value) const {
        store_shared(staging(message) + offset, value);
        store_shared(buffer(message) + rank * BLOCK + offset, value);
    }
    // All threads call, after they put their part of the message.
    DEVICE void broadcast(int message) const {
        fence_before_copy();
        __syncthreads();
        if (threadIdx.x < GROUP && threadIdx.x != rank)
            send(buffer(message) + rank * BLOCK, staging(message), BLOCK, barrier(message & 1), threadIdx.x);
    }
    // No block leaves while another may still write into it.
    DEVICE void leave() const { cluster_barrier(); }
};
#else
// What both directions share: one receive buffer of GROUP blocks here, and two in device memory.
template <int ROW_BYTES>
struct Exchange {
    static constexpr u32 BLOCK = ROWS * ROW_BYTES, BUFFER = GROUP * BLOCK, BYTES = BUFFER;
    u32 base, rank;
    unsigned char* messages;
    u32* sent;
    DEVICE Exchange(u32 base, const Role& role, const SlstmParameters& p)
        : base(base), rank(role.rank), messages(p.messages + (i64)role.group * 2 * BUFFER), sent(p.sent + role.group) {}
    DEVICE u32 buffer(int) const { return base; }
    // Waits until every block has sent its part, then brings all of them here. What lay here was read before the
    // __syncthreads of broadcast(message).
    DEVICE void receive(int message) const {
        if (threadIdx.x == 0) {
            u32 count;
            do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(sent) : "memory");
            while (count < GROUP * (u32)(message + 1));
        }
        __syncthreads();
        const unsigned char* from = messages + (message & 1) * BUFFER;
        for (u32 at = threadIdx.x * 16; at < BUFFER; at += blockDim.x * 16) copy_async_16(base + at, from + at, true);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
    }
    // Into message - 2, which every block had brought over before it sent message - 1.
    DEVICE void put(int message, u32 offset, u32 value) const {
        *reinterpret_cast<u32*>(messages + (message & 1) * BUFFER + rank * BLOCK + offset) = value;
    }
    DEVICE void broadcast(int) const {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(sent) : "memory");
        }
    }
    DEVICE void leave() const {}
};
#endif

#if CLUSTERED
#define GROUP_OF_BLOCKS __cluster_dims__(GROUP, 1, 1)
#else
#define GROUP_OF_BLOCKS
#endif

// ---- forward ----------------------------------------------------------------------------------------------
// A warp owns eight units and, for each, all four gates: four `mma` columns whose results meet in one thread.
// With SPLIT = 2 a pair of warps shares the eight units, half the sum each, and swaps halves of the rows.

static constexpr int FORWARD_WARPS = U / 8 * SPLIT, FORWARD_STEPS = D / 16 / SPLIT, HALVES = 2 / SPLIT;

extern "C" __global__ void GROUP_OF_BLOCKS __launch_bounds__(FORWARD_WARPS * 32, 1)
    slstm_forward(const __grid_constant__ SlstmParameters p) {
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float2 swap[SPLIT == 1 ? 1 : FORWARD_WARPS][BATCH_TILES][4][32];
    const Role role(p);
    Exchange<2 * U> exchange(shared_address(shared), role, p);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = warp % SPLIT, group = warp / SPLIT;
    const int head = role.head, first_row = role.first_row, own = role.rank * U + group * 8;
    const int unit = own + (lane & 3) * 2, first_step = part * FORWARD_STEPS;

    u32 weight[FORWARD_STEPS][4][2];
#pragma unroll
    for (int step = 0; step < FORWARD_STEPS; step++)
#pragma unroll
        for (int gate = 0; gate < 4; gate++) {
            const bf16* row = p.recurrent + ((i64)(head * 4 + gate) * D + own + (lane >> 2)) * D + (first_step + step) * 16;
            weight[step][gate][0] = *reinterpret_cast<const u32*>(row + (lane & 3) * 2);
            weight[step][gate][1] = *reinterpret_cast<const u32*>(row + (lane & 3) * 2 + 8);
        }

    float c[BATCH_TILES][HALVES][2] = {}, n[BATCH_TILES][HALVES][2] = {}, m[BATCH_TILES][HALVES][2] = {};
    u32 input[BATCH_TILES][HALVES][4];
    bool reset[BATCH_TILES][HALVES];
    auto row_of = [&](int tile, int half) { return tile * 16 + (SPLIT == 1 ? half : part) * 8 + (lane >> 2); };
    // The state before the first step is message 0, and step t then message t + 1.
    const int before = p.state == nullptr ? 0 : 1;
    const i64 state_size = (i64)p.batch * p.heads * D;
    if (before) {
#pragma unroll
        for (int tile = 0; tile < BATCH_TILES; tile++)
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
                const int row = first_row + row_of(tile, half);
                const float* at = p.state + ((i64)row * p.heads + head) * D + unit;
                auto pair = [&](int part) {
                    return row < p.batch ? *reinterpret_cast<const float2*>(at + part * state_size) : make_float2(0.0f, 0.0f);
                };
                const float2 h0 = pair(0), c0 = pair(1), n0 = pair(2), m0 = pair(3);
                c[tile][half][0] = c0.x, c[tile][half][1] = c0.y, n[tile][half][0] = n0.x, n[tile][half][1] = n0.y;
                m[tile][half][0] = m0.x, m[tile][half][1] = m0.y;
                exchange.put(0, place<2 * U>(row_of(tile, half), group) + (lane & 3) * 4, pack_bf16(h0.x, h0.y));
            }
        exchange.broadcast(0);
    }
    auto load_input = [&](int t) {
#pragma unroll
        for (int tile = 0; tile < BATCH_TILES; tile++)
#pragma unroll
            for (int half = 0; half < HALVES; half++)
#pragma unroll
                for (int gate = 0; gate < 4; gate++) {
                    const int row = first_row + row_of(tile, half);
                    const i64 at = (((i64)row * p.tokens + t) * 4 + gate) * p.heads * D + (i64)head * D + unit;
                    input[tile][half][gate] = row < p.batch ? *reinterpret_cast<const u32*>(p.input + at) : 0;
                    if (gate == 0) reset[tile][half] = p.resets != nullptr && row < p.batch && p.resets[(i64)row * p.tokens + t] != 0;
                }
    };
    load_input(0);
    for (int t = 0; t < p.tokens; t++) {
        float sum[BATCH_TILES][4][4] = {};
        const int message = t + before;
        if (message > 0) {
            exchange.receive(message - 1);
            const u32 buffer = exchange.buffer(message - 1);
#pragma unroll
            for (int step = 0; step < FORWARD_STEPS; step++) {
                const int k = (first_step + step) * 16;
#pragma unroll
                for (int tile = 0; tile < BATCH_TILES; tile++) {
                    u32 a[4];
                    load_matrices(a, buffer + k / U * exchange.BLOCK +
                                         place<2 * U>(tile * 16 + (lane & 15), k % U / 8 + (lane >> 4)));
#pragma unroll
                    for (int gate = 0; gate < 4; gate++)
                        matrix_multiply(sum[tile][gate], a, weight[step][gate][0], weight[step][gate][1]);
                }
            }
            if (SPLIT == 2) {
#pragma unroll
                for (int tile = 0; tile < BATCH_TILES; tile++)
#pragma unroll
                    for (int gate = 0; gate < 4; gate++)
                        swap[warp][tile][gate][lane] = part == 0 ? make_float2(sum[tile][gate][2], sum[tile][gate][3])
                                                                 : make_float2(sum[tile][gate][0], sum[tile][gate][1]);
                asm volatile("bar.sync %0, 64;" ::"r"(group + 1) : "memory");
#pragma unroll
                for (int tile = 0; tile < BATCH_TILES; tile++)
#pragma unroll
                    for (int gate = 0; gate < 4; gate++) {
                        const float2 other = swap[warp ^ 1][tile][gate][lane];
                        sum[tile][gate][0] = (part == 0 ? sum[tile][gate][0] : sum[tile][gate][2]) + other.x;
                        sum[tile][gate][1] = (part == 0 ? sum[tile][gate][1] : sum[tile][gate][3]) + other.y;
                    }
            }
        }
        u32 hidden[BATCH_TILES][HALVES], saved[BATCH_TILES][HALVES][5];
#pragma unroll
        for (int tile = 0; tile < BATCH_TILES; tile++)
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
                float h[2], saving[5][2];
                const bool forgotten = reset[tile][half];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float raw[4];
#pragma unroll
                    for (int gate = 0; gate < 4; gate++)
                        raw[gate] = (forgotten ? 0.0f : sum[tile][gate][2 * half + e]) +
                                    (e ? high_float(input[tile][half][gate]) : low_float(input[tile][half][gate]));
                    float &cell = c[tile][half][e], &norm = n[tile][half][e], &maximum = m[tile][half][e];
                    if (forgotten) cell = norm = maximum = 0.0f;
                    const bool empty = norm == 0.0f;
                    const float closing = __expf(-fabsf(raw[1])), opened = __fdividef(1.0f, 1.0f + closing);
                    const float carried = maximum + fminf(raw[1], 0.0f) + __logf(opened);
                    const float next = empty ? raw[0] : fmaxf(raw[0], carried);
                    const float i = __expf(raw[0] - next), f = empty ? 0.0f : __expf(carried - next);
                    const float z = fast_tanh(raw[2]), o = fast_sigmoid(raw[3]);
                    cell = f * cell + i * z;
                    norm = f * norm + i;
                    maximum = next;
                    h[e] = __fdividef(o * cell, norm);
                    saving[0][e] = i;
                    saving[1][e] = f;
                    saving[2][e] = z;
                    saving[3][e] = o;
                    saving[4][e] = raw[1] < 0.0f ? opened : closing * opened;
                }
                hidden[tile][half] = pack_bf16(h[0], h[1]);
#pragma unroll
                for (int value = 0; value < 5; value++) saved[tile][half][value] = pack_bf16(saving[value][0], saving[value][1]);
                exchange.put(message, place<2 * U>(row_of(tile, half), group) + (lane & 3) * 4, hidden[tile][half]);
            }
        if (t + 1 < p.tokens) {
            exchange.broadcast(message);
            load_input(t + 1);
        }
#pragma unroll
        for (int tile = 0; tile < BATCH_TILES; tile++)
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
                const int row = first_row + row_of(tile, half);
                if (row >= p.batch) continue;
                const i64 at = (((i64)row * p.tokens + t) * p.heads + head) * D;
                *reinterpret_cast<u32*>(p.output + at + unit) = hidden[tile][half];
                if (p.last != nullptr && t + 1 == p.tokens) {
                    float* last = p.last + ((i64)row * p.heads + head) * D + unit;
                    const float(&cells)[2] = c[tile][half], (&norms)[2] = n[tile][half], (&tops)[2] = m[tile][half];
                    *reinterpret_cast<float2*>(last) = make_float2(low_float(hidden[tile][half]), high_float(hidden[tile][half]));
                    *reinterpret_cast<float2*>(last + state_size) = make_float2(cells[0], cells[1]);
                    *reinterpret_cast<float2*>(last + 2 * state_size) = make_float2(norms[0], norms[1]);
                    *reinterpret_cast<float2*>(last + 3 * state_size) = make_float2(tops[0], tops[1]);
                }
                if (p.gates == nullptr) continue;
#pragma unroll
                for (int value = 0; value < 5; value++)
                    *reinterpret_cast<u32*>(p.gates + at * 5 + value * D + unit) = saved[tile][half][value];
                *reinterpret_cast<float2*>(p.states + at * 2 + unit) = make_float2(c[tile][half][0], c[tile][half][1]);
                *reinterpret_cast<float2*>(p.states + at * 2 + D + unit) = make_float2(n[tile][half][0], n[tile][half][1]);
            }
    }
    exchange.leave();
}

// ---- backward ---------------------------------------------------------------------------------------------
// dh of a block's units sums over all 4 D gate gradients. A warp takes one gate (and one of SPLIT parts of the
// blocks) for 32 units, so that a fragment of gate gradients is read once for four `mma`; the warps' partial
// sums meet in shared memory in a fixed order.

static constexpr int UNIT_GROUPS = U / 32, PARTS = 4 * SPLIT, BACKWARD_WARPS = UNIT_GROUPS * PARTS;
static constexpr int BACKWARD_STEPS = D / 16 / SPLIT, BACKWARD_THREADS = BACKWARD_WARPS * 32;
// Of partial sums; 640 units leave no room for more padding in 99 KiB.
static constexpr int PITCH = D > 512 ? U + 4 : U + 8;
static constexpr int PAIRS = ROWS * U / 2 / BACKWARD_THREADS;
static_assert(ROWS * U / 2 % BACKWARD_THREADS == 0 && (SPLIT == 1 || GROUP % SPLIT == 0), "work per thread");

extern "C" __global__ void GROUP_OF_BLOCKS __launch_bounds__(BACKWARD_THREADS, 1)
    slstm_backward(const __grid_constant__ SlstmParameters p) {
    extern __shared__ __align__(128) unsigned char shared[];
    using Messages = Exchange<8 * U>;
    const Role role(p);
    Messages exchange(shared_address(shared), role, p);
    float* partial = reinterpret_cast<float*>(shared + Messages::BYTES);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int part = warp % PARTS, gate_of_warp = part % 4, split = part / 4, unit_group = warp / PARTS;
    const int head = role.head, first_row = role.first_row, own = role.rank * U;

    // Step s of this warp covers 16 gate gradients of block `source(s)`.
    constexpr int STEPS_PER_BLOCK = U / 16;
    auto source = [&](int step) { return split * (GROUP / SPLIT) + step / STEPS_PER_BLOCK; };
    u32 weight[BACKWARD_STEPS][4][2];
#pragma unroll
    for (int step = 0; step < BACKWARD_STEPS; step++)
#pragma unroll
        for (int column = 0; column < 4; column++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int to = source(step) * U + step % STEPS_PER_BLOCK * 16 + half * 8 + (lane & 3) * 2;
                const int from = own + unit_group * 32 + column * 8 + (lane >> 2);
                const bf16* at = p.recurrent + ((i64)(head * 4 + gate_of_warp) * D + to) * D + from;
                weight[step][column][half] = at[0] | (u32)at[D] << 16;
            }

    float dc[PAIRS][2] = {}, dn[PAIRS][2] = {};
    u32 gradient[PAIRS], gates[PAIRS][5];
    float2 cell[PAIRS], norm[PAIRS], cell_before[PAIRS], norm_before[PAIRS];
    bool reset[PAIRS], reset_after[PAIRS] = {};
    const i64 state_size = (i64)p.batch * p.heads * D;
    auto load_states = [&](int t, float2 (&cells)[PAIRS], float2 (&norms)[PAIRS]) {
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            const int index = threadIdx.x + pair * BACKWARD_THREADS, row = first_row + index / (U / 2);
            const i64 at = ((((i64)row * p.tokens + t) * p.heads + head) * 2) * D + own + index % (U / 2) * 2;
            const bool valid = row < p.batch && (t >= 0 || p.state != nullptr);
            const float* from = t >= 0 ? p.states + at : p.state + state_size + ((i64)row * p.heads + head) * D + own + index % (U / 2) * 2;
            cells[pair] = valid ? *reinterpret_cast<const float2*>(from) : make_float2(0.0f, 0.0f);
            norms[pair] = valid ? *reinterpret_cast<const float2*>(from + (t >= 0 ? D : state_size)) : make_float2(0.0f, 0.0f);
        }
    };
    auto load_step = [&](int t) {
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            const int index = threadIdx.x + pair * BACKWARD_THREADS, row = first_row + index / (U / 2);
            const i64 at = (((i64)row * p.tokens + t) * p.heads + head) * D;
            const int unit = own + index % (U / 2) * 2;
            const bool valid = row < p.batch;
            gradient[pair] = valid ? *reinterpret_cast<const u32*>(p.output_gradient + at + unit) : 0;
            reset[pair] = p.resets != nullptr && valid && p.resets[(i64)row * p.tokens + t] != 0;
#pragma unroll
            for (int value = 0; value < 5; value++)
                gates[pair][value] = valid ? *reinterpret_cast<const u32*>(p.gates + at * 5 + value * D + unit) : 0;
        }
        load_states(t - 1, cell_before, norm_before);
    };
    load_states(p.tokens - 1, cell, norm);
    load_step(p.tokens - 1);
    for (int message = 0; message < p.tokens; message++) {
        const int t = p.tokens - 1 - message;
        if (message > 0) {
            exchange.receive(message - 1);
            const u32 buffer = exchange.buffer(message - 1);
            float sum[BATCH_TILES][4][4] = {};
#pragma unroll
            for (int step = 0; step < BACKWARD_STEPS; step++)
#pragma unroll
                for (int tile = 0; tile < BATCH_TILES; tile++) {
                    u32 a[4];
                    const int at = gate_of_warp * U / 8 + step % STEPS_PER_BLOCK * 2 + (lane >> 4);
                    load_matrices(a, buffer + source(step) * Messages::BLOCK + place<8 * U>(tile * 16 + (lane & 15), at));
#pragma unroll
                    for (int column = 0; column < 4; column++)
                        matrix_multiply(sum[tile][column], a, weight[step][column][0], weight[step][column][1]);
                }
#pragma unroll
            for (int tile = 0; tile < BATCH_TILES; tile++)
#pragma unroll
                for (int column = 0; column < 4; column++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const int row = tile * 16 + half * 8 + (lane >> 2), unit = unit_group * 32 + column * 8 + (lane & 3) * 2;
                        *reinterpret_cast<float2*>(partial + (part * ROWS + row) * PITCH + unit) =
                            make_float2(sum[tile][column][2 * half], sum[tile][column][2 * half + 1]);
                    }
            __syncthreads();
        }
        u32 result[PAIRS][4];
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            const int index = threadIdx.x + pair * BACKWARD_THREADS, row = index / (U / 2), unit = index % (U / 2) * 2;
            float dh[2] = {low_float(gradient[pair]), high_float(gradient[pair])};
            if (message > 0 && !reset_after[pair])
#pragma unroll
                for (int other = 0; other < PARTS; other++) {
                    const float2 value = *reinterpret_cast<const float2*>(partial + (other * ROWS + row) * PITCH + unit);
                    dh[0] += value.x;
                    dh[1] += value.y;
                }
            float out[4][2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float gate[5];
#pragma unroll
                for (int value = 0; value < 5; value++) gate[value] = e ? high_float(gates[pair][value]) : low_float(gates[pair][value]);
                const bool valid = first_row + row < p.batch;
                const float n_now = valid ? (e ? norm[pair].y : norm[pair].x) : 1.0f, c_now = e ? cell[pair].y : cell[pair].x;
                const float inverse = __fdividef(1.0f, n_now), ratio = c_now * inverse, over = gate[3] * inverse;
                dc[pair][e] += dh[e] * over;
                dn[pair][e] -= dh[e] * over * ratio;
                const bool forgotten = reset[pair];
                const float c_before = forgotten ? 0.0f : e ? cell_before[pair].y : cell_before[pair].x;
                const float n_before = forgotten ? 0.0f : e ? norm_before[pair].y : norm_before[pair].x;
                out[0][e] = (dc[pair][e] * gate[2] + dn[pair][e]) * gate[0];
                out[1][e] = (dc[pair][e] * c_before + dn[pair][e] * n_before) * gate[1] * gate[4];
                out[2][e] = dc[pair][e] * gate[0] * (1.0f - gate[2] * gate[2]);
                out[3][e] = dh[e] * ratio * gate[3] * (1.0f - gate[3]);
                dc[pair][e] = forgotten ? 0.0f : dc[pair][e] * gate[1];
                dn[pair][e] = forgotten ? 0.0f : dn[pair][e] * gate[1];
            }
#pragma unroll
            for (int gate = 0; gate < 4; gate++) {
                result[pair][gate] = pack_bf16(out[gate][0], out[gate][1]);
                const int column = gate * U + unit;
                exchange.put(message, place<8 * U>(row, column / 8) + column % 8 * 2, result[pair][gate]);
            }
            cell[pair] = cell_before[pair];
            norm[pair] = norm_before[pair];
            reset_after[pair] = reset[pair];
        }
        if (message + 1 < p.tokens) {
            exchange.broadcast(message);
            load_step(t - 1);
        }
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            const int index = threadIdx.x + pair * BACKWARD_THREADS, row = first_row + index / (U / 2);
            if (row >= p.batch) continue;
#pragma unroll
            for (int gate = 0; gate < 4; gate++)
                *reinterpret_cast<u32*>(p.input_gradient + (((i64)row * p.tokens + t) * 4 + gate) * p.heads * D + (i64)head * D +
                                        own + index % (U / 2) * 2) = result[pair][gate];
        }
    }
    exchange.leave();
}
