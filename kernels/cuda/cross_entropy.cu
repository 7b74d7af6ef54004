// Softmax, cross-entropy and its gradient over rows of logits, each row read once and overwritten by its gradient.
//
//   loss = log sum exp(l) - l[target]        dl = scale (softmax(l) - onehot(target))
// A row lies in registers as packed bf16: 50304 logits are 25 words of each of a block's 1024 threads. A row of at most 2048
// logits takes one warp, and a block eight of them.
// A target equal to `ignore` has loss and gradient zero; one outside the vocabulary has loss NaN, so that a wrong
// dataset cannot pass unseen. Where no gradient is wanted, logits come as fp32 and are only read.
//
// Legend: R rows, V vocabulary (a multiple of 8).
#include "vector.cuh"

#ifndef VOCABULARY
#define VOCABULARY 50304
#endif
static constexpr bool SMALL = VOCABULARY <= 2048;
static constexpr int THREADS = SMALL ? WARP : 1024;  // of a row
static constexpr int ROWS = SMALL ? 8 : 1, BLOCK = THREADS * ROWS, VECTORS = (VOCABULARY / 8 + THREADS - 1) / THREADS;
static_assert(VOCABULARY % 8 == 0, "vocabulary");

struct CrossEntropyParameters {
    int rows;
    float scale;
    i64 ignore;
    const i64* targets;  // [R]
    bf16* logits;        // [R, V]: logits, then their gradient
    const float* wide_logits;  // [R, V], of `cross_entropy_losses` alone
    float* losses;       // [R]
};

DEVICE float warp_maximum(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
    return value;
}

// Maximum (or sum) over the row, the same in every thread of it.
template <bool MAXIMUM>
DEVICE float over_row(float value, float* scratch) {
    value = MAXIMUM ? warp_maximum(value) : warp_sum(value);
    if constexpr (SMALL) return value;
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = value;
    __syncthreads();
    value = scratch[threadIdx.x & 31];
    return MAXIMUM ? warp_maximum(value) : warp_sum(value);
}
static_assert(SMALL || THREADS == WARP * WARP, "one lane for each warp's part");

DEVICE u32 own_row() { return SMALL ? blockIdx.x * ROWS + threadIdx.x / WARP : blockIdx.x; }
DEVICE u32 own_place() { return SMALL ? threadIdx.x % WARP : threadIdx.x; }

extern "C" __global__ void __launch_bounds__(BLOCK) cross_entropy(const __grid_constant__ CrossEntropyParameters p) {
    __shared__ float scratch[2][WARP];
    if (SMALL && (int)own_row() >= p.rows) return;
    bf16* line = p.logits + (i64)own_row() * VOCABULARY;
    const i64 target = p.targets[own_row()];
    const bool counted = target != p.ignore, valid = target >= 0 && target < VOCABULARY;
    const float chosen = counted && valid ? to_float(line[target]) : 0.0f;
    uint4 raw[VECTORS];
    float maximum = negative_infinity(), sum = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = (v * THREADS + own_place()) * 8;
        raw[v] = column < VOCABULARY ? *reinterpret_cast<const uint4*>(line + column)
                                     : make_uint4(0xff80ff80u, 0xff80ff80u, 0xff80ff80u, 0xff80ff80u);
    }
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const u32 words[4] = {raw[v].x, raw[v].y, raw[v].z, raw[v].w};
#pragma unroll
        for (int e = 0; e < 4; e++) maximum = fmaxf(maximum, fmaxf(low_float(words[e]), high_float(words[e])));
    }
    // The barrier (of a block, or of a warp) inside also lets every thread read the target's logit before it is overwritten.
    maximum = over_row<true>(maximum, scratch[0]);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const u32 words[4] = {raw[v].x, raw[v].y, raw[v].z, raw[v].w};
#pragma unroll
        for (int e = 0; e < 4; e++) sum += __expf(low_float(words[e]) - maximum) + __expf(high_float(words[e]) - maximum);
    }
    sum = over_row<false>(sum, scratch[1]);
    if (own_place() == 0) {
        const float loss = valid ? maximum + logf(sum) - chosen : __int_as_float(0x7fc00000);
        p.losses[own_row()] = counted ? loss : 0.0f;
    }
    const float factor = counted ? p.scale / sum : 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = (v * THREADS + own_place()) * 8;
        if (column >= VOCABULARY) continue;
        const u32 words[4] = {raw[v].x, raw[v].y, raw[v].z, raw[v].w};
        Eight gradient;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            gradient.value[2 * e] = factor * __expf(low_float(words[e]) - maximum);
            gradient.value[2 * e + 1] = factor * __expf(high_float(words[e]) - maximum);
        }
#pragma unroll
        for (int e = 0; e < 8; e++)
            if (counted && column + e == target) gradient.value[e] -= p.scale;
        gradient.store(line + column);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    cross_entropy_losses(const __grid_constant__ CrossEntropyParameters p) {
    __shared__ float scratch[2][WARP];
    if (SMALL && (int)own_row() >= p.rows) return;
    const float* line = p.wide_logits + (i64)own_row() * VOCABULARY;
    const i64 target = p.targets[own_row()];
    float maximum = negative_infinity(), sum = 0.0f;
    for (int column = own_place() * 4; column < VOCABULARY; column += THREADS * 4) {
        const float4 value = *reinterpret_cast<const float4*>(line + column);
        maximum = fmaxf(maximum, fmaxf(fmaxf(value.x, value.y), fmaxf(value.z, value.w)));
    }
    maximum = over_row<true>(maximum, scratch[0]);
    for (int column = own_place() * 4; column < VOCABULARY; column += THREADS * 4) {
        const float4 value = *reinterpret_cast<const float4*>(line + column);
        sum += __expf(value.x - maximum) + __expf(value.y - maximum) + __expf(value.z - maximum) + __expf(value.w - maximum);
    }
    sum = over_row<false>(sum, scratch[1]);
    if (own_place() != 0) return;
    const bool valid = target >= 0 && target < VOCABULARY;
    const float loss = valid ? maximum + logf(sum) - line[target] : __int_as_float(0x7fc00000);
    p.losses[own_row()] = target == p.ignore ? 0.0f : loss;
}
