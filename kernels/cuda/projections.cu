// Queries, keys and values of an mLSTM block: block-diagonal matrices of 4 x 4, forward and backward.
//
//   q = Wq c,  k = Wk c,  v = Wv a          c what the convolution gave, a its input; W [D / 4, 4 out, 4 in]
// A thread owns one block of four channels: its three matrices stay in registers while it walks over RUN tokens, so
// that all there is to move is each activation once, eight bytes a lane.
//
// The gates are linear in q, k and v, hence in c and a: with M the product of both matrices, their gradient reaches
// c and a as M^T dg, and q, k, v need not be read for it. Backward, with dc also taking what came by the skip branch:
//   dc = added + Wq^T dq + Wk^T dk + Mc^T dg      da = Wv^T dv + Ma^T dg      dWq = sum over tokens of dq c^T, ...
//
// Legend: N tokens of the batch, D width, G gates of all heads (input gates, then forget gates).
#include "vector.cuh"

#ifndef GATES
#define GATES 8
#endif
static constexpr int THREADS = 128;

struct ProjectionParameters {
    i64 tokens;  // N
    int width;   // D
    int run;     // tokens of a thread
    i64 input_stride;
    const bf16* conv;   // c: [N, D]
    const bf16* input;  // a: [N, D], `input_stride` from token to token
    const float *query_weight, *key_weight, *value_weight;
    bf16 *query, *key, *value;  // [N, D]
    const bf16 *query_gradient, *key_gradient, *value_gradient;
    const float* gate_weight;    // M: [2, G, D], for c and for a
    const float* gate_gradient;  // dg: [N, G]
    const bf16* added;           // [N, D]
    bf16 *conv_gradient, *input_gradient;  // [N, D]
    float* partial;                        // [runs, 3, D / 4, 4, 4]
};

struct Matrix {
    float value[4][4];  // [out][in]
    DEVICE void load(const float* source) {
#pragma unroll
        for (int o = 0; o < 4; o++) {
            const float4 row = *reinterpret_cast<const float4*>(source + o * 4);
            value[o][0] = row.x;
            value[o][1] = row.y;
            value[o][2] = row.z;
            value[o][3] = row.w;
        }
    }
    DEVICE Four times(const Four& x) const {
        Four y;
#pragma unroll
        for (int o = 0; o < 4; o++)
            y.value[o] = value[o][0] * x.value[0] + value[o][1] * x.value[1] + value[o][2] * x.value[2] + value[o][3] * x.value[3];
        return y;
    }
    DEVICE void add_transposed_times(Four& dx, const Four& dy) const {
#pragma unroll
        for (int i = 0; i < 4; i++)
            dx.value[i] += value[0][i] * dy.value[0] + value[1][i] * dy.value[1] + value[2][i] * dy.value[2] + value[3][i] * dy.value[3];
    }
    DEVICE void clear() {
#pragma unroll
        for (int o = 0; o < 4; o++)
#pragma unroll
            for (int i = 0; i < 4; i++) value[o][i] = 0.0f;
    }
    DEVICE void add_outer(const Four& dy, const Four& x) {
#pragma unroll
        for (int o = 0; o < 4; o++)
#pragma unroll
            for (int i = 0; i < 4; i++) value[o][i] += dy.value[o] * x.value[i];
    }
    DEVICE void store(float* destination) const {
#pragma unroll
        for (int o = 0; o < 4; o++)
            *reinterpret_cast<float4*>(destination + o * 4) = make_float4(value[o][0], value[o][1], value[o][2], value[o][3]);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) block_projections(const __grid_constant__ ProjectionParameters p) {
    const int block = blockIdx.x * THREADS + threadIdx.x, channel = block * 4;
    if (channel >= p.width) return;
    Matrix query, key, value;
    query.load(p.query_weight + block * 16);
    key.load(p.key_weight + block * 16);
    value.load(p.value_weight + block * 16);
    const i64 first = (i64)blockIdx.y * p.run, end = first + p.run < p.tokens ? first + p.run : p.tokens;
#pragma unroll 4
    for (i64 token = first; token < end; token++) {
        const i64 at = token * p.width + channel;
        Four c, a;
        c.load(p.conv + at);
        a.load(p.input + token * p.input_stride + channel);
        query.times(c).store(p.query + at);
        key.times(c).store(p.key + at);
        value.times(a).store(p.value + at);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    block_projections_backward(const __grid_constant__ ProjectionParameters p) {
    const int block = blockIdx.x * THREADS + threadIdx.x, channel = block * 4;
    if (channel >= p.width) return;
    Matrix query, key, value, query_sum, key_sum, value_sum;
    query.load(p.query_weight + block * 16);
    key.load(p.key_weight + block * 16);
    value.load(p.value_weight + block * 16);
    query_sum.clear();
    key_sum.clear();
    value_sum.clear();
    Four conv_gates[GATES], input_gates[GATES];
#pragma unroll
    for (int gate = 0; gate < GATES; gate++) {
        conv_gates[gate].load(p.gate_weight + (i64)gate * p.width + channel);
        input_gates[gate].load(p.gate_weight + (i64)(GATES + gate) * p.width + channel);
    }
    const i64 first = (i64)blockIdx.y * p.run, end = first + p.run < p.tokens ? first + p.run : p.tokens;
#pragma unroll 2
    for (i64 token = first; token < end; token++) {
        const i64 at = token * p.width + channel;
        Four c, a, dq, dk, dv, dc, da;
        c.load(p.conv + at);
        a.load(p.input + token * p.input_stride + channel);
        dq.load(p.query_gradient + at);
        dk.load(p.key_gradient + at);
        dv.load(p.value_gradient + at);
        dc.load(p.added + at);
        da.clear();
#pragma unroll
        for (int gate = 0; gate < GATES; gate++) {
            const float slope = p.gate_gradient[token * GATES + gate];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                dc.value[e] += conv_gates[gate].value[e] * slope;
                da.value[e] += input_gates[gate].value[e] * slope;
            }
        }
        query.add_transposed_times(dc, dq);
        key.add_transposed_times(dc, dk);
        value.add_transposed_times(da, dv);
        query_sum.add_outer(dq, c);
        key_sum.add_outer(dk, c);
        value_sum.add_outer(dv, a);
        dc.store(p.conv_gradient + at);
        da.store(p.input_gradient + at);
    }
    float* row = p.partial + (i64)blockIdx.y * p.width * 12 + block * 16;
    query_sum.store(row);
    key_sum.store(row + p.width * 4);
    value_sum.store(row + p.width * 8);
}
