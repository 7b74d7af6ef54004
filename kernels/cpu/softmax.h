// Cross-entropy of rows of logits and its gradient, in place.
#pragma once

#include "abi.h"
#include "vector.h"

namespace XLSTM_ISA {
namespace {

// Returns the cross-entropy of a row; if `scale` is not zero, the row becomes scale (softmax - one at the target).
template <typename T>
static T differentiate_row(T* row, long size, int64_t target, T scale) {
  T top = row[0];
#pragma omp simd reduction(max : top)
  for (long j = 0; j < size; ++j) {
    top = row[j] > top ? row[j] : top;
  }
  const T chosen = row[target];
  // In blocks, so that a sum of fifty thousand terms loses no digits.
  double total = 0;
  for (long start = 0; start < size; start += 1024) {
    const long end = start + 1024 < size ? start + 1024 : size;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = start; j < end; ++j) {
      row[j] = exponential(row[j] - top);
      sum += row[j];
    }
    total += static_cast<double>(sum);
  }
  if (scale != T(0)) {
    const T factor = static_cast<T>(static_cast<double>(scale) / total);
#pragma omp simd
    for (long j = 0; j < size; ++j) {
      row[j] *= factor;
    }
    row[target] -= scale;
  }
  return static_cast<T>(log(total)) + (top - chosen);
}

template <typename T>
static void cross_entropy(const CrossEntropyProblem<T>* problem) {
  const CrossEntropyProblem<T>& p = *problem;
#pragma omp parallel
  {
    flush_denormals();
#pragma omp for schedule(dynamic, 4)
    for (long r = 0; r < p.rows; ++r) {
      T* row = p.logits + r * p.vocabulary;
      if (p.targets[r] == p.ignore_index) {
        p.losses[r] = 0;
        if (p.scale != T(0)) {
          memset(row, 0, sizeof(T) * static_cast<size_t>(p.vocabulary));
        }
      } else {
        p.losses[r] = differentiate_row(row, p.vocabulary, p.targets[r], p.scale);
      }
    }
  }
}

}  // namespace
}  // namespace XLSTM_ISA
