// The forward pass of mLSTM; see mlstm.h.
#pragma once

#include "mlstm.h"

namespace XLSTM_ISA {
namespace {

// What a chunk adds to the state: (a k)ᵀ v and the sum of a k.
template <typename T>
static void write_chunk(const MlstmProblem<T>& p, const Scalars& s, const Chunk& chunk, long c, long h) {
  static thread_local Scratch scratch;
  const double scale = 1 / sqrt(static_cast<double>(p.key));
  const long n = chunk.length;
  T* memory = static_cast<T*>(scratch.get(sizeof(T) * static_cast<size_t>(n * (p.value + 7))));
  const Local<T> local = make_local(p, s, chunk, c, h, scale, memory + n * p.value);
  const Place<T> place(p, chunk, h);
  T* normalizer = normalizer_after(p, chunk, c, h);
  memset(normalizer, 0, sizeof(T) * static_cast<size_t>(p.key));
  for (long t = 0; t < n; ++t) {
    copy_scaled(local.leave[t], p.v + place.value_first + t * place.value_row, memory + t * p.value, p.value);
    add_scaled(local.leave[t], p.k + place.key_first + t * place.key_row, normalizer, p.key);
  }
  gemm<T>(p.key, p.value, n, T(1), transposed(p.k + place.key_first, place.key_row), rows(memory, p.value), T(0),
          state_after(p, chunk, c, h), p.value);
}

// Adds what is left of the state before each chunk to what the chunk wrote, border by border.
template <typename T>
static void scan_states(const MlstmProblem<T>& p, const Scalars& s, const Plan& plan, long b, long h, long first_row,
                        long row_count) {
  for (long c = 0; c < plan.count; ++c) {
    const Chunk& chunk = plan.chunks[c];
    if (chunk.batch != b || !chunk.has_state) {
      continue;
    }
    T* before = p.states + ((c * p.heads + h) * p.key + first_row) * p.value;
    T* normalizer_before = p.normalizers + (c * p.heads + h) * p.key + first_row;
    if (chunk.start == 0) {
      const long initial = (b * p.heads + h) * p.key + first_row;
      memcpy(before, p.initial_matrix + initial * p.value, sizeof(T) * static_cast<size_t>(row_count * p.value));
      memcpy(normalizer_before, p.initial_normalizer + initial, sizeof(T) * static_cast<size_t>(row_count));
    }
    if (!chunk.is_saved) {
      continue;
    }
    const T decay = static_cast<T>(s.decay[c * p.heads + h]);
    add_scaled(decay, before, state_after(p, chunk, c, h) + first_row * p.value, row_count * p.value);
    add_scaled(decay, normalizer_before, normalizer_after(p, chunk, c, h) + first_row, row_count);
  }
}

// The hidden values of a chunk.
template <typename T>
static void read_chunk(const MlstmProblem<T>& p, const Scalars& s, const Chunk& chunk, long c, long h) {
  static thread_local Scratch scratch;
  const double scale = 1 / sqrt(static_cast<double>(p.key));
  const long n = chunk.length;
  const long pair_row = padded(n);
  T* pairs = static_cast<T*>(scratch.get(sizeof(T) * static_cast<size_t>(n * (pair_row + 8) + pair_row)));
  T* weights = pairs + n * pair_row;
  T* sums = weights + pair_row;
  const Local<T> local = make_local(p, s, chunk, c, h, scale, sums + n);
  const Place<T> place(p, chunk, h);
  const T* q = p.q + place.key_first;
  T* out = p.h + place.value_first;
  lower_products(n, p.key, static_cast<T>(scale), q, place.key_row, p.k + place.key_first, place.key_row, pairs,
                 pair_row);
  for (long t = 0; t < n; ++t) {
    pair_weights(local, t, weights);
    T* row = pairs + t * pair_row;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j <= t; ++j) {
      row[j] *= weights[j];
      sum += row[j];
    }
    sums[t] = sum;
    const long block_end = (t / kPairBlock + 1) * kPairBlock;
    for (long j = t + 1; j < (block_end < n ? block_end : n); ++j) {
      row[j] = 0;
    }
  }
  if (chunk.has_state) {
    const T* state = p.states + (c * p.heads + h) * p.key * p.value;
    const T* normalizer = p.normalizers + (c * p.heads + h) * p.key;
    gemm<T>(n, p.value, p.key, T(1), rows(q, place.key_row), rows(state, p.value), T(0), out, place.value_row);
    for (long t = 0; t < n; ++t) {
      sums[t] += local.enter[t] * dot(q + t * place.key_row, normalizer, p.key);
      copy_scaled(local.enter[t], out + t * place.value_row, out + t * place.value_row, p.value);
    }
  }
  lower_times(n, p.value, pairs, pair_row, p.v + place.value_first, place.value_row, T(chunk.has_state ? 1 : 0), out,
              place.value_row);
  for (long t = 0; t < n; ++t) {
    const T magnitude = absolute(sums[t]);
    const T denominator = (magnitude < local.floor[t] ? local.floor[t] : magnitude) + static_cast<T>(kEpsilon);
    p.read[place.gate_first + t * p.heads] = sums[t];
    copy_scaled(T(1) / denominator, out + t * place.value_row, out + t * place.value_row, p.value);
  }
}

template <typename T>
static void mlstm_forward(const MlstmProblem<T>* problem) {
  const MlstmProblem<T>& p = *problem;
  const Plan plan = make_plan(p);
  const Scalars s = make_scalars(p, plan);
  const long tasks = plan.count * p.heads;
#pragma omp parallel if (p.batch * p.heads * p.time * p.key * p.value >= kWorthThreads)
  {
    flush_denormals();
#pragma omp for schedule(dynamic)
    for (long task = 0; task < tasks; ++task) {
      if (plan.chunks[task / p.heads].is_saved) {
        write_chunk(p, s, plan.chunks[task / p.heads], task / p.heads, task % p.heads);
      }
    }
#pragma omp for schedule(dynamic)
    for (long task = 0; task < p.batch * p.heads * kSlices; ++task) {
      const long head = task / kSlices;
      const long first = p.key * (task % kSlices) / kSlices;
      const long end = p.key * (task % kSlices + 1) / kSlices;
      if (end > first) {
        scan_states(p, s, plan, head / p.heads, head % p.heads, first, end - first);
      }
    }
#pragma omp for schedule(dynamic)
    for (long task = 0; task < tasks; ++task) {
      read_chunk(p, s, plan.chunks[task / p.heads], task / p.heads, task % p.heads);
    }
  }
  for (long b = 0; p.final_maximum != nullptr && b < p.batch; ++b) {
    for (long h = 0; h < p.heads; ++h) {
      p.final_maximum[b * p.heads + h] =
          static_cast<T>(s.maximum[(b * p.heads + h) * p.time + p.time - 1]);
    }
  }
  free(s.memory);
  free(plan.chunks);
}

}  // namespace
}  // namespace XLSTM_ISA
