// Rates of this machine and of our matrix products: multiply-adds alone, the tile of kernels/cpu/gemm.h with operands
// in the caches, and the three products of a linear map (y = x Wᵀ and both gradients) as the models have them.
//
//   docs/benchmarks/cpu/products.sh > docs/benchmarks/cpu/epyc-zen4/products.txt
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <chrono>

#include "../../kernels/cpu/gemm_parallel.h"

using namespace XLSTM_ISA;

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static float* filled(long count) {
  const size_t page = 2 << 20;
  const size_t bytes = (sizeof(float) * static_cast<size_t>(count) + page - 1) / page * page;
  float* data = static_cast<float*>(aligned_alloc(page, bytes));
  madvise(data, bytes, MADV_HUGEPAGE);
  for (long i = 0; i < count; ++i) {
    data[i] = static_cast<float>(i % 1009) / 1009.0f - 0.5f;
  }
  return data;
}

template <typename Run>
static double best_of(int times, const Run& run) {
  double best = 1e9;
  for (int i = 0; i < times; ++i) {
    const double begin = now();
    run();
    best = std::min(best, now() - begin);
  }
  return best;
}

// Independent multiply-adds in registers: nothing can be faster.
static void multiply_adds(int threads) {
  typedef VectorOf<float>::Type V;
  constexpr long kSteps = 4000000;
  constexpr int kSums = 24;
  float sink = 0;
  const double seconds = best_of(5, [&] {
#pragma omp parallel num_threads(threads) reduction(+ : sink)
    {
      V sums[kSums];
      for (int j = 0; j < kSums; ++j) {
        sums[j] = V{} + static_cast<float>(j);
      }
      const V factor = V{} + 0.99999f, term = V{} + 1e-9f;
      for (long i = 0; i < kSteps; ++i) {
#pragma GCC unroll 24
        for (int j = 0; j < kSums; ++j) {
          sums[j] = sums[j] * factor + term;
        }
      }
      for (const V& sum : sums) {
        sink += sum[0];
      }
    }
  });
  printf("multiply-adds, %d threads: %.1f GFLOP/s%s\n", threads,
         2.0 * threads * kSums * kSteps * VectorOf<float>::kLanes / seconds / 1e9, sink > 1e30f ? "!" : "");
}

// One core: rows of A and a panel of B in the second-level cache.
static void tile(long depth) {
  constexpr long kRows = 128, kWidth = kPanelVectors * VectorOf<float>::kLanes;
  float* a = filled(kRows * depth);
  float* panel = filled(depth * kWidth);
  float* c = filled(kRows * kWidth);
  const double by_rows = best_of(20, [&] {
    for (int i = 0; i < 20; ++i) {
      gemm_panel<float, false>(kRows, rows<float>(a, depth), panel, depth, 1.0f, 1.0f, c, kWidth, kWidth);
    }
  });
  const double by_columns = best_of(20, [&] {
    for (int i = 0; i < 20; ++i) {
      gemm_panel<float, true>(kRows, transposed<float>(a, kRows), panel, depth, 1.0f, 1.0f, c, kWidth, kWidth);
    }
  });
  const double operations = 20 * 2.0 * kRows * depth * kWidth / 1e9;
  printf("tile, depth %ld, 1 thread: A by rows %.1f, by columns %.1f GFLOP/s\n", depth, operations / by_rows,
         operations / by_columns);
  free(a);
  free(panel);
  free(c);
}

static void multiply(float* c, long m, long n, long k, Matrix<float> a, Matrix<float> b) {
  const GemmProblem<float> problem{m, n, k, 1.0f, 0.0f, a.data, a.row, a.column, b.data, b.row, b.column, c, n};
  gemm_parallel(&problem);
}

// x and y come from memory, as between the layers of a model.
static void linear_map(long count, long inputs, long outputs) {
  float* x = filled(count * inputs);
  float* weight = filled(outputs * inputs);
  float* y = filled(count * outputs);
  float* change = filled(outputs * inputs);
  float* other = filled(32 << 20);
  double best[3] = {1e9, 1e9, 1e9};
  for (int i = 0; i < 15; ++i) {
    const auto timed = [&](int which, const auto& run) {
      for (long j = 0; j < (32 << 20); j += 16) {
        other[j] += 1;
      }
      best[which] = std::min(best[which], best_of(1, run));
    };
    timed(0, [&] { multiply(y, count, outputs, inputs, rows<float>(x, inputs), transposed<float>(weight, inputs)); });
    timed(1, [&] { multiply(x, count, inputs, outputs, rows<float>(y, outputs), rows<float>(weight, inputs)); });
    timed(2, [&] {
      multiply(change, outputs, inputs, count, transposed<float>(y, outputs), rows<float>(x, inputs));
    });
    // The product before wrote x.
    for (long j = 0; j < count * inputs; ++j) {
      x[j] = static_cast<float>(j % 1009) / 1009.0f - 0.5f;
    }
  }
  const double operations = 2.0 * static_cast<double>(count * inputs * outputs) / 1e9;
  printf("linear map %ld x %ld -> %ld, %d threads: y %.0f, dx %.0f, dW %.0f GFLOP/s\n", count, inputs, outputs,
         omp_get_max_threads(), operations / best[0], operations / best[1], operations / best[2]);
  free(x);
  free(weight);
  free(y);
  free(change);
  free(other);
}

int main() {
  for (int threads = 1; threads <= omp_get_max_threads(); threads *= 2) {
    multiply_adds(threads);
  }
  for (long depth : {64L, 128L, 256L, 512L, 1024L}) {
    tile(depth);
  }
  linear_map(2048, 256, 1024);
  linear_map(2048, 512, 256);
  linear_map(2048, 768, 3072);
  linear_map(2048, 1536, 768);
  return 0;
}
