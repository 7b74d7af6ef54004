// Each token mixed with the one before it, in several proportions at once: RWKV.
//
//     out_i = y + (before - y) w_i        before_t = y_{t-1}; at a reset zeros, at the first token `first` or zeros
//     OWN: w_i = weight_i + own_i         a share that the token itself chose
//
// A thread has four channels and walks over a run of tokens: forward from its first, so that each y is read once, backward
// from its last, with what the token behind gives to the one at hand.
//
// Legend: B batch, T tokens, C channels (a multiple of 4), M mixes.
#include "vector.cuh"

#ifndef MIXES
#define MIXES 5  // M: 1 to 5
#endif
#ifndef OWN
#define OWN 1
#endif
#ifndef FLOAT32
#define FLOAT32 0  // 1: out and own are float32; 0: bf16
#endif

#if FLOAT32
typedef float Element;
#else
typedef bf16 Element;
#endif

static constexpr int THREADS = 128;

struct TokenShiftParameters {
    int batch, tokens, width;
    int run;                      // tokens that a thread walks over
    const unsigned char* resets;  // [B, T], or null
    const float* y;               // [B, T, C]
    const float* first;           // [B, C], or null for zeros
    const float* weight;          // [M, C]
    const Element* own;           // [M, B, T, C]
    Element* output[5];           // [B, T, C] each
    const Element* output_gradient[5];  // or null for zeros
    float* y_gradient;
    float* first_gradient;  // or null
    Element* own_gradient;  // [M, B, T, C]
    float* partial;         // of the weights: [B runs, M, C]
};

struct Mixer {
    const TokenShiftParameters& p;
    int channel, b;
    Four weight[MIXES];

    DEVICE Mixer(const TokenShiftParameters& parameters)
        : p(parameters), channel((blockIdx.x * THREADS + threadIdx.x) * 4), b(blockIdx.z) {
        if (channel >= p.width) return;
#pragma unroll
        for (int mix = 0; mix < MIXES; mix++) weight[mix].load(p.weight + (i64)mix * p.width + channel);
    }

    DEVICE bool is_reset(int t) const { return p.resets != nullptr && p.resets[(i64)b * p.tokens + t] != 0; }
    DEVICE i64 at(int t) const { return ((i64)b * p.tokens + t) * p.width + channel; }

    // y of token t, or what stands before the first. That is read by a plain load: `Four::load` may be moved in front of a loop, and so in
    // front of the test for null.
    DEVICE void read(Four& y, int t) const {
        y.clear();
        if (t >= 0) {
            y.load(p.y + at(t));
        } else if (p.first != nullptr) {
            const float4 first = *reinterpret_cast<const float4*>(p.first + (i64)b * p.width + channel);
            y.value[0] = first.x, y.value[1] = first.y, y.value[2] = first.z, y.value[3] = first.w;
        }
    }

    // The share of the token before.
    DEVICE void share(Four& w, int mix, int t) const {
        w = weight[mix];
        if (!OWN) return;
        Four own;
        own.load(p.own + (i64)mix * p.batch * p.tokens * p.width + at(t));
#pragma unroll
        for (int e = 0; e < 4; e++) w.value[e] += own.value[e];
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) token_shift(const __grid_constant__ TokenShiftParameters p) {
    const Mixer mixer(p);
    if (mixer.channel >= p.width) return;
    const int first = blockIdx.y * p.run, end = min(first + p.run, p.tokens);
    Four before, y;
    mixer.read(before, first - 1);
#pragma unroll 2
    for (int t = first; t < end; t++) {
        mixer.read(y, t);
        if (mixer.is_reset(t)) before.clear();
#pragma unroll
        for (int mix = 0; mix < MIXES; mix++) {
            Four w, out;
            mixer.share(w, mix, t);
#pragma unroll
            for (int e = 0; e < 4; e++) out.value[e] = y.value[e] + (before.value[e] - y.value[e]) * w.value[e];
            out.store(p.output[mix] + mixer.at(t));
        }
        before = y;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    token_shift_backward(const __grid_constant__ TokenShiftParameters p) {
    const Mixer mixer(p);
    if (mixer.channel >= p.width) return;
    const int first = blockIdx.y * p.run, end = min(first + p.run, p.tokens);
    Four sums[MIXES], flow, y, before;
#pragma unroll
    for (int mix = 0; mix < MIXES; mix++) sums[mix].clear();
    flow.clear();
    if (end < p.tokens && !mixer.is_reset(end)) {
        // What the first token of the next run gives to the last one of this.
#pragma unroll
        for (int mix = 0; mix < MIXES; mix++) {
            if (p.output_gradient[mix] == nullptr) continue;
            Four w, upstream;
            mixer.share(w, mix, end);
            upstream.load(p.output_gradient[mix] + mixer.at(end));
#pragma unroll
            for (int e = 0; e < 4; e++) flow.value[e] += upstream.value[e] * w.value[e];
        }
    }
    mixer.read(y, end - 1);
    for (int t = end - 1; t >= first; t--) {
        mixer.read(before, t - 1);
        const bool reset = mixer.is_reset(t);
        Four gradient = flow, next;
        next.clear();
#pragma unroll
        for (int mix = 0; mix < MIXES; mix++) {
            Four w, upstream, own;
            mixer.share(w, mix, t);
            upstream.clear();
            if (p.output_gradient[mix] != nullptr) upstream.load(p.output_gradient[mix] + mixer.at(t));
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float change = (reset ? 0.0f : before.value[e]) - y.value[e];
                gradient.value[e] += upstream.value[e] * (1.0f - w.value[e]);
                next.value[e] += upstream.value[e] * w.value[e];
                own.value[e] = upstream.value[e] * change;
                sums[mix].value[e] += own.value[e];
            }
            if (OWN) own.store(p.own_gradient + (i64)mix * p.batch * p.tokens * p.width + mixer.at(t));
        }
        gradient.store(p.y_gradient + mixer.at(t));
        if (reset) next.clear();
        flow = next;
        y = before;
    }
    if (first == 0 && p.first_gradient != nullptr) flow.store(p.first_gradient + (i64)mixer.b * p.width + mixer.channel);
    float* row = p.partial + ((i64)blockIdx.z * gridDim.y + blockIdx.y) * MIXES * p.width + mixer.channel;
#pragma unroll
    for (int mix = 0; mix < MIXES; mix++) sums[mix].store(row + (i64)mix * p.width);
}
