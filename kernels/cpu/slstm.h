// sLSTM and LSTM over all steps in one call (the formulas: src/slstm/fused.rs, src/lstm/fused.rs).
//
// Heads see nothing of each other, and neither do sequences: a task is one head of a few sequences, and runs through
// all steps on one thread with no barrier. The head's recurrent matrix stays in that core's cache. A step is a
// product of the few previous outputs with that matrix, and the gates' arithmetic for each unit.
//
// What is saved for the backward pass is one line per step and unit: raw input gate, log σ(f), tanh(z), σ(o), c, n, m.
// The gradient of the recurrent matrix is one product over all steps, at the end.
#pragma once

#include "abi.h"
#include "gemm.h"
#include "lstm.h"

namespace XLSTM_ISA {
namespace {

constexpr long kSequences = 4;

// Distances between elements of x, dx: (B, T, G, H, E).
template <typename T>
static inline long gate_offset(const SlstmProblem<T>& p, long b, long t, long gate, long h) {
  return (((b * p.time + t) * 4 + gate) * p.heads + h) * p.width;
}

// y, and each of the saved lines: (B, T, H, E).
template <typename T>
static inline long unit_offset(const SlstmProblem<T>& p, long b, long t, long h) {
  return ((b * p.time + t) * p.heads + h) * p.width;
}

template <typename T>
static inline bool is_reset(const SlstmProblem<T>& p, long b, long t) {
  return p.resets != nullptr && p.resets[b * p.time + t] != 0;
}

// One strip of kVectors vectors of the product below, from column `j` on while it fits; returns where it stopped.
template <typename T, int kCount, int kVectors>
static long multiply_strips(const T* inputs, long input_row, const T* matrix, long depth, long columns, T* sums,
                            long sum_row, long j) {
  typedef typename VectorOf<T>::Type V;
  typedef typename VectorOf<T>::Unaligned U;
  constexpr long kLanes = VectorOf<T>::kLanes;
  for (; j + kVectors * kLanes <= columns; j += kVectors * kLanes) {
    V sum[kCount][kVectors];
    for (int r = 0; r < kCount; ++r) {
      for (int c = 0; c < kVectors; ++c) {
        sum[r][c] = *reinterpret_cast<const U*>(sums + r * sum_row + j + c * kLanes);
      }
    }
    for (long k = 0; k < depth; ++k) {
      const T* row = matrix + k * columns + j;
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) {
        const V value = *reinterpret_cast<const U*>(row + c * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) {
          sum[r][c] += inputs[r * input_row + k] * value;
        }
      }
    }
    for (int r = 0; r < kCount; ++r) {
      for (int c = 0; c < kVectors; ++c) {
        *reinterpret_cast<U*>(sums + r * sum_row + j + c * kLanes) = sum[r][c];
      }
    }
  }
  return j;
}

// sums (kCount rows of `columns`) += inputs (kCount rows of `depth`) times matrix (depth rows of `columns`).
template <typename T, int kCount>
static void multiply_rows(const T* inputs, long input_row, const T* matrix, long depth, long columns, T* sums,
                          long sum_row) {
  long j = 0;
  if (kCount <= 2 && kVectorBytes == 64) {
    j = multiply_strips<T, kCount, 8>(inputs, input_row, matrix, depth, columns, sums, sum_row, j);
  }
  j = multiply_strips<T, kCount, kVectorBytes == 64 || kCount <= 2 ? 4 : 2>(inputs, input_row, matrix, depth, columns,
                                                                            sums, sum_row, j);
  j = multiply_strips<T, kCount, 1>(inputs, input_row, matrix, depth, columns, sums, sum_row, j);
  for (int r = 0; r < kCount; ++r) {
    for (long k = 0; k < depth && j < columns; ++k) {
      const T factor = inputs[r * input_row + k];
      for (long c = j; c < columns; ++c) {
        sums[r * sum_row + c] += factor * matrix[k * columns + c];
      }
    }
  }
}

template <typename T>
static void multiply_some(long count, const T* inputs, long input_row, const T* matrix, long depth, long columns,
                          T* sums, long sum_row) {
  switch (count) {
    case 1:
      return multiply_rows<T, 1>(inputs, input_row, matrix, depth, columns, sums, sum_row);
    case 2:
      return multiply_rows<T, 2>(inputs, input_row, matrix, depth, columns, sums, sum_row);
    case 3:
      return multiply_rows<T, 3>(inputs, input_row, matrix, depth, columns, sums, sum_row);
    default:
      return multiply_rows<T, 4>(inputs, input_row, matrix, depth, columns, sums, sum_row);
  }
}

// One step of one head of one sequence. `raw` holds (i, f, z, o) sums; the state is updated in place.
template <typename T>
static void advance(long width, bool exponential_forget, const T* raw, T* hidden, T* cell, T* normalizer, T* maximum, const SlstmSaved<T>& saved,
                    long at) {
#pragma omp simd
  for (long e = 0; e < width; ++e) {
    const T input = raw[e];
    const T forget = exponential_forget ? raw[width + e] : log_sigmoid(raw[width + e]);
    const T z = hyperbolic_tangent(raw[2 * width + e]);
    const T o = sigmoid(raw[3 * width + e]);
    const T carried = forget + maximum[e];
    const T larger = carried > input ? carried : input;
    const T top = normalizer[e] == T(0) ? input : larger;
    const T i = exponential(input - top);
    const T decayed = exponential(carried - top);
    const T f = decayed > T(1) ? T(1) : decayed;
    const T c = f * cell[e] + i * z;
    const T n = f * normalizer[e] + i;
    saved.input[at + e] = input;
    saved.forget[at + e] = forget;
    saved.z[at + e] = z;
    saved.o[at + e] = o;
    saved.cell[at + e] = c;
    saved.normalizer[at + e] = n;
    saved.maximum[at + e] = top;
    cell[e] = c;
    normalizer[e] = n;
    maximum[e] = top;
    hidden[e] = o * c / n;
  }
}

// States of a unit: hidden, cell, and of an sLSTM normalizer and maximum.
template <typename T>
static inline int state_parts(const SlstmProblem<T>& p) {
  return p.lstm != 0 ? 2 : 4;
}

// (H, E in, G, E out) is already what a row times a matrix needs.
template <typename T>
static const T* recurrent_of(const SlstmProblem<T>& p, long h) {
  return p.recurrent + h * p.width * 4 * p.width;
}

template <typename T>
static void slstm_forward_task(const SlstmProblem<T>& p, long h, long first, long count) {
  static thread_local Scratch scratch;
  const long width = p.width;
  T* raw = static_cast<T*>(scratch.get(sizeof(T) * static_cast<size_t>(count * width * 8)));
  T* hidden = raw + count * 4 * width;
  T* cell = hidden + count * width;
  T* normalizer = cell + count * width;
  T* maximum = normalizer + count * width;
  const T* initial[4] = {p.initial_hidden, p.initial_cell, p.initial_normalizer, p.initial_maximum};
  T* state[4] = {hidden, cell, normalizer, maximum};
  T* final[4] = {p.final_hidden, p.final_cell, p.final_normalizer, p.final_maximum};
  const size_t bytes = sizeof(T) * static_cast<size_t>(width);
  const int parts = state_parts(p);
  for (long r = 0; r < count; ++r) {
    for (int part = 0; part < parts; ++part) {
      memcpy(state[part] + r * width, initial[part] + ((first + r) * p.heads + h) * width, bytes);
    }
  }
  for (long t = 0; t < p.time; ++t) {
    for (long r = 0; r < count; ++r) {
      if (is_reset(p, first + r, t)) {
        for (int part = 0; part < parts; ++part) {
          memset(state[part] + r * width, 0, bytes);
        }
      }
      for (long gate = 0; gate < 4; ++gate) {
        const T* x = p.x + gate_offset(p, first + r, t, gate, h);
        const T* bias = p.bias + (gate * p.heads + h) * width;
        T* sum = raw + (r * 4 + gate) * width;
#pragma omp simd
        for (long e = 0; e < width; ++e) {
          sum[e] = x[e] + bias[e];
        }
      }
    }
    multiply_some(count, hidden, width, recurrent_of(p, h), width, 4 * width, raw, 4 * width);
    for (long r = 0; r < count; ++r) {
      const long at = unit_offset(p, first + r, t, h);
      if (p.lstm != 0) {
        lstm_advance(width, raw + r * 4 * width, hidden + r * width, cell + r * width, p.saved, at);
      } else {
        advance(width, p.exponential_forget != 0, raw + r * 4 * width, hidden + r * width, cell + r * width,
                normalizer + r * width, maximum + r * width, p.saved, at);
      }
      memcpy(p.y + at, hidden + r * width, bytes);
    }
  }
  for (long r = 0; r < count; ++r) {
    for (int part = 0; part < parts; ++part) {
      memcpy(final[part] + ((first + r) * p.heads + h) * width, state[part] + r * width, bytes);
    }
  }
}

template <typename T>
static void slstm_forward(const SlstmProblem<T>* problem) {
  const SlstmProblem<T>& p = *problem;
  const long groups = (p.batch + kSequences - 1) / kSequences;
#pragma omp parallel if (p.batch * p.heads * p.time * p.width * p.width * 4 >= kWorthThreads)
  {
    flush_denormals();
#pragma omp for schedule(dynamic)
    for (long task = 0; task < p.heads * groups; ++task) {
      const long first = (task / p.heads) * kSequences;
      const long count = p.batch - first < kSequences ? p.batch - first : kSequences;
      slstm_forward_task(p, task % p.heads, first, count);
    }
  }
}

// The gradients that run backwards through time, for one head of one sequence.
template <typename T>
struct SlstmFlow {
  T* hidden;
  T* cell;
  T* normalizer;
  T* maximum;
};

// One step back. `flow.hidden` holds the whole gradient of y_t; `raw` receives those of the four sums.
template <typename T>
static void retreat(long width, bool exponential_forget, const SlstmSaved<T>& saved, long at, const T* cell_before, const T* normalizer_before,
                    const T* maximum_before, const SlstmFlow<T>& flow, T* raw) {
#pragma omp simd
  for (long e = 0; e < width; ++e) {
    const T input = saved.input[at + e];
    const T forget = saved.forget[at + e];
    const T z = saved.z[at + e];
    const T o = saved.o[at + e];
    const T c = saved.cell[at + e];
    const T n = saved.normalizer[at + e];
    const T top = saved.maximum[at + e];
    const T before_c = cell_before[e];
    const T before_n = normalizer_before[e];
    const T carried = forget + maximum_before[e];
    const T share = exponential(carried - top);
    const bool clamped = share > T(1);
    const T i = exponential(input - top);
    const T f = clamped ? T(1) : share;
    const T inverse = T(1) / n;
    const T ratio = c * inverse;
    const T dy = flow.hidden[e];
    const T dc = flow.cell[e] + dy * o * inverse;
    const T dn = flow.normalizer[e] - dy * o * ratio * inverse;
    const T d_input = (dc * z + dn) * i;
    const T d_share = clamped ? T(0) : (dc * before_c + dn * before_n) * f;
    // m is in both exponents with the opposite sign, and came from one of the two.
    const T d_top = flow.maximum[e] - d_input - d_share;
    const bool from_input = before_n == T(0) || !(carried > input);
    const T d_carried = d_share + (from_input ? T(0) : d_top);
    raw[e] = d_input + (from_input ? d_top : T(0));
    // d log σ(f~) / df~ = 1 - σ(f~); d log exp(f~) / df~ = 1
    raw[width + e] = exponential_forget ? d_carried : d_carried * (T(1) - exponential(forget));
    raw[2 * width + e] = dc * i * (T(1) - z * z);
    raw[3 * width + e] = dy * ratio * o * (T(1) - o);
    flow.cell[e] = dc * f;
    flow.normalizer[e] = dn * f;
    flow.maximum[e] = d_carried;
  }
}

// The state before a step: the step before it, the initial state, or nothing.
template <typename T>
struct SlstmBefore {
  const T* hidden;
  const T* cell;
  const T* normalizer;
  const T* maximum;
};

template <typename T>
static SlstmBefore<T> state_before(const SlstmProblem<T>& p, long b, long t, long h, const T* zeros) {
  if (is_reset(p, b, t)) {
    return SlstmBefore<T>{zeros, zeros, zeros, zeros};
  }
  if (t == 0) {
    const long at = (b * p.heads + h) * p.width;
    if (p.lstm != 0) {
      return SlstmBefore<T>{p.initial_hidden + at, p.initial_cell + at, zeros, zeros};
    }
    return SlstmBefore<T>{p.initial_hidden + at, p.initial_cell + at, p.initial_normalizer + at,
                          p.initial_maximum + at};
  }
  const long at = unit_offset(p, b, t - 1, h);
  if (p.lstm != 0) {
    return SlstmBefore<T>{p.y + at, p.saved.cell + at, zeros, zeros};
  }
  return SlstmBefore<T>{p.y + at, p.saved.cell + at, p.saved.normalizer + at, p.saved.maximum + at};
}

template <typename T>
static void clamp_all(T* values, long count, T limit) {
#pragma omp simd
  for (long j = 0; j < count; ++j) {
    const T value = values[j];
    const T low = value < -limit ? -limit : value;
    values[j] = low > limit ? limit : low;
  }
}

template <typename T>
static void slstm_backward_task(const SlstmProblem<T>& p, const SlstmGradients<T>& g, const T* transposed, long h,
                                long first, long count) {
  static thread_local Scratch scratch;
  const long width = p.width;
  T* raw = static_cast<T*>(scratch.get(sizeof(T) * static_cast<size_t>(count * width * 8 + width)));
  T* flows = raw + count * 4 * width;
  T* zeros = flows + count * 4 * width;
  memset(flows, 0, sizeof(T) * static_cast<size_t>(count * 4 * width + width));
  const T* given[4] = {g.final_hidden, g.final_cell, g.final_normalizer, g.final_maximum};
  T* initial[4] = {g.initial_hidden, g.initial_cell, g.initial_normalizer, g.initial_maximum};
  const size_t bytes = sizeof(T) * static_cast<size_t>(width);
  // Row r of part q of the flows: the hidden parts lie together, as the product needs them.
  const long part_size = count * width;
  const int parts = state_parts(p);
  for (long r = 0; r < count; ++r) {
    for (int part = 0; part < parts; ++part) {
      if (given[part] != nullptr) {
        memcpy(flows + part * part_size + r * width, given[part] + ((first + r) * p.heads + h) * width, bytes);
      }
    }
  }
  for (long t = p.time - 1; t >= 0; --t) {
    for (long r = 0; r < count; ++r) {
      const long b = first + r;
      const long at = unit_offset(p, b, t, h);
      T* row = flows + r * width;
      const SlstmFlow<T> flow{row, row + part_size, row + 2 * part_size, row + 3 * part_size};
      if (g.y != nullptr) {
#pragma omp simd
        for (long e = 0; e < width; ++e) {
          flow.hidden[e] += g.y[at + e];
        }
      }
      const SlstmBefore<T> before = state_before(p, b, t, h, zeros);
      if (p.lstm != 0) {
        lstm_retreat(width, p.saved, at, before.cell, flow.hidden, flow.cell, raw + r * 4 * width);
      } else {
        retreat(width, p.exponential_forget != 0, p.saved, at, before.cell, before.normalizer, before.maximum, flow,
                raw + r * 4 * width);
      }
      for (long gate = 0; gate < 4; ++gate) {
        memcpy(g.x + gate_offset(p, b, t, gate, h), raw + (r * 4 + gate) * width, bytes);
      }
    }
    memset(flows, 0, sizeof(T) * static_cast<size_t>(part_size));
    multiply_some(count, raw, 4 * width, transposed + h * 4 * width * width, 4 * width, width, flows, width);
    if (p.clip > T(0)) {
      clamp_all(flows, part_size, p.clip);
    }
    for (long r = 0; r < count; ++r) {
      for (int part = 0; part < parts && is_reset(p, first + r, t); ++part) {
        memset(flows + part * part_size + r * width, 0, bytes);
      }
    }
  }
  for (long r = 0; r < count; ++r) {
    for (int part = 0; part < parts; ++part) {
      memcpy(initial[part] + ((first + r) * p.heads + h) * width, flows + part * part_size + r * width, bytes);
    }
  }
}

// dR of one head: the outputs before every step, transposed, times the gradients of the four sums.
template <typename T>
static void recurrent_gradient(const SlstmProblem<T>& p, const SlstmGradients<T>& g, long h, long gate) {
  static thread_local Scratch scratch;
  const long block = 512;
  const long width = p.width;
  T* before = static_cast<T*>(scratch.get(sizeof(T) * static_cast<size_t>(block * width + width)));
  T* zeros = before + block * width;
  memset(zeros, 0, sizeof(T) * static_cast<size_t>(width));
  T* out = g.recurrent + h * width * 4 * width + gate * width;
  T keep = 0;
  for (long b = 0; b < p.batch; ++b) {
    for (long start = 0; start < p.time; start += block) {
      const long count = p.time - start < block ? p.time - start : block;
      for (long t = 0; t < count; ++t) {
        memcpy(before + t * width, state_before(p, b, start + t, h, zeros).hidden,
               sizeof(T) * static_cast<size_t>(width));
      }
      gemm<T>(width, width, count, T(1), transposed(before, width),
              rows(g.x + gate_offset(p, b, start, gate, h), 4 * p.heads * width), keep, out, 4 * width);
      keep = 1;
    }
  }
}

template <typename T>
static void bias_gradient(const SlstmProblem<T>& p, const SlstmGradients<T>& g, long h, long gate) {
  T* out = g.bias + (gate * p.heads + h) * p.width;
  for (long start = 0; start < p.width; start += 64) {
    const long count = p.width - start < 64 ? p.width - start : 64;
    double sums[64] = {};
    for (long step = 0; step < p.batch * p.time; ++step) {
      const T* row = g.x + gate_offset(p, step / p.time, step % p.time, gate, h) + start;
      for (long e = 0; e < count; ++e) {
        sums[e] += static_cast<double>(row[e]);
      }
    }
    for (long e = 0; e < count; ++e) {
      out[start + e] = static_cast<T>(sums[e]);
    }
  }
}

template <typename T>
static void slstm_backward(const SlstmProblem<T>* problem, const SlstmGradients<T>* gradients) {
  const SlstmProblem<T>& p = *problem;
  const SlstmGradients<T>& g = *gradients;
  const long width = p.width;
  const long groups = (p.batch + kSequences - 1) / kSequences;
  T* transposed = static_cast<T*>(malloc(sizeof(T) * static_cast<size_t>(p.heads * width * 4 * width)));
#pragma omp parallel
  {
    flush_denormals();
#pragma omp for schedule(static)
    for (long row = 0; row < p.heads * 4 * width; ++row) {
      const T* source = recurrent_of(p, row / (4 * width)) + row % (4 * width);
      for (long e = 0; e < width; ++e) {
        transposed[row * width + e] = source[e * 4 * width];
      }
    }
#pragma omp for schedule(dynamic)
    for (long task = 0; task < p.heads * groups; ++task) {
      const long first = (task / p.heads) * kSequences;
      const long count = p.batch - first < kSequences ? p.batch - first : kSequences;
      slstm_backward_task(p, g, transposed, task % p.heads, first, count);
    }
#pragma omp for schedule(dynamic)
    for (long task = 0; task < p.heads * 4; ++task) {
      recurrent_gradient(p, g, task / 4, task % 4);
      bias_gradient(p, g, task / 4, task % 4);
    }
  }
  free(transposed);
}

}  // namespace
}  // namespace XLSTM_ISA
