// Everything the chunkwise mLSTM takes from its gates, and the gradients of the gates.
//
// Three small kernels, one block per chunk and one thread per token: bytes, not arithmetic, and few of
// either (about 40 bytes a token and head against several thousand in the matrix kernels).
#include "mlstm.cuh"

static constexpr int GATE_WARPS = CHUNK / WARP;

// Where this thread's segment starts, that is, the last thread up to this one with the flag; -1 where none has it.
// `scratch` holds GATE_WARPS words.
DEVICE int find_start(bool flag, u32* scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 flags = __ballot_sync(0xffffffffu, flag), own = flags & (0xffffffffu >> (31 - lane));
    __syncthreads();
    if (lane == 0) scratch[warp] = flags;
    __syncthreads();
    if (own != 0) return warp * WARP + 31 - __clz(own);
    for (int before = warp - 1; before >= 0; before--)
        if (scratch[before] != 0) return before * WARP + 31 - __clz(scratch[before]);
    return -1;
}

// Inclusive scans over the block's CHUNK threads, anew in each segment. `scratch` holds GATE_WARPS floats.
template <bool MAXIMUM>
DEVICE float block_scan(float value, int start, float* scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, first = start - warp * WARP;
#pragma unroll
    for (int offset = 1; offset < WARP; offset <<= 1) {
        const float other = __shfl_up_sync(0xffffffffu, value, offset);
        if (lane >= offset && lane - offset >= first) value = MAXIMUM ? fmaxf(value, other) : value + other;
    }
    __syncthreads();
    if (lane == 31) scratch[warp] = value;
    __syncthreads();
    for (int before = warp - 1; before >= 0 && start < (before + 1) * WARP; before--)
        value = MAXIMUM ? fmaxf(value, scratch[before]) : value + scratch[before];
    return value;
}

// Per chunk: where segments start, b, u, the running maximum of u, the chunk's log forget sum and maximum (of its last
// segment).
extern "C" __global__ void __launch_bounds__(CHUNK) mlstm_gates_local(const __grid_constant__ MlstmParameters p) {
    __shared__ float scratch[GATE_WARPS];
    __shared__ u32 flags[GATE_WARPS];
    const int chunk = blockIdx.x, batch_head = blockIdx.y;
    const int token = chunk * CHUNK + threadIdx.x;
    const bool inside = token < p.tokens;
    const i64 gate = p.gate.offset(batch_head, p.heads, token);
    const i64 at = p.token_index(batch_head, chunk) + threadIdx.x;
    int start = -1;
    if (p.resets != nullptr) {
        start = find_start(inside && p.resets[(i64)(batch_head / p.heads) * p.tokens + token] != 0, flags);
        p.segment_start[at] = start;
    }
    const float forget_sum = block_scan<false>(inside ? log_sigmoid(p.forget_gate[gate]) : 0.0f, start, scratch);
    // The clamp keeps a gate of minus infinity from turning into infinity minus infinity.
    const float exponent = inside ? fmaxf(p.input_gate[gate], -1e30f) - forget_sum : negative_infinity();
    const float maximum = block_scan<true>(exponent, start, scratch);
    p.log_forget_sum[at] = forget_sum;
    p.exponent[at] = exponent;
    p.local_maximum[at] = maximum;
    if (threadIdx.x == CHUNK - 1) {
        p.chunk_forget[(i64)batch_head * p.chunks + chunk] = forget_sum;
        p.chunk_maximum[(i64)batch_head * p.chunks + chunk] = maximum;
    }
}

// Carries the stabilizer over the chunks before this one (a max-plus recurrence of two numbers each),
// then fixes every weight of the chunk.
extern "C" __global__ void __launch_bounds__(CHUNK) mlstm_gates_carry(const __grid_constant__ MlstmParameters p) {
    const int chunk = blockIdx.x, batch_head = blockIdx.y;
    const i64 first = (i64)batch_head * p.chunks;
    float before = p.initial_maximum == nullptr ? negative_infinity() : p.initial_maximum[batch_head];
    // What of the state before a chunk is there after it: nothing, where the chunk has a reset.
    auto through = [&](int of, float value) {
        return p.segment(p.token_index(batch_head, of) + CHUNK - 1) < 0 ? value : negative_infinity();
    };
    for (int earlier = 0; earlier < chunk; earlier++)
        before = p.chunk_forget[first + earlier] + fmaxf(through(earlier, before), p.chunk_maximum[first + earlier]);
    const i64 at = p.token_index(batch_head, chunk) + threadIdx.x;
    const int last_start = p.segment(p.token_index(batch_head, chunk) + CHUNK - 1);
    const float last_before = through(chunk, before), own_before = p.segment(at) < 0 ? before : negative_infinity();
    const float last = fmaxf(last_before, p.chunk_maximum[first + chunk]);
    const float maximum = fmaxf(own_before, p.local_maximum[at]);
    const float keep = (int)threadIdx.x >= last_start ? expf(p.exponent[at] - last) : 0.0f;
    p.maximum[at] = maximum;
    p.carry[at] = expf(own_before - maximum);
    p.keep[at] = keep;
    p.state_weight[at] = to_bf16(keep);
    if (threadIdx.x != 0) return;
    p.decay[first + chunk] = expf(last_before - last);
    if (p.final_maximum != nullptr && chunk + 1 == p.chunks) p.final_maximum[batch_head] = p.chunk_forget[first + chunk] + last;
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
// column's. The log forget gate of token t lies on every pair (i >= t, j < t) of its document. Its sum is taken in four
// parts, each a sum of terms of its own size, rather than as a difference of two sums over the whole
// sequence, which loses the digits that bf16 products no longer have:
//   rows i >= t of the chunk with the entering state, columns j < t of it with the leaving state,
//   entering with leaving state, and the pairs inside the chunk.
// The rows are summed from the segment's end backward: thread x takes token CHUNK - 1 - x, and hands the sum over.
extern "C" __global__ void __launch_bounds__(CHUNK) mlstm_gate_gradients(const __grid_constant__ MlstmParameters p) {
    __shared__ float scratch[GATE_WARPS], rows[CHUNK];
    __shared__ u32 flags[GATE_WARPS];
    const int chunk = blockIdx.x, batch_head = blockIdx.y;
    const i64 first = p.token_index(batch_head, chunk), at = first + threadIdx.x;
    const i64 stride = p.batch_heads * p.padded(), chunk_stride = (i64)p.batch_heads * p.chunks;
    const bool left = p.left(chunk);
    auto sum_at = [&](const float* parts, int place) {
        return chunk * CHUNK + place < p.tokens ? sum_parts(parts, K_TILES, stride, first + place) : 0.0f;
    };
    {
        const int place = CHUNK - 1 - threadIdx.x;
        const float carried = left ? sum_at(p.key_carry_dot, place) : 0.0f;
        // The columns of the chunk itself cancel its rows over a whole segment.
        const float value = sum_at(p.query_dot, place) - (sum_at(p.key_dot, place) - carried);
        const bool last = place + 1 < CHUNK && p.segment(first + place + 1) == place + 1;
        const int start = p.segment_start == nullptr ? -1 : find_start(last, flags);
        rows[place] = block_scan<false>(value, start, scratch);
    }
    const float column = sum_at(p.key_dot, threadIdx.x), carried = left ? sum_at(p.key_carry_dot, threadIdx.x) : 0.0f;
    // What leaves the chunk is of its last segment: all before it add zeros.
    const float columns = block_scan<false>(carried, -1, scratch) - carried;
    const int token = chunk * CHUNK + threadIdx.x;
    if (token >= p.tokens) return;
    const float state = left && p.entered(chunk) ? sum_parts(p.decay_gradient, K_TILES * V_TILES, chunk_stride,
                                                             (i64)batch_head * p.chunks + chunk)
                                                 : 0.0f;
    const bool begins = p.segment(at) == (int)threadIdx.x;
    const float log_forget_gradient = begins ? 0.0f : rows[threadIdx.x] + columns + state;
    const i64 gate = p.gate.offset(batch_head, p.heads, token);
    p.input_gate_gradient[gate] = column;
    p.forget_gate_gradient[gate] = log_forget_gradient * sigmoid(-p.forget_gate[gate]);
}
