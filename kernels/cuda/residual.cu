// The residual: adding what a block gave, and the norm of the sum, in one pass.
//
//   s = x + d,  y = (s - mean) / deviation (1 + w)          x, s fp32; d, y bf16; d may be missing (s = x)
//   FORM 1: y = (s - mean) / deviation w + b                FORM 2: y = s / sqrt(mean of s^2) w
// Backward, with ds what the later residual says and dy what the norm's readers say:
//   dx = ds + norm'(dy)      dd = dx in bf16      dw = sum over tokens of dy (s - mean) / deviation      db = sum of dy
// A block of four warps takes one row at a time, held in registers; sums of a row meet in shared memory.
//
// Legend: N tokens of the batch, C width of the residual (a multiple of 4, WIDTH at most 4096).
#include "vector.cuh"

#ifndef WIDTH
#define WIDTH 768
#endif
#ifndef FORM
#define FORM 0
#endif
static constexpr bool CENTERED = FORM != 2, SHIFTED = FORM == 1;
// What the stored weight is less than the scale.
static constexpr float SCALE_LESS = FORM == 0 ? 1.0f : 0.0f;
static constexpr int WARPS = 4, THREADS = WARPS * WARP, VECTORS = (WIDTH / 4 + THREADS - 1) / THREADS;
static_assert(WIDTH % 4 == 0 && WIDTH <= 4096, "width of the residual");

struct ResidualParameters {
    i64 tokens;          // N
    int rows_per_block;  // backward
    float epsilon;
    const float* residual;  // x: [N, C]; backward: s
    const bf16* delta;    // d or null
    const float* weight;  // w: [C]
    const float* bias;    // b: [C]; FORM 1, or null
    float* sum;           // s: [N, C]; null without `delta`
    bf16* output;         // y
    float* statistics;    // [N, 2]: mean, 1 / deviation
    const bf16* output_gradient;   // dy
    const float* sum_gradient;     // ds or null
    float* residual_gradient;        // dx
    bf16* delta_gradient;          // dd or null
    float* partial;                // of w: [blocks, C]; FORM 1: of w and b, [blocks, 2, C]
};

DEVICE bool inside(int v) { return (WIDTH / 4) % THREADS == 0 || v * THREADS + (int)threadIdx.x < WIDTH / 4; }
DEVICE int column(int v) { return (v * THREADS + (int)threadIdx.x) * 4; }

// Sums of both over the block. `scratch` alternates between calls, so that one barrier a call is enough.
DEVICE float2 block_sums(float first, float second, float2* scratch) {
    first = warp_sum(first);
    second = warp_sum(second);
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = make_float2(first, second);
    __syncthreads();
    float2 total = scratch[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; warp++) {
        total.x += scratch[warp].x;
        total.y += scratch[warp].y;
    }
    return total;
}

extern "C" __global__ void __launch_bounds__(THREADS) add_layer_norm(const __grid_constant__ ResidualParameters p) {
    __shared__ float2 scratch[2][WARPS];
    const i64 row = (i64)blockIdx.x * WIDTH;
    Four x[VECTORS];
    float sum = 0.0f, square = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        x[v].clear();
        if (!inside(v)) continue;
        x[v].load(p.residual + row + column(v));
        if (p.delta != nullptr) {
            Four delta;
            delta.load(p.delta + row + column(v));
#pragma unroll
            for (int e = 0; e < 4; e++) x[v].value[e] += delta.value[e];
            x[v].store(p.sum + row + column(v));
        }
#pragma unroll
        for (int e = 0; e < 4; e++) sum += x[v].value[e];
    }
    const float mean = CENTERED ? block_sums(sum, 0.0f, scratch[0]).x / WIDTH : 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        if (inside(v))
#pragma unroll
            for (int e = 0; e < 4; e++) {
                x[v].value[e] -= mean;
                square += x[v].value[e] * x[v].value[e];
            }
    const float scale = rsqrtf(block_sums(square, 0.0f, scratch[1]).x / WIDTH + p.epsilon);
    if (threadIdx.x == 0) *reinterpret_cast<float2*>(p.statistics + (i64)blockIdx.x * 2) = make_float2(mean, scale);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        if (!inside(v)) continue;
        Four weight;
        weight.load(p.weight + column(v));
#pragma unroll
        for (int e = 0; e < 4; e++) x[v].value[e] *= scale * (SCALE_LESS + weight.value[e]);
        if (SHIFTED && p.bias != nullptr) {
            Four bias;
            bias.load(p.bias + column(v));
#pragma unroll
            for (int e = 0; e < 4; e++) x[v].value[e] += bias.value[e];
        }
        x[v].store(p.output + row + column(v));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) add_layer_norm_backward(const __grid_constant__ ResidualParameters p) {
    __shared__ float2 scratch[2][WARPS];
    Four weight[VECTORS], weight_sum[VECTORS], bias_sum[SHIFTED ? VECTORS : 1];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        weight[v].clear();
        weight_sum[v].clear();
        if constexpr (SHIFTED) bias_sum[v].clear();
        if (inside(v)) weight[v].load(p.weight + column(v));
    }
    const i64 first = (i64)blockIdx.x * p.rows_per_block;
    const i64 end = first + p.rows_per_block < p.tokens ? first + p.rows_per_block : p.tokens;
    for (i64 token = first; token < end; token++) {
        const i64 row = token * WIDTH;
        const float2 statistics = *reinterpret_cast<const float2*>(p.statistics + token * 2);
        Four normal[VECTORS], slope[VECTORS], later[VECTORS];
        float sum = 0.0f, product = 0.0f;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            normal[v].clear();
            slope[v].clear();
            later[v].clear();
            if (!inside(v)) continue;
            normal[v].load(p.residual + row + column(v));
            slope[v].load(p.output_gradient + row + column(v));
            if (p.sum_gradient != nullptr) later[v].load(p.sum_gradient + row + column(v));
#pragma unroll
            for (int e = 0; e < 4; e++) {
                normal[v].value[e] = (normal[v].value[e] - statistics.x) * statistics.y;
                weight_sum[v].value[e] += slope[v].value[e] * normal[v].value[e];
                if constexpr (SHIFTED) bias_sum[v].value[e] += slope[v].value[e];
                slope[v].value[e] *= SCALE_LESS + weight[v].value[e];
                if (CENTERED) sum += slope[v].value[e];
                product += slope[v].value[e] * normal[v].value[e];
            }
        }
        const float2 sums = block_sums(sum, product, scratch[token & 1]);
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            if (!inside(v)) continue;
#pragma unroll
            for (int e = 0; e < 4; e++)
                later[v].value[e] +=
                    (slope[v].value[e] - (sums.x + normal[v].value[e] * sums.y) / WIDTH) * statistics.y;
            later[v].store(p.residual_gradient + row + column(v));
            if (p.delta_gradient != nullptr) later[v].store(p.delta_gradient + row + column(v));
        }
    }
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        if (inside(v)) {
            float* row = p.partial + (i64)blockIdx.x * WIDTH * (SHIFTED ? 2 : 1) + column(v);
            weight_sum[v].store(row);
            if constexpr (SHIFTED) bias_sum[v].store(row + WIDTH);
        }
}
