// The norm of each head and the gate after it: what follows the recurrence in GLA, HGRN, RetNet, RWKV-5 and RWKV-6.
//
//     out = (norm(x) w + b) SiLU(gate)      norm: (x - mean) / deviation, or, RMS, x / sqrt(mean of x^2)
//
// LANES lanes have one head of one token in registers, so that a warp has one head or several small ones. Backward, a warp
// walks over the tokens of its heads and sums the parameters' gradients; statistics are computed again.
//
// Legend: N tokens of the batch, H heads, E width of a head.
#include "vector.cuh"

#ifndef HEAD
#define HEAD 64  // E: a power of two from 16 to 1024
#endif
#ifndef RMS
#define RMS 0
#endif
#ifndef FLOAT32
#define FLOAT32 0  // 1: gates and outputs are float32; 0: bf16
#endif
#ifndef FLOAT32_INPUT
#define FLOAT32_INPUT 0  // likewise of x
#endif

#if FLOAT32
typedef float Element;
#else
typedef bf16 Element;
#endif
#if FLOAT32_INPUT
typedef float Input;
#else
typedef bf16 Input;
#endif

static constexpr int WARPS = 4, LANES = HEAD / 4 < WARP ? HEAD / 4 : WARP, VECTORS = HEAD / (4 * LANES);
static constexpr int TOGETHER = WARP / LANES;  // heads of a warp
static_assert(HEAD == 4 * LANES * VECTORS && VECTORS <= 8, "heads of a power of two from 16 to 1024");

struct GatedNormParameters {
    i64 tokens;  // N
    int heads;
    int tokens_per_warp;  // backward
    float epsilon;
    int weight_stride;  // from one head's weights to the next one's: E, or 0 where all heads have the same
    i64 gate_stride;    // elements from one token's gates to the next one's
    const Input* input;    // x: [N, H, E]
    const float* weight;   // w
    const float* bias;     // b: [H, E], or null
    const Element* gate;   // [N, gate_stride]
    Element* output;       // [N, H, E]
    const Element* output_gradient;
    Input* input_gradient;
    Element* gate_gradient;  // [N, H, E]
    float* partial;          // of w and of b: [warps, 2, H, E]
};

DEVICE float lanes_sum(float value) {
#pragma unroll
    for (int offset = 1; offset < LANES; offset *= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// One head of one token.
struct Head {
    Four x[VECTORS];  // becomes norm(x)
    float scale;

    DEVICE static int column(int v) { return (v * LANES + (int)threadIdx.x % LANES) * 4; }

    DEVICE void load(const GatedNormParameters& p, i64 token, int head, bool inside) {
        float sum = 0.0f, square = 0.0f;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            x[v].clear();
            if (inside) x[v].load(p.input + (token * p.heads + head) * HEAD + column(v));
#pragma unroll
            for (int e = 0; e < 4; e++) sum += x[v].value[e];
        }
        const float mean = RMS ? 0.0f : lanes_sum(sum) / HEAD;
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                x[v].value[e] -= mean;
                square += x[v].value[e] * x[v].value[e];
            }
        scale = rsqrtf(lanes_sum(square) / HEAD + p.epsilon);
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int e = 0; e < 4; e++) x[v].value[e] *= scale;
    }
};

// Parameters of a head at the columns of this lane.
struct Affine {
    Four weight[VECTORS], bias[VECTORS];

    DEVICE void load(const GatedNormParameters& p, int head, bool inside) {
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            weight[v].clear();
            bias[v].clear();
            if (!inside) continue;
            weight[v].load(p.weight + (i64)head * p.weight_stride + Head::column(v));
            if (p.bias != nullptr) bias[v].load(p.bias + (i64)head * HEAD + Head::column(v));
        }
    }
};

extern "C" __global__ void __launch_bounds__(WARPS * WARP) gated_norm(const __grid_constant__ GatedNormParameters p) {
    const int groups = (p.heads + TOGETHER - 1) / TOGETHER;
    const i64 number = (i64)blockIdx.x * WARPS + threadIdx.x / WARP, token = number / groups;
    const int head = (int)(number % groups) * TOGETHER + (int)threadIdx.x % WARP / LANES;
    if (token >= p.tokens) return;
    const bool inside = head < p.heads;
    Head normal;
    normal.load(p, token, head, inside);
    if (!inside) return;
    Affine affine;
    affine.load(p, head, true);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        Four gate, out;
        gate.load(p.gate + token * p.gate_stride + (i64)head * HEAD + Head::column(v));
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float y = normal.x[v].value[e] * affine.weight[v].value[e] + affine.bias[v].value[e];
            out.value[e] = y * gate.value[e] * sigmoid(gate.value[e]);
        }
        out.store(p.output + (token * p.heads + head) * HEAD + Head::column(v));
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP)
    gated_norm_backward(const __grid_constant__ GatedNormParameters p) {
    const int slot = blockIdx.x * WARPS + threadIdx.x / WARP;
    const int head = blockIdx.y * TOGETHER + (int)threadIdx.x % WARP / LANES;
    const bool inside = head < p.heads;
    Affine affine;
    affine.load(p, head, inside);
    Four weight_sum[VECTORS], bias_sum[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        weight_sum[v].clear();
        bias_sum[v].clear();
    }
    const i64 first = (i64)slot * p.tokens_per_warp;
    const i64 end = first + p.tokens_per_warp < p.tokens ? first + p.tokens_per_warp : p.tokens;
    for (i64 token = first; token < end; token++) {
        Head normal;
        normal.load(p, token, head, inside);
        Four slope[VECTORS];
        float sum = 0.0f, product = 0.0f;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            Four gate, of_gate;
            gate.clear();
            slope[v].clear();
            const i64 at = (token * p.heads + head) * HEAD + Head::column(v);
            if (inside) {
                gate.load(p.gate + token * p.gate_stride + (i64)head * HEAD + Head::column(v));
                slope[v].load(p.output_gradient + at);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float x = normal.x[v].value[e], open = sigmoid(gate.value[e]);
                const float y = x * affine.weight[v].value[e] + affine.bias[v].value[e];
                of_gate.value[e] = slope[v].value[e] * y * open * (1.0f + gate.value[e] * (1.0f - open));
                const float of_y = slope[v].value[e] * gate.value[e] * open;
                weight_sum[v].value[e] += of_y * x;
                bias_sum[v].value[e] += of_y;
                slope[v].value[e] = of_y * affine.weight[v].value[e];
                sum += slope[v].value[e];
                product += slope[v].value[e] * x;
            }
            if (inside) of_gate.store(p.gate_gradient + at);
        }
        sum = RMS ? 0.0f : lanes_sum(sum) / HEAD;
        product = lanes_sum(product) / HEAD;
        if (!inside) continue;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                slope[v].value[e] = normal.scale * (slope[v].value[e] - sum - normal.x[v].value[e] * product);
            slope[v].store(p.input_gradient + (token * p.heads + head) * HEAD + Head::column(v));
        }
    }
    if (!inside) return;
    const i64 width = (i64)p.heads * HEAD;
    float* row = p.partial + (i64)slot * 2 * width + (i64)head * HEAD;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        weight_sum[v].store(row + Head::column(v));
        bias_sum[v].store(row + width + Head::column(v));
    }
}
