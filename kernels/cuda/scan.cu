// Scans whose state decays element by element, in float32: a thread is a channel of a sequence and goes through time alone.
//
//     linear scan      h_t = a_t h_{t-1} + x_t                 HGRN
//     wkv              a weighted mean of values, see below    RWKV-4
//
// wkv: numerator a and denominator b are kept divided by exp(m), m being the largest exponent so far:
//     m' = max(m, u + k_t)     y_t = (exp(m - m') a + exp(u + k_t - m') v_t) / (exp(m - m') b + exp(u + k_t - m'))
//     m" = max(m - w, k_t)     a <- exp(m - w - m") a + exp(k_t - m") v_t,     b likewise with 1
// m only scales, and has no gradient.
//
// Backward passes go through time once, from the end; the states that they need are computed again, CHUNK steps at a time,
// from those that the forward pass saved at the beginning of each chunk.
//
// Reading ahead: the loads of STEPS steps stand before their arithmetic, so that latencies overlap.
//
// Legend: B batch, T tokens, D channels.
#include "common.cuh"

static constexpr int THREADS = 128;
static constexpr int STEPS = 8;
static constexpr int CHUNK = 16;  // `SAVED_EVERY` of src/scan.rs
static constexpr float NOTHING = -1e38f;

struct ScanParameters {
    int batch, tokens, width;
    int unused;
    const unsigned char* resets;  // [B, T], or null
    // linear scan: a, x [B, T, D]; h before [B, D] or null; h [B, T, D]
    // wkv: w, u [D], k, v [B, T, D]; a, b, m before [B, D]; y, a, b, m after, three times saved [B, chunks, D]
    const float* inputs[4];
    const float* initial[3];
    float* output;
    float* last[3];
    float* saved[3];
    // Gradients of the outputs, then of the inputs in the order above, of w and u as [B, D].
    const float* output_gradient;
    const float* last_gradient[2];
    float* gradients[4];
    float* initial_gradient[2];
};

struct Channel {
    int b, d;
    bool inside;
    i64 line;   // of [B, D]
    i64 first;  // of [B, T, D] at step 0
};

DEVICE Channel channel_of(const ScanParameters& p) {
    const int d = blockIdx.x * THREADS + threadIdx.x, b = blockIdx.y;
    return {b, d, d < p.width, (i64)b * p.width + d, (i64)b * p.tokens * p.width + d};
}

DEVICE bool is_reset(const ScanParameters& p, int b, int t) {
    return p.resets != nullptr && p.resets[(i64)b * p.tokens + t] != 0;
}

DEVICE int chunks_of(const ScanParameters& p) { return (p.tokens + CHUNK - 1) / CHUNK; }

// Numbers of `source` at steps from, from + 1, ... of a channel; 0 outside of the sequence.
template <int COUNT>
DEVICE void read_steps(float (&values)[COUNT], const float* source, const ScanParameters& p, const Channel& c, int from) {
#pragma unroll
    for (int index = 0; index < COUNT; index++) {
        const int t = from + index;
        values[index] = t >= 0 && t < p.tokens ? source[c.first + (i64)t * p.width] : 0.0f;
    }
}

// --- linear scan ---

extern "C" __global__ void __launch_bounds__(THREADS) linear_scan_forward(const __grid_constant__ ScanParameters p) {
    const Channel c = channel_of(p);
    if (!c.inside) return;
    float h = p.initial[0] == nullptr ? 0.0f : p.initial[0][c.line];
    for (int from = 0; from < p.tokens; from += STEPS) {
        float a[STEPS], x[STEPS];
        read_steps(a, p.inputs[0], p, c, from);
        read_steps(x, p.inputs[1], p, c, from);
#pragma unroll
        for (int index = 0; index < STEPS; index++) {
            const int t = from + index;
            if (t >= p.tokens) break;
            h = is_reset(p, c.b, t) ? x[index] : a[index] * h + x[index];
            p.output[c.first + (i64)t * p.width] = h;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) linear_scan_backward(const __grid_constant__ ScanParameters p) {
    const Channel c = channel_of(p);
    if (!c.inside) return;
    float flow = 0.0f;
    for (int end = p.tokens; end > 0; end -= STEPS) {
        const int from = end - STEPS;
        float a[STEPS], before[STEPS], upstream[STEPS];
        read_steps(a, p.inputs[0], p, c, from);
        read_steps(before, p.output, p, c, from - 1);
        read_steps(upstream, p.output_gradient, p, c, from);
#pragma unroll
        for (int index = STEPS - 1; index >= 0; index--) {
            const int t = from + index;
            if (t < 0) break;
            const bool reset = is_reset(p, c.b, t);
            float left = before[index];
            if (t == 0) left = p.initial[0] == nullptr ? 0.0f : p.initial[0][c.line];
            flow += upstream[index];
            p.gradients[1][c.first + (i64)t * p.width] = flow;
            p.gradients[0][c.first + (i64)t * p.width] = reset ? 0.0f : flow * left;
            flow = reset ? 0.0f : flow * a[index];
        }
    }
    if (p.initial_gradient[0] != nullptr) p.initial_gradient[0][c.line] = flow;
}

// --- wkv ---

struct Mean {
    float a, b, m;
};

struct Shares {
    float left, in;
};

DEVICE Shares advance(Mean& s, float omega, float k, float v) {
    const float m = fmaxf(s.m - omega, k);
    const Shares shares{expf(s.m - omega - m), expf(k - m)};
    s = {shares.left * s.a + shares.in * v, shares.left * s.b + shares.in, m};
    return shares;
}

extern "C" __global__ void __launch_bounds__(THREADS) wkv_forward(const __grid_constant__ ScanParameters p) {
    const Channel c = channel_of(p);
    if (!c.inside) return;
    const float omega = p.inputs[0][c.d], bonus = p.inputs[1][c.d];
    Mean s{p.initial[0][c.line], p.initial[1][c.line], p.initial[2][c.line]};
    for (int from = 0; from < p.tokens; from += STEPS) {
        float k[STEPS], v[STEPS];
        read_steps(k, p.inputs[2], p, c, from);
        read_steps(v, p.inputs[3], p, c, from);
#pragma unroll
        for (int index = 0; index < STEPS; index++) {
            const int t = from + index;
            if (t >= p.tokens) break;
            if (is_reset(p, c.b, t)) s = {0.0f, 0.0f, NOTHING};
            if (p.saved[0] != nullptr && t % CHUNK == 0) {
                const i64 at = ((i64)c.b * chunks_of(p) + t / CHUNK) * p.width + c.d;
                p.saved[0][at] = s.a, p.saved[1][at] = s.b, p.saved[2][at] = s.m;
            }
            const float top = fmaxf(s.m, bonus + k[index]);
            const float past = expf(s.m - top), now = expf(bonus + k[index] - top);
            p.output[c.first + (i64)t * p.width] = (past * s.a + now * v[index]) / (past * s.b + now);
            advance(s, omega, k[index], v[index]);
        }
    }
    p.last[0][c.line] = s.a, p.last[1][c.line] = s.b, p.last[2][c.line] = s.m;
}

extern "C" __global__ void __launch_bounds__(THREADS) wkv_backward(const __grid_constant__ ScanParameters p) {
    const Channel c = channel_of(p);
    if (!c.inside) return;
    const float omega = p.inputs[0][c.d], bonus = p.inputs[1][c.d];
    float da = p.last_gradient[0] == nullptr ? 0.0f : p.last_gradient[0][c.line];
    float db = p.last_gradient[1] == nullptr ? 0.0f : p.last_gradient[1][c.line];
    float omega_sum = 0.0f, bonus_sum = 0.0f;
    for (int chunk = chunks_of(p) - 1; chunk >= 0; chunk--) {
        const i64 at = ((i64)c.b * chunks_of(p) + chunk) * p.width + c.d;
        float k[CHUNK], v[CHUNK], upstream[CHUNK];
        read_steps(k, p.inputs[2], p, c, chunk * CHUNK);
        read_steps(v, p.inputs[3], p, c, chunk * CHUNK);
        read_steps(upstream, p.output_gradient, p, c, chunk * CHUNK);
        Mean s{p.saved[0][at], p.saved[1][at], p.saved[2][at]}, before[CHUNK];
#pragma unroll
        for (int index = 0; index < CHUNK; index++) {
            const int t = chunk * CHUNK + index;
            if (t < p.tokens && is_reset(p, c.b, t)) s = {0.0f, 0.0f, NOTHING};
            before[index] = s;
            advance(s, omega, k[index], v[index]);
        }
#pragma unroll
        for (int index = CHUNK - 1; index >= 0; index--) {
            const int t = chunk * CHUNK + index;
            if (t >= p.tokens) continue;
            Mean next = before[index];
            const Mean old = next;
            const Shares shares = advance(next, omega, k[index], v[index]);
            const float top = fmaxf(old.m, bonus + k[index]);
            const float past = expf(old.m - top), now = expf(bonus + k[index] - top);
            const float denominator = past * old.b + now, dn = upstream[index] / denominator;
            const float dd = -dn * (past * old.a + now * v[index]) / denominator;
            const float own = now * (v[index] * dn + dd);
            bonus_sum += own;
            omega_sum -= shares.left * (old.a * da + old.b * db);
            p.gradients[2][c.first + (i64)t * p.width] = own + shares.in * (v[index] * da + db);
            p.gradients[3][c.first + (i64)t * p.width] = now * dn + shares.in * da;
            da = shares.left * da + past * dn;
            db = shares.left * db + past * dd;
            if (is_reset(p, c.b, t)) da = db = 0.0f;
        }
    }
    p.gradients[0][c.line] = omega_sum;
    p.gradients[1][c.line] = bonus_sum;
    p.initial_gradient[0][c.line] = da;
    p.initial_gradient[1][c.line] = db;
}
