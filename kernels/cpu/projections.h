// Queries, keys, values and gates of an mLSTM block in one pass over its rows, and all their gradients in another.
//
//   q = Wq c, k = Wk c, v = Wv a                         block-diagonal, blocks of 4 by 4
//   sums_g = b_g + Wg_gq . q + Wg_gk . k + Wg_gv . v     pre-activations of the G gates
//
// Apart, each of these reads and writes tensors that have left the caches, and every value that is used twice costs an
// addition of its gradients.
//
//   forward   a task takes rows; the gates are summed while q, k and v are in registers
//   backward  a task takes columns and goes through all rows, some at a time: what arrives at q, k and v in full stays
//             in the first-level cache, sums for the weights stay in registers, and no result depends on the number of
//             threads
#pragma once

#include "abi.h"
#include "gemm.h"

namespace XLSTM_ISA {
namespace {

// Columns that a task of the backward pass takes, and rows at a time. The width is a multiple of 16.
constexpr long kStrip = 64;
constexpr long kStripRows = 16;

// Vectors of whole blocks.
template <typename T>
struct BlockVector {
  static constexpr int kLanes = VectorOf<T>::kLanes < 4 ? 4 : VectorOf<T>::kLanes;
  typedef T Type __attribute__((vector_size(kLanes * sizeof(T))));
  typedef T Unaligned __attribute__((vector_size(kLanes * sizeof(T)), aligned(sizeof(T)), may_alias));
  static inline Type load(const T* x) { return *reinterpret_cast<const Unaligned*>(x); }
  static inline void store(T* x, const Type& value) { *reinterpret_cast<Unaligned*>(x) = value; }
  // Element i of each block, in all four places of it.
  static inline Type spread(const Type& value, int i) {
    Type made;
    for (int lane = 0; lane < kLanes; ++lane) {
      made[lane] = value[lane / 4 * 4 + i];
    }
    return made;
  }
};

template <typename T, int kGates>
static void project_row(const QkvGatesProblem<T>& p, long row) {
  typedef BlockVector<T> B;
  typedef typename B::Type V;
  const long width = p.width;
  V sums[kGates] = {};
  for (long j = 0; j < width; j += B::kLanes) {
    const V c = B::load(p.c + row * width + j), a = B::load(p.a + row * p.a_row + j);
    V q = {}, k = {}, v = {};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const V from_c = B::spread(c, i);
      q += from_c * B::load(p.query + i * width + j);
      k += from_c * B::load(p.key + i * width + j);
      v += B::spread(a, i) * B::load(p.value + i * width + j);
    }
    B::store(p.q + row * width + j, q);
    B::store(p.k + row * width + j, k);
    B::store(p.v + row * width + j, v);
#pragma GCC unroll 16
    for (int g = 0; g < kGates; ++g) {
      const T* weight = p.gate_weight + 3 * g * width + j;
      sums[g] += q * B::load(weight) + k * B::load(weight + width) + v * B::load(weight + 2 * width);
    }
  }
  for (int g = 0; g < kGates; ++g) {
    T sum = p.gate_bias[g];
    for (int lane = 0; lane < B::kLanes; ++lane) {
      sum += sums[g][lane];
    }
    p.sums[row * kGates + g] = sum;
  }
}

// One vector of columns and some rows: what arrives at q, k or v (`part` 0, 1, 2) in full, and the gates' weights.
template <typename T, int kGates>
static inline void gates_backward(const QkvGatesProblem<T>& p, const QkvGatesGradients<T>& g, int part, const T* values,
                                  const T* upstream, long first, long count, long j, T* full) {
  typedef BlockVector<T> B;
  typedef typename B::Type V;
  const long at = part * p.width + j;
  V weights[kGates], sums[kGates];
#pragma GCC unroll 16
  for (int gate = 0; gate < kGates; ++gate) {
    weights[gate] = B::load(p.gate_weight + 3 * gate * p.width + at);
    sums[gate] = B::load(g.gate_weight + 3 * gate * p.width + at);
  }
  for (long r = 0; r < count; ++r) {
    const T* change = g.sums + (first + r) * kGates;
    const long place = (first + r) * p.width + j;
    // Rows lie pages apart, where the processor does not see what comes next.
    __builtin_prefetch(values + place + kStripRows * p.width);
    __builtin_prefetch(upstream + place + kStripRows * p.width);
    const V value = B::load(values + place);
    V total = B::load(upstream + place);
#pragma GCC unroll 16
    for (int gate = 0; gate < kGates; ++gate) {
      total += weights[gate] * change[gate];
      sums[gate] += value * change[gate];
    }
    B::store(full + r * B::kLanes, total);
  }
#pragma GCC unroll 16
  for (int gate = 0; gate < kGates; ++gate) {
    B::store(g.gate_weight + 3 * gate * p.width + at, sums[gate]);
  }
}

// The same columns and rows: gradients of c and a, and of the blocks.
template <typename T>
static inline void blocks_of_rows(const QkvGatesProblem<T>& p, const QkvGatesGradients<T>& g, long first, long count,
                                  long j, const T* q, const T* k, const T* v) {
  typedef BlockVector<T> B;
  typedef typename B::Type V;
  V query[4], key[4], value[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    query[i] = B::load(g.query + i * p.width + j);
    key[i] = B::load(g.key + i * p.width + j);
    value[i] = B::load(g.value + i * p.width + j);
  }
  for (long r = 0; r < count; ++r) {
    const T* c_row = p.c + (first + r) * p.width + j;
    const T* a_row = p.a + (first + r) * p.a_row + j;
    __builtin_prefetch(c_row + kStripRows * p.width);
    __builtin_prefetch(a_row + kStripRows * p.a_row);
    const V at_q = B::load(q + r * B::kLanes), at_k = B::load(k + r * B::kLanes), at_v = B::load(v + r * B::kLanes);
    const V c = B::load(c_row), a = B::load(a_row);
    V from_c = {}, from_a = {};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      from_c += B::spread(at_q, i) * B::load(g.transposed_query + i * p.width + j);
      from_c += B::spread(at_k, i) * B::load(g.transposed_key + i * p.width + j);
      from_a += B::spread(at_v, i) * B::load(g.transposed_value + i * p.width + j);
      const V c_i = B::spread(c, i);
      query[i] += at_q * c_i;
      key[i] += at_k * c_i;
      value[i] += at_v * B::spread(a, i);
    }
    B::store(g.c + (first + r) * p.width + j, from_c);
    B::store(g.a + (first + r) * p.width + j, from_a);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    B::store(g.query + i * p.width + j, query[i]);
    B::store(g.key + i * p.width + j, key[i]);
    B::store(g.value + i * p.width + j, value[i]);
  }
}

// Some columns, all rows.
template <typename T, int kGates>
static void differentiate_strip(const QkvGatesProblem<T>& p, const QkvGatesGradients<T>& g, long begin, long end) {
  constexpr long kLanes = BlockVector<T>::kLanes;
  alignas(64) T full[3][kStripRows * kLanes];
  const size_t bytes = sizeof(T) * static_cast<size_t>(end - begin);
  for (int i = 0; i < 4; ++i) {
    memset(g.query + i * p.width + begin, 0, bytes);
    memset(g.key + i * p.width + begin, 0, bytes);
    memset(g.value + i * p.width + begin, 0, bytes);
  }
  for (int row = 0; row < 3 * kGates; ++row) {
    memset(g.gate_weight + row * p.width + begin, 0, bytes);
  }
  for (long first = 0; first < p.rows; first += kStripRows) {
    const long count = p.rows - first < kStripRows ? p.rows - first : kStripRows;
    for (long j = begin; j < end; j += kLanes) {
      gates_backward<T, kGates>(p, g, 0, p.q, g.q, first, count, j, full[0]);
      gates_backward<T, kGates>(p, g, 1, p.k, g.k, first, count, j, full[1]);
      gates_backward<T, kGates>(p, g, 2, p.v, g.v, first, count, j, full[2]);
      blocks_of_rows(p, g, first, count, j, full[0], full[1], full[2]);
    }
  }
}

template <typename T, int kGates>
static void qkv_gates_forward_of(const QkvGatesProblem<T>& p) {
#pragma omp parallel if (p.rows * p.width * 12 >= kWorthThreads)
  {
    flush_denormals();
#pragma omp for schedule(static)
    for (long row = 0; row < p.rows; ++row) {
      project_row<T, kGates>(p, row);
    }
  }
}

template <typename T, int kGates>
static void qkv_gates_backward_of(const QkvGatesProblem<T>& p, const QkvGatesGradients<T>& g) {
#pragma omp parallel
  {
    flush_denormals();
#pragma omp for schedule(dynamic)
    for (long begin = 0; begin < p.width; begin += kStrip) {
      differentiate_strip<T, kGates>(p, g, begin, begin + kStrip < p.width ? begin + kStrip : p.width);
    }
  }
}

// The numbers of gates that there are kernels for: `fits` in src/projections.rs.
template <typename T>
static void qkv_gates_forward(const QkvGatesProblem<T>* problem) {
  switch (problem->gates) {
    case 2:
      return qkv_gates_forward_of<T, 2>(*problem);
    case 4:
      return qkv_gates_forward_of<T, 4>(*problem);
    case 8:
      return qkv_gates_forward_of<T, 8>(*problem);
    default:
      abort();
  }
}

template <typename T>
static void qkv_gates_backward(const QkvGatesProblem<T>* problem, const QkvGatesGradients<T>* gradients) {
  switch (problem->gates) {
    case 2:
      return qkv_gates_backward_of<T, 2>(*problem, *gradients);
    case 4:
      return qkv_gates_backward_of<T, 4>(*problem, *gradients);
    case 8:
      return qkv_gates_backward_of<T, 8>(*problem, *gradients);
    default:
      abort();
  }
}

}  // namespace
}  // namespace XLSTM_ISA
