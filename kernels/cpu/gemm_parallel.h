// Matrix product on all cores, for the large products around the cells: linear maps.
//
//   part     of the inner dimension: deep, because every part reads and writes all of C
//   B        of a part is packed once, by all threads together, into panels that all of them read
//   block    of rows, the work of one task: its rows of A meet every panel while they are in the second-level cache;
//            stored by columns they are copied first, since their columns lie pages apart
//
// An element of C is summed in the same order whatever the number of threads.
#pragma once

#include <omp.h>

#include "abi.h"
#include "gemm.h"
#include "gemm_rows.h"

namespace XLSTM_ISA {
namespace {

constexpr long kPartDepth = 1024;
constexpr long kBlockRows = 128;
constexpr long kPackedBytes = 16 << 20;

static inline long ceiling(long value, long unit) { return (value + unit - 1) / unit; }

// How a product is cut.
struct Cut {
  long depth;    // of a part
  long columns;  // of B packed at a time
  long rows;     // of a block
  long groups;   // of panels, when there are fewer blocks than threads can share out
};

template <typename T>
static Cut cut(const GemmProblem<T>& p, long threads) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  Cut c;
  c.depth = ceiling(p.k, ceiling(p.k, kPartDepth));
  const long fitting = kPackedBytes / static_cast<long>(sizeof(T)) / c.depth / kWidth * kWidth;
  c.columns = p.n < fitting ? ceiling(p.n, kWidth) * kWidth : fitting;
  const long blocks = ceiling(ceiling(p.m, kBlockRows), threads) * threads;
  c.rows = ceiling(ceiling(p.m, blocks), kTileRows) * kTileRows;
  const long panels = c.columns / kWidth, wanted = ceiling(2 * threads, ceiling(p.m, c.rows));
  c.groups = wanted < panels ? wanted : panels;
  return c;
}

// Rows of A that are stored by columns, as tiles: [tile][depth][kTileRows].
template <typename T>
static void pack_tiles(const Matrix<T>& a, long m, long depth, T* packed) {
  const long whole = m / kTileRows * kTileRows;
  for (long k = 0; k < depth; ++k) {
    const T* source = a.data + k * a.column;
    for (long i = 0; i < whole; i += kTileRows) {
      memcpy(packed + i * depth + k * kTileRows, source + i, sizeof(T) * kTileRows);
    }
    for (long i = whole; i < m; ++i) {
      packed[whole * depth + k * kTileRows + i - whole] = source[i];
    }
  }
}

// A block of rows times panels of B.
template <typename T>
static void multiply_block(const GemmProblem<T>& p, const Matrix<T>& a, long m, long depth, const T* panels, long n,
                           T beta, T* c) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  static thread_local Scratch scratch;
  T* packed = nullptr;
  // What is used once is not worth a copy.
  if (a.column != 1 && n > kWidth) {
    packed = static_cast<T*>(scratch.get(sizeof(T) * static_cast<size_t>(ceiling(m, kTileRows) * kTileRows * depth)));
    pack_tiles(a, m, depth, packed);
  }
  for (long j = 0; j < n; j += kWidth) {
    const int columns = static_cast<int>(n - j < kWidth ? n - j : kWidth);
    const T* panel = panels + j * depth;
    if (a.column == 1) {
      gemm_panel<T, false>(m, a, panel, depth, p.alpha, beta, c + j, p.c_row, columns);
    } else if (packed == nullptr) {
      gemm_panel<T, true>(m, a, panel, depth, p.alpha, beta, c + j, p.c_row, columns);
    } else {
      for (long i = 0; i < m; i += kTileRows) {
        gemm_panel<T, true>(m - i < kTileRows ? m - i : kTileRows, transposed<T>(packed + i * depth, kTileRows), panel,
                            depth, p.alpha, beta, c + i * p.c_row + j, p.c_row, columns);
      }
    }
  }
}

// Columns `first` to `end` of one part; all threads come here. Who is done first begins to pack the next part, into
// another buffer: nobody waits but for panels to be ready.
template <typename T>
static void multiply_part(const GemmProblem<T>& p, const Cut& cut, long start, long depth, long first, long end,
                          T* packed) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  const Matrix<T> b{p.b + start * p.b_row + first * p.b_column, p.b_row, p.b_column};
  const long panels = ceiling(end - first, kWidth);
#pragma omp for schedule(dynamic)
  for (long panel = 0; panel < panels; ++panel) {
    const long j = panel * kWidth;
    const long columns = end - first - j < kWidth ? end - first - j : kWidth;
    pack_panel(Matrix<T>{b.data + j * b.column, b.row, b.column}, depth, static_cast<int>(columns), packed + j * depth);
  }
  const long tasks = ceiling(p.m, cut.rows) * cut.groups;
#pragma omp for schedule(dynamic) nowait
  for (long task = 0; task < tasks; ++task) {
    const long i = task / cut.groups * cut.rows, group = task % cut.groups;
    const long j = panels * group / cut.groups * kWidth;
    const long stop = panels * (group + 1) / cut.groups * kWidth;
    const long columns = (stop < end - first ? stop : end - first) - j;
    if (columns > 0) {
      const Matrix<T> a{p.a + i * p.a_row + start * p.a_column, p.a_row, p.a_column};
      multiply_block(p, a, p.m - i < cut.rows ? p.m - i : cut.rows, depth, packed + j * depth, columns,
                     start == 0 ? p.beta : T(1), p.c + i * p.c_row + first + j);
    }
  }
}

template <typename T>
static void gemm_parallel(const GemmProblem<T>* problem) {
  const GemmProblem<T>& p = *problem;
  const long threads = omp_in_parallel() ? 1 : omp_get_max_threads();
  if (has_few_rows(p)) {
    return gemm_rows(p, threads);
  }
  const Cut c = cut(p, threads);
  static thread_local Scratch scratch;
  const long size = c.depth * c.columns;
  const bool several = c.depth < p.k || c.columns < p.n;
  T* packed = static_cast<T*>(scratch.get(sizeof(T) * static_cast<size_t>(several ? 2 * size : size)));
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    flush_denormals();
    long part = 0;
    for (long first = 0; first < p.n; first += c.columns) {
      const long end = p.n - first < c.columns ? p.n : first + c.columns;
      for (long start = 0; start < p.k; start += c.depth) {
        multiply_part(p, c, start, p.k - start < c.depth ? p.k - start : c.depth, first, end,
                      packed + part++ % 2 * size);
      }
    }
  }
}

}  // namespace
}  // namespace XLSTM_ISA
