// What stands between the matrix products of a block: all bytes, no arithmetic to speak of.
//
// Every kernel reads each of its inputs once and writes each result once, sixteen bytes (eight bf16) a lane; what
// PyTorch would run as five to ten kernels with their intermediates in memory is one. Gradients of parameters are
// sums over all tokens: each warp or thread sums its own tokens in registers, writes one row of partial sums, and
// `column_sums` adds the rows in a fixed order. No atomics, so that two runs agree to the last bit.
//
// Legend: B batch, T tokens, D width, H heads, E = D / H. Activations bf16 or, with FLOAT32, fp32; parameters fp32. The two halves of an
// up-projection lie side by side in one tensor: what may be such a half has a stride from token to token.
#include "vector.cuh"

// What activations are: bf16, or float32 for runs in that precision.
#ifndef FLOAT32
#define FLOAT32 0
#endif
#if FLOAT32
typedef float Element;
#define fast_sigmoid sigmoid
#else
typedef bf16 Element;
#endif

DEVICE float silu_slope(float x, float gate) { return gate * (1.0f + x * (1.0f - gate)); }

// ---- causal depthwise convolution of width 4, then SiLU or nothing ---------------------------------------------
//
//   pre_t = bias + sum_j w_j x_{t - 3 + j},   y_t = silu(pre_t), or pre_t;   x before the first token is zero.
// A thread keeps eight channels and walks over a run of tokens with the last inputs in registers.

static constexpr int TAPS = 4;

struct ConvParameters {
    int batch, tokens, width, run;  // run: tokens of a thread
    i64 input_stride;     // of `input` and `input_gradient`, from token to token
    const Element* input;    // [B, T, D]
    const float* weight;  // [D, 4]
    const float* bias;    // [D]
    Element* output;
    const Element* output_gradient;
    const Element* added;  // [B, T, D] or null: what else the input's gradient is the sum of
    Element* input_gradient;
    float* partial;  // [B * runs, D * 5]: per channel four weights, then the bias
    const unsigned char* resets;  // [B, T], nonzero: zeros stand before this token; or null
    const Element* window;           // [B, 3, D], the inputs before the first token, or null for zeros
    Element* window_gradient;        // as `window`, or null
    int linear;                      // 1: no SiLU
    int unused;

    // Whether nothing before the token counts for it and for those after it.
    DEVICE bool begins(int t) const {
        return resets != nullptr && t >= 0 && t < tokens && resets[(i64)blockIdx.z * tokens + t] != 0;
    }
    DEVICE i64 window_at(int t, int channel) const {
        return ((i64)blockIdx.z * (TAPS - 1) + t + TAPS - 1) * width + channel;
    }
};

template <class Vector>
struct ConvThread {
    float weight[TAPS][Vector::SIZE];
    Vector bias, window[TAPS];
    DEVICE void load_parameters(const ConvParameters& p, int channel) {
#pragma unroll
        for (int e = 0; e < Vector::SIZE; e++) {
            const float4 taps = *reinterpret_cast<const float4*>(p.weight + (channel + e) * TAPS);
            weight[0][e] = taps.x;
            weight[1][e] = taps.y;
            weight[2][e] = taps.z;
            weight[3][e] = taps.w;
        }
        bias.load(p.bias + channel);
    }
    // Shifts token t's input in; before the sequence there is its window, or zeros; after it there are zeros.
    DEVICE void take(const ConvParameters& p, const Element* input, int t, int channel) {
        const bool begins = p.begins(t);
#pragma unroll
        for (int tap = 0; tap < TAPS - 1; tap++) {
            window[tap] = window[tap + 1];
            if (begins) window[tap].clear();
        }
        if (t >= 0 && t < p.tokens)
            window[TAPS - 1].load(input + (i64)t * p.input_stride);
        else if (t < 0 && p.window != nullptr)
            window[TAPS - 1].load(p.window + p.window_at(t, channel));
        else
            window[TAPS - 1].clear();
    }
    DEVICE float before_silu(int e) const {
        float sum = bias.value[e];
#pragma unroll
        for (int tap = 0; tap < TAPS; tap++) sum += weight[tap][e] * window[tap].value[e];
        return sum;
    }
};

extern "C" __global__ void __launch_bounds__(64) conv_silu(const __grid_constant__ ConvParameters p) {
    const int channel = (blockIdx.x * 64 + threadIdx.x) * 8, first = blockIdx.y * p.run;
    if (channel >= p.width) return;
    const i64 offset = (i64)blockIdx.z * p.tokens * p.width + channel;
    const i64 input_offset = (i64)blockIdx.z * p.tokens * p.input_stride + channel;
    ConvThread<Eight> thread;
    thread.load_parameters(p, channel);
    for (int t = first - TAPS + 1; t < first; t++) thread.take(p, p.input + input_offset, t, channel);
    const int end = min(first + p.run, p.tokens);
#pragma unroll 4
    for (int t = first; t < end; t++) {
        thread.take(p, p.input + input_offset, t, channel);
        Eight y;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const float pre = thread.before_silu(e);
            y.value[e] = p.linear ? pre : pre * fast_sigmoid(pre);
        }
        y.store(p.output + offset + (i64)t * p.width);
    }
}

// dx_s = sum_j w_j dpre_{s + 3 - j}: the run is walked three tokens further, and the parameters' sums take only the
// run's own tokens. Four channels a thread: with eight, registers left too few warps to hide the loads.
extern "C" __global__ void __launch_bounds__(128) conv_silu_backward(const __grid_constant__ ConvParameters p) {
    const int channel = (blockIdx.x * 128 + threadIdx.x) * 4, first = blockIdx.y * p.run;
    if (channel >= p.width) return;
    const i64 offset = (i64)blockIdx.z * p.tokens * p.width + channel;
    const i64 input_offset = (i64)blockIdx.z * p.tokens * p.input_stride + channel;
    ConvThread<Four> thread;
    thread.load_parameters(p, channel);
    Four slope[TAPS], sums[TAPS + 1];
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) slope[tap].clear();
#pragma unroll
    for (int tap = 0; tap <= TAPS; tap++) sums[tap].clear();
    for (int t = first - TAPS + 1; t < first; t++) thread.take(p, p.input + input_offset, t, channel);
    u32 begun = 0;  // bit k: whether token t - k begins anew
#pragma unroll 4
    for (int t = first; t < first + p.run + TAPS - 1; t++) {
        begun = begun << 1 | (p.begins(t) ? 1u : 0u);
        thread.take(p, p.input + input_offset, t, channel);
        Four gradient;
        gradient.clear();
        if (t < p.tokens) gradient.load(p.output_gradient + offset + (i64)t * p.width);
        const bool own = t < first + p.run;
#pragma unroll
        for (int tap = 0; tap < TAPS - 1; tap++) slope[tap] = slope[tap + 1];
        Four dx;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float pre = thread.before_silu(e), gate = fast_sigmoid(pre);
            const float dpre = gradient.value[e] * (p.linear ? 1.0f : silu_slope(pre, gate)), counted = own ? dpre : 0.0f;
            slope[TAPS - 1].value[e] = dpre;
#pragma unroll
            for (int tap = 0; tap < TAPS; tap++) sums[tap].value[e] += counted * thread.window[tap].value[e];
            sums[TAPS].value[e] += counted;
            dx.value[e] = 0.0f;
#pragma unroll
            for (int tap = 0; tap < TAPS; tap++) {
                // Token s + 3 - tap sees s unless it or one between begins anew.
                const bool sees = (begun & (7u & ~((1u << tap) - 1))) == 0 || tap == TAPS - 1;
                dx.value[e] += sees ? thread.weight[tap][e] * slope[TAPS - 1 - tap].value[e] : 0.0f;
            }
        }
        const int s = t - TAPS + 1;
        if (s < 0 && p.window_gradient != nullptr) dx.store(p.window_gradient + p.window_at(s, channel));
        if (s < first || s >= p.tokens) continue;
        if (p.added != nullptr) {
            Four added;
            added.load(p.added + offset + (i64)s * p.width);
#pragma unroll
            for (int e = 0; e < 4; e++) dx.value[e] += added.value[e];
        }
        dx.store(p.input_gradient + input_offset + (i64)s * p.input_stride);
    }
    float* row = p.partial + ((i64)blockIdx.z * gridDim.y + blockIdx.y) * p.width * (TAPS + 1) + channel * (TAPS + 1);
#pragma unroll
    for (int e = 0; e < 4; e++)
#pragma unroll
        for (int tap = 0; tap <= TAPS; tap++) row[e * (TAPS + 1) + tap] = sums[tap].value[e];
}

// ---- norm of each head, then skip and gate -----------------------------------------------------------------
//
//   out = (norm(h) (1 + w) + skip c) silu(z), each head of each token normed by itself; one warp a head and token.
// Without `gate` (null) it is the norm alone, as the sLSTM block has it.

#ifndef HEAD
#define HEAD 384
#endif
// Sixteen bytes a lane where whole warps divide a head, else eight: 384 is three times 128, but one and a half times 256.
template <bool WIDE>
struct Choice {
    typedef Four Vector;
    typedef RawFour Raw;
};
template <>
struct Choice<true> {
    typedef Eight Vector;
    typedef RawEight Raw;
};
#if FLOAT32
typedef Four Vector;
typedef RawFloats Raw;
#else
typedef Choice<HEAD % 256 == 0>::Vector Vector;
typedef Choice<HEAD % 256 == 0>::Raw Raw;
#endif
static constexpr int W = Vector::SIZE, VECTORS = (HEAD / W + WARP - 1) / WARP, NORM_WARPS = 4;

struct NormParameters {
    int heads, tokens_per_warp;
    i64 tokens;  // B * T
    float epsilon;
    i64 gate_stride;      // of `gate` and `gate_gradient`, from token to token
    const Element* input;    // h: [B * T, H, E]
    const float* weight;  // w: [D], the scale is 1 + w
    const float* skip;    // [D]
    const Element *branch, *gate;  // c, z: [B * T, D], or both null
    Element* output;
    float* statistics;  // [B * T, H, 2]: mean, 1 / deviation
    const Element* output_gradient;
    Element *input_gradient, *branch_gradient, *gate_gradient;
    float* partial;  // [warps of a head, 2 * D]: weight, then skip
    // Backward before an mLSTM, else null: what rounding took from h (mlstm_outputs.cu), as h; 1 / den for every token and
    // head, by which dh is multiplied before it is rounded; and dh / den . h, of the rounded dh / den and the whole h, so
    // that the mLSTM's backward pass need not read both again.
    const signed char* rest;
    const float* inverse_denominator;  // [B * T, H]
    float* dots;  // [B * T, H]
};

DEVICE bool inside(int vector) { return HEAD % (W * WARP) == 0 || (vector * WARP + (threadIdx.x & 31)) * W < HEAD; }

extern "C" __global__ void __launch_bounds__(NORM_WARPS* WARP) head_norm_gate(const __grid_constant__ NormParameters p) {
    const i64 row = (i64)blockIdx.x * NORM_WARPS + (threadIdx.x >> 5);
    if (row >= p.tokens * p.heads) return;
    const int lane = threadIdx.x & 31, head = (int)(row % p.heads);
    Vector x[VECTORS];
    float sum = 0.0f, square = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        x[v].clear();
        if (inside(v)) x[v].load(p.input + row * HEAD + (v * WARP + lane) * W);
#pragma unroll
        for (int e = 0; e < W; e++) sum += x[v].value[e];
    }
    const float mean = warp_sum(sum) / HEAD;
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        if (inside(v))
#pragma unroll
            for (int e = 0; e < W; e++) {
                x[v].value[e] -= mean;
                square += x[v].value[e] * x[v].value[e];
            }
    const float scale = rsqrtf(warp_sum(square) / HEAD + p.epsilon);
    if (lane == 0 && p.statistics != nullptr) *reinterpret_cast<float2*>(p.statistics + row * 2) = make_float2(mean, scale);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        if (!inside(v)) continue;
        const int column = (v * WARP + lane) * W;
        Vector weight, out;
        weight.load(p.weight + head * HEAD + column);
#pragma unroll
        for (int e = 0; e < W; e++) out.value[e] = x[v].value[e] * scale * (1.0f + weight.value[e]);
        if (p.gate != nullptr) {
            Vector skip, branch, gate;
            skip.load(p.skip + head * HEAD + column);
            branch.load(p.branch + row * HEAD + column);
            gate.load(p.gate + row / p.heads * p.gate_stride + head * HEAD + column);
#pragma unroll
            for (int e = 0; e < W; e++)
                out.value[e] = (out.value[e] + skip.value[e] * branch.value[e]) * gate.value[e] * fast_sigmoid(gate.value[e]);
        }
        out.store(p.output + row * HEAD + column);
    }
}

// What the backward pass reads of one token and head, as it lies in memory: a warp starts the next token's loads before it
// works on this one's, because nothing else hides them (measured: 73 % of the time waiting for loads). Two tokens of a head
// of 1024 do not fit the registers.
static constexpr bool AHEAD = HEAD <= 512;
struct RawToken {
    Raw input[VECTORS], gradient[VECTORS], branch[VECTORS], gate[VECTORS];
    u32 rest[VECTORS][W / 4];
    uint2 statistics;
    u32 inverse_denominator;

    DEVICE void load(const NormParameters& p, i64 token, int head, int lane) {
        const i64 row = token * p.heads + head;
        statistics = load_8(p.statistics + row * 2);
        if (p.dots != nullptr) inverse_denominator = load_4(p.inverse_denominator + row);
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            if (!inside(v)) continue;
            const i64 at = row * HEAD + (v * WARP + lane) * W;
            input[v].load(p.input + at);
            if (p.dots != nullptr)
#pragma unroll
                for (int e = 0; e < W / 4; e++) rest[v][e] = load_4(p.rest + at + 4 * e);
            gradient[v].load(p.output_gradient + at);
            if (p.gate == nullptr) continue;
            branch[v].load(p.branch + at);
            gate[v].load(p.gate + token * p.gate_stride + head * HEAD + (v * WARP + lane) * W);
        }
    }
};

// A warp walks over `tokens_per_warp` tokens of one head, so that the parameters' sums stay in registers.
extern "C" __global__ void __launch_bounds__(NORM_WARPS* WARP, HEAD <= 192 ? 4 : HEAD <= 384 ? 3 : 2)
    head_norm_gate_backward(const __grid_constant__ NormParameters p) {
    const int lane = threadIdx.x & 31, head = blockIdx.y;
    const i64 part = (i64)blockIdx.x * NORM_WARPS + (threadIdx.x >> 5);
    Vector weight_sum[VECTORS], skip_sum[VECTORS], kept_weight[VECTORS], kept_skip[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        weight_sum[v].clear();
        skip_sum[v].clear();
        kept_weight[v].clear();
        kept_skip[v].clear();
        if (!AHEAD || !inside(v)) continue;
        kept_weight[v].load(p.weight + head * HEAD + (v * WARP + lane) * W);
        if (p.gate != nullptr) kept_skip[v].load(p.skip + head * HEAD + (v * WARP + lane) * W);
    }
    const i64 first = part * p.tokens_per_warp, end = first + p.tokens_per_warp < p.tokens ? first + p.tokens_per_warp : p.tokens;
    RawToken next;
    if (AHEAD && first < end) next.load(p, first, head, lane);
    for (i64 token = first; token < end; token++) {
        if (!AHEAD) next.load(p, token, head, lane);
        const RawToken raw = next;
        if (AHEAD && token + 1 < end) next.load(p, token + 1, head, lane);
        const i64 row = token * p.heads + head;
        const float mean = __uint_as_float(raw.statistics.x), scale = __uint_as_float(raw.statistics.y);
        Vector normal[VECTORS], slope[VECTORS];
        float sum = 0.0f, product = 0.0f, dot = 0.0f;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            normal[v].clear();
            slope[v].clear();
            if (!inside(v)) continue;
            const int column = (v * WARP + lane) * W;
            Vector gradient, weight = kept_weight[v], skip = kept_skip[v];
            if (!AHEAD) {  // no room in registers: from the L1 cache
                weight.load_in_order(p.weight + head * HEAD + column);
                if (p.gate != nullptr) skip.load_in_order(p.skip + head * HEAD + column);
            }
            raw.input[v].unpack(normal[v]);
            raw.gradient[v].unpack(gradient);
#pragma unroll
            for (int e = 0; e < W; e++) normal[v].value[e] = (normal[v].value[e] - mean) * scale;
            if (p.gate != nullptr) {
                Vector branch, gate, branch_gradient, gate_gradient;
                raw.branch[v].unpack(branch);
                raw.gate[v].unpack(gate);
#pragma unroll
                for (int e = 0; e < W; e++) {
                    const float opened = fast_sigmoid(gate.value[e]);
                    const float inner = normal[v].value[e] * (1.0f + weight.value[e]) + skip.value[e] * branch.value[e];
                    gate_gradient.value[e] = gradient.value[e] * inner * silu_slope(gate.value[e], opened);
                    gradient.value[e] *= gate.value[e] * opened;
                    branch_gradient.value[e] = gradient.value[e] * skip.value[e];
                    skip_sum[v].value[e] += gradient.value[e] * branch.value[e];
                }
                gate_gradient.store(p.gate_gradient + token * p.gate_stride + head * HEAD + column);
                branch_gradient.store(p.branch_gradient + row * HEAD + column);
            }
#pragma unroll
            for (int e = 0; e < W; e++) {
                weight_sum[v].value[e] += gradient.value[e] * normal[v].value[e];
                slope[v].value[e] = gradient.value[e] * (1.0f + weight.value[e]);
                sum += slope[v].value[e];
                product += slope[v].value[e] * normal[v].value[e];
            }
        }
        sum = warp_sum(sum) / HEAD;
        product = warp_sum(product) / HEAD;
        const float divided = p.dots != nullptr ? __uint_as_float(raw.inverse_denominator) * scale : scale;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            if (!inside(v)) continue;
#pragma unroll
            for (int e = 0; e < W; e++)
                slope[v].value[e] = (slope[v].value[e] - sum - normal[v].value[e] * product) * divided;
            slope[v].store(p.input_gradient + row * HEAD + (v * WARP + lane) * W);
#if !FLOAT32
            if (p.dots == nullptr) continue;
#pragma unroll
            for (int e = 0; e < W / 2; e++) {
                const u32 dh = pack_bf16(slope[v].value[2 * e], slope[v].value[2 * e + 1]), h = raw.input[v].word(e);
                const u32 bytes = raw.rest[v][e / 2] >> (e % 2 * 16);
                dot += low_float(dh) * with_rest(h << 16, bytes) + high_float(dh) * with_rest(h & 0xffff0000u, bytes >> 8);
            }
#endif
        }
        if (p.dots != nullptr) {
            dot = warp_sum(dot);
            if (lane == 0) p.dots[row] = dot;
        }
    }
    float* partial = p.partial + part * 2 * p.heads * HEAD + head * HEAD;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        if (!inside(v)) continue;
        weight_sum[v].store(partial + (v * WARP + lane) * W);
        skip_sum[v].store(partial + p.heads * HEAD + (v * WARP + lane) * W);
    }
}

// ---- GELU (error function) of the first half times the second half --------------------------------------------

struct GeluParameters {
    i64 rows;
    int width;              // of a half, a multiple of 8
    const Element* projected;  // [rows, 2 * width]: gate, up
    Element* output;           // [rows, width]
    const Element* output_gradient;
    Element* projected_gradient;
};

DEVICE float gaussian_share(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }

extern "C" __global__ void __launch_bounds__(256) gelu_gate(const __grid_constant__ GeluParameters p) {
    const i64 index = ((i64)blockIdx.x * 256 + threadIdx.x) * 8, row = index / p.width;
    if (row >= p.rows) return;
    const i64 at = row * 2 * p.width + index % p.width;
    Eight gate, up;
    gate.load(p.projected + at);
    up.load(p.projected + at + p.width);
#pragma unroll
    for (int e = 0; e < 8; e++) up.value[e] *= gate.value[e] * gaussian_share(gate.value[e]);
    up.store(p.output + index);
}

extern "C" __global__ void __launch_bounds__(256) gelu_gate_backward(const __grid_constant__ GeluParameters p) {
    const i64 index = ((i64)blockIdx.x * 256 + threadIdx.x) * 8, row = index / p.width;
    if (row >= p.rows) return;
    const i64 at = row * 2 * p.width + index % p.width;
    Eight gate, up, gradient;
    gate.load(p.projected + at);
    up.load(p.projected + at + p.width);
    gradient.load(p.output_gradient + index);
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const float x = gate.value[e], share = gaussian_share(x), density = 0.39894228f * __expf(-0.5f * x * x);
        gate.value[e] = gradient.value[e] * up.value[e] * (share + x * density);
        up.value[e] = gradient.value[e] * x * share;
    }
    gate.store(p.projected_gradient + at);
    up.store(p.projected_gradient + at + p.width);
}
