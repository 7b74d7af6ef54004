// Mamba's selective scan, alone in float32 or with all that stands between the products around it.
//
//     S_t = exp(step_t A) S_{t-1} + step_t u_t B_t      y_t = S_t C_t      S: N states for each channel
//     GATED:  step_t = softplus(raw_t + bias)           output = (y_t + skip u_t) SiLU(gate_t)
//
// Forward, a thread is a channel of a sequence and goes through time alone, its states in registers. Backward, a thread is one
// of the N states of a channel; it goes through time once, from the end, and computes the states again, CHUNK steps at a time, from
// those that the forward pass saved at the beginning of each chunk. A block sums the gradients of B and C over its CHANNELS
// channels; what blocks leave is summed outside.
//
// Reading ahead: the loads of STEPS (CHUNK) steps stand before their arithmetic, so that latencies overlap. Nothing but the inputs and
// the saved states is kept: step sizes, y and the gate's slope are computed again.
//
// Legend: B batch, T tokens, D channels, N states of a channel.
#include "common.cuh"

#ifndef STATES
#define STATES 16  // N: 8 or 16
#endif
#ifndef GATED
#define GATED 1
#endif
#ifndef FLOAT32
#define FLOAT32 0  // 1: u, raw, gate and output are float32; 0: bf16
#endif

#if FLOAT32
typedef float Element;
#else
typedef bf16 Element;
#endif

static constexpr int THREADS = 128;
static constexpr int STEPS = 8;
static constexpr int CHUNK = 16;     // `SAVED_EVERY` of src/scan.rs
static constexpr int CHANNELS = 32;  // of a block of the backward pass

struct SelectiveScanParameters {
    int batch, tokens, width;
    int gate_stride;              // elements from one token's gates to the next one's
    const unsigned char* resets;  // [B, T], or null
    const Element* u;             // [B, T, D]
    const Element* step;          // likewise; GATED: raw
    const float* a;               // A: [D, N], negative
    const float* write;           // B: [B, T, N]
    const float* read;            // C: [B, T, N]
    const float* initial;         // S before the first step: [B, D, N], or null
    Element* output;              // [B, T, D]
    float* last;                  // S after the last step
    float* saved;                 // [B, chunks, N, D], or null
    const Element* output_gradient;
    const float* last_gradient;  // or null
    Element* u_gradient;
    Element* step_gradient;
    float* a_gradient;        // [B, D, N]
    float* write_gradient;    // [B, blocks, T, N]
    float* read_gradient;     // likewise
    float* initial_gradient;  // or null
    // GATED
    const float* bias;       // [D]
    const float* skip;       // [D]
    const Element* gate;     // [B, T, gate_stride]
    float* bias_gradient;    // [B, D]
    float* skip_gradient;    // [B, D]
    Element* gate_gradient;  // [B, T, D]
};

DEVICE bool is_reset(const SelectiveScanParameters& p, int b, int t) {
    return p.resets != nullptr && p.resets[(i64)b * p.tokens + t] != 0;
}

DEVICE int chunks_of(const SelectiveScanParameters& p) { return (p.tokens + CHUNK - 1) / CHUNK; }

// As libtorch's: the identity above 20, where the difference is below float32.
DEVICE float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

extern "C" __global__ void __launch_bounds__(THREADS)
    selective_scan_forward(const __grid_constant__ SelectiveScanParameters p) {
    __shared__ float writes[STEPS][STATES], reads[STEPS][STATES];
    const int d = blockIdx.x * THREADS + threadIdx.x, b = blockIdx.y;
    const bool inside = d < p.width;
    const i64 line = (i64)b * p.width + d, row = (i64)b * p.tokens;
    float a[STATES], s[STATES];
#pragma unroll
    for (int n = 0; n < STATES; n++) {
        a[n] = inside ? p.a[d * STATES + n] : 0.0f;
        s[n] = inside && p.initial != nullptr ? p.initial[line * STATES + n] : 0.0f;
    }
    const float bias = GATED && inside ? p.bias[d] : 0.0f, skip = GATED && inside ? p.skip[d] : 0.0f;
    for (int from = 0; from < p.tokens; from += STEPS) {
        __syncthreads();
        for (int at = threadIdx.x; at < STEPS * STATES; at += THREADS) {
            const int t = from + at / STATES;
            const i64 source = (row + t) * STATES + at % STATES;
            writes[at / STATES][at % STATES] = t < p.tokens ? p.write[source] : 0.0f;
            reads[at / STATES][at % STATES] = t < p.tokens ? p.read[source] : 0.0f;
        }
        float u[STEPS], step[STEPS], gate[STEPS];
#pragma unroll
        for (int index = 0; index < STEPS; index++) {
            const i64 t = row + from + index;
            const bool there = inside && from + index < p.tokens;
            u[index] = there ? number(p.u[t * p.width + d]) : 0.0f;
            step[index] = there ? number(p.step[t * p.width + d]) : 0.0f;
            if (GATED) gate[index] = there ? number(p.gate[t * p.gate_stride + d]) : 0.0f;
        }
        __syncthreads();
        if (!inside) continue;
#pragma unroll
        for (int index = 0; index < STEPS; index++) {
            const int t = from + index;
            if (t >= p.tokens) break;
            if (p.saved != nullptr && t % CHUNK == 0) {
#pragma unroll
                for (int n = 0; n < STATES; n++)
                    p.saved[(((i64)b * chunks_of(p) + t / CHUNK) * STATES + n) * p.width + d] = s[n];
            }
            const bool reset = is_reset(p, b, t);
            const float size = GATED ? softplus(step[index] + bias) : step[index], in = size * u[index];
            float y = 0.0f;
#pragma unroll
            for (int n = 0; n < STATES; n++) {
                const float left = reset ? 0.0f : __expf(size * a[n]) * s[n];
                s[n] = left + writes[index][n] * in;
                y += reads[index][n] * s[n];
            }
            if (GATED) y = (y + skip * u[index]) * gate[index] * sigmoid(gate[index]);
            put(p.output + (row + t) * p.width + d, y);
        }
    }
    if (!inside) return;
#pragma unroll
    for (int n = 0; n < STATES; n++) p.last[line * STATES + n] = s[n];
}

static constexpr int STATE_THREADS = CHANNELS * STATES, WARPS = STATE_THREADS / WARP;

// Blocks of the backward pass that a multiprocessor holds, by their registers. From 10.0 on the compiler does not keep a thread's in 64.
#if __CUDA_ARCH__ >= 1000
static constexpr int RESIDENT = 1;
#else
static constexpr int RESIDENT = 2;
#endif

// Sum over the states of a channel, which are neighboring lanes.
DEVICE float sum_of_states(float value) {
#pragma unroll
    for (int offset = 1; offset < STATES; offset *= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// Sum over the channels of a warp.
DEVICE float sum_of_channels(float value) {
#pragma unroll
    for (int offset = STATES; offset < WARP; offset *= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// What a block reads of CHUNK steps of its channels, and what follows from it without the states.
struct Inputs {
    float u[CHUNK][CHANNELS], step[CHUNK][CHANNELS];
    float upstream[CHUNK][CHANNELS];                            // gradient of y
    float of_gate[GATED ? CHUNK : 1][GATED ? CHANNELS : 1];     // gradient of the gate, but for the factor y + skip u
    float write[CHUNK][STATES], read[CHUNK][STATES];
};

DEVICE void read_inputs(Inputs& inputs, const SelectiveScanParameters& p, int b, int start) {
    for (int at = threadIdx.x; at < CHUNK * STATES; at += STATE_THREADS) {
        const int index = at / STATES, n = at % STATES, t = start + index;
        const i64 source = ((i64)b * p.tokens + t) * STATES + n;
        inputs.write[index][n] = t < p.tokens ? p.write[source] : 0.0f;
        inputs.read[index][n] = t < p.tokens ? p.read[source] : 0.0f;
    }
    for (int at = threadIdx.x; at < CHUNK * CHANNELS; at += STATE_THREADS) {
        const int index = at / CHANNELS, channel = at % CHANNELS, t = start + index, d = blockIdx.x * CHANNELS + channel;
        const bool there = t < p.tokens && d < p.width;
        const i64 token = (i64)b * p.tokens + t, source = token * p.width + d;
        const float step = there ? number(p.step[source]) : 0.0f;
        const float upstream = there ? number(p.output_gradient[source]) : 0.0f;
        inputs.u[index][channel] = there ? number(p.u[source]) : 0.0f;
        if constexpr (GATED) {
            const float gate = there ? number(p.gate[token * p.gate_stride + d]) : 0.0f, open = sigmoid(gate);
            inputs.step[index][channel] = there ? softplus(step + p.bias[d]) : 0.0f;
            inputs.upstream[index][channel] = upstream * gate * open;
            inputs.of_gate[index][channel] = upstream * open * (1.0f + gate * (1.0f - open));
        } else {
            inputs.step[index][channel] = step;
            inputs.upstream[index][channel] = upstream;
        }
    }
}

extern "C" __global__ void __launch_bounds__(STATE_THREADS, RESIDENT)
    selective_scan_backward(const __grid_constant__ SelectiveScanParameters p) {
    __shared__ Inputs inputs;
    __shared__ float sums[2][CHUNK][WARPS][STATES];  // gradients of B and C
    const int n = threadIdx.x % STATES, local = threadIdx.x / STATES, warp = threadIdx.x / WARP;
    const int d = blockIdx.x * CHANNELS + local, b = blockIdx.y;
    const bool inside = d < p.width;
    const i64 line = (i64)b * p.width + d;
    const float a = inside ? p.a[d * STATES + n] : 0.0f, skip = GATED && inside ? p.skip[d] : 0.0f;
    float flow = inside && p.last_gradient != nullptr ? p.last_gradient[line * STATES + n] : 0.0f;
    float a_sum = 0.0f, bias_sum = 0.0f, skip_sum = 0.0f;
    for (int chunk = chunks_of(p) - 1; chunk >= 0; chunk--) {
        const int start = chunk * CHUNK;
        __syncthreads();
        read_inputs(inputs, p, b, start);
        float left[CHUNK], decay[CHUNK];
        float s = inside ? p.saved[(((i64)b * chunks_of(p) + chunk) * STATES + n) * p.width + d] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int index = 0; index < CHUNK; index++) {
            const bool reset = start + index < p.tokens && is_reset(p, b, start + index);
            const float step = inputs.step[index][local];
            decay[index] = reset ? 0.0f : __expf(step * a);
            left[index] = reset ? 0.0f : decay[index] * s;
            s = left[index] + inputs.write[index][n] * step * inputs.u[index][local];
        }
#pragma unroll
        for (int index = CHUNK - 1; index >= 0; index--) {
            const int t = start + index;
            if (t >= p.tokens) continue;
            const float u = inputs.u[index][local], step = inputs.step[index][local];
            const float upstream = inputs.upstream[index][local], in = step * u;
            const float write = inputs.write[index][n], read = inputs.read[index][n];
            const float state = left[index] + write * in, f = flow + upstream * read;
            const float write_gradient = sum_of_channels(f * in);
            const float read_gradient = sum_of_channels(upstream * state);
            if (threadIdx.x % WARP < STATES) {
                sums[0][index][warp][n] = write_gradient;
                sums[1][index][warp][n] = read_gradient;
            }
            const float in_gradient = sum_of_states(f * write);
            float step_gradient = sum_of_states(f * left[index] * a) + u * in_gradient;
            float u_gradient = step * in_gradient, y = 0.0f;
            if constexpr (GATED) {
                y = sum_of_states(state * read) + skip * u;
                u_gradient += upstream * skip;
                // The slope of softplus, 1 - exp(-step).
                step_gradient *= -expm1f(-step);
                bias_sum += step_gradient;
                skip_sum += upstream * u;
            }
            if (inside && n == 0) {
                const i64 at = ((i64)b * p.tokens + t) * p.width + d;
                put(p.u_gradient + at, u_gradient);
                put(p.step_gradient + at, step_gradient);
                if constexpr (GATED) put(p.gate_gradient + at, inputs.of_gate[index][local] * y);
            }
            a_sum += f * left[index] * step;
            flow = f * decay[index];
        }
        __syncthreads();
        for (int at = threadIdx.x; at < 2 * CHUNK * STATES; at += STATE_THREADS) {
            const int which = at / (CHUNK * STATES), index = at / STATES % CHUNK, state = at % STATES;
            if (start + index >= p.tokens) continue;
            float sum = 0.0f;
#pragma unroll
            for (int other = 0; other < WARPS; other++) sum += sums[which][index][other][state];
            const i64 row = ((i64)b * gridDim.x + blockIdx.x) * p.tokens + start + index;
            (which == 0 ? p.write_gradient : p.read_gradient)[row * STATES + state] = sum;
        }
    }
    if (!inside) return;
    p.a_gradient[line * STATES + n] = a_sum;
    if (p.initial_gradient != nullptr) p.initial_gradient[line * STATES + n] = flow;
    if (GATED && n == 0) {
        p.bias_gradient[line] = bias_sum;
        p.skip_gradient[line] = skip_sum;
    }
}
