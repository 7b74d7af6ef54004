// Few rows times the transpose of a large matrix, as in generation: the large one is read once, from beginning to end, as it lies.
// Packing it, as the product of many rows does, would cost more than the product.
//
// An element is summed in the same order whatever the number of rows and of threads.
#pragma once

#include <omp.h>

#include "abi.h"
#include "vector.h"

namespace XLSTM_ISA {
namespace {

constexpr long kFewRows = 16;       // fewer than this
constexpr long kStreams = 4;        // rows of the large matrix that are read side by side
constexpr long kAloneBytes = 1 << 19;  // what one thread reads sooner than a second one wakes up

template <typename T>
static bool has_few_rows(const GemmProblem<T>& p) {
  return p.m < kFewRows && p.a_column == 1 && p.b_row == 1 && p.k >= VectorOf<T>::kLanes;
}

// kRows rows of A times `columns` (at most kStreams) rows of B's transpose.
template <typename T, int kRows, int kColumns>
static void few_rows_tile(const GemmProblem<T>& p, long i, long j) {
  constexpr long kLanes = VectorOf<T>::kLanes;
  typedef typename VectorOf<T>::Type V;
  typedef typename VectorOf<T>::Unaligned U;
  V sums[kRows][kColumns] = {};
  const T* a = p.a + i * p.a_row;
  const T* b = p.b + j * p.b_column;
  const long whole = p.k / kLanes * kLanes;
  for (long k = 0; k < whole; k += kLanes) {
    V row[kRows];
    for (int r = 0; r < kRows; ++r) {
      row[r] = *reinterpret_cast<const U*>(a + r * p.a_row + k);
    }
    for (int c = 0; c < kColumns; ++c) {
      const V column = *reinterpret_cast<const U*>(b + c * p.b_column + k);
      for (int r = 0; r < kRows; ++r) {
        sums[r][c] += row[r] * column;
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) {
      T sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        sum += sums[r][c][lane];
      }
      for (long k = whole; k < p.k; ++k) {
        sum += a[r * p.a_row + k] * b[c * p.b_column + k];
      }
      T* target = p.c + (i + r) * p.c_row + j + c;
      *target = p.beta == T(0) ? p.alpha * sum : p.alpha * sum + p.beta * *target;
    }
  }
}

template <typename T, int kColumns>
static void few_rows_columns(const GemmProblem<T>& p, long j) {
  long i = 0;
  for (; i + 4 <= p.m; i += 4) {
    few_rows_tile<T, 4, kColumns>(p, i, j);
  }
  for (; i < p.m; ++i) {
    few_rows_tile<T, 1, kColumns>(p, i, j);
  }
}

template <typename T>
static void gemm_rows(const GemmProblem<T>& p, long threads) {
  const bool alone = p.n * p.k * static_cast<long>(sizeof(T)) < kAloneBytes;
  const long blocks = p.n / kStreams;
  const long used = alone || threads < 1 ? 1 : threads;
#pragma omp parallel num_threads(static_cast<int>(used)) if (used > 1)
  {
    flush_denormals();
#pragma omp for schedule(static)
    for (long block = 0; block < blocks; ++block) {
      few_rows_columns<T, kStreams>(p, block * kStreams);
    }
  }
  for (long j = blocks * kStreams; j < p.n; ++j) {
    few_rows_columns<T, 1>(p, j);
  }
}

}  // namespace
}  // namespace XLSTM_ISA
