// Dropout whose masks are arithmetic: a number is dropped or kept by its sequence's key and its place there.
//
//   bits_i = mix(mix(key ^ site G) + i G)      mix: the finalizer of SplitMix64, G the golden ratio of 2^64
//   y_i    = x_i scale where the upper half of bits_i is at least `threshold`, else 0; gradients go the same way
//
// Legend: B sequences, N numbers of each (a multiple of 4). Four neighboring numbers a thread.
#include "vector.cuh"

#ifndef FLOAT32
#define FLOAT32 0  // 1: numbers are float32; 0: bf16
#endif
#if FLOAT32
typedef float Element;
#else
typedef bf16 Element;
#endif

static constexpr int THREADS = 256;
static constexpr u64 GOLDEN = 0x9E3779B97F4A7C15ull;

struct DropoutParameters {
    i64 sequences, numbers;  // B, N
    u64 site;
    u32 threshold;
    float scale;
    const u64* keys;       // [B]
    const Element* input;  // [B, N]
    Element* output;
};

DEVICE u64 mix(u64 value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ull;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBull;
    return value ^ (value >> 31);
}

extern "C" __global__ void __launch_bounds__(THREADS) dropout(const __grid_constant__ DropoutParameters p) {
    const i64 at = ((i64)blockIdx.x * THREADS + threadIdx.x) * 4, sequence = at / p.numbers;
    if (sequence >= p.sequences) return;
    const u64 start = mix(p.keys[sequence] ^ (p.site * GOLDEN)), first = (u64)(at - sequence * p.numbers);
    Four x;
    x.load(p.input + at);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const u32 bits = (u32)(mix(start + (first + e) * GOLDEN) >> 32);
        x.value[e] = bits >= p.threshold ? x.value[e] * p.scale : 0.0f;
    }
    x.store(p.output + at);
}
