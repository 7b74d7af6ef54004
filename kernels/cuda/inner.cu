// What stands between an mLSTM block's up-projection and its cell, one kernel each way.
//
//   c = SiLU(conv(a)),  q = Wq c,  k = Wk c,  v = Wv a,  gates = Mc c + Ma a + bias
// conv: causal, depthwise, four taps; W: block-diagonal, [D / 4, 4 out, 4 in]; M [2, G, D] for c and for a (the gates'
// own weights times the W, so that gates need not wait for q, k and v).
// Backward, with e what reached c by the skip branch, and c computed again from a, bit by bit as forward:
//   dc = e + Wq^T dq + Wk^T dk + Mc^T dg,  dp = dc SiLU'(p),  da = conv^T(dp) + Wv^T dv + Ma^T dg
//   dWq = sum dq c^T, dWk = sum dk c^T, dWv = sum dv a^T, dM = sum dg [c, a]^T, and the taps' and the bias' sums of dp.
//
// Bytes, with U = 2 N D an activation of bf16: forward reads a and writes c, q, k, v, 5 U; backward reads a, dq, dk,
// dv, e and writes da, 6 U. As kernels for themselves, with what lies between them in memory, they were 9 U and 14 U.
//
// Everything but the convolution runs on the tensor cores, because that lets the sums over channels (gates) and over
// tokens (gradients of parameters) end in few registers. A warp owns 16 channels; lane (g, t) = (lane / 4, lane % 4)
// owns channels 4t to 4t + 3 of them and walks over a run of tokens of its own, two at a time: rows g and g + 8 of
// `mma.m16n8k16` are the pair's first and second token, and the four channels are k = 2t, 2t + 1, 2t + 8, 2t + 9 of A:
// the eight bytes of a token as they lie in memory. Column n of a result stands for channel 4 (n / 2) + n % 2 (+ 2 in
// the second of two products), so that a result's elements are the lane's own four channels again. `movmatrix` turns
// operands for the sums over tokens. fp32 weights enter as two bf16 parts whose sum has 16 bits.
//
// With BOUNDARIES a sequence may begin anew at any token (`resets`), where the convolution sees zeros before, and may go
// on from the three inputs before it (`window`). Everything else stands for itself at each token.
//
// Legend: N = B T tokens of B sequences, D width (a multiple of 8), G gates of all heads (at most 8).
#include "vector.cuh"

#ifndef GATES
#define GATES 8
#endif
#ifndef BOUNDARIES
#define BOUNDARIES 0
#endif
static_assert(GATES % 2 == 0 && GATES <= 8, "an input and a forget gate a head, at most four heads");
static constexpr int TAPS = 4, FORWARD_WARPS = 8, BACKWARD_WARPS = 4, GROUP = 16, RUNS = 8;
static constexpr int LONGEST_RUN = 8;  // of the forward pass
static constexpr int STAGES = 3;        // copies in flight, backward

struct InnerParameters {
    int batch, tokens, width;  // B, T, D
    int run;                   // tokens of a lane's run, even; forward at most LONGEST_RUN
    i64 input_stride;          // of `input` and `input_gradient`, from token to token
    const bf16* input;         // a: [N, D]
    const float *conv_weight, *conv_bias;                        // [D, 4], [D]
    const float *query_weight, *key_weight, *value_weight;       // [D / 4, 4, 4]
    const float *gate_weight, *gate_bias;                        // M: [2, G, D], [G]
    bf16 *conv, *query, *key, *value;                            // [N, D]
    float* gates;                                                // [N, G]
    const bf16 *query_gradient, *key_gradient, *value_gradient;  // [N, D]
    const bf16* added;                                           // e: [N, D]
    const float* gate_gradient;                                  // dg: [N, G]
    bf16* input_gradient;                                        // da: [N, D], laid out as a
    float* partial;  // [parts, (12 + 2 G + 5) D]: dWq, dWk, dWv, dM, then taps and bias of each channel
    const unsigned char* resets;  // [B, T], nonzero: zeros stand before this token; or null
    const bf16* window;           // [B, 3, D], the inputs before the first token, or null for zeros
    bf16* window_gradient;        // as `window`, or null
};

DEVICE u32 transposed(u32 value) {
    u32 result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
    return result;
}

// Two floats as two packed pairs of bf16 whose sum they are to 2^-17.
DEVICE void split(float x, float y, u32& high, u32& low) {
    high = pack_bf16(x, y);
    low = pack_bf16(x - low_float(high), y - high_float(high));
}

DEVICE void unpack(float (&x)[4], uint2 raw) {
    x[0] = low_float(raw.x);
    x[1] = high_float(raw.x);
    x[2] = low_float(raw.y);
    x[3] = high_float(raw.y);
}

// Element of token `pair` (0 or 1) and of the lane's channel `e` in two accumulators.
DEVICE float element(const float (&c)[2][4], int pair, int e) { return c[e >> 1][2 * pair + (e & 1)]; }
DEVICE uint2 packed(const float (&c)[2][4], int pair) {
    return make_uint2(pack_bf16(c[0][2 * pair], c[0][2 * pair + 1]), pack_bf16(c[1][2 * pair], c[1][2 * pair + 1]));
}

// A of a pair of tokens, and A of the transpose (rows channels, k tokens), whose registers are B's as well.
DEVICE void fragment(u32 (&a)[4], const uint2 (&x)[2]) {
    a[0] = x[0].x;
    a[1] = x[1].x;
    a[2] = x[0].y;
    a[3] = x[1].y;
}
DEVICE void transposed_fragment(u32 (&a)[4], const uint2 (&x)[2]) {
    a[0] = transposed(x[0].x);
    a[1] = transposed(x[0].y);
    a[2] = transposed(x[1].x);
    a[3] = transposed(x[1].y);
}

// Where a lane stands: its channels, and its run of tokens in a sequence.
struct Lane {
    int g, t, group, channel, sequence, first, last;  // tokens `first` to before `last`; none where there is no such run
    i64 row;                                // of the sequence's token 0
    bool wide;                              // its channels exist
    DEVICE Lane(const InnerParameters& p, int group, int run_index) : group(group) {
        g = (threadIdx.x & 31) >> 2;
        t = threadIdx.x & 3;
        channel = group * GROUP + t * 4;
        wide = channel < p.width;
        const int runs = (p.tokens + p.run - 1) / p.run, index = run_index + g;
        sequence = index / runs;
        first = (index - sequence * runs) * p.run;
        last = sequence < p.batch ? min(first + p.run, p.tokens) : 0;
        row = (i64)sequence * p.tokens;
    }
    // The channel that column (or row) g of a result stands for; two further in the second half.
    DEVICE int column() const { return group * GROUP + 4 * (g >> 1) + (g & 1); }
};

// B of a product with 16 channels' blocks: y = W x, or dx = W^T dy.
struct BlockMatrix {
    u32 high[2][2], low[2][2];
    template <bool TRANSPOSE>
    DEVICE void load(const float* weight, const Lane& at) {
        const bool own = at.wide && at.t == at.g >> 1;
        const float* block = weight + (i64)at.channel * 4;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int column = (at.g & 1) + 2 * half;
            float w[4];
#pragma unroll
            for (int i = 0; i < 4; i++) w[i] = own ? block[TRANSPOSE ? i * 4 + column : column * 4 + i] : 0.0f;
            split(w[0], w[1], high[half][0], low[half][0]);
            split(w[2], w[3], high[half][1], low[half][1]);
        }
    }
    DEVICE void multiply(float (&c)[2][4], const u32 (&a)[4]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            matrix_multiply(c[half], a, high[half][0], high[half][1]);
            matrix_multiply(c[half], a, low[half][0], low[half][1]);
        }
    }
};

struct Taps {
    float weight[TAPS][4], bias[4];
    DEVICE void load(const InnerParameters& p, const Lane& at) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float4 taps =
                at.wide ? *reinterpret_cast<const float4*>(p.conv_weight + (at.channel + e) * TAPS) : make_float4(0, 0, 0, 0);
            weight[0][e] = taps.x;
            weight[1][e] = taps.y;
            weight[2][e] = taps.z;
            weight[3][e] = taps.w;
            bias[e] = at.wide ? p.conv_bias[at.channel + e] : 0.0f;
        }
    }
    // Fused steps in a fixed order, so that both passes round alike.
    DEVICE float before_silu(int e, float x0, float x1, float x2, float x3) const {
        return fmaf(weight[3][e], x3, fmaf(weight[2][e], x2, fmaf(weight[1][e], x1, fmaf(weight[0][e], x0, bias[e]))));
    }
};

// Which tokens from two before a run on, at most 72, begin anew. The four lanes of a run read every fourth each.
struct Resets {
    u64 first, second;  // tokens 0 to 63, tokens 32 to 95
    DEVICE void load(const InnerParameters& p, const Lane& at, int count) {
        u32 words[3] = {0, 0, 0};
        const unsigned char* flags = p.resets + at.row;
#pragma unroll
        for (int four = 0; four < 18; four++) {
            const int token = at.first - 2 + 4 * four + at.t;
            if (4 * four >= count || at.last == 0 || token < 0 || token >= p.tokens) continue;
            if (flags[token] != 0) words[four >> 3] |= 1u << (4 * (four & 7) + at.t);
        }
#pragma unroll
        for (int word = 0; word < 3; word++) {
            words[word] |= __shfl_xor_sync(0xffffffffu, words[word], 1);
            words[word] |= __shfl_xor_sync(0xffffffffu, words[word], 2);
        }
        first = words[0] | (u64)words[1] << 32;
        second = words[1] | (u64)words[2] << 32;
    }
    DEVICE void clear() { first = second = 0; }
    // The flags from a token on, in the lowest bits.
    DEVICE u32 from(int token) const { return (u32)(token < 32 ? first >> token : second >> (token - 32)); }
};

// A token's four channels; before the run's sequence those of the window, or zeros; after it zeros.
DEVICE uint2 load_token(const InnerParameters& p, const Lane& at, int token, int last) {
    if (BOUNDARIES && token < 0 && last > 0 && at.wide && p.window != nullptr)
        return load_8(p.window + ((i64)at.sequence * (TAPS - 1) + token + TAPS - 1) * p.width + at.channel);
    if (!at.wide || token < 0 || token >= last) return make_uint2(0, 0);
    return load_8(p.input + (at.row + token) * p.input_stride + at.channel);
}

// What the convolution sees before a pair's tokens: nothing that came before one that begins anew (`begins`, a bit each).
struct Seen {
    float first[3], second[3];
    DEVICE Seen(const float (&window)[TAPS - 1][4], const float (&x0)[4], int e, u32 begins) {
#pragma unroll
        for (int tap = 0; tap < TAPS - 1; tap++)
            first[tap] = BOUNDARIES && (begins & 1) != 0 ? 0.0f : window[tap][e];
        second[0] = BOUNDARIES && (begins & 2) != 0 ? 0.0f : first[1];
        second[1] = BOUNDARIES && (begins & 2) != 0 ? 0.0f : first[2];
        second[2] = BOUNDARIES && (begins & 2) != 0 ? 0.0f : x0[e];
    }
};

// The same for the three inputs before a run, of which the last two may begin anew.
DEVICE void cut_window(float (&window)[TAPS - 1][4], u32 begins) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
        if ((begins & 3) != 0) window[0][e] = 0.0f;
        if ((begins & 2) != 0) window[1][e] = 0.0f;
    }
}

// A block takes the same RUNS runs with all its warps, each of which walks over its share of the channels and sums
// its part of the gates in shared memory; the parts are added in order.
extern "C" __global__ void __launch_bounds__(FORWARD_WARPS* WARP, 2)
    conv_projections(const __grid_constant__ InnerParameters p) {
    __shared__ float4 gate_sums[FORWARD_WARPS][LONGEST_RUN / 2][WARP];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, pairs = p.run / 2;
    for (int pair = 0; pair < pairs; pair++) gate_sums[warp][pair][lane] = make_float4(0, 0, 0, 0);
    Resets resets;
    resets.clear();
    if (BOUNDARIES && p.resets != nullptr) resets.load(p, Lane(p, 0, blockIdx.x * RUNS), LONGEST_RUN + 2);
    for (int group = warp; group * GROUP < p.width; group += FORWARD_WARPS) {
        const Lane at(p, group, blockIdx.x * RUNS);
        Taps taps;
        BlockMatrix query, key, value;
        taps.load(p, at);
        query.load<false>(p.query_weight, at);
        key.load<false>(p.key_weight, at);
        value.load<false>(p.value_weight, at);
        u32 gate_high[2][2], gate_low[2][2];  // of c and of a
#pragma unroll
        for (int side = 0; side < 2; side++) {
            float4 m = make_float4(0, 0, 0, 0);
            if (at.wide && at.g < GATES)
                m = *reinterpret_cast<const float4*>(p.gate_weight + (i64)(side * GATES + at.g) * p.width + at.channel);
            split(m.x, m.y, gate_high[side][0], gate_low[side][0]);
            split(m.z, m.w, gate_high[side][1], gate_low[side][1]);
        }
        float window[TAPS - 1][4];
#pragma unroll
        for (int tap = 0; tap < TAPS - 1; tap++) unpack(window[tap], load_token(p, at, at.first - TAPS + 1 + tap, at.last));
        if (BOUNDARIES) cut_window(window, resets.from(0));
        uint2 a[2], next[2];
        next[0] = load_token(p, at, at.first, at.last);
        next[1] = load_token(p, at, at.first + 1, at.last);
        for (int pair = 0; pair < pairs; pair++) {
            const int token = at.first + 2 * pair;
            a[0] = next[0];
            a[1] = next[1];
            const int end = pair + 1 < pairs ? at.last : 0;
            next[0] = load_token(p, at, token + 2, end);
            next[1] = load_token(p, at, token + 3, end);
            float x0[4], x1[4], c0[4], c1[4];
            unpack(x0, a[0]);
            unpack(x1, a[1]);
            const u32 begins = BOUNDARIES ? resets.from(2 + 2 * pair) : 0;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const Seen seen(window, x0, e, begins);
                const float before0 = taps.before_silu(e, seen.first[0], seen.first[1], seen.first[2], x0[e]);
                const float before1 = taps.before_silu(e, seen.second[0], seen.second[1], seen.second[2], x1[e]);
                c0[e] = before0 * fast_sigmoid(before0);
                c1[e] = before1 * fast_sigmoid(before1);
                window[0][e] = seen.second[1];
                window[1][e] = seen.second[2];
                window[2][e] = x1[e];
            }
            const uint2 c[2] = {make_uint2(pack_bf16(c0[0], c0[1]), pack_bf16(c0[2], c0[3])),
                                make_uint2(pack_bf16(c1[0], c1[1]), pack_bf16(c1[2], c1[3]))};
            u32 c_side[4], a_side[4];
            fragment(c_side, c);
            fragment(a_side, a);
            float q[2][4] = {}, k[2][4] = {}, v[2][4] = {};
            query.multiply(q, c_side);
            key.multiply(k, c_side);
            value.multiply(v, a_side);
            const float4 before = gate_sums[warp][pair][lane];
            float sums[4] = {before.x, before.y, before.z, before.w};
            matrix_multiply(sums, c_side, gate_high[0][0], gate_high[0][1]);
            matrix_multiply(sums, c_side, gate_low[0][0], gate_low[0][1]);
            matrix_multiply(sums, a_side, gate_high[1][0], gate_high[1][1]);
            matrix_multiply(sums, a_side, gate_low[1][0], gate_low[1][1]);
            gate_sums[warp][pair][lane] = make_float4(sums[0], sums[1], sums[2], sums[3]);
#pragma unroll
            for (int second = 0; second < 2; second++)
                if (at.wide && token + second < at.last) {
                    const i64 place = (at.row + token + second) * p.width + at.channel;
                    *reinterpret_cast<uint2*>(p.conv + place) = c[second];
                    *reinterpret_cast<uint2*>(p.query + place) = packed(q, second);
                    *reinterpret_cast<uint2*>(p.key + place) = packed(k, second);
                    *reinterpret_cast<uint2*>(p.value + place) = packed(v, second);
                }
        }
    }
    __syncthreads();
    const Lane at(p, 0, blockIdx.x * RUNS);
    if (2 * at.t >= GATES) return;
    const float2 bias = *reinterpret_cast<const float2*>(p.gate_bias + 2 * at.t);
    for (int pair = warp; pair < pairs; pair += FORWARD_WARPS) {
        float4 sum = make_float4(bias.x, bias.y, bias.x, bias.y);
#pragma unroll
        for (int other = 0; other < FORWARD_WARPS; other++) {
            const float4 part = gate_sums[other][pair][lane];
            sum.x += part.x;
            sum.y += part.y;
            sum.z += part.z;
            sum.w += part.w;
        }
        const int token = at.first + 2 * pair;
        float* line = p.gates + (at.row + token) * GATES + 2 * at.t;
        if (token < at.last) *reinterpret_cast<float2*>(line) = make_float2(sum.x, sum.y);
        if (token + 1 < at.last) *reinterpret_cast<float2*>(line + GATES) = make_float2(sum.z, sum.w);
    }
}

// Eight bytes from global to shared memory, zeros where `valid` is false.
DEVICE void copy_async_8(u32 destination, const void* source, bool valid) {
    int bytes = valid ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(destination), "l"(source), "r"(bytes) : "memory");
}

// One warp, one group of channels, RUNS runs; see the head of this file.
struct Walk {
    // What a lane copies ahead for each pair of tokens: eight bytes of each, in slots that no other lane reads, so
    // that the pipeline needs no barrier.
    enum Item { INPUT, QUERY, KEY, VALUE, ADDED, GATE, ITEMS };
    typedef uint2 Ring[STAGES][2 * ITEMS][BACKWARD_WARPS * WARP];

    const InnerParameters& p;
    const Lane at;
    Ring& ring;
    Taps taps;
    BlockMatrix query, key, value;
    u32 gate_high[2][2], gate_low[2][2];            // M^T: [c or a][half]
    float query_sum[2][4], key_sum[2][4], value_sum[2][4], gate_sum[2][4];
    float tap_sum[TAPS + 1][4];
    float window[TAPS - 1][4], slope[TAPS - 1][4], direct[TAPS - 1][4];  // a, dp, and da but for the convolution
    Resets resets;

    DEVICE Walk(const InnerParameters& p, int group, Ring& ring) : p(p), at(p, group, blockIdx.y * RUNS), ring(ring) {
        taps.load(p, at);
        query.load<true>(p.query_weight, at);
        key.load<true>(p.key_weight, at);
        value.load<true>(p.value_weight, at);
#pragma unroll
        for (int side = 0; side < 2; side++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int channel = at.column() + 2 * half;
                const float* m = p.gate_weight + (i64)(side * GATES + 2 * at.t) * p.width + channel;
                const bool exists = channel < p.width && 2 * at.t < GATES;
                split(exists ? m[0] : 0.0f, exists ? m[p.width] : 0.0f, gate_high[side][half], gate_low[side][half]);
            }
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                query_sum[half][e] = key_sum[half][e] = value_sum[half][e] = gate_sum[half][e] = 0.0f;
#pragma unroll
        for (int e = 0; e < 4; e++) {
#pragma unroll
            for (int tap = 0; tap <= TAPS; tap++) tap_sum[tap][e] = 0.0f;
#pragma unroll
            for (int tap = 0; tap < TAPS - 1; tap++) slope[tap][e] = direct[tap][e] = 0.0f;
        }
#pragma unroll
        for (int tap = 0; tap < TAPS - 1; tap++)
            unpack(window[tap], load_token(p, at, at.first - TAPS + 1 + tap, at.last));
        resets.clear();
        if (BOUNDARIES && p.resets != nullptr) resets.load(p, at, 72);
        if (BOUNDARIES) cut_window(window, resets.from(0));
    }

    // Starts the copies of a pair of tokens; those after the run's end are the next run's, up to the sequence's end.
    DEVICE void start(int pair, int pairs, int stage) {
        if (pair < pairs) {
#pragma unroll
            for (int second = 0; second < 2; second++) {
                const int token = at.first + 2 * pair + second;
                const bool inside = at.last > 0 && token < p.tokens, valid = inside && at.wide;
                const i64 row = inside ? at.row + token : 0, place = valid ? row * p.width + at.channel : 0;
                const bool gate = inside && 2 * at.t < GATES;
                const bf16* activations[ADDED + 1] = {p.input + (valid ? row * p.input_stride + at.channel : 0),
                                                      p.query_gradient + place, p.key_gradient + place,
                                                      p.value_gradient + place, p.added + place};
#pragma unroll
                for (int item = 0; item <= ADDED; item++)
                    copy_async_8(shared_address(&ring[stage][2 * item + second][threadIdx.x]), activations[item], valid);
                copy_async_8(shared_address(&ring[stage][2 * GATE + second][threadIdx.x]),
                             p.gate_gradient + (gate ? row * GATES + 2 * at.t : 0), gate);
            }
        }
        copy_async_commit();
    }

    DEVICE void take(uint2 (&pair)[2], int stage, Item item) const {
        pair[0] = ring[stage][2 * item][threadIdx.x];
        pair[1] = ring[stage][2 * item + 1][threadIdx.x];
    }

    // Two tokens. OWN: they count in the sums; otherwise they follow the run, whose last tokens' gradients need them.
    template <bool OWN>
    DEVICE void step(int token, int stage) {
        uint2 a[2], dq[2], dk[2], dv[2], e_raw[2], dg_raw[2];
        take(a, stage, INPUT);
        take(dq, stage, QUERY);
        take(dk, stage, KEY);
        take(dv, stage, VALUE);
        take(e_raw, stage, ADDED);
        take(dg_raw, stage, GATE);

        float x[2][4], c[2][4], silu_slope[2][4];
        unpack(x[0], a[0]);
        unpack(x[1], a[1]);
        // Of the two tokens before this pair and of the pair, which begin anew.
        const u32 begins = BOUNDARIES ? resets.from(token - at.first) : 0;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const Seen seen(window, x[0], e, begins >> 2);
            const float before[2] = {taps.before_silu(e, seen.first[0], seen.first[1], seen.first[2], x[0][e]),
                                     taps.before_silu(e, seen.second[0], seen.second[1], seen.second[2], x[1][e])};
#pragma unroll
            for (int second = 0; second < 2; second++) {
                const float opened = fast_sigmoid(before[second]);
                c[second][e] = before[second] * opened;
                silu_slope[second][e] = opened * (1.0f + before[second] * (1.0f - opened));
            }
        }

        // The gates' gradient, high parts in k 0 to 7, low parts in k 8 to 15.
        u32 dg[4];
        split(__uint_as_float(dg_raw[0].x), __uint_as_float(dg_raw[0].y), dg[0], dg[2]);
        split(__uint_as_float(dg_raw[1].x), __uint_as_float(dg_raw[1].y), dg[1], dg[3]);
        float dc[2][4], da[2][4] = {};
#pragma unroll
        for (int second = 0; second < 2; second++) {
            float added[4];
            unpack(added, e_raw[second]);
#pragma unroll
            for (int e = 0; e < 4; e++) dc[e >> 1][2 * second + (e & 1)] = added[e];
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            matrix_multiply(dc[half], dg, gate_high[0][half], gate_high[0][half]);
            matrix_multiply(dc[half], dg, gate_low[0][half], gate_low[0][half]);
            matrix_multiply(da[half], dg, gate_high[1][half], gate_high[1][half]);
            matrix_multiply(da[half], dg, gate_low[1][half], gate_low[1][half]);
        }
        u32 operand[4];
        fragment(operand, dq);
        query.multiply(dc, operand);
        fragment(operand, dk);
        key.multiply(dc, operand);
        fragment(operand, dv);
        value.multiply(da, operand);

        if (OWN) {
            const uint2 c_raw[2] = {make_uint2(pack_bf16(c[0][0], c[0][1]), pack_bf16(c[0][2], c[0][3])),
                                    make_uint2(pack_bf16(c[1][0], c[1][1]), pack_bf16(c[1][2], c[1][3]))};
            u32 c_turned[4], a_turned[4], turned[4];
            transposed_fragment(c_turned, c_raw);
            transposed_fragment(a_turned, a);
            transposed_fragment(turned, dq);
            add_outer(query_sum, turned, c_turned);
            transposed_fragment(turned, dk);
            add_outer(key_sum, turned, c_turned);
            transposed_fragment(turned, dv);
            add_outer(value_sum, turned, a_turned);
#pragma unroll
            for (int part = 0; part < 4; part += 2) {
                const u32 first = transposed(dg[part]), second = transposed(dg[part + 1]);
                matrix_multiply(gate_sum[0], c_turned, first, second);
                matrix_multiply(gate_sum[1], a_turned, first, second);
            }
        }

        float dx[2][4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float dp0 = element(dc, 0, e) * silu_slope[0][e], dp1 = element(dc, 1, e) * silu_slope[1][e];
            const Seen seen(window, x[0], e, begins >> 2);
            if (OWN) {
                const float first[TAPS] = {seen.first[0], seen.first[1], seen.first[2], x[0][e]};
                const float second[TAPS] = {seen.second[0], seen.second[1], seen.second[2], x[1][e]};
#pragma unroll
                for (int tap = 0; tap < TAPS; tap++) tap_sum[tap][e] += dp0 * first[tap] + dp1 * second[tap];
                tap_sum[TAPS][e] += dp0 + dp1;
            }
            const float later[TAPS + 1] = {slope[0][e], slope[1][e], slope[2][e], dp0, dp1};
#pragma unroll
            for (int second = 0; second < 2; second++) {
                float sum = direct[second][e];
#pragma unroll
                for (int tap = 0; tap < TAPS; tap++) {
                    // What a token's input is seen by ends where a later one begins anew.
                    const bool sees = !BOUNDARIES || (begins & ((1u << tap) - 1) << second) == 0;
                    sum += sees ? taps.weight[TAPS - 1 - tap][e] * later[second + tap] : 0.0f;
                }
                dx[second][e] = sum;
            }
            window[0][e] = seen.second[1];
            window[1][e] = seen.second[2];
            window[2][e] = x[1][e];
            slope[0][e] = slope[2][e];
            slope[1][e] = dp0;
            slope[2][e] = dp1;
            direct[0][e] = direct[2][e];
            direct[1][e] = element(da, 0, e);
            direct[2][e] = element(da, 1, e);
        }
#pragma unroll
        for (int second = 0; second < 2; second++) {
            const int done = token - TAPS + 1 + second;
            const uint2 result = make_uint2(pack_bf16(dx[second][0], dx[second][1]), pack_bf16(dx[second][2], dx[second][3]));
            if (at.wide && done >= at.first && done < at.last)
                *reinterpret_cast<uint2*>(p.input_gradient + (at.row + done) * p.input_stride + at.channel) = result;
            if (BOUNDARIES && at.wide && done < 0 && at.last > 0 && p.window_gradient != nullptr)
                *reinterpret_cast<uint2*>(p.window_gradient +
                                          ((i64)at.sequence * (TAPS - 1) + done + TAPS - 1) * p.width + at.channel) = result;
        }
    }

    // dy x^T summed over the pairs' tokens: 16 by 8 channels twice, of which the diagonal blocks are wanted.
    DEVICE static void add_outer(float (&sum)[2][4], const u32 (&dy)[4], const u32 (&x)[4]) {
        matrix_multiply(sum[0], dy, x[0], x[2]);
        matrix_multiply(sum[1], dy, x[1], x[3]);
    }

    DEVICE void store_blocks(float* row, const float (&sum)[2][4]) const {
        if (!at.wide || at.t != at.g >> 1) return;
        float* block = row + (i64)at.channel * 4 + (at.g & 1) * 4;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            *reinterpret_cast<float2*>(block + 2 * half) = make_float2(sum[half][0], sum[half][1]);
            *reinterpret_cast<float2*>(block + 8 + 2 * half) = make_float2(sum[half][2], sum[half][3]);
        }
    }

    DEVICE void store_sums() {
        const i64 width = p.width;
        float* row = p.partial + blockIdx.y * (12 + 2 * GATES + TAPS + 1) * width;
        store_blocks(row, query_sum);
        store_blocks(row + 4 * width, key_sum);
        store_blocks(row + 8 * width, value_sum);
        row += 12 * width;
#pragma unroll
        for (int side = 0; side < 2; side++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int gate = 2 * at.t + (e & 1), channel = at.column() + (e & 2);
                if (gate < GATES && channel < p.width) row[(side * GATES + gate) * width + channel] = gate_sum[side][e];
            }
        row += 2 * GATES * width + (i64)at.channel * (TAPS + 1);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int tap = 0; tap <= TAPS; tap++) {
                float sum = tap_sum[tap][e];
#pragma unroll
                for (int offset = 4; offset < WARP; offset <<= 1) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
                if (at.g == 0 && at.wide) row[e * (TAPS + 1) + tap] = sum;
            }
    }

    DEVICE void run() {
        const int own = p.run / 2, pairs = own + (TAPS - 1 + 1) / 2;
#pragma unroll
        for (int ahead = 0; ahead < STAGES - 1; ahead++) start(ahead, pairs, ahead);
        int stage = 0, next = STAGES - 1;
        for (int pair = 0; pair < pairs; pair++) {
            copy_async_wait<STAGES - 2>();
            start(pair + STAGES - 1, pairs, next);
            const int token = at.first + 2 * pair;
            if (pair < own)
                step<true>(token, stage);
            else
                step<false>(token, stage);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            next = next + 1 == STAGES ? 0 : next + 1;
        }
        store_sums();
    }
};

extern "C" __global__ void __launch_bounds__(BACKWARD_WARPS* WARP, 2)
    conv_projections_backward(const __grid_constant__ InnerParameters p) {
    __shared__ Walk::Ring ring;
    const int group = blockIdx.x * BACKWARD_WARPS + (threadIdx.x >> 5);
    if (group * GROUP >= p.width) return;
    Walk(p, group, ring).run();
}
