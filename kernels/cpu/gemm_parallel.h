// Matrix product on all cores, for the large products around the cells: linear maps and the vocabulary.
//
// C is cut into blocks, one task each. A block's part of A that is stored transposed is copied once, so that its
// columns do not lie pages apart. A product with few blocks and a long inner dimension (the gradient of hidden values
// through the vocabulary) is cut along that dimension instead, one part for each thread, and the parts are added in
// order: the result depends on the number of threads, never on their timing.
#pragma once

#include <omp.h>

#include "abi.h"
#include "gemm.h"

namespace XLSTM_ISA {
namespace {

constexpr long kBlockRows = 512;
constexpr long kBlockColumns = 480;

// A with its columns together: [k][i], for `depth` columns k from `start` on.
template <typename T>
static void pack_columns(const Matrix<T>& a, long m, long depth, T* packed) {
  for (long k = 0; k < depth; ++k) {
    memcpy(packed + k * m, a.data + k * a.column, sizeof(T) * static_cast<size_t>(m));
  }
}

// As gemm, but copies a transposed A first.
template <typename T>
static void gemm_block(long m, long n, long k, T alpha, const Matrix<T>& a, const Matrix<T>& b, T beta, T* c,
                       long c_stride) {
  if (a.column == 1) {
    gemm(m, n, k, alpha, a, b, beta, c, c_stride);
    return;
  }
  static thread_local Scratch scratch;
  T* packed = static_cast<T*>(scratch.get(sizeof(T) * static_cast<size_t>(m * kDepth)));
  for (long start = 0; start < k; start += kDepth) {
    const long depth = k - start < kDepth ? k - start : kDepth;
    pack_columns(Matrix<T>{a.data + start * a.column, a.row, a.column}, m, depth, packed);
    gemm(m, n, depth, alpha, transposed(packed, m), Matrix<T>{b.data + start * b.row, b.row, b.column},
         start == 0 ? beta : T(1), c, c_stride);
  }
}

// One part of the inner dimension for each thread, then the sum of the parts.
template <typename T>
static void split_inner(const GemmProblem<T>& p, const Matrix<T>& a, const Matrix<T>& b, long parts) {
  const size_t size = static_cast<size_t>(p.m * p.n);
  T* sums = static_cast<T*>(malloc(sizeof(T) * size * static_cast<size_t>(parts)));
#pragma omp parallel num_threads(static_cast<int>(parts))
  {
    flush_denormals();
#pragma omp for schedule(static, 1)
    for (long part = 0; part < parts; ++part) {
      const long start = p.k * part / parts;
      const long depth = p.k * (part + 1) / parts - start;
      gemm_block(p.m, p.n, depth, p.alpha, Matrix<T>{a.data + start * a.column, a.row, a.column},
                 Matrix<T>{b.data + start * b.row, b.row, b.column}, T(0), sums + size * static_cast<size_t>(part),
                 p.n);
    }
#pragma omp for schedule(static)
    for (long i = 0; i < p.m; ++i) {
      for (long j = 0; j < p.n; ++j) {
        T sum = p.beta == T(0) ? T(0) : p.beta * p.c[i * p.c_row + j];
        for (long part = 0; part < parts; ++part) {
          sum += sums[size * static_cast<size_t>(part) + static_cast<size_t>(i * p.n + j)];
        }
        p.c[i * p.c_row + j] = sum;
      }
    }
  }
  free(sums);
}

static inline long ceiling(long value, long unit) { return (value + unit - 1) / unit; }

template <typename T>
static void gemm_parallel(const GemmProblem<T>* problem) {
  const GemmProblem<T>& p = *problem;
  const Matrix<T> a{p.a, p.a_row, p.a_column};
  const Matrix<T> b{p.b, p.b_row, p.b_column};
  const long threads = omp_in_parallel() ? 1 : omp_get_max_threads();
  long rows = p.m < kBlockRows ? p.m : kBlockRows;
  long columns = p.n < kBlockColumns ? p.n : kBlockColumns;
  // Smaller blocks until there is work for everybody, but not so small that copying B shows.
  while (ceiling(p.m, rows) * ceiling(p.n, columns) < 3 * threads && (rows > 128 || columns > 240)) {
    if (rows > 128 && rows >= columns) {
      rows = ceiling(ceiling(rows, 2), 8) * 8;
    } else if (columns > 240) {
      columns = ceiling(ceiling(columns, 2), 48) * 48;
    } else {
      rows = ceiling(ceiling(rows, 2), 8) * 8;
    }
  }
  if (threads > 1 && p.k >= 16 * (p.m + p.n) && p.m * p.n <= (1 << 20)) {
    split_inner(p, a, b, threads);
    return;
  }
  const long across = ceiling(p.n, columns);
  const long tasks = ceiling(p.m, rows) * across;
#pragma omp parallel num_threads(static_cast<int>(threads < tasks ? threads : tasks))
  {
    flush_denormals();
#pragma omp for schedule(dynamic)
    for (long task = 0; task < tasks; ++task) {
      const long i = task / across * rows;
      const long j = task % across * columns;
      gemm_block(p.m - i < rows ? p.m - i : rows, p.n - j < columns ? p.n - j : columns, p.k, p.alpha,
                 Matrix<T>{a.data + i * a.row, a.row, a.column}, Matrix<T>{b.data + j * b.column, b.row, b.column},
                 p.beta, p.c + i * p.c_row + j, p.c_row);
    }
  }
}

}  // namespace
}  // namespace XLSTM_ISA
