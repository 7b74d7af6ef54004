// Gated linear attention over whole sequences: GLA, HGRN2, RetNet, RWKV-5, RWKV-6. Everything is computed in float32; queries, keys,
// values, outputs and their gradients are read and written as float32 or bf16.
//
//     S_t = diag(a_t) S_{t-1} + k_t v_t^T           S: K x V for each head of each sequence
//     o_t = scale S_t^T q_t                         BONUS: scale (S_{t-1} + diag(u) k_t v_t^T)^T q_t
//
// The state of a head stays in registers, step after step: 16 numbers of each of four columns (or rows) a thread. Every pass is
// the same recurrence of a matrix, read by a vector z that is contracted with one of its axes:
//
//     X = diag(a) X + x y^T,   out = X^T z (contracted over keys) or X z (over values)
//
//     pass                            X     x        y     z     contracted over
//     linear_attention_forward        S     k        v     q     keys      gives o
//     linear_attention_queries        S     k        v     do    values    gives dq
//     linear_attention_keys           dS    scale q  do    v     values    gives dk, da, du; from the last step
//     linear_attention_values         dS    scale q  do    k     keys      gives dv, dS_0;   from the last step
//
// The gradient of log a_t is what pairs of a step before t and a step from t on have in common:
// sum_{i >= t} q_i dq_i - sum_{j >= t} k_j dk_j, where pairs on the same side cancel. Those sums are double.
//
// Work: 3 K V multiply-adds a step and head in each pass, that is 12 K V a step for training; nothing divides by a decay.
//
// A few sequences of a few heads leave most of a GPU idle, since a recurrence goes step by step. Then each sequence is cut into
// segments that all passes take side by side. What S and dS are at their borders is computed first: by each segment from
// zeros (linear_attention_states, linear_attention_state_gradients), then joined (linear_attention_join_*), a border after
// the other: S behind a segment = (product of its decays) S before it + what it gave from zeros. That is 4 K V more.
//
// Legend: B batch, T tokens, H heads, K keys and V values of a head, N segments of a sequence.
#include "common.cuh"

#ifndef KEYS
#define KEYS 128  // K: 16, 32, 64, 128, 256 or 512
#endif
#ifndef VALUES
#define VALUES 256  // V: likewise
#endif
#ifndef BONUS
#define BONUS 0  // 1: the state is read before the update, and the current step by u
#endif
#ifndef FLOAT32
#define FLOAT32 1  // 0: queries, keys, values and outputs are bf16
#endif

#if FLOAT32
typedef float Element;
#else
typedef bf16 Element;
#endif

static constexpr int STEPS = 8;  // read ahead together
static constexpr int OWN = 4;    // columns (or rows) of a thread

struct LinearAttentionParameters {
    int tokens, heads;
    int segments, segment_tokens;  // N and the tokens of all but the last; one segment: 1 and T
    int token_decay;  // 1: decays are [B, T, H, K], 0: [H, K]
    float scale;
    const Element* query;          // [B, T, H, K]
    const Element* key;            // [B, T, H, K]
    const Element* value;          // [B, T, H, V]
    const float* decay;            // a, between 0 and 1
    const float* bonus;            // u: [H, K]
    const unsigned char* resets;   // [B, T], or null
    const float* initial;          // S before the first step: [B, H, K, V], or null for zeros
    Element* output;               // [B, T, H, V]
    float* last;                   // S after the last step
    const Element* output_gradient;  // as `output`
    const float* last_gradient;      // as `last`, or null for zeros
    float* query_gradient;           // unrounded: the gradients of decays are differences of sums of it
    Element* key_gradient;
    Element* value_gradient;
    float* decay_gradient;    // of log a: [B, T, H, K] or, summed over a segment, [B, N, H, K]; or null
    float* bonus_gradient;    // [B, N, H, K], or null
    float* initial_gradient;  // or null
    // With more segments than one:
    float* states;           // S at the borders, before each segment and behind the last: [B, N + 1, H, K, V]
    float* state_gradients;  // dS there
    float* products;         // of the decays of a segment: [B, N, H, K]
};

static constexpr int MATRIX = KEYS * VALUES;

__device__ constexpr int at_least(int a, int b) { return a > b ? a : b; }
__device__ constexpr int at_most(int a, int b) { return a < b ? a : b; }

// How a pass is laid out. OVER_KEYS: contracted over keys, so that threads own values. READS: X is read by z at each step.
template <bool OVER_KEYS, bool REVERSE, bool READS>
struct Layout {
    static_assert(OVER_KEYS || READS, "states are computed by threads that own values");
    static constexpr int CONTRACTED = OVER_KEYS ? KEYS : VALUES, OWNED = OVER_KEYS ? VALUES : KEYS;
    static constexpr int LANES = at_least(4, at_most(32, CONTRACTED / 16));  // that share a sum
    static constexpr int PER = CONTRACTED / LANES;                           // contracted numbers of a thread
    static constexpr int THREADS = at_least(32, at_most(128, OWNED / OWN * LANES));
    static constexpr int BLOCK_OWNED = THREADS / LANES * OWN;
    // Where the vectors of a step stand, in bytes. Along the contracted axis x (or y) and z, along the other y (or x and, for decays,
    // k and dq); decays along the axis of keys.
    static constexpr int E = sizeof(Element), DECAYS = OVER_KEYS ? CONTRACTED : BLOCK_OWNED;
    static constexpr int DECAY = 0, ALONG = 4 * DECAYS, Z = ALONG + E * CONTRACTED, OTHER = Z + READS * E * CONTRACTED;
    static constexpr int KEY = OTHER + E * BLOCK_OWNED, QUERY_GRADIENT = KEY + E * BLOCK_OWNED;
    static constexpr int STEP = OVER_KEYS || !REVERSE ? KEY : QUERY_GRADIENT + 4 * BLOCK_OWNED;
    static_assert(PER % 4 == 0 && CONTRACTED == LANES * PER, "sizes are powers of two from 16 to 512");
};

// Sum of OWN values over the lanes that share them; lane s is left with value s % 4.
template <int LANES>
DEVICE float reduce(const float (&values)[OWN], int slice) {
    const bool second = slice & 2, first = slice & 1;
    float pair[2];
#pragma unroll
    for (int index = 0; index < 2; index++) {
        const float keep = second ? values[2 + index] : values[index], send = second ? values[index] : values[2 + index];
        pair[index] = keep + __shfl_xor_sync(0xffffffffu, send, 2);
    }
    float sum = (first ? pair[1] : pair[0]) + __shfl_xor_sync(0xffffffffu, first ? pair[0] : pair[1], 1);
#pragma unroll
    for (int offset = 4; offset < LANES; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    return sum;
}

template <int LANES>
DEVICE float sum_of_lanes(float value) {
#pragma unroll
    for (int offset = 1; offset < LANES; offset *= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

DEVICE void load_four(float* values, const float* from) {
    const float4 read = *reinterpret_cast<const float4*>(from);
    values[0] = read.x, values[1] = read.y, values[2] = read.z, values[3] = read.w;
}
DEVICE void load_four(float* values, const bf16* from) {
    const uint2 read = *reinterpret_cast<const uint2*>(from);
    values[0] = low_float(read.x), values[1] = high_float(read.x);
    values[2] = low_float(read.y), values[3] = high_float(read.y);
}

// The numbers of one thread along the contracted axis: fours that alternate with those of its neighbors.
template <int LANES, int PER, typename T>
DEVICE void load_slice(float (&values)[PER], const T* row, int slice) {
#pragma unroll
    for (int four = 0; four < PER / 4; four++) load_four(values + 4 * four, row + 4 * (slice + LANES * four));
}

struct Sources {
    const Element* x;  // [B, T, H, K]
    const Element* y;  // [B, T, H, V]
    const Element* z;  // like y or x
};

template <typename T>
DEVICE const T* at(const char* vectors, int offset) {
    return reinterpret_cast<const T*>(vectors + offset);
}

template <bool OVER_KEYS, bool REVERSE, bool READS>
struct Pass {
    typedef Layout<OVER_KEYS, REVERSE, READS> L;
    static constexpr bool SHIFTED = REVERSE && !BONUS;  // the decay between two steps is the later one's

    const LinearAttentionParameters& p;
    const Sources from;
    char* memory;
    int batch, head, segment;
    int begin, end;  // steps of the segment
    int first;       // the first owned column (or row) of the block
    int slice, own;  // of this thread, within the block

    DEVICE i64 row(int t) const { return ((i64)batch * p.tokens + t) * p.heads + head; }
    DEVICE i64 decay_row(int t) const { return p.token_decay ? row(t) : head; }
    DEVICE i64 segment_row() const { return ((i64)batch * p.segments + segment) * p.heads + head; }
    DEVICE int step_of(int number) const { return REVERSE ? end - 1 - number : begin + number; }
    DEVICE bool is_reset(int t) const { return p.resets != nullptr && p.resets[(i64)batch * p.tokens + t] != 0; }

    // The matrix of this head at the border before the segment (0) or behind it (1): among those of all borders, or, where
    // there is one segment, `whole`; null stays null.
    template <typename T>
    DEVICE T* border(T* borders, T* whole, int behind) const {
        if (p.segments > 1) return borders + (((i64)batch * (p.segments + 1) + segment + behind) * p.heads + head) * MATRIX;
        return whole == nullptr ? nullptr : whole + ((i64)batch * p.heads + head) * MATRIX;
    }
    DEVICE const float* before() const { return border<const float>(p.states, p.initial, 0); }
    DEVICE const float* behind() const { return border<const float>(p.states, p.last, 1); }
    DEVICE const float* gradient_behind() const { return border<const float>(p.state_gradients, p.last_gradient, 1); }

    template <int WIDTH, typename T>
    DEVICE void copy(char* to, const T* source, bool contracted) const {
        constexpr int EACH = 16 / sizeof(T);
        for (int index = EACH * threadIdx.x; index < WIDTH; index += EACH * L::THREADS) {
            const bool inside = contracted || first + index < L::OWNED;
            copy_async_16(shared_address(to + index * sizeof(T)), source + (inside ? index : 0), inside);
        }
    }

    // All vectors of one step into `to`.
    DEVICE void fetch(char* to, int number) const {
        const int t = step_of(number);
        const int decayed = SHIFTED ? t + 1 : t;
        if (decayed < end) {
            const float* decay = p.decay + decay_row(decayed) * KEYS + (OVER_KEYS ? 0 : first);
            copy<L::DECAYS>(to + L::DECAY, decay, OVER_KEYS);
        } else {
            // Nothing is lost behind the last step: what is lost before the next segment's first is in the gradient behind.
            float* decays = reinterpret_cast<float*>(to + L::DECAY);
            for (int index = threadIdx.x; index < L::DECAYS; index += L::THREADS) decays[index] = 1.0f;
        }
        if constexpr (OVER_KEYS) {
            copy<L::CONTRACTED>(to + L::ALONG, from.x + row(t) * KEYS, true);
            if constexpr (READS) copy<L::CONTRACTED>(to + L::Z, from.z + row(t) * KEYS, true);
            copy<L::BLOCK_OWNED>(to + L::OTHER, from.y + row(t) * VALUES + first, false);
        } else {
            copy<L::CONTRACTED>(to + L::ALONG, from.y + row(t) * VALUES, true);
            copy<L::CONTRACTED>(to + L::Z, from.z + row(t) * VALUES, true);
            copy<L::BLOCK_OWNED>(to + L::OTHER, from.x + row(t) * KEYS + first, false);
            if constexpr (REVERSE) {
                copy<L::BLOCK_OWNED>(to + L::KEY, p.key + row(t) * KEYS + first, false);
                copy<L::BLOCK_OWNED>(to + L::QUERY_GRADIENT, p.query_gradient + row(t) * KEYS + first, false);
            }
        }
    }

    DEVICE void fetch_chunk(int chunk) const {
        char* to = memory + (chunk & 1) * STEPS * L::STEP;
        for (int index = 0; index < STEPS; index++)
            if (chunk * STEPS + index < end - begin) fetch(to + index * L::STEP, chunk * STEPS + index);
        copy_async_commit();
    }

    DEVICE int contracted(int c) const { return 4 * (slice + L::LANES * (c / 4)) + c % 4; }

    // Where an element of a matrix lies: contracted index c, owned index o of this thread.
    DEVICE int element(int c, int o) const {
        const int owned = first + own + o;
        return OVER_KEYS ? contracted(c) * VALUES + owned : owned * VALUES + contracted(c);
    }

    DEVICE void load_state(float (&state)[OWN][L::PER], const float* source) const {
#pragma unroll
        for (int o = 0; o < OWN; o++)
#pragma unroll
            for (int c = 0; c < L::PER; c++)
                state[o][c] = source != nullptr && first + own + o < L::OWNED ? source[element(c, o)] : 0.0f;
    }

    DEVICE void store_state(float* to, const float (&state)[OWN][L::PER]) const {
#pragma unroll
        for (int o = 0; o < OWN; o++)
#pragma unroll
            for (int c = 0; c < L::PER; c++)
                if (first + own + o < L::OWNED) to[element(c, o)] = state[o][c];
    }

    // One step: X and what is read of it. `to` is the step's vectors, `factor` what x is multiplied with.
    // Returns this lane's sum (of owned number slice % 4) without the bonus; `weight` becomes the bonus's contracted factor.
    DEVICE float step(float (&state)[OWN][L::PER], const char* to, const float (&bonus)[L::PER], float factor, bool reset,
                      float& weight) const {
        float z[L::PER], along[L::PER], sums[OWN], decays[L::PER], others[OWN];
        load_slice<L::LANES>(z, at<Element>(to, L::Z), slice);
        load_slice<L::LANES>(along, at<Element>(to, L::ALONG), slice);
        if constexpr (OVER_KEYS) load_slice<L::LANES>(decays, at<float>(to, L::DECAY), slice);
        load_four(others, at<Element>(to, L::OTHER) + own);
        const float* lefts = at<float>(to, L::DECAY) + own;
        weight = 0.0f;
        if constexpr (OVER_KEYS) {
#pragma unroll
            for (int c = 0; c < L::PER; c++) along[c] *= factor;
        }
        if constexpr (BONUS) {
#pragma unroll
            for (int c = 0; c < L::PER; c++) weight += OVER_KEYS ? z[c] * bonus[c] * along[c] : z[c] * along[c];
            weight = sum_of_lanes<L::LANES>(weight);
        }
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            const float other = OVER_KEYS ? others[o] : others[o] * factor;
            const float left = OVER_KEYS ? 0.0f : lefts[o];
            float sum = 0.0f;
#pragma unroll
            for (int c = 0; c < L::PER; c++) {
                if (BONUS) {
                    const float before = !REVERSE && reset ? 0.0f : state[o][c];
                    sum += before * z[c];
                }
                const float decay = reset ? 0.0f : OVER_KEYS ? decays[c] : left;
                // What is read before a reset is nothing: no gradient goes further back.
                const float added = BONUS && REVERSE && reset ? 0.0f : along[c] * other;
                state[o][c] = decay * state[o][c] + added;
                if (!BONUS) sum += state[o][c] * z[c];
            }
            sums[o] = sum;
        }
        return reduce<L::LANES>(sums, slice);
    }

    // Calls `step` with each step's time and vectors, which are read ahead.
    template <typename Step>
    DEVICE void for_each_step(const Step& step) const {
        const int tokens = end - begin, chunks = (tokens + STEPS - 1) / STEPS;
        fetch_chunk(0);
        for (int chunk = 0; chunk < chunks; chunk++) {
            if (chunk + 1 < chunks) {
                fetch_chunk(chunk + 1);
                copy_async_wait<1>();
            } else {
                copy_async_wait<0>();
            }
            __syncthreads();
            const char* vectors = memory + (chunk & 1) * STEPS * L::STEP;
            for (int index = 0; index < STEPS && chunk * STEPS + index < tokens; index++)
                step(step_of(chunk * STEPS + index), vectors + index * L::STEP);
            __syncthreads();
        }
    }

    // Whether what is left of X before step t (of the step behind it, where decays are SHIFTED) is nothing.
    DEVICE bool forgets(int t) const {
        const int decayed = SHIFTED ? t + 1 : t;
        return decayed < end && is_reset(decayed);
    }

    template <typename T>
    DEVICE void run(T* out) const {
        float state[OWN][L::PER], bonus[L::PER];
        load_state(state, REVERSE ? gradient_behind() : before());
        const int mine = first + own + (slice & 3);  // the owned number whose sum this lane has
        const bool writes = slice < 4 && mine < L::OWNED;
        float own_bonus = 0.0f;
        if constexpr (BONUS) {
            if constexpr (OVER_KEYS) load_slice<L::LANES>(bonus, p.bonus + (i64)head * KEYS, slice);
            own_bonus = !OVER_KEYS && mine < L::OWNED ? p.bonus[(i64)head * KEYS + mine] : 0.0f;
        }
        // Sums over all later steps, of the gradient of log a and of u.
        double later = 0.0, decay_sum = 0.0, bonus_sum = 0.0;
        if constexpr (!OVER_KEYS && REVERSE) later = last_read(state);
        const float factor = REVERSE ? p.scale : 1.0f, scaled = REVERSE ? 1.0f : p.scale;
        for_each_step([&](int t, const char* to) {
            float weight;
            const float sum = step(state, to, bonus, factor, forgets(t), weight);
            if (!writes) return;
            const int own_lane = own + (slice & 3);
            const float read = number(at<Element>(to, L::OTHER)[own_lane]), other = OVER_KEYS ? read : read * factor;
            const float added = !BONUS ? 0.0f : OVER_KEYS ? other * weight : own_bonus * other * weight;
            put(out + row(t) * L::OWNED + mine, scaled * (sum + added));
            if constexpr (!OVER_KEYS && REVERSE) {
                const double key = number(at<Element>(to, L::KEY)[own_lane]);
                const double query = (double)read * at<float>(to, L::QUERY_GRADIENT)[own_lane];
                const double both = query - key * (sum + added);
                // Read after the update, step t itself stands on both sides; read before it, on neither.
                double gradient = BONUS ? later - key * sum : later + both;
                later += both;
                if (is_reset(t)) gradient = later = 0.0;
                if (p.token_decay && p.decay_gradient != nullptr) p.decay_gradient[row(t) * KEYS + mine] = (float)gradient;
                decay_sum += gradient;
                if (BONUS) bonus_sum += (double)other * key * weight;
            }
        });
        if constexpr (OVER_KEYS) {
            // The state behind all steps and the gradient before them, by the outermost segments.
            const i64 matrix = ((i64)batch * p.heads + head) * MATRIX;
            if (!REVERSE && end == p.tokens) store_state(p.last + matrix, state);
            if (REVERSE && begin == 0 && p.initial_gradient != nullptr) {
                decay_once_more(state);
                store_state(p.initial_gradient + matrix, state);
            }
        } else if constexpr (REVERSE) {
            const i64 at = segment_row() * KEYS + mine;
            if (writes && !p.token_decay && p.decay_gradient != nullptr) p.decay_gradient[at] = (float)decay_sum;
            if (writes && p.bonus_gradient != nullptr) p.bonus_gradient[at] = (float)bonus_sum;
        }
    }

    // What a segment makes of zeros, at the border that it leads to; forward also the product of its decays.
    DEVICE void run_from_zeros() const {
        float state[OWN][L::PER], product[L::PER];
        load_state(state, nullptr);
#pragma unroll
        for (int c = 0; c < L::PER; c++) product[c] = 1.0f;
        const float factor = REVERSE ? p.scale : 1.0f;
        for_each_step([&](int t, const char* to) {
            float along[L::PER], decays[L::PER], others[OWN];
            load_slice<L::LANES>(along, at<Element>(to, L::ALONG), slice);
            load_slice<L::LANES>(decays, at<float>(to, L::DECAY), slice);
            load_four(others, at<Element>(to, L::OTHER) + own);
            const bool reset = forgets(t);
#pragma unroll
            for (int c = 0; c < L::PER; c++) {
                // As in `step`: what is read before a reset is nothing.
                along[c] = BONUS && REVERSE && reset ? 0.0f : along[c] * factor;
                if (reset) decays[c] = 0.0f;
                product[c] *= decays[c];
#pragma unroll
                for (int o = 0; o < OWN; o++) state[o][c] = decays[c] * state[o][c] + along[c] * others[o];
            }
        });
        if (REVERSE) decay_once_more(state);
        store_state(border<float>(REVERSE ? p.state_gradients : p.states, nullptr, REVERSE ? 0 : 1), state);
        if constexpr (!REVERSE) {
            if (first + own != 0) return;
#pragma unroll
            for (int c = 0; c < L::PER; c++) p.products[segment_row() * KEYS + contracted(c)] = product[c];
        }
    }

    // What steps behind the last one read of this lane's row: sum_v S_T dS_T.
    DEVICE double last_read(const float (&state)[OWN][L::PER]) const {
        if (gradient_behind() == nullptr) return 0.0;
        const float* matrix = behind();
        float sums[OWN];
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            sums[o] = 0.0f;
#pragma unroll
            for (int c = 0; c < L::PER; c++)
                if (first + own + o < L::OWNED) sums[o] += state[o][c] * matrix[element(c, o)];
        }
        return reduce<L::LANES>(sums, slice);
    }

    // From the gradient behind the first step to the one before it, where decays are those between two steps.
    DEVICE void decay_once_more(float (&state)[OWN][L::PER]) const {
        if constexpr (SHIFTED) {
#pragma unroll
            for (int c = 0; c < L::PER; c++) {
                const float decay = is_reset(begin) ? 0.0f : p.decay[decay_row(begin) * KEYS + contracted(c)];
#pragma unroll
                for (int o = 0; o < OWN; o++) state[o][c] *= decay;
            }
        }
    }
};

template <bool OVER_KEYS, bool REVERSE, bool READS>
DEVICE Pass<OVER_KEYS, REVERSE, READS> pass_of(const LinearAttentionParameters& p, const Sources& from) {
    typedef Layout<OVER_KEYS, REVERSE, READS> L;
    extern __shared__ float4 shared[];
    const int lane = threadIdx.x, segment = blockIdx.z % p.segments, begin = segment * p.segment_tokens;
    return {p,
            from,
            reinterpret_cast<char*>(shared),
            (int)blockIdx.z / p.segments,
            (int)blockIdx.y,
            segment,
            begin,
            segment + 1 < p.segments ? begin + p.segment_tokens : p.tokens,
            (int)blockIdx.x * L::BLOCK_OWNED,
            lane % L::LANES,
            lane / L::LANES * OWN};
}

#define PASS(name, over_keys, reverse) \
    extern "C" __global__ void __launch_bounds__(Layout<over_keys, reverse, true>::THREADS) \
        name(const __grid_constant__ LinearAttentionParameters p)
#define FROM_ZEROS(name, reverse) \
    extern "C" __global__ void __launch_bounds__(Layout<true, reverse, false>::THREADS) \
        name(const __grid_constant__ LinearAttentionParameters p)

PASS(linear_attention_forward, true, false) { pass_of<true, false, true>(p, {p.key, p.value, p.query}).run(p.output); }

PASS(linear_attention_keys, false, true) {
    pass_of<false, true, true>(p, {p.query, p.output_gradient, p.value}).run(p.key_gradient);
}

PASS(linear_attention_queries, false, false) {
    pass_of<false, false, true>(p, {p.key, p.value, p.output_gradient}).run(p.query_gradient);
}

PASS(linear_attention_values, true, true) {
    pass_of<true, true, true>(p, {p.query, p.output_gradient, p.key}).run(p.value_gradient);
}

FROM_ZEROS(linear_attention_states, false) { pass_of<true, false, false>(p, {p.key, p.value, nullptr}).run_from_zeros(); }

FROM_ZEROS(linear_attention_state_gradients, true) {
    pass_of<true, true, false>(p, {p.query, p.output_gradient, nullptr}).run_from_zeros();
}

static constexpr int JOINING = 256;  // threads of a block, each with an element of the matrix of a head

// Goes from border to border, with what each segment made of zeros in the place of the sum.
DEVICE void join(const LinearAttentionParameters& p, float* borders, const float* given, bool reverse) {
    const int at = blockIdx.x * JOINING + threadIdx.x, head = blockIdx.y, batch = blockIdx.z;
    if (at >= MATRIX) return;
    const i64 between = (i64)p.heads * MATRIX;
    float* own = borders + ((i64)batch * (p.segments + 1) * p.heads + head) * MATRIX + at;
    const float* product = p.products + ((i64)batch * p.segments * p.heads + head) * KEYS + at / VALUES;
    float value = given == nullptr ? 0.0f : given[((i64)batch * p.heads + head) * MATRIX + at];
    own[reverse ? p.segments * between : 0] = value;
    for (int number = 0; number < p.segments; number++) {
        const int segment = reverse ? p.segments - 1 - number : number;
        float* to = own + (segment + (reverse ? 0 : 1)) * between;
        value = product[(i64)segment * p.heads * KEYS] * value + *to;
        *to = value;
    }
}

extern "C" __global__ void __launch_bounds__(JOINING)
    linear_attention_join_states(const __grid_constant__ LinearAttentionParameters p) {
    join(p, p.states, p.initial, false);
}

extern "C" __global__ void __launch_bounds__(JOINING)
    linear_attention_join_gradients(const __grid_constant__ LinearAttentionParameters p) {
    join(p, p.state_gradients, p.last_gradient, true);
}
