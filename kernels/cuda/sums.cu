// Sums of the columns of a matrix of partial sums, in a fixed order: the last step of every gradient of a parameter.
#include "common.cuh"

struct ColumnParameters {
    int rows, columns;
    const float* values;  // [rows, columns]
    float* sums;          // [columns]
};

static constexpr int WARPS = 32;

// 32 columns a block; each warp takes every 32nd row, and their sums are added in order. There are few blocks and many rows:
// several loads of a warp are under way at once.
extern "C" __global__ void __launch_bounds__(WARPS * WARP) column_sums(const __grid_constant__ ColumnParameters p) {
    __shared__ float parts[WARPS][WARP];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (column < p.columns)
#pragma unroll 8
        for (int row = warp; row < p.rows; row += WARPS) sum += p.values[(i64)row * p.columns + column];
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || column >= p.columns) return;
    for (int other = 1; other < WARPS; other++) sum += parts[other][lane];
    p.sums[column] = sum;
}
