// Scans whose state decays element by element: each lane of a vector is a channel, a task goes through time alone.
//
//   linear scan      h_t = a_t h_{t-1} + x_t                                            HGRN
//   selective scan   S_t = exp(Δ_t A) ⊙ S_{t-1} + Δ_t u_t B_t,  y_t = S_t C_t            Mamba; N states a channel
//   wkv              y_t = (α a + β v_t) / (α b + β),  see below                         RWKV-4
//
// wkv is a weighted mean of values: past ones by exp(k_s − (t−1−s) ω), the current one by exp(u + k_t). Numerator a and
// denominator b are kept divided by exp(m), m being the largest exponent so far, so that no key is too large:
//
//   m' = max(m, u + k_t)     α = exp(m − m')        β = exp(u + k_t − m')
//   m" = max(m − ω, k_t)     a ← exp(m − ω − m") a + exp(k_t − m") v_t,     b likewise with 1
//
// m only scales, and carries no gradient. The backward passes go through time once, from the end; the states that they
// need are computed again, kScanChunk steps at a time, from those that the forward pass saved.
#pragma once

#include "abi.h"
#include "linear_attention.h"
#include "vector.h"

namespace XLSTM_ISA {
namespace {

constexpr long kScanChunk = 64;  // mirrored in src/scan/mod.rs

// Runs `body(b, first, count)` for every vector of channels of every sequence.
template <typename T, typename Body>
static void for_each_vector(long batch, long width, const Body& body) {
  constexpr long kLanes = VectorOf<T>::kLanes;
  const long vectors = (width + kLanes - 1) / kLanes;
#pragma omp parallel for schedule(static)
  for (long task = 0; task < batch * vectors; ++task) {
    flush_denormals();
    const long first = task % vectors * kLanes;
    body(task / vectors, first, width - first < kLanes ? width - first : kLanes);
  }
}

static inline bool reset_at(const uint8_t* resets, long index) { return resets != nullptr && resets[index] != 0; }

// --- linear scan ---------------------------------------------------------------------------------------------------

template <typename T>
static void linear_scan_forward(const LinearScanProblem<T>* problem) {
  const LinearScanProblem<T>& p = *problem;
  for_each_vector<T>(p.batch, p.width, [&](long b, long first, long count) {
    typedef typename VectorOf<T>::Type V;
    V h = p.initial == nullptr ? V{} : load_some(p.initial + b * p.width + first, count);
    for (long t = 0; t < p.time; ++t) {
      const long at = (b * p.time + t) * p.width + first;
      const V x = load_some(p.x + at, count);
      h = reset_at(p.resets, b * p.time + t) ? x : load_some(p.a + at, count) * h + x;
      store_some(p.h + at, h, count);
    }
  });
}

template <typename T>
static void linear_scan_backward(const LinearScanProblem<T>* problem, const LinearScanGradients<T>* gradients) {
  const LinearScanProblem<T>& p = *problem;
  const LinearScanGradients<T>& g = *gradients;
  for_each_vector<T>(p.batch, p.width, [&](long b, long first, long count) {
    typedef typename VectorOf<T>::Type V;
    V flow{};
    for (long t = p.time - 1; t >= 0; --t) {
      const long at = (b * p.time + t) * p.width + first;
      flow += load_some(g.h + at, count);
      store_some(g.x + at, flow, count);
      const bool reset = reset_at(p.resets, b * p.time + t);
      V before{};
      if (!reset && t > 0) {
        before = load_some(p.h + at - p.width, count);
      } else if (!reset && p.initial != nullptr) {
        before = load_some(p.initial + b * p.width + first, count);
      }
      store_some(g.a + at, flow * before, count);
      flow = reset ? V{} : flow * load_some(p.a + at, count);
    }
    if (g.initial != nullptr) {
      store_some(g.initial + b * p.width + first, flow, count);
    }
  });
}

// --- selective scan ------------------------------------------------------------------------------------------------

template <typename T>
static long chunks_of(long time) {
  return (time + kScanChunk - 1) / kScanChunk;
}

// One vector of channels with its N states; A as (N, lanes).
template <typename T>
struct Channels {
  typedef typename VectorOf<T>::Type V;
  const SelectiveScanProblem<T>& p;
  long b, first, count;

  void load_decay(V* a) const {
    for (long n = 0; n < p.states; ++n) {
      a[n] = V{};
      for (long lane = 0; lane < count; ++lane) {
        a[n][lane] = p.a[(first + lane) * p.states + n];
      }
    }
  }

  void load_state(const T* from, V* s) const {
    for (long n = 0; n < p.states; ++n) {
      s[n] = V{};
      for (long lane = 0; from != nullptr && lane < count; ++lane) {
        s[n][lane] = from[(b * p.width + first + lane) * p.states + n];
      }
    }
  }

  void store_state(T* to, const V* s) const {
    for (long n = 0; to != nullptr && n < p.states; ++n) {
      for (long lane = 0; lane < count; ++lane) {
        to[(b * p.width + first + lane) * p.states + n] = s[n][lane];
      }
    }
  }

  // Saved states lie as (B, chunks, N, D).
  T* saved(long chunk, long n) const {
    return p.saved + ((b * chunks_of<T>(p.time) + chunk) * p.states + n) * p.width + first;
  }

  long at(long t) const { return (b * p.time + t) * p.width + first; }
  const T* write(long t) const { return p.write + (b * p.time + t) * p.states; }
  const T* read(long t) const { return p.read + (b * p.time + t) * p.states; }
};

template <typename T>
static void selective_scan_forward(const SelectiveScanProblem<T>* problem) {
  const SelectiveScanProblem<T>& p = *problem;
  for_each_vector<T>(p.batch, p.width, [&](long b, long first, long count) {
    typedef typename VectorOf<T>::Type V;
    const Channels<T> c{p, b, first, count};
    Block<V> memory(2 * p.states);
    V* a = memory.data;
    V* s = memory.data + p.states;
    c.load_decay(a);
    c.load_state(p.initial, s);
    for (long t = 0; t < p.time; ++t) {
      if (p.saved != nullptr && t % kScanChunk == 0) {
        for (long n = 0; n < p.states; ++n) {
          store_some(c.saved(t / kScanChunk, n), s[n], count);
        }
      }
      const V step = load_some(p.step + c.at(t), count);
      const V in = step * load_some(p.u + c.at(t), count);
      const T* write = c.write(t);
      const T* read = c.read(t);
      const bool reset = reset_at(p.resets, b * p.time + t);
      V y{};
      for (long n = 0; n < p.states; ++n) {
        const V left = reset ? V{} : vector_exponential(step * a[n]) * s[n];
        s[n] = left + write[n] * in;
        y += read[n] * s[n];
      }
      store_some(p.y + c.at(t), y, count);
    }
    c.store_state(p.last, s);
  });
}

// What a group adds up over its channels within a chunk.
template <typename T>
struct ChunkSums {
  typename VectorOf<T>::Type* write;  // (kScanChunk, N)
  typename VectorOf<T>::Type* read;
};

// One vector of channels through one chunk, from its end; `flow` is the gradient of its states, `before` and `decay`
// are scratch of (kScanChunk, N).
template <typename T>
static void selective_chunk(const Channels<T>& c, const SelectiveScanGradients<T>& g, long chunk,
                            typename VectorOf<T>::Type* flow, typename VectorOf<T>::Type* a_gradient,
                            typename VectorOf<T>::Type* scratch, const ChunkSums<T>& sums) {
  typedef typename VectorOf<T>::Type V;
  const SelectiveScanProblem<T>& p = c.p;
  const long states = p.states, first = chunk * kScanChunk;
  const long length = p.time - first < kScanChunk ? p.time - first : kScanChunk;
  V* a = scratch;
  V* s = a + states;
  V* before = s + states;                // what is left of the state at each step
  V* decay = before + kScanChunk * states;
  c.load_decay(a);
  for (long n = 0; n < states; ++n) {
    s[n] = load_some(c.saved(chunk, n), c.count);
  }
  for (long i = 0; i < length; ++i) {
    const long t = first + i;
    const V step = load_some(p.step + c.at(t), c.count);
    const V in = step * load_some(p.u + c.at(t), c.count);
    const bool reset = reset_at(p.resets, c.b * p.time + t);
    for (long n = 0; n < states; ++n) {
      const V e = reset ? V{} : vector_exponential(step * a[n]);
      decay[i * states + n] = e;
      before[i * states + n] = reset ? V{} : e * s[n];
      s[n] = before[i * states + n] + c.write(t)[n] * in;
    }
  }
  for (long i = length - 1; i >= 0; --i) {
    const long t = first + i;
    const V step = load_some(p.step + c.at(t), c.count);
    const V u = load_some(p.u + c.at(t), c.count);
    const V upstream = load_some(g.y + c.at(t), c.count);
    const V in = step * u;
    const T* write = c.write(t);
    const T* read = c.read(t);
    V in_gradient{}, step_gradient{};
    for (long n = 0; n < states; ++n) {
      const V left = before[i * states + n];
      sums.read[i * states + n] += upstream * (left + write[n] * in);
      const V f = flow[n] + upstream * read[n];
      sums.write[i * states + n] += f * in;
      in_gradient += f * write[n];
      step_gradient += f * left * a[n];
      a_gradient[n] += f * left * step;
      flow[n] = f * decay[i * states + n];
    }
    store_some(g.u + c.at(t), step * in_gradient, c.count);
    store_some(g.step + c.at(t), step_gradient + u * in_gradient, c.count);
  }
}

template <typename T>
static T sum_of_lanes(typename VectorOf<T>::Type v) {
  T sum = 0;
  for (long lane = 0; lane < VectorOf<T>::kLanes; ++lane) {
    sum += v[lane];
  }
  return sum;
}

// One group of channels of one sequence. The number of groups does not depend on that of threads, and their sums for B
// and C are added up in order. `g.write` and `g.read` are (B, groups, T, N).
template <typename T>
static void selective_group(const SelectiveScanProblem<T>& p, const SelectiveScanGradients<T>& g, long b, long group) {
  typedef typename VectorOf<T>::Type V;
  constexpr long kLanes = VectorOf<T>::kLanes;
  const long vectors = (p.width + kLanes - 1) / kLanes, groups = g.groups;
  const long from = vectors * group / groups, to = vectors * (group + 1) / groups, own = to - from;
  const long states = p.states;
  Block<V> memory(2 * own * states + (2 + 2 * kScanChunk) * states + 2 * kScanChunk * states);
  V* flow = memory.data;
  V* a_gradient = flow + own * states;
  V* scratch = a_gradient + own * states;
  const ChunkSums<T> sums{scratch + (2 + 2 * kScanChunk) * states, scratch + (2 + 3 * kScanChunk) * states};
  const auto channels = [&](long vector) {
    const long first = vector * kLanes;
    return Channels<T>{p, b, first, p.width - first < kLanes ? p.width - first : kLanes};
  };
  for (long v = 0; v < own; ++v) {
    channels(from + v).load_state(g.last, flow + v * states);
    for (long n = 0; n < states; ++n) {
      a_gradient[v * states + n] = V{};
    }
  }
  for (long chunk = chunks_of<T>(p.time) - 1; chunk >= 0; --chunk) {
    const long first = chunk * kScanChunk;
    const long length = p.time - first < kScanChunk ? p.time - first : kScanChunk;
    memset(static_cast<void*>(sums.write), 0, sizeof(V) * static_cast<size_t>(2 * kScanChunk * states));
    for (long v = 0; v < own; ++v) {
      selective_chunk(channels(from + v), g, chunk, flow + v * states, a_gradient + v * states, scratch, sums);
    }
    for (long i = 0; i < length * states; ++i) {
      const long at = ((b * groups + group) * p.time + first) * states + i;
      g.write[at] = sum_of_lanes<T>(sums.write[i]);
      g.read[at] = sum_of_lanes<T>(sums.read[i]);
    }
  }
  for (long v = 0; v < own; ++v) {
    channels(from + v).store_state(g.initial, flow + v * states);
    channels(from + v).store_state(g.a, a_gradient + v * states);
  }
}

template <typename T>
static void selective_scan_backward(const SelectiveScanProblem<T>* problem,
                                    const SelectiveScanGradients<T>* gradients) {
#pragma omp parallel for schedule(dynamic)
  for (long task = 0; task < problem->batch * gradients->groups; ++task) {
    flush_denormals();
    selective_group(*problem, *gradients, task / gradients->groups, task % gradients->groups);
  }
}

// --- wkv -----------------------------------------------------------------------------------------------------------

template <typename T>
struct WkvState {
  typedef typename VectorOf<T>::Type V;
  V a, b, m;
};

template <typename T>
static inline typename VectorOf<T>::Type larger(typename VectorOf<T>::Type x, typename VectorOf<T>::Type y) {
  // A NaN must not be lost in the comparison.
  return x > y ? x : (y >= x ? y : x + y);
}

template <typename T>
static WkvState<T> wkv_nothing() {
  typedef typename VectorOf<T>::Type V;
  return WkvState<T>{V{}, V{}, V{} - T(1e38)};
}

template <typename T>
static WkvState<T> wkv_load(const T* const* from, long at, long count) {
  return WkvState<T>{load_some(from[0] + at, count), load_some(from[1] + at, count), load_some(from[2] + at, count)};
}

template <typename T>
static void wkv_store(T* const* to, long at, const WkvState<T>& s, long count) {
  store_some(to[0] + at, s.a, count);
  store_some(to[1] + at, s.b, count);
  store_some(to[2] + at, s.m, count);
}

// The state after a step, and the shares of the old state and of the current key in it.
template <typename T>
static WkvState<T> wkv_next(const WkvState<T>& s, typename VectorOf<T>::Type omega, typename VectorOf<T>::Type k,
                            typename VectorOf<T>::Type v, typename VectorOf<T>::Type* left,
                            typename VectorOf<T>::Type* in) {
  typedef typename VectorOf<T>::Type V;
  const V m = larger<T>(s.m - omega, k);
  *left = vector_exponential(s.m - omega - m);
  *in = vector_exponential(k - m);
  return WkvState<T>{*left * s.a + *in * v, *left * s.b + *in, m};
}

template <typename T>
static void wkv_forward(const WkvProblem<T>* problem) {
  const WkvProblem<T>& p = *problem;
  for_each_vector<T>(p.batch, p.width, [&](long b, long first, long count) {
    typedef typename VectorOf<T>::Type V;
    const V omega = load_some(p.omega + first, count), bonus = load_some(p.bonus + first, count);
    const long line = b * p.width + first;
    WkvState<T> s = p.initial[0] == nullptr ? wkv_nothing<T>() : wkv_load<T>(p.initial, line, count);
    for (long t = 0; t < p.time; ++t) {
      if (reset_at(p.resets, b * p.time + t)) {
        s = wkv_nothing<T>();
      }
      if (p.saved[0] != nullptr && t % kScanChunk == 0) {
        wkv_store(p.saved, (b * chunks_of<T>(p.time) + t / kScanChunk) * p.width + first, s, count);
      }
      const long at = (b * p.time + t) * p.width + first;
      const V k = load_some(p.k + at, count), v = load_some(p.v + at, count);
      const V top = larger<T>(s.m, bonus + k);
      const V alpha = vector_exponential(s.m - top), beta = vector_exponential(bonus + k - top);
      store_some(p.y + at, (alpha * s.a + beta * v) / (alpha * s.b + beta), count);
      V left, in;
      s = wkv_next(s, omega, k, v, &left, &in);
    }
    wkv_store(p.last, line, s, count);
  });
}

// `omega` and `bonus` of the gradients are (B, D), sums over time.
template <typename T>
static void wkv_backward(const WkvProblem<T>* problem, const WkvGradients<T>* gradients) {
  const WkvProblem<T>& p = *problem;
  const WkvGradients<T>& g = *gradients;
  for_each_vector<T>(p.batch, p.width, [&](long b, long first, long count) {
    typedef typename VectorOf<T>::Type V;
    const V omega = load_some(p.omega + first, count), bonus = load_some(p.bonus + first, count);
    const long line = b * p.width + first;
    Block<WkvState<T>> before(kScanChunk);
    V da = g.last[0] == nullptr ? V{} : load_some(g.last[0] + line, count);
    V db = g.last[1] == nullptr ? V{} : load_some(g.last[1] + line, count);
    V omega_sum{}, bonus_sum{};
    for (long chunk = chunks_of<T>(p.time) - 1; chunk >= 0; --chunk) {
      const long start = chunk * kScanChunk;
      const long length = p.time - start < kScanChunk ? p.time - start : kScanChunk;
      WkvState<T> s = wkv_load<T>(p.saved, (b * chunks_of<T>(p.time) + chunk) * p.width + first, count);
      V left, in;
      for (long i = 0; i < length; ++i) {
        const long at = (b * p.time + start + i) * p.width + first;
        if (reset_at(p.resets, b * p.time + start + i)) {
          s = wkv_nothing<T>();
        }
        before.data[i] = s;
        s = wkv_next(s, omega, load_some(p.k + at, count), load_some(p.v + at, count), &left, &in);
      }
      for (long i = length - 1; i >= 0; --i) {
        const long at = (b * p.time + start + i) * p.width + first;
        const V k = load_some(p.k + at, count), v = load_some(p.v + at, count);
        const V upstream = load_some(g.y + at, count);
        s = before.data[i];
        wkv_next(s, omega, k, v, &left, &in);
        const V top = larger<T>(s.m, bonus + k);
        const V alpha = vector_exponential(s.m - top), beta = vector_exponential(bonus + k - top);
        const V denominator = alpha * s.b + beta;
        const V dn = upstream / denominator;
        const V dd = -dn * (alpha * s.a + beta * v) / denominator;
        const V own = beta * (v * dn + dd);
        bonus_sum += own;
        omega_sum -= left * (s.a * da + s.b * db);
        store_some(g.k + at, own + in * (v * da + db), count);
        store_some(g.v + at, beta * dn + in * da, count);
        da = left * da + alpha * dn;
        db = left * db + alpha * dd;
        if (reset_at(p.resets, b * p.time + start + i)) {
          da = db = V{};
        }
      }
    }
    store_some(g.omega + line, omega_sum, count);
    store_some(g.bonus + line, bonus_sum, count);
    if (g.initial[0] != nullptr) {
      store_some(g.initial[0] + line, da, count);
      store_some(g.initial[1] + line, db, count);
    }
  });
}

}  // namespace
}  // namespace XLSTM_ISA
