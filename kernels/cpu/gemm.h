// Matrix product on one thread, for operands that lie in the caches: C = alpha A B + beta C.
//
// Why not the library's: on processors that the vendor's library does not know, it uses vectors half as wide as the
// machine has (seen: 100 of 254 GFLOP/s on one core), and the small products of a chunk pay for its bookkeeping.
//
//   tile      rows x 3 vectors of C stay in registers while k runs; one row of packed B (3 vectors) and one
//             broadcast value of A for each row are read per step
//   packing   B is copied, kDepth rows at a time, into panels 3 vectors wide that stay in the second-level cache;
//             A is read where it lies, in either orientation
#pragma once

#include <stdlib.h>
#include <sys/mman.h>

#include "vector.h"

namespace XLSTM_ISA {
namespace {

constexpr int kPanelVectors = 3;
constexpr long kDepth = 512;

// A matrix in memory: element (i, j) at data[i * row + j * column]; one of the steps is 1.
template <typename T>
struct Matrix {
  const T* data;
  long row;
  long column;
};

template <typename T>
static inline Matrix<T> rows(const T* data, long stride) {
  return Matrix<T>{data, stride, 1};
}

template <typename T>
static inline Matrix<T> transposed(const T* data, long stride) {
  return Matrix<T>{data, 1, stride};
}

// A buffer that a thread keeps for its next call: fresh memory costs a page fault for every 4 KiB. Large ones lie on
// huge pages where the system has them: rows of a tile are often a page apart.
struct Scratch {
  static constexpr size_t kHugePage = 2 << 20;
  void* data = nullptr;
  size_t size = 0;
  ~Scratch() { free(data); }
  void* get(size_t bytes) {
    if (bytes > size) {
      free(data);
      const size_t page = bytes >= 2 * kHugePage ? kHugePage : 4096;
      size = (bytes + page - 1) / page * page;
      data = aligned_alloc(page, size);
      if (data == nullptr) {
        abort();
      }
#if defined(MADV_HUGEPAGE)
      if (page == kHugePage) {
        madvise(data, size, MADV_HUGEPAGE);
      }
#endif
    }
    return data;
  }
};

template <typename T, int kRows, int kVectors, bool kTransposed>
static inline __attribute__((always_inline)) void multiply_tile(const T* a, long stride, const T* panel, long depth,
                                                                typename VectorOf<T>::Type (*sum)[kVectors]) {
  typedef typename VectorOf<T>::Type V;
  constexpr int kLanes = VectorOf<T>::kLanes;
  constexpr int kWidth = kPanelVectors * kLanes;
  V local[kRows][kVectors] = {};
  for (long k = 0; k < depth; ++k) {
    const V* row = reinterpret_cast<const V*>(panel + k * kWidth);
    V b[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      b[j] = row[j];
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const T value = kTransposed ? a[k * stride + i] : a[i * stride + k];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        local[i][j] += value * b[j];
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = local[i][j];
    }
  }
}

template <typename T, int kRows, int kVectors, bool kTransposed>
static __attribute__((noinline)) void store_tile(const T* a, long stride, const T* panel, long depth, T alpha, T beta,
                                                 T* c, long c_stride, int columns) {
  typedef typename VectorOf<T>::Type V;
  typedef typename VectorOf<T>::Unaligned U;
  constexpr int kLanes = VectorOf<T>::kLanes;
  V sum[kRows][kVectors];
  multiply_tile<T, kRows, kVectors, kTransposed>(a, stride, panel, depth, sum);
  if (columns == kVectors * kLanes) {
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVectors; ++j) {
        U* target = reinterpret_cast<U*>(c + i * c_stride + j * kLanes);
        const V scaled = alpha * sum[i][j];
        *target = beta == T(0) ? scaled : scaled + beta * *target;
      }
    }
    return;
  }
  T edge[kRows][kVectors * kLanes];
  memcpy(edge, sum, sizeof edge);
  for (int i = 0; i < kRows; ++i) {
    T* target = c + i * c_stride;
    for (int j = 0; j < columns; ++j) {
      const T scaled = alpha * edge[i][j];
      target[j] = beta == T(0) ? scaled : scaled + beta * target[j];
    }
  }
}

template <typename T, int kVectors, bool kTransposed>
static void sweep_rows(long m, const Matrix<T>& a, const T* panel, long depth, T alpha, T beta, T* c, long c_stride,
                       int columns) {
  const long stride = kTransposed ? a.column : a.row;
  const long step = kTransposed ? 1 : a.row;
  long i = 0;
  for (; i + kTileRows <= m; i += kTileRows) {
    // C may lie far away; it is there by the time the sums are. Not in the tile, which has no register to spare.
    for (int row = 0; row < kTileRows; ++row) {
      for (int j = 0; j < kVectors; ++j) {
        __builtin_prefetch(c + (i + row) * c_stride + j * VectorOf<T>::kLanes, 1);
      }
    }
    store_tile<T, kTileRows, kVectors, kTransposed>(a.data + i * step, stride, panel, depth, alpha, beta,
                                                    c + i * c_stride, c_stride, columns);
  }
  for (; i + 2 <= m; i += 2) {
    store_tile<T, 2, kVectors, kTransposed>(a.data + i * step, stride, panel, depth, alpha, beta, c + i * c_stride,
                                            c_stride, columns);
  }
  for (; i < m; ++i) {
    store_tile<T, 1, kVectors, kTransposed>(a.data + i * step, stride, panel, depth, alpha, beta, c + i * c_stride,
                                            c_stride, columns);
  }
}

// Eight rows and eight columns at a time: target[k][j] = source[j][k].
static inline void transpose_block(const float* source, long stride, float* target, long width) {
#if defined(__AVX2__)
  __m256 r[8], s[8];
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm256_loadu_ps(source + i * stride);
  }
  for (int i = 0; i < 4; ++i) {
    s[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    s[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(target + i * width, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(target + (i + 4) * width, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
#else
  for (int k = 0; k < 8; ++k) {
    for (int j = 0; j < 8; ++j) {
      target[k * width + j] = source[j * stride + k];
    }
  }
#endif
}
static inline void transpose_block(const double* source, long stride, double* target, long width) {
  for (int k = 0; k < 8; ++k) {
    for (int j = 0; j < 8; ++j) {
      target[k * width + j] = source[j * stride + k];
    }
  }
}

// panel[k][j] = B[k][j] for `depth` rows and `columns` columns, zeros up to the panel's width.
template <typename T>
static void pack_panel(const Matrix<T>& b, long depth, int columns, T* panel) {
  constexpr int kWidth = kPanelVectors * VectorOf<T>::kLanes;
  if (columns < kWidth) {
    memset(panel, 0, sizeof(T) * static_cast<size_t>(depth) * kWidth);
  }
  if (b.column == 1 && columns == kWidth) {
    typedef typename VectorOf<T>::Type V;
    typedef typename VectorOf<T>::Unaligned U;
    constexpr int kLanes = VectorOf<T>::kLanes;
    for (long k = 0; k < depth; ++k) {
      const T* source = b.data + k * b.row;
      // A row of B is seldom beside the one before: ask for it in time.
      for (int j = 0; j < kPanelVectors; ++j) {
        __builtin_prefetch(source + 8 * b.row + j * kLanes);
      }
      for (int j = 0; j < kPanelVectors; ++j) {
        *reinterpret_cast<V*>(panel + k * kWidth + j * kLanes) = *reinterpret_cast<const U*>(source + j * kLanes);
      }
    }
    return;
  }
  if (b.column == 1) {
    for (long k = 0; k < depth; ++k) {
      memcpy(panel + k * kWidth, b.data + k * b.row, sizeof(T) * static_cast<size_t>(columns));
    }
    return;
  }
  int j = 0;
  for (; j + 8 <= columns; j += 8) {
    long k = 0;
    for (; k + 8 <= depth; k += 8) {
      transpose_block(b.data + j * b.column + k, b.column, panel + k * kWidth + j, kWidth);
    }
    for (; k < depth; ++k) {
      for (int i = j; i < j + 8; ++i) {
        panel[k * kWidth + i] = b.data[i * b.column + k];
      }
    }
  }
  for (; j < columns; ++j) {
    for (long k = 0; k < depth; ++k) {
      panel[k * kWidth + j] = b.data[j * b.column + k];
    }
  }
}

// Rows of C = alpha A panel + beta C, for a packed panel of any depth.
template <typename T, bool kTransposed>
static void gemm_panel(long m, const Matrix<T>& a, const T* panel, long depth, T alpha, T beta, T* c,
                       long c_stride, int columns) {
  constexpr int kLanes = VectorOf<T>::kLanes;
  switch ((columns + kLanes - 1) / kLanes) {
    case 1:
      sweep_rows<T, 1, kTransposed>(m, a, panel, depth, alpha, beta, c, c_stride, columns);
      break;
    case 2:
      sweep_rows<T, 2, kTransposed>(m, a, panel, depth, alpha, beta, c, c_stride, columns);
      break;
    default:
      sweep_rows<T, 3, kTransposed>(m, a, panel, depth, alpha, beta, c, c_stride, columns);
  }
}

template <typename T, bool kTransposed>
static void multiply_panels(long m, long n, long depth, T alpha, const Matrix<T>& a, const Matrix<T>& b, T beta, T* c,
                            long c_stride, T* panel) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  for (long j = 0; j < n; j += kWidth) {
    const int columns = static_cast<int>(n - j < kWidth ? n - j : kWidth);
    pack_panel(Matrix<T>{b.data + j * b.column, b.row, b.column}, depth, columns, panel);
    gemm_panel<T, kTransposed>(m, a, panel, depth, alpha, beta, c + j, c_stride, columns);
  }
}

// C (m by n, rows `c_stride` apart) = alpha A (m by k) B (k by n) + beta C.
template <typename T>
static void gemm(long m, long n, long k, T alpha, const Matrix<T>& a, const Matrix<T>& b, T beta, T* c,
                 long c_stride) {
  static thread_local Scratch scratch;
  T* panel =
      static_cast<T*>(scratch.get(sizeof(T) * kDepth * static_cast<size_t>(kPanelVectors * VectorOf<T>::kLanes)));
  // Equal parts, none deeper than kDepth.
  const long parts = (k + kDepth - 1) / kDepth;
  long start = 0;
  for (long part = 0; part < parts; ++part) {
    const long depth = (k - start + (parts - part) - 1) / (parts - part);
    const Matrix<T> a_part{a.data + start * a.column, a.row, a.column};
    const Matrix<T> b_part{b.data + start * b.row, b.row, b.column};
    const T keep = part == 0 ? beta : T(1);
    if (a.column == 1) {
      multiply_panels<T, false>(m, n, depth, alpha, a_part, b_part, keep, c, c_stride, panel);
    } else {
      multiply_panels<T, true>(m, n, depth, alpha, a_part, b_part, keep, c, c_stride, panel);
    }
    start += depth;
  }
}

}  // namespace
}  // namespace XLSTM_ISA
