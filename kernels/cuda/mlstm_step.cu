// One token of an mLSTM block, from its up-projection to the cell's output; the state is updated where it lies (paper, eq. 19
// to 27; stabilized as in appendix A).
//
//   c = SiLU(conv(a)),  q = Wq c,  k = Wk c,  v = Wv a,  (i, f) = Mc c + Ma a + bias
//   m' = max(log sigmoid(f) + m, i),  C' = e^(log sigmoid(f) + m - m') C + e^(i - m') k v^T,  n' likewise with k,
//   h = C'^T q / (max(|n' . q|, e^-m') + epsilon),  k scaled by HEAD^-1/2.
// Generation is bytes: C is read and written once, everything else is small. A block owns COLUMNS columns of one head's C,
// so that what it needs of the sum over rows stays with it. What comes before the cell every block computes for itself, out
// of the L2 cache, in place of a kernel more. n and m, which all blocks of a head read, and the convolution's window,
// which all blocks of a sequence read, are written by whichever of them is the last to have read. A block asks for C and
// for all weights before the kernel in front has ended (`wait_for_previous`).
//
// c, q, k and v are rounded to bf16, as in the kernels for whole sequences.
//
// Legend: B sequences, H = HEADS heads, HEAD width of a head (a multiple of 8), D = H HEAD, G = 2 H gates.
#include "common.cuh"

static constexpr int THREADS = 256, LANES = COLUMNS / 4, GROUPS = THREADS / LANES, WARPS = THREADS / WARP;
static constexpr int AT_ONCE = 8;  // rows a thread has in flight
static constexpr int TAPS = 4, D = HEADS * HEAD;
static constexpr int CHANNELS = 6;  // of the gates' sums that a thread has in flight
static_assert(HEAD % COLUMNS == 0 && COLUMNS % 4 == 0 && LANES <= WARP, "columns of whole blocks");

struct StepParameters {
    float key_scale, epsilon;
    i64 input_stride;                                       // of `input`, from sequence to sequence
    const bf16* input;                                      // a: [B, D]
    const float *conv_weight, *conv_bias;                   // [D, 4], [D]
    const float *query_weight, *key_weight, *value_weight;  // [D / 4, 4 out, 4 in]
    const float *gate_weight, *gate_bias;                   // M: [2, G, D] for c and for a, [G]: input gates, then forget gates
    float* matrix;      // C: [B, H, HEAD, HEAD]
    float* normalizer;  // n: [B, H, HEAD]
    float* maximum;     // m: [B, H]
    bf16* window;       // [B, 3, D], oldest first
    u32* arrived;       // [B, H + 1]: blocks of each head, then of the sequence; zero before and after
    bf16* branch;       // c: [B, D]
    bf16* output;       // h: [B, H, HEAD]
};

DEVICE float rounded(float x) { return to_float(to_bf16(x)); }

// The sums of two numbers over the block.
DEVICE float2 block_sums(float x, float y, float2* parts) {
    x = warp_sum(x), y = warp_sum(y);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = make_float2(x, y);
    __syncthreads();
    float2 sums = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sums.x += parts[warp].x, sums.y += parts[warp].y;
    return sums;
}

DEVICE float4 four(const float* x) { return *reinterpret_cast<const float4*>(x); }

// One output of a block of four.
DEVICE float of_block(float4 w, const float* x) { return w.x * x[0] + w.y * x[1] + w.z * x[2] + w.w * x[3]; }

// What the gates and the convolution multiply a thread's channels with.
struct Channels {
    float4 taps[CHANNELS];
    float bias[CHANNELS], input[CHANNELS][2], forget[CHANNELS][2];
    DEVICE void load(const StepParameters& p, int first, int head) {
#pragma unroll
        for (int n = 0; n < CHANNELS; n++) {
            const int d = first + n * THREADS;
            if (d >= D) continue;
            taps[n] = four(p.conv_weight + d * TAPS), bias[n] = p.conv_bias[d];
#pragma unroll
            for (int of = 0; of < 2; of++) {
                input[n][of] = p.gate_weight[(of * 2 * HEADS + head) * D + d];
                forget[n][of] = p.gate_weight[(of * 2 * HEADS + HEADS + head) * D + d];
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) mlstm_step(const __grid_constant__ StepParameters p) {
    __shared__ float input[HEAD], branch[HEAD];  // a and c of this head
    __shared__ float query[HEAD], key[HEAD], normalizer[HEAD];
    __shared__ float2 gate_parts[WARPS], dot_parts[WARPS];
    __shared__ float sums[WARPS][COLUMNS];
    __shared__ bool last_of_head, last_of_sequence;
    const int head = blockIdx.y, column = blockIdx.x * COLUMNS + threadIdx.x % LANES * 4, group = threadIdx.x / LANES;
    const i64 of_head = (i64)blockIdx.z * HEADS + head;
    float* matrix = p.matrix + (of_head * HEAD + group) * HEAD + column;
    // On their way before anything else is known: the first rows, and weights.
    float4 rows[AT_ONCE];
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++)
        if (group + n * GROUPS < HEAD) rows[n] = four(matrix + (i64)n * GROUPS * HEAD);
    Channels channels;
    channels.load(p, threadIdx.x, head);
    const float old_maximum = p.maximum[of_head];
    bf16* window = p.window + (i64)blockIdx.z * (TAPS - 1) * D;
    const bf16* own_input = p.input + (i64)blockIdx.z * p.input_stride;
    wait_for_previous();

    // The gates read all channels of the sequence.
    float input_sum = 0.0f, forget_sum = 0.0f;
    for (int first = threadIdx.x; first < D; first += CHANNELS * THREADS) {
        if (first >= CHANNELS * THREADS) channels.load(p, first, head);
        bf16 seen[CHANNELS][TAPS];
#pragma unroll
        for (int n = 0; n < CHANNELS; n++) {
            const int d = first + n * THREADS;
            if (d >= D) continue;
#pragma unroll
            for (int tap = 0; tap < TAPS - 1; tap++) seen[n][tap] = window[tap * D + d];
            seen[n][TAPS - 1] = own_input[d];
        }
#pragma unroll
        for (int n = 0; n < CHANNELS; n++) {
            const int d = first + n * THREADS, own = d - head * HEAD;
            if (d >= D) continue;
            const float a = to_float(seen[n][3]);
            const float before = channels.bias[n] + channels.taps[n].x * to_float(seen[n][0]) +
                                 channels.taps[n].y * to_float(seen[n][1]) + channels.taps[n].z * to_float(seen[n][2]) +
                                 channels.taps[n].w * a;
            const float c = rounded(before * fast_sigmoid(before));
            input_sum += channels.input[n][0] * c + channels.input[n][1] * a;
            forget_sum += channels.forget[n][0] * c + channels.forget[n][1] * a;
            if (own >= 0 && own < HEAD) input[own] = a, branch[own] = c;
        }
    }
    // a and c of this head are there after this, and everybody has read the window and m.
    const float2 gate = block_sums(input_sum, forget_sum, gate_parts);
    const float input_gate = gate.x + p.gate_bias[head];
    const float kept = log_sigmoid(gate.y + p.gate_bias[HEADS + head]) + old_maximum;
    const float maximum = fmaxf(kept, input_gate), forget = expf(kept - maximum), written = expf(input_gate - maximum);
    float dot = 0.0f;
#pragma unroll
    for (int n = threadIdx.x; n < HEAD; n += THREADS) {
        const float* own = branch + n / 4 * 4;
        query[n] = rounded(of_block(four(p.query_weight + (i64)(head * HEAD + n) * 4), own));
        key[n] = rounded(of_block(four(p.key_weight + (i64)(head * HEAD + n) * 4), own)) * p.key_scale * written;
        normalizer[n] = forget * p.normalizer[of_head * HEAD + n] + key[n];
        dot += query[n] * normalizer[n];
    }
    float value[4], numerator[4] = {};
#pragma unroll
    for (int e = 0; e < 4; e++)
        value[e] = rounded(of_block(four(p.value_weight + (i64)(head * HEAD + column + e) * 4), input + column));
    // Everybody's queries and keys are there after this, and everybody has read n.
    dot = block_sums(dot, 0.0f, dot_parts).x;
    u32* arrived = p.arrived + (i64)blockIdx.z * (HEADS + 1);
    if (threadIdx.x == 0) {
        last_of_head = atomicAdd(arrived + head, 1u) == gridDim.x - 1;
        last_of_sequence = atomicAdd(arrived + HEADS, 1u) == gridDim.x * HEADS - 1;
    }
    const float inverse = 1.0f / (fmaxf(fabsf(dot), expf(-maximum)) + p.epsilon);

    for (int first = group; first < HEAD; first += AT_ONCE * GROUPS) {
        float* row = matrix + (i64)(first - group) * HEAD;
        if (first != group) {
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++)
                if (first + n * GROUPS < HEAD) rows[n] = four(row + (i64)n * GROUPS * HEAD);
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            const int at = first + n * GROUPS;
            if (at >= HEAD) continue;
            const float q = query[at], k = key[at];
            float4 c = rows[n];
            c.x = forget * c.x + k * value[0], c.y = forget * c.y + k * value[1];
            c.z = forget * c.z + k * value[2], c.w = forget * c.w + k * value[3];
            *reinterpret_cast<float4*>(row + (i64)n * GROUPS * HEAD) = c;
            numerator[0] += q * c.x, numerator[1] += q * c.y, numerator[2] += q * c.z, numerator[3] += q * c.w;
        }
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
#pragma unroll
        for (int offset = LANES; offset < WARP; offset <<= 1)
            numerator[e] += __shfl_xor_sync(0xffffffffu, numerator[e], offset);
    }
    if (threadIdx.x % WARP < LANES) {
#pragma unroll
        for (int e = 0; e < 4; e++) sums[threadIdx.x / WARP][threadIdx.x % WARP * 4 + e] = numerator[e];
    }
    __syncthreads();
    for (int n = threadIdx.x; n < COLUMNS; n += THREADS) {
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) sum += sums[warp][n];
        p.output[of_head * HEAD + blockIdx.x * COLUMNS + n] = to_bf16(sum * inverse);
    }
    if (blockIdx.x == 0)
        for (int n = threadIdx.x; n < HEAD; n += THREADS) p.branch[of_head * HEAD + n] = to_bf16(branch[n]);
    if (last_of_head) {
        for (int n = threadIdx.x; n < HEAD; n += THREADS) p.normalizer[of_head * HEAD + n] = normalizer[n];
        if (threadIdx.x == 0) p.maximum[of_head] = maximum, arrived[head] = 0;
    }
    if (!last_of_sequence) return;
    for (int d = threadIdx.x; d < D; d += THREADS) {
        const bf16 middle = window[D + d], newest = window[2 * D + d];
        window[d] = middle, window[D + d] = newest, window[2 * D + d] = own_input[d];
    }
    if (threadIdx.x == 0) arrived[HEADS] = 0;
}
