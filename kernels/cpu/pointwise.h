// What lies between the large products of a block: convolution with SiLU, 4 by 4 block-diagonal maps, and the end of
// an mLSTM cell (norm of each head, skip, output gate). Each reads its inputs once and writes its results once; the
// backward passes compute the intermediate values again, which costs less than to keep them.
//
// Gradients of weights are sums over all rows. Either a task owns some columns and goes through all rows itself, or
// every thread sums an equal share of the rows and the shares are added in order: no result depends on timing.
#pragma once

#include <omp.h>

#include "abi.h"
#include "gemm.h"

namespace XLSTM_ISA {
namespace {

constexpr long kColumns = 128;

// --- causal depthwise convolution and SiLU -----------------------------------------------------------------------

// How many steps back from step t the taps may look: not across a reset.
template <typename T>
static long reach_at(const ConvProblem<T>& p, long b, long t) {
  for (long back = 0; back < p.taps - 1; ++back) {
    if (p.resets != nullptr && t - back >= 0 && p.resets[b * p.time + t - back] != 0) {
      return back;
    }
  }
  return p.taps - 1;
}

// The input of step t, which lies in the state when t is negative; null stands for zeros.
template <typename T>
static const T* conv_row(const ConvProblem<T>& p, long b, long t) {
  if (t >= 0) {
    return p.x + (b * p.time + t) * p.x_row;
  }
  return p.state == nullptr ? nullptr : p.state + (b * (p.taps - 1) + p.taps - 1 + t) * p.width;
}

// sum[d] = bias[d] + Σ_k weight[k][d] x[t - back][d]; `weight` is transposed, (taps, width).
template <typename T>
static void convolve(const ConvProblem<T>& p, long b, long t, long reach, long first, long count, T* sum) {
  for (long d = 0; d < count; ++d) {
    sum[d] = p.bias == nullptr ? T(0) : p.bias[first + d];
  }
  for (long back = 0; back <= reach; ++back) {
    const T* x = conv_row(p, b, t - back);
    if (x == nullptr) {
      continue;
    }
    const T* weight = p.weight + (p.taps - 1 - back) * p.width + first;
#pragma omp simd
    for (long d = 0; d < count; ++d) {
      sum[d] += weight[d] * x[first + d];
    }
  }
}

template <typename T>
static void conv_forward(const ConvProblem<T>* problem) {
  const ConvProblem<T>& p = *problem;
#pragma omp parallel if (p.batch * p.time * p.width * p.taps >= kWorthThreads)
  {
    flush_denormals();
#pragma omp for schedule(static)
    for (long row = 0; row < p.batch * p.time; ++row) {
      const long b = row / p.time;
      const long t = row % p.time;
      const long reach = reach_at(p, b, t);
      T sum[kColumns];
      for (long first = 0; first < p.width; first += kColumns) {
        const long count = p.width - first < kColumns ? p.width - first : kColumns;
        convolve(p, b, t, reach, first, count, sum);
        T* y = p.y + row * p.width + first;
#pragma omp simd
        for (long d = 0; d < count; ++d) {
          y[d] = sum[d] * sigmoid(sum[d]);
        }
      }
    }
  }
}

// Some columns of all sequences: gradients of x, of the weight and of the bias.
template <typename T>
static void conv_backward_columns(const ConvProblem<T>& p, const ConvGradients<T>& g, long first, long count) {
  T sum[kColumns];
  T bias[kColumns] = {};
  for (long k = 0; k < p.taps; ++k) {
    memset(g.weight + k * p.width + first, 0, sizeof(T) * static_cast<size_t>(count));
  }
  for (long b = 0; b < p.batch; ++b) {
    for (long t = 0; t < p.time; ++t) {
      const long row = (b * p.time + t) * p.width + first;
      const long reach = reach_at(p, b, t);
      convolve(p, b, t, reach, first, count, sum);
      const T* dy = g.y + row;
#pragma omp simd
      for (long d = 0; d < count; ++d) {
        const T s = sigmoid(sum[d]);
        sum[d] = dy[d] * s * (T(1) + sum[d] * (T(1) - s));
        bias[d] += sum[d];
      }
      memset(g.x + row, 0, sizeof(T) * static_cast<size_t>(count));
      for (long back = 0; back <= reach; ++back) {
        const long tap = (p.taps - 1 - back) * p.width + first;
        const T* x = conv_row(p, b, t - back);
        T* weight = g.weight + tap;
        if (x != nullptr) {
#pragma omp simd
          for (long d = 0; d < count; ++d) {
            weight[d] += sum[d] * x[first + d];
          }
        }
        if (t - back >= 0) {
          T* dx = g.x + (b * p.time + t - back) * p.width + first;
#pragma omp simd
          for (long d = 0; d < count; ++d) {
            dx[d] += sum[d] * p.weight[tap + d];
          }
        }
      }
    }
  }
  if (g.bias != nullptr) {
    memcpy(g.bias + first, bias, sizeof(T) * static_cast<size_t>(count));
  }
}

template <typename T>
static void conv_backward(const ConvProblem<T>* problem, const ConvGradients<T>* gradients) {
  const ConvProblem<T>& p = *problem;
#pragma omp parallel
  {
    flush_denormals();
#pragma omp for schedule(dynamic)
    for (long first = 0; first < p.width; first += kColumns) {
      conv_backward_columns(p, *gradients, first, p.width - first < kColumns ? p.width - first : kColumns);
    }
  }
}

// --- block-diagonal map with blocks of 4 by 4 --------------------------------------------------------------------

// y[4 b + o] = Σ_i weight[i][4 b + o] x[4 b + i]: the compiler turns the inner loops into shuffles of four lanes.
template <typename T>
static inline void blocks_times(const T* x, const T* weight, long width, T* y) {
  typedef typename VectorOf<T>::Type V;
  typedef typename VectorOf<T>::Unaligned U;
  constexpr long kLanes = VectorOf<T>::kLanes;
  long j = 0;
  if (kLanes >= 4) {
    for (; j + kLanes <= width; j += kLanes) {
      const V value = *reinterpret_cast<const U*>(x + j);
      V sum = {};
      for (int i = 0; i < 4; ++i) {
        V spread;
        for (int lane = 0; lane < kLanes; ++lane) {
          spread[lane] = value[lane / 4 * 4 + i];
        }
        sum += *reinterpret_cast<const U*>(weight + i * width + j) * spread;
      }
      *reinterpret_cast<U*>(y + j) = sum;
    }
  }
  for (; j < width; ++j) {
    T sum = 0;
    for (int i = 0; i < 4; ++i) {
      sum += weight[i * width + j] * x[j / 4 * 4 + i];
    }
    y[j] = sum;
  }
}

// gradient[i][4 b + o] += dy[4 b + o] x[4 b + i]
template <typename T>
static inline void blocks_outer(const T* x, const T* dy, long width, T* gradient) {
  typedef typename VectorOf<T>::Type V;
  typedef typename VectorOf<T>::Unaligned U;
  constexpr long kLanes = VectorOf<T>::kLanes;
  long j = 0;
  if (kLanes >= 4) {
    for (; j + kLanes <= width; j += kLanes) {
      const V value = *reinterpret_cast<const U*>(x + j);
      const V change = *reinterpret_cast<const U*>(dy + j);
      for (int i = 0; i < 4; ++i) {
        V spread;
        for (int lane = 0; lane < kLanes; ++lane) {
          spread[lane] = value[lane / 4 * 4 + i];
        }
        *reinterpret_cast<U*>(gradient + i * width + j) += change * spread;
      }
    }
  }
  for (; j < width; ++j) {
    for (int i = 0; i < 4; ++i) {
      gradient[i * width + j] += dy[j] * x[j / 4 * 4 + i];
    }
  }
}

template <typename T>
static void blocks_forward(const BlocksProblem<T>* problem) {
  const BlocksProblem<T>& p = *problem;
#pragma omp parallel if (p.rows * p.width * 4 >= kWorthThreads)
  {
    flush_denormals();
#pragma omp for schedule(static)
    for (long row = 0; row < p.rows; ++row) {
      blocks_times(p.x + row * p.x_row, p.weight, p.width, p.y + row * p.width);
    }
  }
}

// Adds every thread's share, in order.
template <typename T>
static void add_shares(const T* shares, long count, long size, T* out) {
#pragma omp for schedule(static)
  for (long j = 0; j < size; ++j) {
    T sum = 0;
    for (long share = 0; share < count; ++share) {
      sum += shares[share * size + j];
    }
    out[j] = sum;
  }
}

template <typename T>
static void blocks_backward(const BlocksProblem<T>* problem, const BlocksGradients<T>* gradients) {
  const BlocksProblem<T>& p = *problem;
  const BlocksGradients<T>& g = *gradients;
  const long threads = omp_get_max_threads();
  T* shares = static_cast<T*>(calloc(static_cast<size_t>(threads * 4 * p.width), sizeof(T)));
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    flush_denormals();
#pragma omp for schedule(static, 1)
    for (long share = 0; share < threads; ++share) {
      for (long row = p.rows * share / threads; row < p.rows * (share + 1) / threads; ++row) {
        blocks_times(g.y + row * p.width, g.transposed, p.width, g.x + row * p.width);
        blocks_outer(p.x + row * p.x_row, g.y + row * p.width, p.width, shares + share * 4 * p.width);
      }
    }
    add_shares(shares, threads, 4 * p.width, g.weight);
  }
  free(shares);
}

// --- the end of an mLSTM cell ------------------------------------------------------------------------------------

// Mean and reciprocal deviation of one head.
template <typename T>
static inline void moments(const T* h, long width, T epsilon, T* mean, T* reciprocal) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (long e = 0; e < width; ++e) {
    sum += h[e];
  }
  const T center = sum / static_cast<T>(width);
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (long e = 0; e < width; ++e) {
    squares += (h[e] - center) * (h[e] - center);
  }
  *mean = center;
  *reciprocal = static_cast<T>(1 / sqrt(static_cast<double>(squares / static_cast<T>(width) + epsilon)));
}

template <typename T>
static void output_forward(const OutputProblem<T>* problem) {
  const OutputProblem<T>& p = *problem;
#pragma omp parallel if (p.rows * p.heads * p.width * 4 >= kWorthThreads)
  {
    flush_denormals();
#pragma omp for schedule(static)
    for (long row = 0; row < p.rows; ++row) {
      for (long h = 0; h < p.heads; ++h) {
        const long column = h * p.width;
        const long at = row * p.heads * p.width + column;
        const T* z = p.z + row * p.z_row + column;
        T mean, reciprocal;
        moments(p.h + at, p.width, p.epsilon, &mean, &reciprocal);
#pragma omp simd
        for (long e = 0; e < p.width; ++e) {
          const T normal = (p.h[at + e] - mean) * reciprocal;
          const T sum = normal * (T(1) + p.norm[column + e]) + p.skip[column + e] * p.conv[at + e];
          p.y[at + e] = sum * z[e] * sigmoid(z[e]);
        }
      }
    }
  }
}

// One head of one row; `norm` and `skip` are sums over rows. Everything is one array by now: pointers inside
// structures would have to be read again after every store.
template <typename T>
static void output_backward_head(const OutputProblem<T>& p, const OutputGradients<T>& g, long row, long h,
                                 T* __restrict norm, T* __restrict skip) {
  const long width = p.width;
  const long column = h * width;
  const long at = row * p.heads * width + column;
  const T* __restrict hidden = p.h + at;
  const T* __restrict conv = p.conv + at;
  const T* __restrict z = p.z + row * p.z_row + column;
  const T* __restrict upstream = g.y + at;
  const T* __restrict norm_weight = p.norm + column;
  const T* __restrict skip_weight = p.skip + column;
  T* __restrict d_hidden = g.h + at;
  T* __restrict d_conv = g.conv + at;
  T* __restrict d_z = g.z + at;
  T mean, reciprocal;
  moments(hidden, width, p.epsilon, &mean, &reciprocal);
#pragma omp simd
  for (long e = 0; e < width; ++e) {
    const T s = sigmoid(z[e]);
    const T normal = (hidden[e] - mean) * reciprocal;
    const T sum = normal * (T(1) + norm_weight[e]) + skip_weight[e] * conv[e];
    d_z[e] = upstream[e] * sum * s * (T(1) + z[e] * (T(1) - s));
    // What arrives at the sum of the two branches; it becomes the gradient of the hidden values below.
    d_hidden[e] = upstream[e] * z[e] * s;
  }
  T total = 0;
  T along = 0;
#pragma omp simd reduction(+ : total, along)
  for (long e = 0; e < width; ++e) {
    const T normal = (hidden[e] - mean) * reciprocal;
    const T change = d_hidden[e];
    d_conv[e] = change * skip_weight[e];
    skip[e] += change * conv[e];
    norm[e] += change * normal;
    const T d_normal = change * (T(1) + norm_weight[e]);
    d_hidden[e] = d_normal;
    total += d_normal;
    along += d_normal * normal;
  }
  const T share = T(1) / static_cast<T>(width);
#pragma omp simd
  for (long e = 0; e < width; ++e) {
    const T normal = (hidden[e] - mean) * reciprocal;
    d_hidden[e] = reciprocal * (d_hidden[e] - share * total - normal * share * along);
  }
}

template <typename T>
static void output_backward(const OutputProblem<T>* problem, const OutputGradients<T>* gradients) {
  const OutputProblem<T>& p = *problem;
  const OutputGradients<T>& g = *gradients;
  const long size = p.heads * p.width;
  const long threads = omp_get_max_threads();
  T* shares = static_cast<T*>(calloc(static_cast<size_t>(threads * 2 * size), sizeof(T)));
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    flush_denormals();
#pragma omp for schedule(static, 1)
    for (long share = 0; share < threads; ++share) {
      T* norm = shares + share * size;
      for (long row = p.rows * share / threads; row < p.rows * (share + 1) / threads; ++row) {
        for (long h = 0; h < p.heads; ++h) {
          output_backward_head(p, g, row, h, norm + h * p.width, norm + threads * size + h * p.width);
        }
      }
    }
    add_shares(shares, threads, size, g.norm);
    add_shares(shares + threads * size, threads, size, g.skip);
  }
  free(shares);
}

}  // namespace
}  // namespace XLSTM_ISA
