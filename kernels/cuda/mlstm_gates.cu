// Everything the chunkwise mLSTM takes from its gates, and the gradients of the gates.
//
// Three small kernels, one block per chunk and one thread per token: bytes, not arithmetic, and few of
// either (about 40 bytes a token and head against several thousand in the matrix kernels).
#include "mlstm.cuh"

static constexpr int GATE_WARPS = CHUNK / WARP;

// Inclusive scans over the block's CHUNK threads. `scratch` holds GATE_WARPS floats.
template <bool MAXIMUM>
DEVICE float block_scan(float value, float* scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int offset = 1; offset < WARP; offset <<= 1) {
        const float other = __shfl_up_sync(0xffffffffu, value, offset);
        if (lane >= offset) value = MAXIMUM ? fmaxf(value, other) : value + other;
    }
    __syncthreads();
    if (lane == 31) scratch[warp] = value;
    __syncthreads();
    for (int before = warp - 1; before >= 0; before--)
        value = MAXIMUM ? fmaxf(value, scratch[before]) : value + scratch[before];
    return value;
}

// Per chunk: b, u, the running maximum of u, the chunk's log forget sum and maximum.
extern "C" __global__ void __launch_bounds__(CHUNK) mlstm_gates_local(const __grid_constant__ MlstmParameters p) {
    __shared__ float scratch[GATE_WARPS];
    const int chunk = blockIdx.x, batch_head = blockIdx.y;
    const int token = chunk * CHUNK + threadIdx.x;
    const bool inside = token < p.tokens;
    const i64 gate = p.gate.offset(batch_head, p.heads, token);
    const i64 at = p.token_index(batch_head, chunk) + threadIdx.x;
    const float forget_sum = block_scan<false>(inside ? log_sigmoid(p.forget_gate[gate]) : 0.0f, scratch);
    // The clamp keeps a gate of minus infinity from turning into infinity minus infinity.
    const float exponent = inside ? fmaxf(p.input_gate[gate], -1e30f) - forget_sum : negative_infinity();
    const float maximum = block_scan<true>(exponent, scratch);
    p.log_forget_sum[at] = forget_sum;
    p.exponent[at] = exponent;
    p.local_maximum[at] = maximum;
    if (threadIdx.x == CHUNK - 1) {
        p.chunk_forget[(i64)batch_head * p.chunks + chunk] = forget_sum;
        p.chunk_maximum[(i64)batch_head * p.chunks + chunk] = maximum;
    }
}

// Carries the stabiliser over the chunks before this one (a max-plus recurrence of two numbers each),
// then fixes every weight of the chunk.
extern "C" __global__ void __launch_bounds__(CHUNK) mlstm_gates_carry(const __grid_constant__ MlstmParameters p) {
    const int chunk = blockIdx.x, batch_head = blockIdx.y;
    const i64 first = (i64)batch_head * p.chunks;
    float before = negative_infinity();
    for (int earlier = 0; earlier < chunk; earlier++)
        before = p.chunk_forget[first + earlier] + fmaxf(before, p.chunk_maximum[first + earlier]);
    const i64 at = p.token_index(batch_head, chunk) + threadIdx.x;
    const float last = fmaxf(before, p.chunk_maximum[first + chunk]);
    const float maximum = fmaxf(before, p.local_maximum[at]);
    const float keep = expf(p.exponent[at] - last);
    p.maximum[at] = maximum;
    p.carry[at] = expf(before - maximum);
    p.keep[at] = keep;
    p.state_weight[at] = to_bf16(keep);
    if (threadIdx.x == 0) p.decay[first + chunk] = expf(before - last);
}

// The gradient of n . q and the weights of the state gradient's sum, from dot = dh . h (of what `output_gradient` holds)
// and scale, what that lacks: h = num / den, so that d den = -(dh . h) / den, which reaches n . q only where |n . q| is
// the larger.
DEVICE void prepare_token(const MlstmParameters& p, i64 index, float dot, float scale) {
    const float query_norm = p.query_norm[index];
    const float floor = expf(-(p.log_forget_sum[index] + p.maximum[index]));
    const float column = fabsf(query_norm) > floor ? (query_norm > 0.0f ? -dot : dot) : 0.0f;
    p.norm_gradient[index] = column * scale;
    p.gradient_weight[index] = to_bf16(p.carry[index] * p.key_scale * scale);
    p.gradient_column[index] = to_bf16(column);
}

// Padding takes part in no sum.
DEVICE void prepare_padding(const MlstmParameters& p, i64 index) {
    p.norm_gradient[index] = 0.0f;
    p.gradient_weight[index] = p.gradient_column[index] = 0;
    if (p.gradient_scale != nullptr) p.gradient_scale[index] = 0.0f;
}

// One thread per token, where dh came divided and the dots are there already: 28 bytes a token and head.
extern "C" __global__ void __launch_bounds__(CHUNK) mlstm_backward_prepare_dotted(const __grid_constant__ MlstmParameters p) {
    const int batch_head = blockIdx.y, token = blockIdx.x * CHUNK + threadIdx.x;
    const i64 index = p.token_index(batch_head, blockIdx.x) + threadIdx.x;
    if (token >= p.tokens) return prepare_padding(p, index);
    prepare_token(p, index, p.output_dot[p.token_major(batch_head, token)], 1.0f);
}

// One warp per token: dh / den, rounded, and the product of dh and h as that was before rounding.
extern "C" __global__ void __launch_bounds__(256) mlstm_backward_prepare(const __grid_constant__ MlstmParameters p) {
    const int lane = threadIdx.x & 31;
    const i64 index = (i64)blockIdx.x * 8 + (threadIdx.x >> 5);
    if (index >= p.batch_heads * p.padded()) return;
    const int batch_head = (int)(index / p.padded());
    const i64 token = index % p.padded();
    if (token >= p.tokens) {
        if (lane == 0) prepare_padding(p, index);
        return;
    }
    const float inverse = p.inverse_denominator[p.token_major(batch_head, token)];
    const i64 offset = p.v.offset(batch_head, p.heads, token);
    float dot = 0.0f;
#pragma unroll
    for (int column = lane * 8; column < DV; column += WARP * 8) {
        const uint4 a = *reinterpret_cast<const uint4*>(p.output_gradient + offset + column);
        const uint4 b = *reinterpret_cast<const uint4*>(p.output + offset + column);
        const uint2 c = *reinterpret_cast<const uint2*>(p.output_rest + offset + column);
        u32 x[4] = {a.x, a.y, a.z, a.w};
        const u32 y[4] = {b.x, b.y, b.z, b.w}, rest[2] = {c.x, c.y};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float low = with_rest(y[e] << 16, rest[e / 2] >> (e % 2 * 16));
            const float high = with_rest(y[e] & 0xffff0000u, rest[e / 2] >> (e % 2 * 16 + 8));
            dot += low_float(x[e]) * low + high_float(x[e]) * high;
            x[e] = pack_bf16(low_float(x[e]) * inverse, high_float(x[e]) * inverse);
        }
        store_16(p.divided_gradient + offset + column, x[0], x[1], x[2], x[3]);
    }
    dot = warp_sum(dot);
    if (lane != 0) return;
    p.gradient_scale[index] = inverse;
    prepare_token(p, index, dot, inverse);
}

DEVICE float sum_parts(const float* parts, int count, i64 stride, i64 at) {
    float sum = 0.0f;
    for (int part = 0; part < count; part++) sum += parts[part * stride + at];
    return sum;
}

// Gate gradients from row and column sums of P = dS * S, of which q . dq is the row's and k . dk the
// column's. The log forget gate of token t lies on every pair (i >= t, j < t). Its sum is taken in four
// parts, each a sum of terms of its own size, rather than as a difference of two sums over the whole
// sequence, which loses the digits that bf16 products no longer have:
//   rows i >= t of the chunk with the entering state, columns j < t of it with the leaving state,
//   entering with leaving state, and the pairs inside the chunk.
extern "C" __global__ void __launch_bounds__(CHUNK) mlstm_gate_gradients(const __grid_constant__ MlstmParameters p) {
    __shared__ float scratch[GATE_WARPS];
    __shared__ float row_total;
    const int chunk = blockIdx.x, batch_head = blockIdx.y;
    const int token = chunk * CHUNK + threadIdx.x;
    const i64 at = p.token_index(batch_head, chunk) + threadIdx.x;
    const i64 stride = p.batch_heads * p.padded(), chunk_stride = (i64)p.batch_heads * p.chunks;
    const bool inside = token < p.tokens;
    const float row = inside ? sum_parts(p.query_dot, K_TILES, stride, at) : 0.0f;
    const float column = inside ? sum_parts(p.key_dot, K_TILES, stride, at) : 0.0f;
    const float column_carry = inside && chunk + 1 < p.chunks ? sum_parts(p.key_carry_dot, K_TILES, stride, at) : 0.0f;
    const bool through = chunk > 0 && chunk + 1 < p.chunks;
    const float state = through ? sum_parts(p.decay_gradient, K_TILES * V_TILES, chunk_stride,
                                            (i64)batch_head * p.chunks + chunk)
                                : 0.0f;
    // Suffix sums as total minus what lies before; the local rows and columns cancel inside the chunk only.
    const float rows_and_local = row - (column - column_carry);
    const float rows_through = block_scan<false>(rows_and_local, scratch);
    if (threadIdx.x == CHUNK - 1) row_total = rows_through;
    const float columns_through = block_scan<false>(column_carry, scratch);
    if (!inside) return;
    const float log_forget_gradient =
        (row_total - rows_through + rows_and_local) + (columns_through - column_carry) + state;
    const i64 gate = p.gate.offset(batch_head, p.heads, token);
    p.input_gate_gradient[gate] = column;
    p.forget_gate_gradient[gate] = log_forget_gradient * sigmoid(-p.forget_gate[gate]);
}
