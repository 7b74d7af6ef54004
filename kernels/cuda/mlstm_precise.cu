// The chunkwise mLSTM in float32: what stands between its matrix products, which are libtorch's (in float32 or TF32).
//
// Everything here is bytes. The gates are those of mlstm_gates.cu; tensors are head-major and padded to whole chunks with
// zeros, [B * H, N, L, K or V], so that every product is one batch of B * H * N. With s = 1 / sqrt(K), c the weight of the
// entering state and kp of a token in the leaving one:
//
//   forward    S = Q K^T, gated;  U = (kp K)^T V;  C_n by a scan of U;  h = (S V + (c s Q) C) / den
//   backward   g = dh / den;  dS = g V^T, gated: G;  W = (c s Q)^T g;  R_n by a scan of W
//              dQ = G K + c s (g C^T + dn n)   dK = G^T Q + kp (V R^T + r)   dV = S^T g + (kp K) R
// n and r are the normalizer's column of C and R. A warp takes a row; no atomics: two runs agree to the last bit.
//
// Legend: B batch, H heads, N chunks of L tokens, K and V head sizes; a row is a token and head, a slice a chunk and head.
#include "common.cuh"

struct PreciseParameters {
    int chunks, length, width;  // N, L; numbers of a row, or of a state
    int blocks;                 // states_scan_backward: of a head
    i64 rows;                   // tokens and heads, with padding; or heads
    float key_scale, epsilon;
    float* x;                   // what is changed in place
    const float* own;           // [rows, width]: what dots are taken with
    const float* vector;        // [slices, width] or null: added to a row, times `vector_factor`
    const float* factor;        // [rows] or null: of x
    const float* vector_factor; // [rows]
    float* dots;                // [rows] or null
    // From the gates, [rows], and of a chunk [slices].
    const float *log_forget_sum, *exponent, *maximum, *decay;
    const int* segment_start;   // or null
    float* norm_gradient;       // d loss / d (n . q): [rows]
    float *row_sums, *query_norm, *inverse_denominator;
    const float* states;        // states_scan_backward: C, or n
    const float* outer;         // the state (gradient) that the scan starts with, or null: [heads, width]
    float* last;                // where the one that it ends with goes, or null
    float* partial;             // [blocks, slices]
    float outer_factor, last_factor;
};

DEVICE i64 own_row() { return (i64)blockIdx.x * (blockDim.x / WARP) + (threadIdx.x >> 5); }

// A row of S (or of dS, GRADIENT) with the gates applied: zero after the token and before its segment. Forward with its sum.
template <bool GRADIENT>
DEVICE void gate_row(const PreciseParameters& p) {
    const i64 row = own_row(), slice = row / p.length;
    if (row >= p.rows) return;
    const int lane = threadIdx.x & 31, place = (int)(row % p.length);
    const int start = p.segment_start == nullptr ? -1 : p.segment_start[row];
    const float maximum = p.maximum[row], added = GRADIENT ? p.norm_gradient[row] : 0.0f;
    float* line = p.x + row * p.length;
    const float* exponent = p.exponent + slice * p.length;
    float sum = 0.0f;
    for (int column = lane; column < p.length; column += WARP) {
        const bool counts = column <= place && column >= start;
        const float gate = counts ? expf(exponent[column] - maximum) * p.key_scale : 0.0f;
        const float value = counts ? (line[column] + added) * gate : 0.0f;
        line[column] = value;
        sum += value;
    }
    if (GRADIENT) return;
    sum = warp_sum(sum);
    if (lane == 0) p.row_sums[row] = sum;
}
extern "C" __global__ void __launch_bounds__(256) precise_scores(const __grid_constant__ PreciseParameters p) { gate_row<false>(p); }
extern "C" __global__ void __launch_bounds__(256) precise_score_gradients(const __grid_constant__ PreciseParameters p) {
    gate_row<true>(p);
}

// Chunks whose numbers a thread asks for at once: the recurrence itself is too short to hide a load.
static constexpr int AHEAD = 8;

// States from what each chunk adds, in place: `x` becomes the state that enters each chunk. A thread holds one number.
extern "C" __global__ void __launch_bounds__(256) precise_states(const __grid_constant__ PreciseParameters p) {
    const i64 head = blockIdx.y;
    const int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= p.width) return;
    float state = p.outer == nullptr ? 0.0f : p.outer[head * p.width + at] * p.outer_factor;
    float* first = p.x + head * p.chunks * p.width + at;
    const float* decay = p.decay + head * p.chunks;
    for (int chunk = 0; chunk < p.chunks; chunk += AHEAD) {
        float added[AHEAD];
#pragma unroll
        for (int n = 0; n < AHEAD; n++) added[n] = chunk + n < p.chunks ? first[(i64)(chunk + n) * p.width] : 0.0f;
#pragma unroll
        for (int n = 0; n < AHEAD; n++)
            if (chunk + n < p.chunks) {
                first[(i64)(chunk + n) * p.width] = state;
                state = decay[chunk + n] * state + added[n];
            }
    }
    if (p.last != nullptr) p.last[head * p.width + at] = state * p.last_factor;
}

// The same for their gradients, from the last chunk backward: `x` becomes the gradient of the state that leaves each chunk.
// `partial`: its product with the state that enters, the gradient of the chunk's decay.
extern "C" __global__ void __launch_bounds__(256) precise_state_gradients(const __grid_constant__ PreciseParameters p) {
    __shared__ float parts[AHEAD][8];
    const i64 head = blockIdx.y;
    const int at = blockIdx.x * 256 + threadIdx.x;
    const bool inside = at < p.width;
    float gradient = inside && p.outer != nullptr ? p.outer[head * p.width + at] * p.outer_factor : 0.0f;
    const i64 place = head * p.chunks * p.width + at;
    const float* decay = p.decay + head * p.chunks;
    for (int later = p.chunks; later > 0; later -= AHEAD) {
        float added[AHEAD], state[AHEAD];
#pragma unroll
        for (int n = 0; n < AHEAD; n++) {
            const int chunk = later - 1 - n;
            const bool there = inside && chunk >= 0;
            added[n] = there ? p.x[place + (i64)chunk * p.width] : 0.0f;
            state[n] = there ? p.states[place + (i64)chunk * p.width] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int n = 0; n < AHEAD; n++) {
            const int chunk = later - 1 - n;
            if (chunk < 0) break;
            if (inside) p.x[place + (i64)chunk * p.width] = gradient;
            const float dot = warp_sum(gradient * state[n]);
            if ((threadIdx.x & 31) == 0) parts[n][threadIdx.x >> 5] = dot;
            gradient = decay[chunk] * gradient + added[n];
        }
        __syncthreads();
        const int chunk = later - 1 - (int)threadIdx.x;
        if (threadIdx.x < AHEAD && chunk >= 0) {
            float sum = 0.0f;
            for (int part = 0; part < 8; part++) sum += parts[threadIdx.x][part];
            p.partial[((i64)blockIdx.x * gridDim.y + head) * p.chunks + chunk] = sum * decay[chunk];
        }
    }
    if (inside && p.last != nullptr) p.last[head * p.width + at] = gradient * p.last_factor;
}

// h from the numerator in `x`: n . q is the row's sum of scores and what the state's normalizer (`vector`) adds to it.
extern "C" __global__ void __launch_bounds__(256) precise_denominator(const __grid_constant__ PreciseParameters p) {
    const i64 row = own_row(), slice = row / p.length;
    if (row >= p.rows) return;
    const int lane = threadIdx.x & 31;
    float dot = 0.0f;
    for (int column = lane; column < p.width; column += WARP) dot += p.own[row * p.width + column] * p.vector[slice * p.width + column];
    dot = warp_sum(dot);
    if (lane != 0) return;
    const float norm = p.row_sums[row] + dot, floor = expf(-(p.log_forget_sum[row] + p.maximum[row]));
    p.query_norm[row] = norm;
    p.inverse_denominator[row] = 1.0f / (fmaxf(fabsf(norm), floor) + p.epsilon);
}

// g = dh / den in place, and d loss / d (n . q) from g . h (`own`): it reaches n . q only where that is the denominator.
extern "C" __global__ void __launch_bounds__(256) precise_prepare(const __grid_constant__ PreciseParameters p) {
    const i64 row = own_row();
    if (row >= p.rows) return;
    const int lane = threadIdx.x & 31;
    const float inverse = p.inverse_denominator[row];
    float dot = 0.0f;
    for (int column = lane; column < p.width; column += WARP) {
        const i64 at = row * p.width + column;
        const float gradient = p.x[at] * inverse;
        p.x[at] = gradient;
        dot += gradient * p.own[at];
    }
    dot = warp_sum(dot);
    if (lane != 0) return;
    const float norm = p.query_norm[row], floor = expf(-(p.log_forget_sum[row] + p.maximum[row]));
    p.norm_gradient[row] = fabsf(norm) > floor ? (norm > 0.0f ? -dot : dot) : 0.0f;
}

// x <- factor x + vector_factor vector of the chunk, and its product with `own`.
extern "C" __global__ void __launch_bounds__(256) precise_rows(const __grid_constant__ PreciseParameters p) {
    const i64 row = own_row(), slice = row / p.length;
    if (row >= p.rows) return;
    const int lane = threadIdx.x & 31;
    const float factor = p.factor == nullptr ? 1.0f : p.factor[row];
    const float vector_factor = p.vector == nullptr ? 0.0f : p.vector_factor[row];
    const bool changes = p.factor != nullptr || p.vector != nullptr;
    float dot = 0.0f;
    for (int column = lane; column < p.width; column += WARP) {
        const i64 at = row * p.width + column;
        float value = p.x[at] * factor;
        if (p.vector != nullptr) value += vector_factor * p.vector[slice * p.width + column];
        if (changes) p.x[at] = value;
        if (p.dots != nullptr) dot += value * p.own[at];
    }
    if (p.dots == nullptr) return;
    dot = warp_sum(dot);
    if (lane == 0) p.dots[row] = dot;
}
