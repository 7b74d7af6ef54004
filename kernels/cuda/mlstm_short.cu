// The mLSTM in float32 over a sequence of at most 64 tokens: a block takes one head of one sequence, from the gates to the
// output, in shared memory. Nothing stands before the first token and nothing goes on after the last: no states at all.
//
// With b the running sum of log sigmoid(f) in a document, u_j = i_j - b_j, m_t the largest u_j so far and s = 1 / sqrt(K)
// (paper eq. 19 to 27, over all pairs at once):
//
//   forward    D_tj = s exp(u_j - m_t)      S = (Q K^T) D      norm_t = sum_j S_tj      h_t = sum_j S_tj v_j / den_t
//              den_t = max(|norm_t|, exp(-(b_t + m_t))) + epsilon
//   backward   g = dh / den     P = g V^T     dnorm = -sign(norm) sum_j S P where |norm| is the larger, else 0
//              G = (P + dnorm) D    dQ = G K    dK = G^T Q    dV = S^T g
//              di_j = sum_t (P + dnorm) S    db_t = sum_j (P + dnorm) S - di_t    d log sigmoid(f_t) = sum of db after t
// Products are float32 (`fma`). Every sum has a fixed order: two runs agree to the last bit.
//
// A thread has tiles of four by four; rows in shared memory lie four floats apart from a multiple of 32, so that neighbours
// read other banks. Legend: L tokens with padding, K and V head sizes, t a row (query), j a column (key).
#include "common.cuh"

#ifndef LENGTH
#define LENGTH 40  // a multiple of 8, up to 64
#endif
#ifndef KEY
#define KEY 64  // a multiple of 8
#endif
#ifndef VALUE
#define VALUE 64  // a multiple of 8
#endif

static constexpr int L = LENGTH, K = KEY, V = VALUE, TILES = L / 4;
static constexpr int THREADS = 128, BACKWARD_THREADS = 256;
static constexpr int KP = K + 4, VP = V + 4, LP = L + 4;  // floats of a row in shared memory
static_assert(L % 8 == 0 && L <= 64 && K % 8 == 0 && V % 8 == 0 && 2 * L <= THREADS, "sizes");

struct ShortParameters {
    int heads, tokens;
    float key_scale, epsilon;
    const float *query, *key, *value;         // [B, T, H, K or V]
    const float *input_gate, *forget_gate;    // [B, T, H]
    const unsigned char* resets;              // [B, T], or null
    float* output;                            // [B, T, H, V]
    float *norm, *inverse_denominator;        // [B, H, T]
    const float* output_gradient;             // [B, T, H, V]
    float *query_gradient, *key_gradient, *value_gradient;
    float *input_gate_gradient, *forget_gate_gradient;
};

// What follows from the gates, a number a token.
struct Gates {
    int start[L];  // where the token's document begins here; -1: before the first token
    float forget_sum[L], exponent[L], maximum[L];
    float shared[L];
};

// Inclusive scan over tokens, anew in each document; REVERSE: from the last one back. All threads call it.
template <bool MAXIMUM, bool REVERSE>
DEVICE float scan(float value, const int* start, float* shared) {
    const int token = threadIdx.x;
    if (token < L) shared[token] = value;
    __syncthreads();
#pragma unroll
    for (int offset = 1; offset < L; offset <<= 1) {
        const int other = REVERSE ? token + offset : token - offset;
        bool takes = token < L && other >= 0 && other < L;
        if (takes) takes = REVERSE ? start[other] <= token : other >= start[token];
        const float read = takes ? shared[other] : 0.0f;
        __syncthreads();
        if (takes) {
            value = MAXIMUM ? fmaxf(value, read) : value + read;
            shared[token] = value;
        }
        __syncthreads();
    }
    return value;
}

DEVICE void read_gates(const ShortParameters& p, Gates& gates) {
    const int token = threadIdx.x, batch = blockIdx.y;
    const bool inside = token < p.tokens;
    const i64 at = ((i64)batch * p.tokens + token) * p.heads + blockIdx.x;
    if (token < L) gates.start[token] = -1;
    if (p.resets != nullptr) {
        const bool begins = inside && p.resets[(i64)batch * p.tokens + token];
        if (token < L) gates.start[token] = begins ? token : -1;
        __syncthreads();
        int start = -1;
        for (int other = token; token < L && other >= 0 && start < 0; other--) start = gates.start[other];
        __syncthreads();
        if (token < L) gates.start[token] = start;
    }
    __syncthreads();
    const float sum = scan<false, false>(inside ? log_sigmoid(p.forget_gate[at]) : 0.0f, gates.start, gates.shared);
    // The clamp keeps a gate of minus infinity from turning into infinity minus infinity.
    const float exponent = inside ? fmaxf(p.input_gate[at], -1e30f) - sum : negative_infinity();
    const float maximum = scan<true, false>(exponent, gates.start, gates.shared);
    if (token < L) gates.forget_sum[token] = sum, gates.exponent[token] = exponent, gates.maximum[token] = maximum;
    __syncthreads();
}

// D of a pair; 0 where the row does not see the column.
DEVICE float gate_of(const Gates& gates, int row, int column, float key_scale) {
    const bool counts = column <= row && column >= gates.start[row];
    return counts ? expf(gates.exponent[column] - gates.maximum[row]) * key_scale : 0.0f;
}

DEVICE float4 four(const float* source) { return *reinterpret_cast<const float4*>(source); }
DEVICE void put(float* destination, const float (&x)[4]) { *reinterpret_cast<float4*>(destination) = make_float4(x[0], x[1], x[2], x[3]); }

// Rows of WIDTH numbers, zeros after the last token; each times `factor` of its token, where there is one.
template <int WIDTH, int STRIDE>
DEVICE void read_rows(float* rows, const float* source, const ShortParameters& p, const float* factor) {
    const float* first = source + ((i64)blockIdx.y * p.tokens * p.heads + blockIdx.x) * WIDTH;
    for (int index = threadIdx.x; index < L * (WIDTH / 4); index += STRIDE) {
        const int token = index / (WIDTH / 4), column = index % (WIDTH / 4) * 4;
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (token < p.tokens) x = four(first + (i64)token * p.heads * WIDTH + column);
        if (factor != nullptr) {
            const float by = token < p.tokens ? factor[token] : 0.0f;
            x.x *= by, x.y *= by, x.z *= by, x.w *= by;
        }
        *reinterpret_cast<float4*>(rows + token * (WIDTH + 4) + column) = x;
    }
}

// Four rows of a times four rows of b, both WIDTH wide.
template <int WIDTH>
DEVICE void multiply_rows(float (&sums)[4][4], const float* a, const float* b) {
#pragma unroll 2
    for (int inner = 0; inner < WIDTH; inner += 4) {
        float4 x[4], y[4];
#pragma unroll
        for (int n = 0; n < 4; n++) x[n] = four(a + n * (WIDTH + 4) + inner), y[n] = four(b + n * (WIDTH + 4) + inner);
#pragma unroll
        for (int row = 0; row < 4; row++)
#pragma unroll
            for (int column = 0; column < 4; column++)
                sums[row][column] += x[row].x * y[column].x + x[row].y * y[column].y + x[row].z * y[column].z + x[row].w * y[column].w;
    }
}

// Which of the tiles on and below the diagonal, row by row.
DEVICE void triangle(int index, int& row, int& column) {
    row = (int)((sqrtf(8.0f * index + 1.0f) - 1.0f) * 0.5f);
    while ((row + 1) * (row + 2) / 2 <= index) row++;
    while (row * (row + 1) / 2 > index) row--;
    column = index - row * (row + 1) / 2;
}

// Rows of a tile's pairs times rows of PITCH floats: sum over j <= t of pairs[t][j] x[j].
template <int PITCH>
DEVICE void multiply_below(float (&sums)[4][4], const float* pairs, const float* x, int row_tile, int column) {
    for (int inner = 0; inner <= row_tile * 4; inner += 4) {
        float weights[4][4];
#pragma unroll
        for (int row = 0; row < 4; row++) {
            const float4 read = four(pairs + (row_tile * 4 + row) * LP + inner);
            weights[row][0] = read.x, weights[row][1] = read.y, weights[row][2] = read.z, weights[row][3] = read.w;
        }
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float4 y = four(x + (inner + n) * PITCH + column);
#pragma unroll
            for (int row = 0; row < 4; row++) {
                sums[row][0] += weights[row][n] * y.x, sums[row][1] += weights[row][n] * y.y;
                sums[row][2] += weights[row][n] * y.z, sums[row][3] += weights[row][n] * y.w;
            }
        }
    }
}

// The other way: sum over t >= j of pairs[t][j] x[t], for four columns j.
template <int PITCH>
DEVICE void multiply_above(float (&sums)[4][4], const float* pairs, const float* x, int column_tile, int column) {
#pragma unroll 4
    for (int token = column_tile * 4; token < L; token++) {
        const float4 weight = four(pairs + token * LP + column_tile * 4), y = four(x + token * PITCH + column);
        const float weights[4] = {weight.x, weight.y, weight.z, weight.w};
#pragma unroll
        for (int row = 0; row < 4; row++) {
            sums[row][0] += weights[row] * y.x, sums[row][1] += weights[row] * y.y;
            sums[row][2] += weights[row] * y.z, sums[row][3] += weights[row] * y.w;
        }
    }
}

// Four rows of four numbers to a tensor [B, T, H, WIDTH].
template <int WIDTH>
DEVICE void write_tile(float* destination, const ShortParameters& p, int row_tile, int column, const float (&x)[4][4]) {
    float* first = destination + ((i64)blockIdx.y * p.tokens * p.heads + blockIdx.x) * WIDTH + column;
#pragma unroll
    for (int row = 0; row < 4; row++)
        if (row_tile * 4 + row < p.tokens) put(first + (i64)(row_tile * 4 + row) * p.heads * WIDTH, x[row]);
}

// The sum of a row of pairs up to its own tile, times that of another matrix where there is one: two neighbouring lanes a row.
DEVICE float sum_row(const float* pairs, const float* others, int row) {
    float sum = 0.0f;
    for (int inner = threadIdx.x % 2 * 4; inner <= row / 4 * 4; inner += 8) {
        const float4 x = four(pairs + row * LP + inner);
        if (others == nullptr) {
            sum += x.x + x.y + (x.z + x.w);
        } else {
            const float4 y = four(others + row * LP + inner);
            sum += x.x * y.x + x.y * y.y + (x.z * y.z + x.w * y.w);
        }
    }
    return sum + __shfl_xor_sync(0xffffffffu, sum, 1);
}

extern "C" __global__ void __launch_bounds__(THREADS) mlstm_short(const __grid_constant__ ShortParameters p) {
    extern __shared__ __align__(16) float memory[];
    __shared__ Gates gates;
    __shared__ float inverse[L];
    float *query = memory, *key = query + L * KP, *value = key + L * KP, *scores = value + L * VP;
    read_rows<K, THREADS>(query, p.query, p, nullptr);
    read_rows<K, THREADS>(key, p.key, p, nullptr);
    read_rows<V, THREADS>(value, p.value, p, nullptr);
    read_gates(p, gates);
    for (int index = threadIdx.x; index < TILES * (TILES + 1) / 2; index += THREADS) {
        int row_tile, column_tile;
        triangle(index, row_tile, column_tile);
        float sums[4][4] = {};
        multiply_rows<K>(sums, query + row_tile * 4 * KP, key + column_tile * 4 * KP);
#pragma unroll
        for (int row = 0; row < 4; row++) {
#pragma unroll
            for (int column = 0; column < 4; column++) {
                const float gate = gate_of(gates, row_tile * 4 + row, column_tile * 4 + column, p.key_scale);
                sums[row][column] = gate != 0.0f ? sums[row][column] * gate : 0.0f;
            }
            put(scores + (row_tile * 4 + row) * LP + column_tile * 4, sums[row]);
        }
    }
    __syncthreads();
    const int row = threadIdx.x / 2;
    const float norm = row < L ? sum_row(scores, nullptr, row) : sum_row(scores, nullptr, 0);
    if (row < L && threadIdx.x % 2 == 0) {
        const float floor = expf(-(gates.forget_sum[row] + gates.maximum[row]));
        inverse[row] = 1.0f / (fmaxf(fabsf(norm), floor) + p.epsilon);
        if (row < p.tokens && p.norm != nullptr) {
            const i64 at = ((i64)blockIdx.y * p.heads + blockIdx.x) * p.tokens + row;
            p.norm[at] = norm, p.inverse_denominator[at] = inverse[row];
        }
    }
    __syncthreads();
    for (int index = threadIdx.x; index < TILES * (V / 4); index += THREADS) {
        // The longest rows first.
        const int row_tile = TILES - 1 - index / (V / 4), column = index % (V / 4) * 4;
        float sums[4][4] = {};
        multiply_below<VP>(sums, scores, value, row_tile, column);
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[n][e] *= inverse[row_tile * 4 + n];
        write_tile<V>(p.output, p, row_tile, column, sums);
    }
}

extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS) mlstm_short_backward(const __grid_constant__ ShortParameters p) {
    extern __shared__ __align__(16) float memory[];
    __shared__ Gates gates;
    __shared__ float norm_gradient[L], row_sums[L], columns[2][L];
    float *query = memory, *key = query + L * KP, *value = key + L * KP, *gradient = value + L * VP;
    float *scores = gradient + L * VP, *pairs = scores + L * LP;
    const i64 of_head = ((i64)blockIdx.y * p.heads + blockIdx.x) * p.tokens;
    read_rows<K, BACKWARD_THREADS>(query, p.query, p, nullptr);
    read_rows<K, BACKWARD_THREADS>(key, p.key, p, nullptr);
    read_rows<V, BACKWARD_THREADS>(value, p.value, p, nullptr);
    read_rows<V, BACKWARD_THREADS>(gradient, p.output_gradient, p, p.inverse_denominator + of_head);
    read_gates(p, gates);
    // S and P.
    static constexpr int TRIANGLE = TILES * (TILES + 1) / 2;
    for (int index = threadIdx.x; index < 2 * TRIANGLE; index += BACKWARD_THREADS) {
        int row_tile, column_tile;
        triangle(index % TRIANGLE, row_tile, column_tile);
        float sums[4][4] = {};
        if (index < TRIANGLE) {
            multiply_rows<K>(sums, query + row_tile * 4 * KP, key + column_tile * 4 * KP);
#pragma unroll
            for (int row = 0; row < 4; row++)
#pragma unroll
                for (int column = 0; column < 4; column++) {
                    const float gate = gate_of(gates, row_tile * 4 + row, column_tile * 4 + column, p.key_scale);
                    sums[row][column] = gate != 0.0f ? sums[row][column] * gate : 0.0f;
                }
        } else {
            multiply_rows<V>(sums, gradient + row_tile * 4 * VP, value + column_tile * 4 * VP);
        }
        float* tile = (index < TRIANGLE ? scores : pairs) + row_tile * 4 * LP + column_tile * 4;
#pragma unroll
        for (int row = 0; row < 4; row++) put(tile + row * LP, sums[row]);
    }
    __syncthreads();
    const int row = threadIdx.x / 2;
    const float dot = sum_row(scores, pairs, row < L ? row : 0);
    if (row < L && threadIdx.x % 2 == 0) {
        const float norm = row < p.tokens ? p.norm[of_head + row] : 0.0f;
        const float floor = expf(-(gates.forget_sum[row] + gates.maximum[row]));
        const float inverse = row < p.tokens ? p.inverse_denominator[of_head + row] : 0.0f;
        // h = num / den: d den = -(dh . h) / den, and `dot` is dh . num / den.
        const float by_norm = row < p.tokens && fabsf(norm) > floor ? (norm > 0.0f ? -dot : dot) * inverse : 0.0f;
        norm_gradient[row] = by_norm;
        row_sums[row] = dot + by_norm * norm;
    }
    __syncthreads();
    // Sums of the columns of (P + dnorm) S, in two halves of the tokens.
    if (threadIdx.x < 2 * L) {
        const int half = threadIdx.x / L, column = threadIdx.x % L;
        float sum = 0.0f;
        const int middle = L / 2, begin = half == 0 ? column / 4 * 4 : max(column / 4 * 4, middle), end = half == 0 ? middle : L;
        for (int token = begin; token < end; token++)
            sum += (pairs[token * LP + column] + norm_gradient[token]) * scores[token * LP + column];
        columns[half][column] = sum;
    }
    __syncthreads();
    // G in place of P.
    for (int index = threadIdx.x; index < L * L; index += BACKWARD_THREADS) {
        const int token = index / L, column = index % L;
        if (column / 4 > token / 4) continue;
        const float gate = gate_of(gates, token, column, p.key_scale);
        float* pair = pairs + token * LP + column;
        *pair = gate != 0.0f ? (*pair + norm_gradient[token]) * gate : 0.0f;
    }
    const int token = threadIdx.x;
    const float column_sum = token < L ? columns[0][token] + columns[1][token] : 0.0f;
    const float after = scan<false, true>(token < L ? row_sums[token] - column_sum : 0.0f, gates.start, gates.shared);
    if (token < p.tokens) {
        const i64 at = ((i64)blockIdx.y * p.tokens + token) * p.heads + blockIdx.x;
        // Nothing stands before a document's first token that its forget gate could scale.
        const bool begins = token == max(gates.start[token], 0);
        p.input_gate_gradient[at] = column_sum;
        p.forget_gate_gradient[at] = begins ? 0.0f : after * sigmoid(-p.forget_gate[at]);
    }
    // dQ, dK and dV, a tile a thread.
    static constexpr int OF_KEYS = TILES * (K / 4), OF_VALUES = TILES * (V / 4);
    for (int index = threadIdx.x; index < 2 * OF_KEYS + OF_VALUES; index += BACKWARD_THREADS) {
        float sums[4][4] = {};
        if (index < OF_KEYS) {
            const int row_tile = TILES - 1 - index / (K / 4), at = index % (K / 4) * 4;
            multiply_below<KP>(sums, pairs, key, row_tile, at);
            write_tile<K>(p.query_gradient, p, row_tile, at, sums);
        } else if (index < 2 * OF_KEYS) {
            const int column_tile = (index - OF_KEYS) / (K / 4), at = (index - OF_KEYS) % (K / 4) * 4;
            multiply_above<KP>(sums, pairs, query, column_tile, at);
            write_tile<K>(p.key_gradient, p, column_tile, at, sums);
        } else {
            const int own = index - 2 * OF_KEYS, column_tile = own / (V / 4), at = own % (V / 4) * 4;
            multiply_above<VP>(sums, scores, gradient, column_tile, at);
            write_tile<V>(p.value_gradient, p, column_tile, at, sums);
        }
    }
}
