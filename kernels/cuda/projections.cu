// Queries, keys and values of an mLSTM block in float32: block-diagonal maps of four channels, one pass each way.
//
//   q = Wq c,  k = Wk c,  v = Wv a          W: [D / 4, 4 out, 4 in]
//   dc = Wq^T dq + Wk^T dk,  da = Wv^T dv,  dWq = sum dq c^T,  dWk = sum dk c^T,  dWv = sum dv a^T
// A thread keeps the three matrices of its four channels in registers and walks over a run of tokens, sixteen bytes of each
// tensor at a time. Gradients of the matrices are sums over tokens: a run's, in `partial`, which `column_sums` adds in order.
//
// Legend: N tokens, D width (a multiple of 4).
#include "vector.cuh"

static constexpr int THREADS = 128;

struct ProjectionParameters {
    i64 tokens;      // N
    i64 a_stride;    // of `a`, from token to token
    int width, run;  // D; tokens of a run
    const float *c, *a;
    const float *query_weight, *key_weight, *value_weight;
    float *query, *key, *value;
    const float *query_gradient, *key_gradient, *value_gradient;
    float *c_gradient, *a_gradient;  // dense
    float* partial;                  // [runs, 3, D / 4, 4, 4]
};

struct Block {
    float weight[4][4];
    DEVICE void load(const float* source) {
#pragma unroll
        for (int out = 0; out < 4; out++) {
            const float4 line = *reinterpret_cast<const float4*>(source + out * 4);
            weight[out][0] = line.x;
            weight[out][1] = line.y;
            weight[out][2] = line.z;
            weight[out][3] = line.w;
        }
    }
    DEVICE void clear() {
#pragma unroll
        for (int out = 0; out < 4; out++) weight[out][0] = weight[out][1] = weight[out][2] = weight[out][3] = 0.0f;
    }
    DEVICE Four times(const Four& x) const {
        Four y;
#pragma unroll
        for (int out = 0; out < 4; out++)
            y.value[out] = weight[out][0] * x.value[0] + weight[out][1] * x.value[1] + weight[out][2] * x.value[2] +
                           weight[out][3] * x.value[3];
        return y;
    }
    // x += W^T y.
    DEVICE void add_transposed(Four& x, const Four& y) const {
#pragma unroll
        for (int out = 0; out < 4; out++)
#pragma unroll
            for (int in = 0; in < 4; in++) x.value[in] += weight[out][in] * y.value[out];
    }
    DEVICE void add_outer(const Four& y, const Four& x) {
#pragma unroll
        for (int out = 0; out < 4; out++)
#pragma unroll
            for (int in = 0; in < 4; in++) weight[out][in] += y.value[out] * x.value[in];
    }
    DEVICE void store(float* destination) const {
#pragma unroll
        for (int out = 0; out < 4; out++)
            *reinterpret_cast<float4*>(destination + out * 4) =
                make_float4(weight[out][0], weight[out][1], weight[out][2], weight[out][3]);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) block_projections(const __grid_constant__ ProjectionParameters p) {
    const int channel = (blockIdx.x * THREADS + threadIdx.x) * 4;
    if (channel >= p.width) return;
    Block query, key, value;
    query.load(p.query_weight + (i64)channel * 4);
    key.load(p.key_weight + (i64)channel * 4);
    value.load(p.value_weight + (i64)channel * 4);
    const i64 first = (i64)blockIdx.y * p.run, end = first + p.run < p.tokens ? first + p.run : p.tokens;
#pragma unroll 4
    for (i64 token = first; token < end; token++) {
        const i64 at = token * p.width + channel;
        Four c, a;
        c.load(p.c + at);
        a.load(p.a + token * p.a_stride + channel);
        query.times(c).store(p.query + at);
        key.times(c).store(p.key + at);
        value.times(a).store(p.value + at);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) block_projections_backward(const __grid_constant__ ProjectionParameters p) {
    const int channel = (blockIdx.x * THREADS + threadIdx.x) * 4;
    if (channel >= p.width) return;
    Block query, key, value, query_sum, key_sum, value_sum;
    query.load(p.query_weight + (i64)channel * 4);
    key.load(p.key_weight + (i64)channel * 4);
    value.load(p.value_weight + (i64)channel * 4);
    query_sum.clear();
    key_sum.clear();
    value_sum.clear();
    const i64 first = (i64)blockIdx.y * p.run, end = first + p.run < p.tokens ? first + p.run : p.tokens;
#pragma unroll 2
    for (i64 token = first; token < end; token++) {
        const i64 at = token * p.width + channel;
        Four c, a, dq, dk, dv, dc, da;
        c.load(p.c + at);
        a.load(p.a + token * p.a_stride + channel);
        dq.load(p.query_gradient + at);
        dk.load(p.key_gradient + at);
        dv.load(p.value_gradient + at);
        dc.clear();
        da.clear();
        query.add_transposed(dc, dq);
        key.add_transposed(dc, dk);
        value.add_transposed(da, dv);
        dc.store(p.c_gradient + at);
        da.store(p.a_gradient + at);
        query_sum.add_outer(dq, c);
        key_sum.add_outer(dk, c);
        value_sum.add_outer(dv, a);
    }
    float* row = p.partial + (i64)blockIdx.y * 12 * p.width + (i64)channel * 4;
    query_sum.store(row);
    key_sum.store(row + (i64)4 * p.width);
    value_sum.store(row + (i64)8 * p.width);
}
