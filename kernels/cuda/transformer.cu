// What stands between the products of Llama and of those with its shell, beside norms and attention.
//
//   rotary:  (a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of a head; the way back is the same with -sin
//   swiglu:  SiLU(gate) up
//
// Legend: N tokens of the batch, H heads, E width of a head, F inner width. Four neighboring numbers a thread.
#include "vector.cuh"

#ifndef FLOAT32
#define FLOAT32 0  // 1: activations are float32; 0: bf16
#endif
#if FLOAT32
typedef float Element;
#else
typedef bf16 Element;
#endif

static constexpr int THREADS = 256;

struct RotaryParameters {
    i64 tokens;  // N
    int heads, width;
    i64 angles;       // tokens of which there are angles: N, or those of one sequence where all have the same
    float direction;  // 1, or -1 backward
    int unused;
    const Element* input;  // [N, H, E]
    const float* cosine;   // [angles, E / 2]
    const float* sine;
    Element* output;  // [N, H, E]
};

extern "C" __global__ void __launch_bounds__(THREADS) rotary(const __grid_constant__ RotaryParameters p) {
    const int fours = p.width / 8;
    const i64 number = (i64)blockIdx.x * THREADS + threadIdx.x, head = number / fours;
    if (head >= p.tokens * p.heads) return;
    const int column = (int)(number % fours) * 4;
    const i64 at = head * p.width + column, angle = head / p.heads % p.angles * (p.width / 2) + column;
    Four a, b, cosine, sine, first, second;
    a.load(p.input + at);
    b.load(p.input + at + p.width / 2);
    cosine.load(p.cosine + angle);
    sine.load(p.sine + angle);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const float s = p.direction * sine.value[e];
        first.value[e] = a.value[e] * cosine.value[e] - b.value[e] * s;
        second.value[e] = b.value[e] * cosine.value[e] + a.value[e] * s;
    }
    first.store(p.output + at);
    second.store(p.output + at + p.width / 2);
}

struct SwigluParameters {
    i64 tokens;  // N
    int width;   // F
    int unused;
    i64 gate_stride, up_stride;  // elements from one token's to the next one's; of the gradients likewise
    const Element* gate;
    const Element* up;
    Element* output;  // [N, F]
    const Element* output_gradient;
    Element* gate_gradient;
    Element* up_gradient;
};

extern "C" __global__ void __launch_bounds__(THREADS) swiglu(const __grid_constant__ SwigluParameters p) {
    const int fours = p.width / 4;
    const i64 number = (i64)blockIdx.x * THREADS + threadIdx.x, token = number / fours;
    if (token >= p.tokens) return;
    const int column = (int)(number % fours) * 4;
    Four gate, up;
    gate.load(p.gate + token * p.gate_stride + column);
    up.load(p.up + token * p.up_stride + column);
#pragma unroll
    for (int e = 0; e < 4; e++) up.value[e] *= gate.value[e] * sigmoid(gate.value[e]);
    up.store(p.output + token * p.width + column);
}

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_backward(const __grid_constant__ SwigluParameters p) {
    const int fours = p.width / 4;
    const i64 number = (i64)blockIdx.x * THREADS + threadIdx.x, token = number / fours;
    if (token >= p.tokens) return;
    const int column = (int)(number % fours) * 4;
    Four gate, up, upstream, of_gate, of_up;
    gate.load(p.gate + token * p.gate_stride + column);
    up.load(p.up + token * p.up_stride + column);
    upstream.load(p.output_gradient + token * p.width + column);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const float z = gate.value[e], open = sigmoid(z);
        of_up.value[e] = upstream.value[e] * z * open;
        of_gate.value[e] = upstream.value[e] * up.value[e] * open * (1.0f + z * (1.0f - open));
    }
    of_gate.store(p.gate_gradient + token * p.gate_stride + column);
    of_up.store(p.up_gradient + token * p.up_stride + column);
}
