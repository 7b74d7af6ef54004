// A product of one token of a few sequences with a matrix, and what stands before it in a block, in one kernel.
//
//   STAGE 0 (up):    sum = residual + delta,  x = LN(sum) (1 + w),            y = W x
//   STAGE 1 (down):  x = (norm(h) (1 + w) + skip c) SiLU(z), norm by head,    y = W x
// The matrix is read once, at the speed of memory; a warp owns ROWS of its rows and has asked for the first of them before x is
// known. x, rounded to bf16 as for whole sequences, every block computes for itself. The mean is taken off before the
// variance, as in residual.cu and pointwise.cu.
//
// Legend: B = BATCH sequences, K = WIDTH numbers in (a multiple of 8), N out, H heads of HEAD = K / H numbers.
#include "common.cuh"

static constexpr int THREADS = 256, WARPS = THREADS / WARP;
static constexpr int LOADS = (WIDTH + 8 * WARP - 1) / (8 * WARP);  // sixteen bytes a lane each, a row
static_assert(WIDTH % 8 == 0 && WIDTH % HEAD == 0, "rows of whole pieces and heads");

struct StepProductParameters {
    int outputs;   // N
    float epsilon;
    i64 gate_stride;         // of `gate`, from sequence to sequence
    const bf16* weight;      // [N, K]
    const float* norm;       // w: [K]
    const float* residual;   // up: [B, K]
    const bf16* delta;       // up: [B, K], or null
    float* sum;              // up: [B, K]
    const bf16* hidden;      // down: h [B, K]
    const bf16* branch;      // down: c [B, K]
    const bf16* gate;        // down: z [B, K]
    const float* skip;       // down: [K]
    bf16* output;            // [B, N]
};

struct Rows {
    uint4 pieces[ROWS][LOADS];
    DEVICE void load(const StepProductParameters& p, int row) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int l = 0; l < LOADS; l++) {
                const int at = (l * WARP + threadIdx.x % WARP) * 8;
                if (row + r < p.outputs && (WIDTH % (8 * WARP) == 0 || at < WIDTH))
                    pieces[r][l] = __ldcs(reinterpret_cast<const uint4*>(p.weight + (i64)(row + r) * WIDTH + at));
                else
                    pieces[r][l] = make_uint4(0, 0, 0, 0);
            }
    }
};

DEVICE void add_products(float& sum, uint4 a, uint4 b) {
    sum += low_float(a.x) * low_float(b.x) + high_float(a.x) * high_float(b.x);
    sum += low_float(a.y) * low_float(b.y) + high_float(a.y) * high_float(b.y);
    sum += low_float(a.z) * low_float(b.z) + high_float(a.z) * high_float(b.z);
    sum += low_float(a.w) * low_float(b.w) + high_float(a.w) * high_float(b.w);
}

#if STAGE == 0
static constexpr int EACH = (WIDTH + THREADS - 1) / THREADS;  // numbers of x a thread, a sequence

// `parts` is another one in the sum before and after this.
DEVICE float block_sum(float value, float* parts) {
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += parts[warp];
    return sum;
}

DEVICE void prepare(const StepProductParameters& p, bf16* x) {
    __shared__ float parts[2][WARPS];
    float norm[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++)
        if (e * THREADS + threadIdx.x < WIDTH) norm[e] = p.norm[e * THREADS + threadIdx.x];
    wait_for_previous();
    for (int b = 0; b < BATCH; b++) {
        float value[EACH], sum = 0.0f;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            const int at = e * THREADS + threadIdx.x;
            value[e] = 0.0f;
            if (at >= WIDTH) continue;
            value[e] = p.residual[b * WIDTH + at];
            if (p.delta != nullptr) value[e] += to_float(p.delta[b * WIDTH + at]);
            if (blockIdx.x == 0) p.sum[b * WIDTH + at] = value[e];
            sum += value[e];
        }
        const float mean = block_sum(sum, parts[0]) / WIDTH;
        float squares = 0.0f;
#pragma unroll
        for (int e = 0; e < EACH; e++)
            if (e * THREADS + threadIdx.x < WIDTH) squares += (value[e] - mean) * (value[e] - mean);
        const float scale = rsqrtf(block_sum(squares, parts[1]) / WIDTH + p.epsilon);
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            const int at = e * THREADS + threadIdx.x;
            if (at < WIDTH) x[b * WIDTH + at] = to_bf16((value[e] - mean) * scale * (1.0f + norm[e]));
        }
    }
}
#else
// A few warps a head: all of them where there are few heads.
static constexpr int H = WIDTH / HEAD, ALL = BATCH * H;
static constexpr int TEAM = ALL * 8 <= WARPS ? 8 : ALL * 4 <= WARPS ? 4 : ALL * 2 <= WARPS ? 2 : 1;  // warps a head
static constexpr int PAIRS = (HEAD / 2 + TEAM * WARP - 1) / (TEAM * WARP);                           // of a lane

// The sum over a head's warps; `parts` has a place for each of the block's warps.
DEVICE float team_sum(float value, float* parts) {
    value = warp_sum(value);
    if (TEAM == 1) return value;
    const int warp = threadIdx.x / WARP;
    if (threadIdx.x % WARP == 0) parts[warp] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < TEAM; n++) sum += parts[warp / TEAM * TEAM + n];
    return sum;
}

DEVICE u32 pair(const bf16* x) { return *reinterpret_cast<const u32*>(x); }

DEVICE void prepare(const StepProductParameters& p, bf16* x) {
    __shared__ float parts[2][WARPS];
    const int lane = threadIdx.x % (TEAM * WARP);
    float2 norm[PAIRS], skip[PAIRS];
    bool waited = false;
    for (int index = threadIdx.x / (TEAM * WARP); index < (TEAM == 1 ? ALL : WARPS / TEAM); index += WARPS / TEAM) {
        const bool own = index < ALL;
        const int b = own ? index / H : 0, first = own ? index % H * HEAD : 0;
#pragma unroll
        for (int e = 0; e < PAIRS; e++) {
            const int at = (e * TEAM * WARP + lane) * 2;
            if (at >= HEAD) continue;
            norm[e] = *reinterpret_cast<const float2*>(p.norm + first + at);
            skip[e] = *reinterpret_cast<const float2*>(p.skip + first + at);
        }
        if (!waited) wait_for_previous(), waited = true;
        u32 hidden[PAIRS], branch[PAIRS], gate[PAIRS];
        float sum = 0.0f;
#pragma unroll
        for (int e = 0; e < PAIRS; e++) {
            const int at = (e * TEAM * WARP + lane) * 2;
            hidden[e] = branch[e] = gate[e] = 0;
            if (at >= HEAD) continue;
            hidden[e] = pair(p.hidden + b * WIDTH + first + at);
            branch[e] = pair(p.branch + b * WIDTH + first + at);
            gate[e] = pair(p.gate + b * p.gate_stride + first + at);
            sum += low_float(hidden[e]) + high_float(hidden[e]);
        }
        const float mean = team_sum(sum, parts[0]) / HEAD;
        float squares = 0.0f;
#pragma unroll
        for (int e = 0; e < PAIRS; e++) {
            if ((e * TEAM * WARP + lane) * 2 >= HEAD) continue;
            const float low = low_float(hidden[e]) - mean, high = high_float(hidden[e]) - mean;
            squares += low * low + high * high;
        }
        const float scale = rsqrtf(team_sum(squares, parts[1]) / HEAD + p.epsilon);
        if (!own) continue;
#pragma unroll
        for (int e = 0; e < PAIRS; e++) {
            const int at = (e * TEAM * WARP + lane) * 2;
            if (at >= HEAD) continue;
            const float z[2] = {low_float(gate[e]), high_float(gate[e])};
            const float low = (low_float(hidden[e]) - mean) * scale * (1.0f + norm[e].x) + skip[e].x * low_float(branch[e]);
            const float high = (high_float(hidden[e]) - mean) * scale * (1.0f + norm[e].y) + skip[e].y * high_float(branch[e]);
            *reinterpret_cast<u32*>(x + b * WIDTH + first + at) =
                pack_bf16(low * z[0] * fast_sigmoid(z[0]), high * z[1] * fast_sigmoid(z[1]));
        }
    }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS) step_product(const __grid_constant__ StepProductParameters p) {
    __shared__ __align__(16) bf16 x[BATCH * WIDTH];
    const int all = gridDim.x * WARPS * ROWS, lane = threadIdx.x % WARP;
    int row = (blockIdx.x * WARPS + threadIdx.x / WARP) * ROWS;
    Rows rows;
    rows.load(p, row);
    prepare(p, x);
    __syncthreads();
    for (; row < p.outputs; row += all) {
        float sums[ROWS][BATCH] = {};
#pragma unroll
        for (int b = 0; b < BATCH; b++)
#pragma unroll
            for (int l = 0; l < LOADS; l++) {
                const int at = (l * WARP + lane) * 8;
                if (WIDTH % (8 * WARP) != 0 && at >= WIDTH) continue;
                const uint4 piece = *reinterpret_cast<const uint4*>(x + b * WIDTH + at);
#pragma unroll
                for (int r = 0; r < ROWS; r++) add_products(sums[r][b], rows.pieces[r][l], piece);
            }
        if (row + all < p.outputs) rows.load(p, row + all);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const float sum = warp_sum(sums[r][b]);
                if (lane == 0 && row + r < p.outputs) p.output[(i64)b * p.outputs + row + r] = to_bf16(sum);
            }
    }
}
