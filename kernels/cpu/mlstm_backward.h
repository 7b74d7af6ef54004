// The backward pass of mLSTM; see mlstm.h.
//
// With d· for the gradient of ·, W_ij = dS_ij S_ij, and e, a the weights of reading from and writing to the state:
//
//   dn_i   = dh_i / den_i                               gradient of the numerator
//   ds_i   = -(dh_i·h_i) / den_i · sign(s_i) [|s_i| > exp(-m_i)]      of n·q
//   dS_ij  = dn_i·v_j + ds_i
//   dq_i   = Σ_j dP_ij k_j + e_i (C dn_i + n ds_i)      dP = dS ⊙ D' / sqrt(K)
//   dk_j   = Σ_i dP_ij q_i + a_j (dC' v_j + dn')        dC', dn': of the state after the chunk
//   dv_j   = Σ_i S_ij dn_i + a_j dC'ᵀ k_j
//   di_j   = Σ_i W_ij + k_j·(what the state adds to dk_j)
//   d log σ(f_t) = sum of every W whose arrow crosses the border before t: inside the chunk, from the state into
//                  it, from it into the state after, and the state's own decay
//
// The stabilizer m has a gradient only through the 1e-6 of the denominator and through the states as they are
// returned. It runs back along the steps that m was taken from.
#pragma once

#include "mlstm.h"

namespace XLSTM_ISA {
namespace {

// Gradients that are sums of scalars, by [(b * heads + h) * time + t]; the last three by [chunk * heads + h].
template <typename T>
struct Work {
  double* memory;
  double* input;     // di
  double* forget;    // d log σ(f)
  double* maximum;   // dm, what enters at each step
  double* decay;     // of the logarithm of a chunk's decay, a part from each slice of the state's rows
  double* entering;  // of the logarithm of what a chunk reads of the state before it
  double* leaving;   // of the logarithm of what a chunk leaves in the state after it
  T* inverse;        // 1 / den, by [(b * time + t) * heads + h]
  T* read;           // ds, likewise
};

template <typename T>
static Work<T> make_work(const MlstmProblem<T>& p, const Plan& plan) {
  const size_t steps = static_cast<size_t>(p.batch * p.heads * p.time);
  const size_t borders = static_cast<size_t>(plan.count * p.heads);
  Work<T> w;
  w.memory = static_cast<double*>(calloc(5 * steps + (kSlices + 2) * borders, sizeof(double)));
  w.input = w.memory;
  w.forget = w.input + steps;
  w.maximum = w.forget + steps;
  w.decay = w.maximum + steps;
  w.entering = w.decay + kSlices * borders;
  w.leaving = w.entering + borders;
  w.inverse = reinterpret_cast<T*>(w.leaving + borders);
  w.read = w.inverse + steps;
  return w;
}

// The parts of a decay's gradient in their order, so that the sum does not depend on timing.
template <typename T>
static double decay_gradient(const Work<T>& w, long border) {
  double sum = 0;
  for (long slice = 0; slice < kSlices; ++slice) {
    sum += w.decay[border * kSlices + slice];
  }
  return sum;
}

template <typename T>
static void differentiate_denominators(const MlstmProblem<T>& p, const MlstmGradients<T>& g, const Scalars& s,
                                       const Work<T>& w, long b, long t) {
  for (long h = 0; h < p.heads; ++h) {
    const long gate = (b * p.time + t) * p.heads + h;
    const long step = (b * p.heads + h) * p.time + t;
    const T floor = static_cast<T>(exp(-s.maximum[step]));
    const T magnitude = absolute(p.read[gate]);
    const T inverse = T(1) / ((magnitude < floor ? floor : magnitude) + static_cast<T>(kEpsilon));
    const T along = -dot(g.h + gate * p.value, p.h + gate * p.value, p.value) * inverse;
    w.inverse[gate] = inverse;
    w.read[gate] = magnitude > floor ? (p.read[gate] < T(0) ? -along : along) : T(0);
    w.maximum[step] = static_cast<double>(along) * kEpsilon;
  }
}

// The slot that holds the gradient of the state after a chunk; null when that gradient is zero.
template <typename T>
static const T* gradient_after(const MlstmProblem<T>& p, const MlstmGradients<T>& g, const Chunk& chunk, long c,
                               long h, bool normalizer) {
  const long size = normalizer ? p.key : p.key * p.value;
  if (chunk.is_last) {
    const T* given = normalizer ? g.final_normalizer : g.final_matrix;
    return given == nullptr ? nullptr : given + (chunk.batch * p.heads + h) * size;
  }
  const T* slots = normalizer ? g.normalizers : g.states;
  return chunk.is_saved ? slots + ((c + 1) * p.heads + h) * size : nullptr;
}

// What a chunk's reading adds to the gradient of the state before it: (e q)ᵀ dn and the sum of e ds q.
template <typename T>
static void write_gradient(const MlstmProblem<T>& p, const MlstmGradients<T>& g, const Scalars& s, const Work<T>& w,
                           const Chunk& chunk, long c, long h) {
  static thread_local Scratch scratch;
  const long n = chunk.length;
  T* scaled = static_cast<T*>(scratch.get(sizeof(T) * static_cast<size_t>(n * p.value)));
  const Place<T> place(p, chunk, h);
  T* normalizer = g.normalizers + (c * p.heads + h) * p.key;
  memset(normalizer, 0, sizeof(T) * static_cast<size_t>(p.key));
  const long first = (chunk.batch * p.heads + h) * p.time + chunk.start;
  const double before = s.before[c * p.heads + h];
  for (long t = 0; t < n; ++t) {
    const T enter = static_cast<T>(exp(s.forget_sum[first + t] + before - s.maximum[first + t]));
    const long gate = place.gate_first + t * p.heads;
    copy_scaled(enter * w.inverse[gate], g.h + place.value_first + t * place.value_row, scaled + t * p.value, p.value);
    add_scaled(enter * w.read[gate], p.q + place.key_first + t * place.key_row, normalizer, p.key);
  }
  gemm<T>(p.key, p.value, n, T(1), transposed(p.q + place.key_first, place.key_row), rows(scaled, p.value), T(0),
          g.states + (c * p.heads + h) * p.key * p.value, p.value);
}

// Gradients of the states at all borders, from the last to the first, and of every chunk's decay.
template <typename T>
static void scan_gradients(const MlstmProblem<T>& p, const MlstmGradients<T>& g, const Scalars& s, const Work<T>& w,
                           const Plan& plan, long b, long h, long slice) {
  const long first_row = p.key * slice / kSlices;
  const long row_count = p.key * (slice + 1) / kSlices - first_row;
  for (long c = plan.count - 1; c >= 0; --c) {
    const Chunk& chunk = plan.chunks[c];
    if (chunk.batch != b || !chunk.has_state) {
      continue;
    }
    const T* after = gradient_after(p, g, chunk, c, h, false);
    const T* normalizer_after = gradient_after(p, g, chunk, c, h, true);
    const double decay = s.decay[c * p.heads + h];
    const long border = (c * p.heads + h) * p.key + first_row;
    double along = 0;
    if (after != nullptr) {
      for (long r = 0; r < row_count; ++r) {
        const long row = (border + r) * p.value;
        const T* source = after + (first_row + r) * p.value;
        along += static_cast<double>(dot(p.states + row, source, p.value));
        add_scaled(static_cast<T>(decay), source, g.states + row, p.value);
      }
    }
    if (normalizer_after != nullptr) {
      along += static_cast<double>(dot(p.normalizers + border, normalizer_after + first_row, row_count));
      add_scaled(static_cast<T>(decay), normalizer_after + first_row, g.normalizers + border, row_count);
    }
    w.decay[(c * p.heads + h) * kSlices + slice] = decay * along;
  }
}

// Pairs of a chunk: on return `pairs` holds S, `products` dP, `crossing` the strict row sums minus column sums of W,
// and `columns` its column sums with the diagonal.
template <typename T>
static void differentiate_pairs(const MlstmProblem<T>& p, const Work<T>& w, const Local<T>& local, const Place<T>& place,
                                long n, T scale, const T* numerators, T* pairs, T* products, long pair_row, T* weights,
                                double* crossing, T* columns) {
  lower_products(n, p.key, scale, p.q + place.key_first, place.key_row, p.k + place.key_first, place.key_row, pairs,
                 pair_row);
  lower_products(n, p.value, T(1), numerators, p.value, p.v + place.value_first, place.value_row, products, pair_row);
  memset(columns, 0, sizeof(T) * static_cast<size_t>(n));
  for (long t = 0; t < n; ++t) {
    crossing[t] = 0;
  }
  for (long t = 0; t < n; ++t) {
    pair_weights(local, t, weights);
    T* pair = pairs + t * pair_row;
    T* product = products + t * pair_row;
    const T read = w.read[place.gate_first + t * p.heads];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < t; ++j) {
      const T weighted = pair[j] * weights[j];
      const T gradient = product[j] + read;
      const T change = gradient * weighted;
      sum += change;
      columns[j] += change;
      pair[j] = weighted;
      product[j] = gradient * weights[j] * scale;
    }
    // The diagonal: a step that reads itself crosses no border.
    const T weighted = pair[t] * weights[t];
    const T gradient = product[t] + read;
    pair[t] = weighted;
    product[t] = gradient * weights[t] * scale;
    crossing[t] += static_cast<double>(sum);
    local.floor[t] = gradient * weighted;  // kept apart until the column sums are complete
    const long block_end = (t / kPairBlock + 1) * kPairBlock;
    for (long j = t + 1; j < (block_end < n ? block_end : n); ++j) {
      pair[j] = 0;
      product[j] = 0;
    }
  }
  for (long t = 0; t < n; ++t) {
    crossing[t] -= static_cast<double>(columns[t]);
    columns[t] += local.floor[t];
  }
}

// The state's share of dq; returns q_i·(that share) in `enters`.
template <typename T>
static void query_from_state(const MlstmProblem<T>& p, const MlstmGradients<T>& g, const Work<T>& w,
                             const Local<T>& local, const Place<T>& place, long n, long slot, const T* numerators,
                             T* enters) {
  const T* state = p.states + slot * p.key * p.value;
  const T* normalizer = p.normalizers + slot * p.key;
  T* out = g.q + place.key_first;
  gemm<T>(n, p.key, p.value, T(1), rows(numerators, p.value), transposed(state, p.value), T(0), out, place.key_row);
  for (long t = 0; t < n; ++t) {
    T* row = out + t * place.key_row;
    const T read = w.read[place.gate_first + t * p.heads];
    const T enter = local.enter[t];
#pragma omp simd
    for (long j = 0; j < p.key; ++j) {
      row[j] = enter * (row[j] + read * normalizer[j]);
    }
    enters[t] = dot(p.q + place.key_first + t * place.key_row, row, p.key);
  }
}

// The state's share of dk and dv; returns k_j·(that share) in `leaves`.
template <typename T>
static void pair_from_state(const MlstmProblem<T>& p, const MlstmGradients<T>& g, const Local<T>& local,
                            const Place<T>& place, long n, const T* matrix, const T* normalizer, T* leaves) {
  T* key_out = g.k + place.key_first;
  T* value_out = g.v + place.value_first;
  const T* k = p.k + place.key_first;
  gemm<T>(n, p.key, p.value, T(1), rows(p.v + place.value_first, place.value_row), transposed(matrix, p.value), T(0),
          key_out, place.key_row);
  gemm<T>(n, p.value, p.key, T(1), rows(k, place.key_row), rows(matrix, p.value), T(0), value_out, place.value_row);
  for (long t = 0; t < n; ++t) {
    T* row = key_out + t * place.key_row;
    const T leave = local.leave[t];
#pragma omp simd
    for (long j = 0; j < p.key; ++j) {
      row[j] = leave * (row[j] + normalizer[j]);
    }
    leaves[t] = dot(k + t * place.key_row, row, p.key);
    copy_scaled(leave, value_out + t * place.value_row, value_out + t * place.value_row, p.value);
  }
}

// Gate gradients of a chunk from its border-crossing sums.
template <typename T>
static void gather_gates(const MlstmProblem<T>& p, const Work<T>& w, const Chunk& chunk, long c, long h,
                         const double* crossing, const T* columns, const T* enters, const T* leaves) {
  const long n = chunk.length;
  const long first = (chunk.batch * p.heads + h) * p.time + chunk.start;
  double entering = 0;
  for (long t = n - 1; t >= 0; --t) {
    entering += crossing[t] + static_cast<double>(enters[t]);
    w.forget[first + t] += entering;
    w.entering[c * p.heads + h] += static_cast<double>(enters[t]);
    w.leaving[c * p.heads + h] += static_cast<double>(leaves[t]);
    w.input[first + t] += static_cast<double>(columns[t]) + static_cast<double>(leaves[t]);
  }
  double leaving = decay_gradient(w, c * p.heads + h);
  for (long t = 0; t < n; ++t) {
    w.forget[first + t] += leaving;
    leaving += static_cast<double>(leaves[t]);
  }
  if (!chunk.has_state) {
    w.forget[first] = 0;
  }
}

template <typename T>
static void read_gradient(const MlstmProblem<T>& p, const MlstmGradients<T>& g, const Scalars& s, const Work<T>& w,
                          const Chunk& chunk, long c, long h) {
  static thread_local Scratch scratch;
  const double scale = 1 / sqrt(static_cast<double>(p.key));
  const long n = chunk.length;
  const long pair_row = padded(n);
  double* crossing = static_cast<double*>(
      scratch.get(sizeof(double) * static_cast<size_t>(n) +
                  sizeof(T) * static_cast<size_t>(n * (2 * pair_row + p.value + 10) + pair_row)));
  T* pairs = reinterpret_cast<T*>(crossing + n);
  T* products = pairs + n * pair_row;
  T* numerators = products + n * pair_row;
  T* weights = numerators + n * p.value;
  T* columns = weights + pair_row;
  T* enters = columns + n;
  T* leaves = enters + n;
  const Local<T> local = make_local(p, s, chunk, c, h, scale, leaves + n);
  const Place<T> place(p, chunk, h);
  memset(enters, 0, 2 * sizeof(T) * static_cast<size_t>(n));
  for (long t = 0; t < n; ++t) {
    copy_scaled(w.inverse[place.gate_first + t * p.heads], g.h + place.value_first + t * place.value_row,
                numerators + t * p.value, p.value);
  }
  differentiate_pairs(p, w, local, place, n, static_cast<T>(scale), numerators, pairs, products, pair_row, weights,
                      crossing, columns);
  if (chunk.has_state) {
    query_from_state(p, g, w, local, place, n, c * p.heads + h, numerators, enters);
  }
  lower_times(n, p.key, products, pair_row, p.k + place.key_first, place.key_row, T(chunk.has_state ? 1 : 0),
              g.q + place.key_first, place.key_row);
  const T* matrix = gradient_after(p, g, chunk, c, h, false);
  if (matrix != nullptr) {
    pair_from_state(p, g, local, place, n, matrix, gradient_after(p, g, chunk, c, h, true), leaves);
  }
  const T keep = T(matrix != nullptr ? 1 : 0);
  lower_transposed_times(n, p.key, products, pair_row, p.q + place.key_first, place.key_row, keep,
                         g.k + place.key_first, place.key_row);
  lower_transposed_times(n, p.value, pairs, pair_row, numerators, p.value, keep, g.v + place.value_first,
                         place.value_row);
  gather_gates(p, w, chunk, c, h, crossing, columns, enters, leaves);
}

// The gradient of m, from the last step to the first, and the end of all: gradients of the gates.
template <typename T>
static void finish_head(const MlstmProblem<T>& p, const MlstmGradients<T>& g, const Scalars& s, const Work<T>& w,
                        const Plan& plan, long b, long h) {
  const long head = b * p.heads + h;
  double carried = g.final_maximum == nullptr ? 0 : static_cast<double>(g.final_maximum[head]);
  double initial = 0;
  for (long c = plan.count - 1; c >= 0; --c) {
    const Chunk& chunk = plan.chunks[c];
    if (chunk.batch != b) {
      continue;
    }
    // C, n and their gradients, multiplied and summed, by the parts that they consist of: the same numbers on both
    // sides of a difference cancel exactly.
    const long border = c * p.heads + h;
    if (chunk.is_last) {
      carried -= w.leaving[border] + decay_gradient(w, border);
    }
    if (chunk.start == 0 && chunk.has_state) {
      initial = w.entering[border] + decay_gradient(w, border);
    }
    for (long t = chunk.length - 1; t >= 0; --t) {
      const long step = head * p.time + chunk.start + t;
      const long gate = (b * p.time + chunk.start + t) * p.heads + h;
      const double before = t > 0 ? s.maximum[step - 1] : s.before[c * p.heads + h];
      const double forget = log_sigmoid_64(p.f[gate]);
      carried += w.maximum[step];
      if (forget + before > static_cast<double>(p.i[gate])) {
        w.forget[step] += carried;
      } else {
        w.input[step] += carried;
        carried = 0;
      }
      g.i[gate] = static_cast<T>(w.input[step]);
      // d log σ(f) / df = σ(-f) = 1 - exp(log σ(f))
      g.f[gate] = static_cast<T>(w.forget[step] * -expm1(forget));
    }
  }
  if (g.initial_maximum != nullptr) {
    g.initial_maximum[head] = static_cast<T>(carried + initial);
  }
}

template <typename T>
static void copy_initial_gradient(const MlstmProblem<T>& p, const MlstmGradients<T>& g, const Plan& plan) {
  const size_t size = static_cast<size_t>(p.heads * p.key);
  const size_t value = static_cast<size_t>(p.value);
  for (long c = 0; c < plan.count; ++c) {
    const Chunk& chunk = plan.chunks[c];
    if (chunk.start != 0) {
      continue;
    }
    T* matrix = g.initial_matrix + static_cast<size_t>(chunk.batch) * size * value;
    T* normalizer = g.initial_normalizer + static_cast<size_t>(chunk.batch) * size;
    if (chunk.has_state) {
      memcpy(matrix, g.states + static_cast<size_t>(c) * size * value, sizeof(T) * size * value);
      memcpy(normalizer, g.normalizers + static_cast<size_t>(c) * size, sizeof(T) * size);
    } else {
      memset(matrix, 0, sizeof(T) * size * value);
      memset(normalizer, 0, sizeof(T) * size);
    }
  }
}

template <typename T>
static void mlstm_backward(const MlstmProblem<T>* problem, const MlstmGradients<T>* gradients) {
  const MlstmProblem<T>& p = *problem;
  const MlstmGradients<T>& g = *gradients;
  const Plan plan = make_plan(p);
  const Scalars s = make_scalars(p, plan);
  const Work<T> w = make_work(p, plan);
  const long tasks = plan.count * p.heads;
#pragma omp parallel
  {
    flush_denormals();
#pragma omp for schedule(static)
    for (long row = 0; row < p.batch * p.time; ++row) {
      differentiate_denominators(p, g, s, w, row / p.time, row % p.time);
    }
#pragma omp for schedule(dynamic)
    for (long task = 0; task < tasks; ++task) {
      if (plan.chunks[task / p.heads].has_state) {
        write_gradient(p, g, s, w, plan.chunks[task / p.heads], task / p.heads, task % p.heads);
      }
    }
#pragma omp for schedule(dynamic)
    for (long task = 0; task < p.batch * p.heads * kSlices; ++task) {
      const long head = task / kSlices;
      scan_gradients(p, g, s, w, plan, head / p.heads, head % p.heads, task % kSlices);
    }
#pragma omp for schedule(dynamic)
    for (long task = 0; task < tasks; ++task) {
      read_gradient(p, g, s, w, plan.chunks[task / p.heads], task / p.heads, task % p.heads);
    }
#pragma omp single
    if (g.initial_matrix != nullptr) {
      copy_initial_gradient(p, g, plan);
    }
#pragma omp for schedule(dynamic)
    for (long head = 0; head < p.batch * p.heads; ++head) {
      finish_head(p, g, s, w, plan, head / p.heads, head % p.heads);
    }
  }
  free(w.memory);
  free(s.memory);
  free(plan.chunks);
}

}  // namespace
}  // namespace XLSTM_ISA
