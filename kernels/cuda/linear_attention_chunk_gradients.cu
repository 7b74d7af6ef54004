// Gated linear attention in chunks (linear_attention_chunks.cuh): the gradients dq and dk, those of log a and, with BONUS, of u. A block
// has a chunk of a head; each of its warps has a part of the tokens and 32 of the keys.
#include "linear_attention_chunks.cuh"

static constexpr int OWN_KEYS = 32, FRAGMENTS = OWN_KEYS / 8, KEY_GROUPS = KEYS / OWN_KEYS;
static constexpr int GRADIENT_THREADS = PARTS * KEY_GROUPS * WARP, SEGMENTS = GRADIENT_THREADS / KEYS;
static constexpr int OWN_PARTS = PARTS / KEY_GROUPS;  // columns of D that a warp computes

struct Gradients {
    const Chunk& at;
    const u32 queries, keys, products;  // tiles of q, k and D
    const AllSums sums;
    const int part, first_key;
    const Lane lane;
    float dq[FRAGMENTS][4], dk[FRAGMENTS][4];

    // Row and key of element e of fragment n.
    DEVICE int token(int e) const { return part * PART + lane.row + e / 2 * 8; }
    DEVICE int key(int n, int e) const { return first_key + 8 * n + lane.column + e % 2; }

    // Keys (or queries) of part `other`, sixteen from `first` on, times exp(exponent(token, key)), as B of a product over tokens: rounded,
    // and what rounding left. In the gradient of a decay terms of dq and of dk cancel that were weighed apart: rounded
    // once, their errors would be as large as what is left.
    template <class Exponent>
    DEVICE void load(u32 (&b)[4], u32 (&rest)[4], u32 tile, int other, int first, const Exponent& exponent, float limit) const {
        b_across<CHUNK>(b, tile, first, other * PART);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int i = other * PART + lane.column + e % 2 * 8, k = first + lane.row + e / 2 * 8;
            const float low = low_float(b[e]) * power(exponent(i, k), limit);
            const float high = high_float(b[e]) * power(exponent(i + 1, k), limit);
            b[e] = pack_bf16(low, high);
            rest[e] = pack_bf16(low - low_float(b[e]), high - high_float(b[e]));
        }
    }
    // to += exp(row's exponent) (D or D^T of one part with parts [begin, end)) (weighed keys or queries)
    template <bool OF_KEYS, class ByRow, class ByToken>
    DEVICE void add(float (&to)[FRAGMENTS][4], int begin, int end, const ByRow& by_row, const ByToken& by_token, float limit,
                    int only_row) const {
#pragma unroll
        for (int pair = 0; pair < FRAGMENTS / 2; pair++) {
            const int first = first_key + 16 * pair;
            float c[2][4] = {};
            for (int other = begin; other < end; other++) {
                u32 a[4], b[4], rest[4];
                if (OF_KEYS)
                    a_across<CHUNK>(a, products, part * PART, other * PART);
                else
                    a_along<CHUNK>(a, products, part * PART, other * PART);
                if (only_row >= 0) keep_row(a, only_row, lane);
                load(b, rest, OF_KEYS ? queries : keys, other, first, by_token, limit);
                multiply_columns(c[0], c[1], a, b);
                multiply_columns(c[0], c[1], a, rest);
            }
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    to[2 * pair + n][e] += c[n][e] * power(by_row(token(e), key(2 * pair + n, e)), limit);
        }
    }
    // What pairs within the chunk add.
    DEVICE void add_pairs() {
        const int last = part * PART + PART - 1;
        // The sum where this part begins, and where it ends.
        auto begin = [&](int k) { return sums.before(part * PART, k); };
        auto end = [&](int k) { return sums.key(last, k); };
        add<false>(
            dq, 0, part, [&](int t, int k) { return sums.query(t, k) - begin(k); },
            [&](int s, int k) { return begin(k) - sums.key(s, k); }, 0.0f, -1);
        if (last < at.inside)
            add<true>(
                dk, part + 1, PARTS, [&](int s, int k) { return end(k) - sums.key(s, k); },
                [&](int t, int k) { return sums.query(t, k) - end(k); }, 0.0f, -1);
        const Reference reference = Reference::of(sums, part, at.inside, first_key, OWN_KEYS);
        if (reference.one) {
            auto middle = [&](int k) { return sums.key(reference.middle, k); };
            auto of_query = [&](int t, int k) { return sums.query(t, k) - middle(k); };
            auto of_key = [&](int s, int k) { return middle(k) - sums.key(s, k); };
            add<false>(dq, part, part + 1, of_query, of_key, SAFE, -1);
            add<true>(dk, part, part + 1, of_key, of_query, SAFE, -1);
            return;
        }
        auto nothing = [](int, int) { return 0.0f; };
        for (int row = 0; row < PART; row++) {
            const int i = part * PART + row;
            add<false>(
                dq, part, part + 1, nothing, [&](int s, int k) { return sums.query(i, k) - sums.key(s, k); }, 0.0f, row);
            add<true>(
                dk, part, part + 1, nothing, [&](int t, int k) { return sums.query(t, k) - sums.key(i, k); }, 0.0f, row);
        }
    }
    // Sums over this warp's rows of terms(fragment, half) -> (of the two columns), left in sums_of_parts[part].
    template <class Terms>
    DEVICE void sum_rows(float (*sums_of_parts)[KEYS], const Terms& terms) const {
#pragma unroll
        for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float sum = terms(n, e) + terms(n, e + 2);
#pragma unroll
                for (int offset = 4; offset < WARP; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
                if (lane.row == 0) sums_of_parts[part][key(n, e)] = sum;
            }
    }
    DEVICE float number_of(u32 tile, int n, int e) const {
        const u32 pair = load_pair<CHUNK>(tile, token(e), key(n, 0));
        return e % 2 ? high_float(pair) : low_float(pair);
    }
};

extern "C" __global__ void __launch_bounds__(GRADIENT_THREADS, 128 / KEYS)
    linear_attention_chunk_keys(const __grid_constant__ LinearAttentionChunkParameters p) {
    __shared__ float own[CHUNK];                        // D_tt
    __shared__ float written[PARTS][KEYS];              // sum_s k_s exp(b_C - b_s) (dS v_s), by part
    __shared__ float of_bonus[BONUS ? PARTS : 1][KEYS];  // sum_t D_tt q_t k_t
    __shared__ float kept[SEGMENTS][KEYS];              // sum_v S dS, by segment of the values
    const Chunk at(p, blockIdx.x, blockIdx.y, blockIdx.z);
    const int warp = threadIdx.x / WARP, part = warp % PARTS;
    const u32 products = shared_address(shared), memory = products + SCORES_BYTES;
    float* sums_tile = reinterpret_cast<float*>(shared + SCORES_BYTES + 2 * TOKENS_BYTES);
    Gradients of = {at, memory, memory + TOKENS_BYTES, products, {sums_tile}, part, warp / PARTS * OWN_KEYS, Lane(), {}, {}};
    const Lane& lane = of.lane;

    // What passes through the states, 64 values at a time; and D, of some of the tokens that are read.
    const u32 gradients = memory, values = memory + CHUNK * 128, states = values + CHUNK * 128, state_gradients = states + KEYS * 128;
    const int key = threadIdx.x % KEYS, segment = threadIdx.x / KEYS, first_part = warp / PARTS * OWN_PARTS;
    float d[2 * OWN_PARTS][4] = {}, through = 0.0f;
    for (int tile = 0; tile < VALUES / 64; tile++) {
        at.load<64, GRADIENT_THREADS>(gradients, p.output_gradient, VALUES, tile * 64);
        at.load<64, GRADIENT_THREADS>(values, p.value, VALUES, tile * 64);
        const i64 matrix = at.index() * KEYS * VALUES + tile * 64;
        load_tile<KEYS, 64, GRADIENT_THREADS>(states, p.states + matrix, VALUES, KEYS);
        load_tile<KEYS, 64, GRADIENT_THREADS>(state_gradients, p.state_gradients + matrix, VALUES, KEYS);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int k16 = 0; k16 < 4; k16++) {
            u32 of_output[4], of_value[4], b[4];
            a_along<CHUNK>(of_output, gradients, part * PART, 16 * k16);
            a_along<CHUNK>(of_value, values, part * PART, 16 * k16);
#pragma unroll
            for (int pair = 0; pair < FRAGMENTS / 2; pair++) {
                b_along<KEYS>(b, states, of.first_key + 16 * pair, 16 * k16);
                multiply_columns(of.dq[2 * pair], of.dq[2 * pair + 1], of_output, b);
                b_along<KEYS>(b, state_gradients, of.first_key + 16 * pair, 16 * k16);
                multiply_columns(of.dk[2 * pair], of.dk[2 * pair + 1], of_value, b);
            }
#pragma unroll
            for (int other = 0; other < OWN_PARTS; other++) {
                if (first_part + other > part) continue;
                b_along<CHUNK>(b, values, (first_part + other) * PART, 16 * k16);
                multiply_columns(d[2 * other], d[2 * other + 1], of_output, b);
            }
        }
#pragma unroll
        for (int unit = segment * (8 / SEGMENTS); unit < (segment + 1) * (8 / SEGMENTS); unit++)
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
                const u32 a = load_pair<KEYS>(states, key, 8 * unit + 2 * pair);
                const u32 b = load_pair<KEYS>(state_gradients, key, 8 * unit + 2 * pair);
                through += low_float(a) * low_float(b) + high_float(a) * high_float(b);
            }
        __syncthreads();
    }
    at.load<KEYS, GRADIENT_THREADS>(of.queries, p.query, KEYS, 0);
    at.load<KEYS, GRADIENT_THREADS>(of.keys, p.key, KEYS, 0);
    at.load_sums<KEYS, GRADIENT_THREADS>(sums_tile, SUMS_STRIDE, 0);
    copy_async_commit();
    kept[segment][key] = through;
#pragma unroll
    for (int n = 0; n < 2 * OWN_PARTS; n++) {
        if (first_part + n / 2 > part) continue;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int t = part * PART + lane.row + 8 * half, s = first_part * PART + 8 * n + lane.column;
            float value[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float sum = p.scale * d[n][2 * half + e];
                value[e] = at.meet(s + e, t) ? sum : 0.0f;
                if (BONUS && s + e == t) own[t] = sum;
            }
            store_pair<CHUNK>(products, t, s, pack_bf16(value[0], value[1]));
        }
    }
    copy_async_wait<0>();
    __syncthreads();
    const float total = of.sums.key(at.inside - 1, key);
#pragma unroll
    for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int i = of.token(e), k = of.key(n, e);
            of.dq[n][e] *= at.is_entered(i) ? p.scale * power(of.sums.query(i, k), 0.0f) : 0.0f;
            of.dk[n][e] *= at.is_left(i) ? power(of.sums.key(at.inside - 1, k) - of.sums.key(i, k), 0.0f) : 0.0f;
        }
    of.sum_rows(written, [&](int n, int e) { return of.number_of(of.keys, n, e) * of.dk[n][e]; });
    of.add_pairs();

    // The terms of the sums over tokens, before the bonus adds what no decay has part in.
    float term[FRAGMENTS][4], of_key[BONUS ? FRAGMENTS : 1][4];
#pragma unroll
    for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float q = of.number_of(of.queries, n, e), k = of.number_of(of.keys, n, e);
            const float by_key = k * of.dk[n][e];
            term[n][e] = q * of.dq[n][e] - by_key;
            if constexpr (BONUS) {
                of_key[n][e] = by_key;
                const float u = p.bonus[at.head * KEYS + of.key(n, e)], product = own[of.token(e)];
                of.dq[n][e] += product * u * k;
                of.dk[n][e] += product * u * q;
            }
        }
    if (BONUS && p.bonus_gradient != nullptr)
        of.sum_rows(of_bonus, [&](int n, int e) {
            return own[of.token(e)] * of.number_of(of.queries, n, e) * of.number_of(of.keys, n, e);
        });
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int i = of.token(2 * half);
        const bool valid = i < at.inside;
        const i64 line = at.row(valid ? i : 0) * KEYS + of.first_key;
        store_row(p.query_gradient + line, of.dq, half, valid);
        store_row(p.key_gradient + line, of.dk, half, valid);
    }
    __syncthreads();  // queries, keys and sums have been read
    float* terms_of_keys = reinterpret_cast<float*>(shared + SCORES_BYTES);
#pragma unroll
    for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            sums_tile[of.token(e) * SUMS_STRIDE + of.key(n, e)] = term[n][e];
            if constexpr (BONUS) terms_of_keys[of.token(e) * KEYS + of.key(n, e)] = of_key[n][e];
        }
    __syncthreads();
    if (threadIdx.x >= KEYS) return;
    const i64 of_chunk = (((i64)at.batch * p.chunks + at.number) * p.heads + at.head) * KEYS + key;
    if (BONUS && p.bonus_gradient != nullptr) {
        float sum = 0.0f;
        for (int other = 0; other < PARTS; other++) sum += of_bonus[other][key];
        p.bonus_gradient[of_chunk] = sum;
    }
    if (p.decay_gradient == nullptr) return;
    float later = 0.0f, whole = 0.0f;
    for (int other = 0; other < SEGMENTS; other++) later += kept[other][key];
    later *= at.resets != 0 ? 0.0f : __expf(total);
    for (int other = 0; other < PARTS; other++) later += written[other][key];
    for (int i = at.inside - 1; i >= 0; i--) {
        const float here = sums_tile[i * SUMS_STRIDE + key];
        float gradient = BONUS ? later - terms_of_keys[i * KEYS + key] : later + here;
        later += here;
        if (at.is_reset(i)) gradient = later = 0.0f;
        if (p.token_decay) p.decay_gradient[at.row(i) * KEYS + key] = gradient;
        whole += gradient;
    }
    if (!p.token_decay) p.decay_gradient[of_chunk] = whole;
}
