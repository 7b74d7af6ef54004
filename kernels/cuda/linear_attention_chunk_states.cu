// Gated linear attention in chunks (linear_attention_chunks.cuh): the sums b, where decays are given by token, and the states S and their
// gradients dS between chunks.
#include "linear_attention_chunks.cuh"

// --- b: the sums of decays that are given by token.

extern "C" __global__ void __launch_bounds__(KEYS) linear_attention_chunk_sums(const __grid_constant__ LinearAttentionChunkParameters p) {
    const Chunk at(p, blockIdx.x, blockIdx.y, blockIdx.z);
    constexpr int AHEAD = 8;
    float sum = 0.0f;
    for (int first = 0; first < at.inside; first += AHEAD) {
        float read[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            read[i] = first + i < at.inside ? p.log_decay[at.row(first + i) * KEYS + threadIdx.x] : 0.0f;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            sum += bounded(read[i]);
            if (first + i < at.inside) p.sums[at.row(first + i) * KEYS + threadIdx.x] = sum;
        }
    }
}

// --- S and dS: a block has 64 keys and up to 128 values of one head's matrix in registers for the whole sequence, a warp 16 of the keys
// and 64 of the values.

static constexpr int VALUE_TILE = VALUES >= 128 ? 128 : 64, STATE_THREADS = 2 * VALUE_TILE, STATE_SUMS_STRIDE = 64 + 4;
static constexpr int STATE_STAGE = CHUNK * (64 + VALUE_TILE) * 2;

// Multiplies the queries or keys of a tile by what each counts in the state, where they lie.
template <bool REVERSE>
DEVICE void weigh_tile(const Chunk& at, unsigned char* tile, const Sums<STATE_SUMS_STRIDE>& sums) {
#pragma unroll
    for (int index = 0; index < CHUNK * 8 / STATE_THREADS; index++) {
        const int unit = index * STATE_THREADS + threadIdx.x, i = unit / 8, k = unit % 8 * 8;
        const float factor = !REVERSE ? at.is_left(i) : at.is_entered(i) ? at.p.scale : 0.0f;
        auto weight = [&](int key) {
            const float exponent = REVERSE ? sums.query(i, key) : sums.key(at.inside - 1, key) - sums.key(i, key);
            return factor * power(exponent, 0.0f);
        };
        uint4& eight = *reinterpret_cast<uint4*>(tile + place<CHUNK>(i, unit % 8));
        eight = make_uint4(weigh(eight.x, weight(k), weight(k + 1)), weigh(eight.y, weight(k + 2), weight(k + 3)),
                           weigh(eight.z, weight(k + 4), weight(k + 5)), weigh(eight.w, weight(k + 6), weight(k + 7)));
    }
}

template <bool REVERSE>
DEVICE void states(const LinearAttentionChunkParameters& p) {
    const int first_key = blockIdx.x / (VALUES / VALUE_TILE) * 64, first_value = blockIdx.x % (VALUES / VALUE_TILE) * VALUE_TILE;
    const int head = blockIdx.y, batch = blockIdx.z, warp = threadIdx.x / WARP;
    const Lane lane;
    const bf16 *x = REVERSE ? p.query : p.key, *y = REVERSE ? p.output_gradient : p.value;
    bf16* stored = REVERSE ? p.state_gradients : p.states;
    const float* given = REVERSE ? p.last_gradient : p.initial;
    float* asked = REVERSE ? p.initial_gradient : p.last;
    const int key = warp % 4 * 16 + lane.row, value = warp / 4 * 64;
    const i64 line = (i64)(first_key + key) * VALUES + first_value + value;
    const i64 whole = ((i64)batch * p.heads + head) * KEYS * VALUES + line;

    float c[8][4];  // keys `key` (+ 8), values `value` + 8 n + column
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            c[n][e] = given == nullptr ? 0.0f : given[whole + e / 2 * 8 * VALUES + 8 * n + lane.column + e % 2];

    auto number_of = [&](int index) { return REVERSE ? p.chunks - 1 - index : index; };
    float* sums_tile = reinterpret_cast<float*>(shared + 2 * STATE_STAGE);
    auto fetch = [&](int index) {
        const Chunk at(p, number_of(index), head, batch);
        const u32 stage = shared_address(shared) + (index & 1) * STATE_STAGE;
        at.load<64, STATE_THREADS>(stage, x, KEYS, first_key);
        at.load<VALUE_TILE, STATE_THREADS>(stage + CHUNK * 128, y, VALUES, first_value);
        // Sums of decays that are not by token are the same in every chunk.
        if (p.token_decay || index == 0) at.load_sums<64, STATE_THREADS>(sums_tile, STATE_SUMS_STRIDE, first_key);
        copy_async_commit();
    };
    fetch(0);
    for (int index = 0; index < p.chunks; index++) {
        copy_async_wait<0>();
        __syncthreads();
        const Chunk at(p, number_of(index), head, batch);
        unsigned char* stage = shared + (index & 1) * STATE_STAGE;
        const u32 x_tile = shared_address(stage), y_tile = x_tile + CHUNK * 128;
        const Sums<STATE_SUMS_STRIDE> sums = {sums_tile};
        weigh_tile<REVERSE>(at, stage, sums);
        const float total[2] = {sums.key(at.inside - 1, key), sums.key(at.inside - 1, key + 8)};
        __syncthreads();  // the tile is weighed, sums have been read
        if (index + 1 < p.chunks) fetch(index + 1);

        bf16* to = stored + at.index() * KEYS * VALUES + line;
        store_row(to, c, 0, true);
        store_row(to + 8 * VALUES, c, 1, true);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float decay = at.resets != 0 ? 0.0f : __expf(total[half]);
#pragma unroll
            for (int n = 0; n < 8; n++) c[n][2 * half] *= decay, c[n][2 * half + 1] *= decay;
        }
#pragma unroll
        for (int k16 = 0; k16 < PARTS; k16++) {
            u32 a[4];
            a_across<CHUNK>(a, x_tile, warp % 4 * 16, 16 * k16);
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
                u32 b[4];
                b_across<CHUNK>(b, y_tile, value + 16 * pair, 16 * k16);
                multiply_columns(c[2 * pair], c[2 * pair + 1], a, b);
            }
        }
    }
    if (asked == nullptr) return;
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) asked[whole + e / 2 * 8 * VALUES + 8 * n + lane.column + e % 2] = c[n][e];
}

extern "C" __global__ void __launch_bounds__(STATE_THREADS, VALUES == 64 ? 3 : 2)
    linear_attention_chunk_states(const __grid_constant__ LinearAttentionChunkParameters p) {
    states<false>(p);
}
extern "C" __global__ void __launch_bounds__(STATE_THREADS, VALUES == 64 ? 3 : 2)
    linear_attention_chunk_state_gradients(const __grid_constant__ LinearAttentionChunkParameters p) {
    states<true>(p);
}
