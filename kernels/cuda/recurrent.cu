// sLSTM and LSTM over a whole sequence in one launch, in float32 on activations of float32 or bf16: a block computes one head for a few sequences.
//
// For heads whose recurrent matrix R (16 D^2 bytes) one multiprocessor can hold or stream: those of the paper's synthetic
// tasks (section 4.1), 8 to 128 units, and at falling speed up to 640. Products are float32 (`fma`): at these sizes a step is latency, and
// TF32 would save nothing.
//
// sLSTM, per unit and step (paper eq. 8 to 17, stabilized), with the state before a step zero where it is reset:
//     (i, f, z, o) = x_t + b + R h_{t-1}        m_t = i where n_{t-1} = 0, else max(log sigmoid(f) + m_{t-1}, i)
//     i' = exp(i - m_t)                         f' = min(exp(log sigmoid(f) + m_{t-1} - m_t), 1)
//     c_t = f' c_{t-1} + i' tanh(z)             n_t = f' n_{t-1} + i'             h_t = sigmoid(o) c_t / n_t
// LSTM: i, f, o through sigmoid, z through tanh; c_t = f c_{t-1} + i z; h_t = o tanh(c_t).
//
// Both directions are one product a step: four columns a thread (forward: the gates of one unit; backward: four units), and
// the sum over the inner index cut into SLICES (backward 4 SLICES) that neighboring lanes take. Their partial sums meet by
// shuffles in a fixed order, after which each lane has ROWS / SLICES results, and computes what is pointwise for those.
//
// Legend: B batch, T tokens, H heads, D units of a head, K inner index, N = B T.
#include "common.cuh"

#ifndef UNITS
#define UNITS 32  // D, a multiple of 8
#endif
#ifndef ROWS
#define ROWS 4  // sequences of a block, a multiple of SLICES
#endif
#ifndef SLICES
#define SLICES 4
#endif
#ifndef LSTM
#define LSTM 0  // 1: the LSTM instead of the sLSTM
#endif
#ifndef BF16
#define BF16 0  // 1: x, h and their gradients are bf16 in memory; what is computed stays float32
#endif
#ifndef CACHED
#define CACHED 64  // floats of R that a thread may keep in registers
#endif

static constexpr int D = UNITS, THREADS = SLICES * D, PER = ROWS / SLICES;
static constexpr int VECTOR = D % (4 * SLICES) == 0 ? 4 : 2, CHUNKS = D / (SLICES * VECTOR);
static constexpr int KEPT = 4 * D / SLICES <= CACHED ? CHUNKS : CACHED / (4 * VECTOR);
static_assert(D % (2 * SLICES) == 0 && ROWS % SLICES == 0 && D % 4 == 0 && THREADS <= 1024, "work per thread");
static constexpr int VALUES = 7;  // of a unit and step, for the backward pass

#if BF16
typedef bf16 Activation;
#else
typedef float Activation;
#endif
DEVICE float read(float x) { return x; }
DEVICE float read(bf16 x) { return to_float(x); }
DEVICE void write(float* to, float x) { *to = x; }
DEVICE void write(bf16* to, float x) { *to = to_bf16(x); }

struct RecurrentParameters {
    int batch, tokens, heads, exponential_forget;
    float clip;      // of the gradient through R; 0: none
    int splits;      // of the sum over N in the weights' gradient
    const Activation* input;  // x: [B, T, 4, H, D], gates in the order i, f, z, o
    const float* recurrent;  // R: [H, D from, 4, D to]
    const float* bias;       // b: [4, H, D]
    const unsigned char* resets;  // [B, T], or null
    const float* state;      // h, c, n, m before the first step: [4, B, H, D], or null for zeros
    Activation* output;      // h: [B, T, H, D]
    float* saved;  // i', f', tanh z, sigmoid o, d log f' / df, c, n (LSTM: i, f, z, o, tanh c, c): [B, T, H, 7, D]; or null
    float* last;   // as `state`, after the last step; or null
    const Activation* output_gradient;  // [B, T, H, D]
    const float* last_gradient;    // as `last`, or null for zeros
    Activation* input_gradient;    // as `input`
    float* state_gradient;         // as `state`, or null
    float* recurrent_gradient;     // [splits, H, D from, 4, D to]
    float* bias_gradient;          // [splits, 4, H, D]
};

DEVICE float quotient(float a, float b) { return __fdividef(a, b); }
DEVICE float logistic(float x) { return quotient(1.0f, 1.0f + expf(-x)); }

// Sums over the LANES neighboring lanes that share a column; lane s is left with values [s N / LANES, (s + 1) N / LANES).
template <int N, int LANES>
DEVICE void reduce_scatter(float (&values)[N], int slice) {
    if constexpr (LANES > 1) {
        constexpr int HALF = LANES / 2, KEEP = N / 2;
        const bool upper = slice & HALF;
        float next[KEEP];
#pragma unroll
        for (int index = 0; index < KEEP; index++) {
            const float keep = upper ? values[KEEP + index] : values[index];
            const float send = upper ? values[index] : values[KEEP + index];
            next[index] = keep + __shfl_xor_sync(0xffffffffu, send, HALF);
        }
        reduce_scatter<KEEP, HALF>(next, slice & (HALF - 1));
#pragma unroll
        for (int index = 0; index < N / LANES; index++) values[index] = next[index];
    }
}

DEVICE float component(const float4& vector, int index) {
    return index == 0 ? vector.x : index == 1 ? vector.y : index == 2 ? vector.z : vector.w;
}

// VECTOR numbers of shared memory.
DEVICE void load_row(float (&values)[VECTOR], const float* row) {
    if constexpr (VECTOR == 4) {
        const float4 read = *reinterpret_cast<const float4*>(row);
        values[0] = read.x, values[1] = read.y, values[2] = read.z, values[3] = read.w;
    } else {
        const float2 read = *reinterpret_cast<const float2*>(row);
        values[0] = read.x, values[1] = read.y;
    }
}

// This thread's part of rows (ROWS of PITCH floats in shared memory) times its four columns; `weights(chunk, to)` loads what
// registers do not keep.
template <int LANES, int PITCH, typename Load>
DEVICE void multiply(float (&sums)[ROWS * 4], const float* rows, int slice, const float (&kept)[KEPT > 0 ? KEPT : 1][VECTOR][4],
                     const Load& weights) {
#pragma unroll
    for (int index = 0; index < ROWS * 4; index++) sums[index] = 0.0f;
    auto chunk = [&](int number, const float (&weight)[VECTOR][4]) {
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            float values[VECTOR];
            load_row(values, rows + row * PITCH + VECTOR * (LANES * number + slice));
#pragma unroll
            for (int v = 0; v < VECTOR; v++)
#pragma unroll
                for (int column = 0; column < 4; column++) sums[row * 4 + column] += values[v] * weight[v][column];
        }
    };
#pragma unroll
    for (int number = 0; number < KEPT; number++) chunk(number, kept[number]);
    if constexpr (KEPT < CHUNKS) {
#pragma unroll 2
        for (int number = KEPT; number < CHUNKS; number++) {
            float weight[VECTOR][4];
            weights(number, weight);
            chunk(number, weight);
        }
    }
    reduce_scatter<ROWS * 4, LANES>(sums, slice);
}

// ---- forward ----------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS) recurrent_forward(const __grid_constant__ RecurrentParameters p) {
    static constexpr int PITCH = D + 4;
    __shared__ __align__(16) float hidden[2][ROWS * PITCH];
    const int unit = threadIdx.x / SLICES, slice = threadIdx.x % SLICES, head = blockIdx.y;
    const int first = blockIdx.x * ROWS + slice * PER;
    const float* recurrent = p.recurrent + (i64)head * D * 4 * D + unit;
    auto load_weights = [&](int number, float (&weight)[VECTOR][4]) {
#pragma unroll
        for (int v = 0; v < VECTOR; v++)
#pragma unroll
            for (int gate = 0; gate < 4; gate++)
                weight[v][gate] = __ldg(recurrent + ((VECTOR * (SLICES * number + slice) + v) * 4 + gate) * D);
    };
    float kept[KEPT > 0 ? KEPT : 1][VECTOR][4];
#pragma unroll
    for (int number = 0; number < KEPT; number++) load_weights(number, kept[number]);

    float bias[4], c[PER], n[PER], m[PER];
    Activation input[PER][4];  // as it lies in memory: a conversion would wait for the load
    bool reset[PER];
#pragma unroll
    for (int gate = 0; gate < 4; gate++) bias[gate] = p.bias[(gate * p.heads + head) * D + unit];
    const i64 state_size = (i64)p.batch * p.heads * D;
#pragma unroll
    for (int r = 0; r < PER; r++) {
        const bool given = p.state != nullptr && first + r < p.batch;
        const i64 at = ((i64)(first + r) * p.heads + head) * D + unit;
        hidden[0][(slice * PER + r) * PITCH + unit] = given ? p.state[at] : 0.0f;
        c[r] = given ? p.state[state_size + at] : 0.0f;
        n[r] = given ? p.state[2 * state_size + at] : 0.0f;
        m[r] = given ? p.state[3 * state_size + at] : 0.0f;
    }
    auto load_input = [&](int t) {
#pragma unroll
        for (int r = 0; r < PER; r++) {
            const bool valid = first + r < p.batch;
            const i64 token = (i64)(first + r) * p.tokens + t;
#pragma unroll
            for (int gate = 0; gate < 4; gate++)
                input[r][gate] = valid ? p.input[((token * 4 + gate) * p.heads + head) * D + unit] : Activation(0);
            reset[r] = p.resets != nullptr && valid && p.resets[token] != 0;
        }
    };
    load_input(0);
    __syncthreads();
    for (int t = 0; t < p.tokens; t++) {
        float sums[ROWS * 4], h[PER], values[PER][VALUES];
        multiply<SLICES, PITCH>(sums, hidden[t & 1], slice, kept, load_weights);
#pragma unroll
        for (int r = 0; r < PER; r++) {
            float raw[4];
#pragma unroll
            for (int gate = 0; gate < 4; gate++) raw[gate] = read(input[r][gate]) + bias[gate] + (reset[r] ? 0.0f : sums[r * 4 + gate]);
            if (reset[r]) c[r] = n[r] = m[r] = 0.0f;
            const float z = tanhf(raw[2]), o = logistic(raw[3]);
            float i, f, extra;
            if constexpr (LSTM) {
                i = logistic(raw[0]);
                f = logistic(raw[1]);
                c[r] = f * c[r] + i * z;
                extra = tanhf(c[r]);
                h[r] = o * extra;
            } else {
                const float closing = expf(-fabsf(raw[1])), opened = quotient(1.0f, 1.0f + closing);
                const float log_forget = p.exponential_forget ? raw[1] : fminf(raw[1], 0.0f) - log1pf(closing);
                const float carried = m[r] + log_forget;
                m[r] = n[r] == 0.0f ? raw[0] : fmaxf(raw[0], carried);
                i = expf(raw[0] - m[r]);
                f = fminf(expf(carried - m[r]), 1.0f);
                extra = p.exponential_forget ? 1.0f : raw[1] < 0.0f ? opened : closing * opened;
                c[r] = f * c[r] + i * z;
                n[r] = f * n[r] + i;
                h[r] = quotient(o * c[r], n[r]);
            }
            hidden[(t + 1) & 1][(slice * PER + r) * PITCH + unit] = h[r];
            values[r][0] = i, values[r][1] = f, values[r][2] = z, values[r][3] = o, values[r][4] = extra;
            values[r][5] = c[r], values[r][6] = n[r];
        }
        if (t + 1 < p.tokens) load_input(t + 1);
        __syncthreads();
#pragma unroll
        for (int r = 0; r < PER; r++) {
            if (first + r >= p.batch) continue;
            const i64 at = (((i64)(first + r) * p.tokens + t) * p.heads + head) * D;
            write(p.output + at + unit, h[r]);
            if (p.saved == nullptr) continue;
#pragma unroll
            for (int value = 0; value < (LSTM ? 6 : 7); value++) p.saved[at * VALUES + value * D + unit] = values[r][value];
        }
    }
    if (p.last == nullptr) return;
#pragma unroll
    for (int r = 0; r < PER; r++) {
        if (first + r >= p.batch) continue;
        const i64 at = ((i64)(first + r) * p.heads + head) * D + unit;
        p.last[at] = hidden[p.tokens & 1][(slice * PER + r) * PITCH + unit];
        p.last[state_size + at] = c[r];
        p.last[2 * state_size + at] = n[r];
        p.last[3 * state_size + at] = m[r];
    }
}

// ---- backward ---------------------------------------------------------------------------------------------
// The gradient of h_{t-1} is R times the four gates' gradients of step t. A thread's PER results are neighbors in a table
// of [row][4 units], so that it reads and writes them as one or more vectors.

static constexpr int LANES = 4 * SLICES, WIDE = PER < 4 ? PER : 4, GROUPS = PER / WIDE;

DEVICE void load_wide(float* to, const float* from) {
    if constexpr (WIDE == 4) {
        const float4 read = *reinterpret_cast<const float4*>(from);
        to[0] = read.x, to[1] = read.y, to[2] = read.z, to[3] = read.w;
    } else if constexpr (WIDE == 2) {
        const float2 read = *reinterpret_cast<const float2*>(from);
        to[0] = read.x, to[1] = read.y;
    } else {
        to[0] = *from;
    }
}
// WIDE activations as they lie in memory: a conversion would wait for the load.
struct Raw {
    static constexpr int BYTES = WIDE * sizeof(Activation), WORDS = (BYTES + 3) / 4;
    u32 words[WORDS] = {};
    DEVICE void load(const Activation* from) {
        if constexpr (BYTES == 16) {
            const uint4 read = *reinterpret_cast<const uint4*>(from);
            words[0] = read.x, words[1] = read.y, words[2] = read.z, words[3] = read.w;
        } else if constexpr (BYTES == 8) {
            const uint2 read = *reinterpret_cast<const uint2*>(from);
            words[0] = read.x, words[1] = read.y;
        } else if constexpr (BYTES == 4) {
            words[0] = *reinterpret_cast<const u32*>(from);
        } else {
            words[0] = *reinterpret_cast<const bf16*>(from);
        }
    }
    DEVICE float value(int index) const {
        if constexpr (sizeof(Activation) == 4)
            return __uint_as_float(words[index]);
        else
            return index % 2 == 0 ? low_float(words[index / 2]) : high_float(words[index / 2]);
    }
};
DEVICE void store_wide(bf16* to, const float* from) {
    if constexpr (WIDE == 4)
        *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]));
    else if constexpr (WIDE == 2)
        *reinterpret_cast<u32*>(to) = pack_bf16(from[0], from[1]);
    else
        *to = to_bf16(*from);
}
DEVICE void store_wide(float* to, const float* from) {
    if constexpr (WIDE == 4)
        *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
    else if constexpr (WIDE == 2)
        *reinterpret_cast<float2*>(to) = make_float2(from[0], from[1]);
    else
        *to = *from;
}

// Zeros for what is not there.
DEVICE void load(float (&to)[PER], const float* from, bool valid, int group, i64 at) {
    float found[WIDE] = {};
    if (valid) load_wide(found, from + at);
#pragma unroll
    for (int e = 0; e < WIDE; e++) to[group * WIDE + e] = found[e];
}

extern "C" __global__ void __launch_bounds__(THREADS) recurrent_backward(const __grid_constant__ RecurrentParameters p) {
    static constexpr int PITCH = 4 * D + 4;
    extern __shared__ __align__(16) float gradients[];  // two of [ROWS][PITCH]
    const int quad = threadIdx.x / LANES, slice = threadIdx.x % LANES, head = blockIdx.y;
    const float* recurrent = p.recurrent + ((i64)head * D + 4 * quad) * 4 * D;
    auto load_weights = [&](int number, float (&weight)[VECTOR][4]) {
#pragma unroll
        for (int column = 0; column < 4; column++)
#pragma unroll
            for (int v = 0; v < VECTOR; v++)
                weight[v][column] = __ldg(recurrent + column * 4 * D + VECTOR * (LANES * number + slice) + v);
    };
    float kept[KEPT > 0 ? KEPT : 1][VECTOR][4];
#pragma unroll
    for (int number = 0; number < KEPT; number++) load_weights(number, kept[number]);

    const int unit = 4 * quad + slice * PER % 4;
    auto local_row = [&](int group) { return (slice * PER + group * WIDE) / 4; };
    auto row_of = [&](int group) { return (int)blockIdx.x * ROWS + local_row(group); };
    const i64 state_size = (i64)p.batch * p.heads * D;
    float dc[PER] = {}, dn[PER] = {}, dm[PER] = {}, dh[PER] = {}, values[PER][5], c[PER], n[PER], c_before[PER], n_before[PER];
    Raw given[GROUPS];
    bool reset[GROUPS], reset_after[GROUPS] = {};
    auto load_before = [&](int t) {
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const i64 row = row_of(group), at = ((row * p.tokens + t) * p.heads + head) * D * VALUES + unit;
            const bool valid = row < p.batch;
            if (t >= 0) {
                load(c_before, p.saved, valid, group, at + 5 * D);
                if constexpr (!LSTM) load(n_before, p.saved, valid, group, at + 6 * D);
            } else {
                const bool there = valid && p.state != nullptr;
                const i64 state = (row * p.heads + head) * D + unit;
                load(c_before, p.state, there, group, state_size + state);
                load(n_before, p.state, there, group, 2 * state_size + state);
            }
        }
    };
    auto load_step = [&](int t) {
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const i64 row = row_of(group), at = ((row * p.tokens + t) * p.heads + head) * D;
            const bool valid = row < p.batch;
            given[group] = Raw();
            if (valid) given[group].load(p.output_gradient + at + unit);
            float found[5][WIDE] = {};
#pragma unroll
            for (int value = 0; value < 5; value++) {
                if (valid) load_wide(found[value], p.saved + at * VALUES + value * D + unit);
#pragma unroll
                for (int e = 0; e < WIDE; e++) values[group * WIDE + e][value] = found[value][e];
            }
            reset[group] = p.resets != nullptr && valid && p.resets[row * p.tokens + t] != 0;
        }
        load_before(t - 1);
    };
    load_before(p.tokens - 1);
#pragma unroll
    for (int r = 0; r < PER; r++) c[r] = c_before[r], n[r] = n_before[r];
    if (p.last_gradient != nullptr)
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const i64 row = row_of(group), at = (row * p.heads + head) * D + unit;
            load(dh, p.last_gradient, row < p.batch, group, at);
            load(dc, p.last_gradient, row < p.batch, group, state_size + at);
            load(dn, p.last_gradient, row < p.batch, group, 2 * state_size + at);
            load(dm, p.last_gradient, row < p.batch, group, 3 * state_size + at);
        }
    // What the step after gives to h of this one.
    auto through_recurrent = [&](int t) {
        float sums[ROWS * 4];
        multiply<LANES, PITCH>(sums, gradients + (t & 1) * ROWS * PITCH, slice, kept, load_weights);
#pragma unroll
        for (int r = 0; r < PER; r++) {
            const float sum = p.clip > 0.0f ? fminf(fmaxf(sums[r], -p.clip), p.clip) : sums[r];
            dh[r] = reset_after[r / WIDE] ? 0.0f : sum;
        }
    };
    load_step(p.tokens - 1);
    for (int t = p.tokens - 1; t >= 0; t--) {
        if (t + 1 < p.tokens) through_recurrent(t + 1);
        float out[4][PER];
#pragma unroll
        for (int r = 0; r < PER; r++) {
            const bool forgotten = reset[r / WIDE];
            const float gradient = dh[r] + given[r / WIDE].value(r % WIDE), i = values[r][0], f = values[r][1], z = values[r][2], o = values[r][3];
            const float extra = values[r][4], before = forgotten ? 0.0f : c_before[r];
            if constexpr (LSTM) {
                dc[r] += gradient * o * (1.0f - extra * extra);
                out[0][r] = dc[r] * z * i * (1.0f - i);
                out[1][r] = dc[r] * before * f * (1.0f - f);
                out[2][r] = dc[r] * i * (1.0f - z * z);
                out[3][r] = gradient * extra * o * (1.0f - o);
            } else {
                const float norm_before = forgotten ? 0.0f : n_before[r];
                // A row beyond the batch has n = 0 and no gradients.
                const float inverse = n[r] == 0.0f ? 0.0f : quotient(1.0f, n[r]), ratio = c[r] * inverse, over = o * inverse;
                dc[r] += gradient * over;
                dn[r] -= gradient * over * ratio;
                float input = (dc[r] * z + dn[r]) * i, share = (dc[r] * before + dn[r] * norm_before) * f;
                if (p.last_gradient != nullptr) {
                    // m is in both exponents with the opposite sign, and came from one of the two.
                    const float top = dm[r] - input - share;
                    const bool from_input = norm_before == 0.0f || i == 1.0f;
                    input += from_input ? top : 0.0f;
                    share += from_input ? 0.0f : top;
                    dm[r] = share;
                }
                out[0][r] = input;
                out[1][r] = share * extra;
                out[2][r] = dc[r] * i * (1.0f - z * z);
                out[3][r] = gradient * ratio * o * (1.0f - o);
                dn[r] = forgotten ? 0.0f : dn[r] * f;
                if (forgotten) dm[r] = 0.0f;
            }
            dc[r] = forgotten ? 0.0f : dc[r] * f;
            c[r] = c_before[r];
            n[r] = n_before[r];
        }
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            reset_after[group] = reset[group];
#pragma unroll
            for (int gate = 0; gate < 4; gate++)
                store_wide(gradients + (t & 1) * ROWS * PITCH + local_row(group) * PITCH + gate * D + unit, out[gate] + group * WIDE);
        }
        if (t > 0) load_step(t - 1);
        __syncthreads();
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const i64 row = row_of(group);
            if (row >= p.batch) continue;
#pragma unroll
            for (int gate = 0; gate < 4; gate++)
                store_wide(p.input_gradient + (((row * p.tokens + t) * 4 + gate) * p.heads + head) * D + unit, out[gate] + group * WIDE);
        }
    }
    if (p.state_gradient == nullptr) return;
    through_recurrent(0);
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        const i64 row = row_of(group), at = (row * p.heads + head) * D + unit;
        if (row >= p.batch) continue;
        store_wide(p.state_gradient + at, dh + group * WIDE);
        store_wide(p.state_gradient + state_size + at, dc + group * WIDE);
        store_wide(p.state_gradient + 2 * state_size + at, dn + group * WIDE);
        store_wide(p.state_gradient + 3 * state_size + at, dm + group * WIDE);
    }
}

// ---- gradients of R and of the bias -------------------------------------------------------------------------
// dR = sum over N of (h before the step) times (the gates' gradients); a block takes a tile of it and a part of N.

static constexpr int TILE = D % 32 == 0 ? 32 : D % 16 == 0 ? 16 : 8, ACROSS = 4 * TILE, WEIGHT_THREADS = TILE * ACROSS / 16;
static constexpr int STEP = TILE == 8 ? 4 : 16;  // of N, at a time: a small tile has few threads to hold them

static constexpr int FROM = STEP * TILE / WEIGHT_THREADS, TO = STEP * ACROSS / WEIGHT_THREADS;  // numbers that a thread loads
static_assert(FROM * WEIGHT_THREADS == STEP * TILE && TO * WEIGHT_THREADS == STEP * ACROSS, "whole loads");

// What a thread brings of the next STEP tokens, on its way while those before are multiplied.
struct Ahead {
    Activation from[FROM], to[TO];
};

DEVICE void convert(float x, float& to) { to = x; }
DEVICE void convert(float x, bf16& to) { to = to_bf16(x); }

extern "C" __global__ void __launch_bounds__(WEIGHT_THREADS) recurrent_weights(const __grid_constant__ RecurrentParameters p) {
    __shared__ __align__(16) float from[STEP][TILE + 4], to[STEP][ACROSS + 4];
    const int head = blockIdx.y, split = blockIdx.z, from_tile = blockIdx.x % (D / TILE), to_tile = blockIdx.x / (D / TILE);
    const u32 count = (u32)p.batch * p.tokens, steps = (count + STEP - 1) / STEP;  // below 2^31
    const u32 begin = (u64)steps * split / p.splits * STEP, end = (u64)steps * (split + 1) / p.splits * STEP;
    const int e = threadIdx.x % (TILE / 4) * 4, f = threadIdx.x / (TILE / 4) * 4;
    auto load = [&](Ahead& ahead, u32 start) {
#pragma unroll
        for (int n = 0; n < FROM; n++) {
            const int index = n * WEIGHT_THREADS + threadIdx.x, k = index / TILE, unit = from_tile * TILE + index % TILE;
            const u32 token = start + k;
            Activation value = 0;
            if (token < count && (p.resets == nullptr || p.resets[token] == 0)) {
                if (token % (u32)p.tokens != 0)
                    value = p.output[((i64)(token - 1) * p.heads + head) * D + unit];
                else if (p.state != nullptr)
                    convert(p.state[((i64)(token / (u32)p.tokens) * p.heads + head) * D + unit], value);
            }
            ahead.from[n] = value;
        }
#pragma unroll
        for (int n = 0; n < TO; n++) {
            const int index = n * WEIGHT_THREADS + threadIdx.x, k = index / ACROSS, place = to_tile * ACROSS + index % ACROSS;
            const u32 token = start + k;
            const i64 at = (((i64)token * 4 + place / D) * p.heads + head) * D + place % D;
            ahead.to[n] = token < count ? p.input_gradient[at] : Activation(0);
        }
    };
    float sums[4][4] = {}, columns[4] = {};
    Ahead ahead;
    if (begin < end) load(ahead, begin);
    for (u32 start = begin; start < end; start += STEP) {
#pragma unroll
        for (int n = 0; n < FROM; n++) {
            const int index = n * WEIGHT_THREADS + threadIdx.x;
            from[index / TILE][index % TILE] = read(ahead.from[n]);
        }
#pragma unroll
        for (int n = 0; n < TO; n++) {
            const int index = n * WEIGHT_THREADS + threadIdx.x;
            to[index / ACROSS][index % ACROSS] = read(ahead.to[n]);
        }
        __syncthreads();
        if (start + STEP < end) load(ahead, start + STEP);
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            const float4 a = *reinterpret_cast<const float4*>(&from[k][e]), b = *reinterpret_cast<const float4*>(&to[k][f]);
#pragma unroll
            for (int row = 0; row < 4; row++)
#pragma unroll
                for (int column = 0; column < 4; column++) sums[row][column] += component(a, row) * component(b, column);
#pragma unroll
            for (int column = 0; column < 4; column++) columns[column] += component(b, column);
        }
        __syncthreads();
    }
#pragma unroll
    for (int row = 0; row < 4; row++)
        *reinterpret_cast<float4*>(p.recurrent_gradient + (((i64)split * p.heads + head) * D + from_tile * TILE + e + row) * 4 * D +
                                   to_tile * ACROSS + f) = make_float4(sums[row][0], sums[row][1], sums[row][2], sums[row][3]);
    if (from_tile != 0 || e != 0) return;
#pragma unroll
    for (int column = 0; column < 4; column++) {
        const int place = to_tile * ACROSS + f + column;
        p.bias_gradient[(((i64)split * 4 + place / D) * p.heads + head) * D + place % D] = columns[column];
    }
}
