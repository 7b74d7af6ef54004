// mLSTM, chunkwise, forward and backward (the formulas: src/mlstm/chunkwise.rs).
//
// Work is cut into one task for each chunk of each head, so that all cores are busy with any number of heads:
//
//   forward   scalars    stabilizer m and decay sums of every step, in fp64 (head by head: they are a recurrence)
//             write      what each chunk adds to the state: (a k)ᵀ v
//             scan       states at the chunks' borders, one after the other
//             read       inside each chunk: pairs of steps, and what the state gives
//   backward  scalars    the same again, and the gradient of every denominator
//             write      what each chunk adds to the gradient of the state before it: (e q)ᵀ dn
//             scan       from the last border to the first
//             read       gradients of q, k, v and of the gates' logarithms inside each chunk
//
// Differences of decay sums are where fp32 would lose digits (sums of ±100 a step cancel to nothing), so they are
// held as an unevaluated sum of two numbers.
#pragma once

#include "abi.h"
#include "gemm.h"

namespace XLSTM_ISA {
namespace {

constexpr double kEpsilon = 1e-6;
// Rows of pairs that are multiplied at a time: what lies right of the diagonal in them is computed for nothing, and a
// panel of the product is this wide.
constexpr long kPairBlock = 48;
// A head's state is scanned by several threads, some of its rows each.
constexpr long kSlices = 8;

struct Chunk {
  long batch;
  long start;
  long length;
  bool has_state;  // something is remembered before its first step
  bool is_saved;    // what it leaves is used: by the next chunk, or as the final state
  bool is_last;    // of its sequence
};

// The chunks of all sequences, in order.
struct Plan {
  Chunk* chunks;
  long count;
};

static long chunks_of_segment(long length, long limit) { return (length + limit - 1) / limit; }

// Calls `emit(batch, start, length, has_state, is_last)` for every chunk; resets begin segments.
template <typename Emit>
static void for_each_chunk(long batch, long time, long limit, const uint8_t* resets, bool has_initial,
                           const Emit& emit) {
  for (long b = 0; b < batch; ++b) {
    const uint8_t* flags = resets == nullptr ? nullptr : resets + b * time;
    long start = 0;
    while (start < time) {
      long end = start + 1;
      while (end < time && (flags == nullptr || flags[end] == 0)) {
        ++end;
      }
      const long parts = chunks_of_segment(end - start, limit);
      // Equal parts, a multiple of eight long where that is possible.
      long length = ((end - start + parts - 1) / parts + 7) / 8 * 8;
      length = length < limit ? length : limit;
      const bool begins_with_state = start == 0 && has_initial && (flags == nullptr || flags[0] == 0);
      for (long position = start; position < end; position += length) {
        const long count = end - position < length ? end - position : length;
        emit(b, position, count, position > start || begins_with_state, position + count == time);
      }
      start = end;
    }
  }
}

template <typename T>
static Plan make_plan(const MlstmProblem<T>& p) {
  Plan plan{nullptr, 0};
  const bool has_initial = p.initial_matrix != nullptr;
  for_each_chunk(p.batch, p.time, p.chunk, p.resets, has_initial,
                 [&](long, long, long, bool, bool) { ++plan.count; });
  plan.chunks = static_cast<Chunk*>(malloc(sizeof(Chunk) * static_cast<size_t>(plan.count)));
  long index = 0;
  for_each_chunk(p.batch, p.time, p.chunk, p.resets, has_initial,
                 [&](long b, long start, long length, bool has_state, bool is_last) {
                   if (index > 0 && !plan.chunks[index - 1].is_last) {
                     plan.chunks[index - 1].is_saved = has_state;
                   }
                   const bool is_saved = is_last && p.final_matrix != nullptr;
                   plan.chunks[index++] = Chunk{b, start, length, has_state, is_saved, is_last};
                 });
  return plan;
}

// fp64 scalars of every step, indexed [(b * heads + h) * time + t]; `decay` by [chunk * heads + h].
struct Scalars {
  double* memory;
  double* forget_sum;     // sum of log σ(f) from the chunk's first step to this one
  double* maximum;  // m
  double* decay;    // exp(forget_sum at the end + m before - m at the end): what is left of the state before the chunk
  double* before;   // m before the chunk's first step
};

template <typename T>
static double log_sigmoid_64(T x) {
  const double value = static_cast<double>(x);
  return (value < 0 ? value : 0) - log1p(exp(-fabs(value)));
}

template <typename T>
static Scalars make_scalars(const MlstmProblem<T>& p, const Plan& plan) {
  const long steps = p.batch * p.heads * p.time;
  const long borders = plan.count * p.heads;
  Scalars s;
  s.memory = static_cast<double*>(malloc(sizeof(double) * static_cast<size_t>(2 * steps + 2 * borders)));
  s.forget_sum = s.memory;
  s.maximum = s.forget_sum + steps;
  s.decay = s.maximum + steps;
  s.before = s.decay + borders;
#pragma omp parallel for schedule(dynamic) if (steps * 16 >= kWorthThreads)
  for (long head = 0; head < p.batch * p.heads; ++head) {
    const long h = head % p.heads;
    double maximum = 0;
    for (long c = 0; c < plan.count; ++c) {
      const Chunk& chunk = plan.chunks[c];
      if (chunk.batch != head / p.heads) {
        continue;
      }
      if (chunk.start == 0 || !chunk.has_state) {
        const bool initial = chunk.has_state;
        maximum = initial ? static_cast<double>(p.initial_maximum[chunk.batch * p.heads + h]) : -INFINITY;
      }
      const double before = maximum;
      double forget_sum = 0;
      for (long t = chunk.start; t < chunk.start + chunk.length; ++t) {
        const long gate = (chunk.batch * p.time + t) * p.heads + h;
        const double forget = log_sigmoid_64(p.f[gate]);
        const double input = static_cast<double>(p.i[gate]);
        forget_sum += forget;
        const double carried = forget + maximum;
        maximum = carried > input ? carried : input;
        // A NaN must not be lost in the comparison.
        maximum += 0 * (carried != -INFINITY ? carried : 0) + 0 * input;
        const long step = (chunk.batch * p.heads + h) * p.time + t;
        s.forget_sum[step] = forget_sum;
        s.maximum[step] = maximum;
      }
      s.before[c * p.heads + h] = before;
      s.decay[c * p.heads + h] = chunk.has_state ? exp(forget_sum + before - maximum) : 0;
    }
  }
  return s;
}

// The scalars of one chunk of one head, ready for vector loops.
template <typename T>
struct Local {
  T* enter;        // e_i: how much of the state before the chunk step i reads
  T* leave;        // a_j / sqrt(K): how much of step j is left in the state after the chunk
  T* floor;        // exp(-m_i); the backward pass has no use for it and keeps a column of its own there
  T* row_high;     // forget_sum_i - m_i, in two parts
  T* row_low;
  T* column_high;  // i_j - forget_sum_j, in two parts
  T* column_low;
};

template <typename T>
static Local<T> make_local(const MlstmProblem<T>& p, const Scalars& s, const Chunk& chunk, long c, long h,
                           double scale, T* memory) {
  const long n = chunk.length;
  Local<T> local{memory,         memory + n,     memory + 2 * n, memory + 3 * n,
                 memory + 4 * n, memory + 5 * n, memory + 6 * n};
  const long first = (chunk.batch * p.heads + h) * p.time + chunk.start;
  const double before = s.before[c * p.heads + h];
  const double total = s.forget_sum[first + n - 1];
  const double last = s.maximum[first + n - 1];
  for (long t = 0; t < n; ++t) {
    const double forget_sum = s.forget_sum[first + t];
    const double maximum = s.maximum[first + t];
    const double input = static_cast<double>(p.i[(chunk.batch * p.time + chunk.start + t) * p.heads + h]);
    local.enter[t] = chunk.has_state ? static_cast<T>(exp(forget_sum + before - maximum)) : T(0);
    local.leave[t] = static_cast<T>(exp(total - forget_sum + input - last) * scale);
    local.floor[t] = static_cast<T>(exp(-maximum));
    const double row = forget_sum - maximum;
    const double column = input - forget_sum;
    local.row_high[t] = static_cast<T>(row);
    local.row_low[t] = static_cast<T>(row - static_cast<double>(local.row_high[t]));
    local.column_high[t] = static_cast<T>(column);
    local.column_low[t] = static_cast<T>(column - static_cast<double>(local.column_high[t]));
  }
  return local;
}

template <typename T>
static inline T dot(const T* a, const T* b, long n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (long j = 0; j < n; ++j) {
    sum += a[j] * b[j];
  }
  return sum;
}

// y += factor x
template <typename T>
static inline void add_scaled(T factor, const T* x, T* y, long n) {
#pragma omp simd
  for (long j = 0; j < n; ++j) {
    y[j] += factor * x[j];
  }
}

// y = factor x
template <typename T>
static inline void copy_scaled(T factor, const T* x, T* y, long n) {
#pragma omp simd
  for (long j = 0; j < n; ++j) {
    y[j] = factor * x[j];
  }
}

// Weights D'_ij of row i, j <= i.
template <typename T>
static inline void pair_weights(const Local<T>& local, long i, T* weights) {
  const T high = local.row_high[i];
  const T low = local.row_low[i];
#pragma omp simd
  for (long j = 0; j <= i; ++j) {
    const T exponent = (high + local.column_high[j]) + (low + local.column_low[j]);
    weights[j] = exponential(exponent < T(0) || exponent != exponent ? exponent : T(0));
  }
}

// Where a chunk of a head lies.
template <typename T>
struct Place {
  long key_row, value_row;  // distance between steps
  long key_first, value_first, gate_first;
  Place(const MlstmProblem<T>& p, const Chunk& chunk, long h)
      : key_row(p.heads * p.key),
        value_row(p.heads * p.value),
        key_first(((chunk.batch * p.time + chunk.start) * p.heads + h) * p.key),
        value_first(((chunk.batch * p.time + chunk.start) * p.heads + h) * p.value),
        gate_first((chunk.batch * p.time + chunk.start) * p.heads + h) {}
};

// The state that a chunk leaves: the slot of the next chunk, or the final state.
template <typename T>
static T* state_after(const MlstmProblem<T>& p, const Chunk& chunk, long c, long h) {
  return chunk.is_last ? p.final_matrix + (chunk.batch * p.heads + h) * p.key * p.value
                       : p.states + ((c + 1) * p.heads + h) * p.key * p.value;
}
template <typename T>
static T* normalizer_after(const MlstmProblem<T>& p, const Chunk& chunk, long c, long h) {
  return chunk.is_last ? p.final_normalizer + (chunk.batch * p.heads + h) * p.key
                       : p.normalizers + ((c + 1) * p.heads + h) * p.key;
}

static inline long padded(long n) { return (n + 15) / 16 * 16; }

// P = scale q kᵀ below the diagonal, block row by block row; what lies right of a block row is not touched.
template <typename T>
static void lower_products(long n, long width, T scale, const T* a, long a_row, const T* b, long b_row, T* out,
                           long out_row) {
  for (long r = 0; r < n; r += kPairBlock) {
    const long count = n - r < kPairBlock ? n - r : kPairBlock;
    gemm<T>(count, r + count, width, scale, rows(a + r * a_row, a_row), transposed(b, b_row), T(0), out + r * out_row,
            out_row);
  }
}

// out += L x (or = when `fresh`), L lower triangular with zeros in its diagonal blocks' upper parts.
template <typename T>
static void lower_times(long n, long width, const T* lower, long lower_row, const T* x, long x_row, T keep, T* out,
                        long out_row) {
  for (long r = 0; r < n; r += kPairBlock) {
    const long count = n - r < kPairBlock ? n - r : kPairBlock;
    gemm<T>(count, width, r + count, T(1), rows(lower + r * lower_row, lower_row), rows(x, x_row), keep,
            out + r * out_row, out_row);
  }
}

// out = Lᵀ x + keep out.
template <typename T>
static void lower_transposed_times(long n, long width, const T* lower, long lower_row, const T* x, long x_row, T keep,
                                   T* out, long out_row) {
  for (long r = 0; r < n; r += kPairBlock) {
    const long count = n - r < kPairBlock ? n - r : kPairBlock;
    gemm<T>(count, width, n - r, T(1), transposed(lower + r * lower_row + r, lower_row), rows(x + r * x_row, x_row),
            keep, out + r * out_row, out_row);
  }
}

}  // namespace
}  // namespace XLSTM_ISA
