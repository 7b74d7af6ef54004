// Gated linear attention: a matrix S (K, V) for each head, which decays by key and is written and read by keys and
// queries. Methods with the state read after the update (GLA, HGRN2, RetNet) and before it (RWKV-5, RWKV-6) are one:
//
//   o_t = S_{t-1}ᵀ r_t + c_t v_t        S_t = diag(a_t) S_{t-1} + k_t v_tᵀ
//
//   after the update:  r_t = scale q_t ⊙ a_t    c_t = scale Σ q_t k_t
//   with a bonus u:    r_t = scale q_t          c_t = scale Σ q_t u k_t
//
// Step by step: no quotient of decays is ever formed, so nothing overflows and no decay is too fast. It costs three
// operations an element of S and step, less than chunks would save at these sizes, because the lanes of a vector are
// rows that do not depend on each other, and a strip of S stays in the first cache. Two steps share one pass over it.
//
// There are two such passes. `sweep_values` has values in its lanes and adds up over keys; `sweep_keys` the other way
// round. With P_t the gradient of S_t the backward pass is three of them:
//
//   dr_t = S_{t-1} do_t                 forward in time, lanes are keys
//   dk_t = P_t v_t + (bonus part)       backward in time, lanes are keys       P_{t-1} = diag(a_t) P_t + r_t do_tᵀ
//   dv_t = P_tᵀ k_t + c_t do_t          backward in time, lanes are values
//
// The decay's gradient needs no further pass: with φ_t = Σ_v S_t ⊙ P_t (each key), d log a_t = φ_t − k_t ⊙ P_t v_t and
// φ_{t-1} = that + r_t ⊙ dr_t, from the last step back, in fp64.
#pragma once

#include <stdlib.h>

#include "abi.h"
#include "vector.h"

namespace XLSTM_ISA {
namespace {

// Vectors in a strip: two accumulators and two inputs of each stay in registers.
constexpr int kStripVectors = kVectorBytes == 64 ? 4 : 2;

// Memory of a task, on a line of the cache.
template <typename T>
struct Block {
  explicit Block(long count)
      : data(static_cast<T*>(aligned_alloc(64, (sizeof(T) * static_cast<size_t>(count) + 63) / 64 * 64))) {
    if (data == nullptr) {
      abort();
    }
  }
  ~Block() { free(data); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  T* data;
};

template <typename T>
struct HeadView {
  const LinearAttentionProblem<T>& p;
  long b, h;
  long key(long t) const { return ((b * p.time + t) * p.heads + h) * p.key; }
  long value(long t) const { return ((b * p.time + t) * p.heads + h) * p.value; }
  const T* decay(long t) const { return p.decay + b * p.decay_batch + t * p.decay_time + h * p.decay_head; }
  bool is_reset(long t) const { return p.resets != nullptr && p.resets[b * p.time + t] != 0; }
};

// a_t and r_t of one step, zeros where the state is forgotten before it.
template <typename T>
static void decay_and_read(const HeadView<T>& view, long t, T* decay, T* read) {
  const LinearAttentionProblem<T>& p = view.p;
  const T* a = view.decay(t);
  const T* q = p.q + view.key(t);
  const bool reset = view.is_reset(t);
  for (long k = 0; k < p.key; ++k) {
    const T left = reset ? T(0) : a[k * p.decay_key];
    decay[k] = left;
    read[k] = p.bonus == nullptr ? p.scale * q[k] * left : (reset ? T(0) : p.scale * q[k]);
  }
}

// c_t of one step.
template <typename T>
static T own_share(const HeadView<T>& view, long t) {
  const LinearAttentionProblem<T>& p = view.p;
  const T* q = p.q + view.key(t);
  const T* k = p.k + view.key(t);
  const T* u = p.bonus == nullptr ? nullptr : p.bonus + view.h * p.key;
  T sum = 0;
  for (long i = 0; i < p.key; ++i) {
    sum += q[i] * k[i] * (u == nullptr ? T(1) : u[i]);
  }
  return p.scale * sum;
}

template <typename T>
static inline typename VectorOf<T>::Type load_some(const T* from, long count) {
  typedef typename VectorOf<T>::Type V;
  if (count >= VectorOf<T>::kLanes) {
    return *reinterpret_cast<const typename VectorOf<T>::Unaligned*>(from);
  }
  V value{};
  for (long lane = 0; lane < count; ++lane) {
    value[lane] = from[lane];
  }
  return value;
}

template <typename T>
static inline void store_some(T* to, typename VectorOf<T>::Type value, long count) {
  if (count >= VectorOf<T>::kLanes) {
    *reinterpret_cast<typename VectorOf<T>::Unaligned*>(to) = value;
    return;
  }
  for (long lane = 0; lane < count; ++lane) {
    to[lane] = value[lane];
  }
}

// One step for a strip whose lanes are values: out += readᵀ S, then S = diag(decay) S + write valueᵀ. `rows` keys.
template <typename T>
struct ValueStep {
  const T* read;   // by key
  const T* decay;  // by key
  const T* write;  // by key
  typename VectorOf<T>::Type value[kStripVectors];
  typename VectorOf<T>::Type out[kStripVectors];
};

template <typename T, int kVectors>
static void two_value_steps(long rows, typename VectorOf<T>::Type* state, ValueStep<T>* first, ValueStep<T>* second) {
  typedef typename VectorOf<T>::Type V;
  V out1[kVectors], out2[kVectors], in1[kVectors], in2[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    out1[j] = V{};
    out2[j] = V{};
    in1[j] = first->value[j];
    in2[j] = second->value[j];
  }
  for (long k = 0; k < rows; ++k) {
    V* row = state + k * kVectors;
    for (int j = 0; j < kVectors; ++j) {
      V s = row[j];
      out1[j] += first->read[k] * s;
      s = first->decay[k] * s + first->write[k] * in1[j];
      out2[j] += second->read[k] * s;
      row[j] = second->decay[k] * s + second->write[k] * in2[j];
    }
  }
  for (int j = 0; j < kVectors; ++j) {
    first->out[j] = out1[j];
    second->out[j] = out2[j];
  }
}

// One step for a strip whose lanes are keys: out += Σ_v read_v S_v, then S_v = decay ⊙ S_v + write_v key. `rows` values.
template <typename T>
struct KeyStep {
  const T* read;   // by value
  const T* write;  // by value
  typename VectorOf<T>::Type decay[kStripVectors];
  typename VectorOf<T>::Type key[kStripVectors];
  typename VectorOf<T>::Type out[kStripVectors];
};

template <typename T, int kVectors>
static void one_key_step(long rows, typename VectorOf<T>::Type* state, KeyStep<T>* step) {
  typedef typename VectorOf<T>::Type V;
  V out[kVectors], decay[kVectors], in[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    out[j] = V{};
    decay[j] = step->decay[j];
    in[j] = step->key[j];
  }
  for (long v = 0; v < rows; ++v) {
    V* row = state + v * kVectors;
    const T read = step->read[v], write = step->write[v];
    for (int j = 0; j < kVectors; ++j) {
      const V s = row[j];
      out[j] += read * s;
      row[j] = decay[j] * s + write * in[j];
    }
  }
  for (int j = 0; j < kVectors; ++j) {
    step->out[j] = out[j];
  }
}

// Which way a pass over values goes: outputs forward in time, dv backward.
template <typename T>
struct ValuePass {
  bool backward;
  const T* value;    // (B, T, H, V): v, or the gradient of o
  T* out;            // (B, T, H, V): o, or dv; overwritten
  const T* initial;  // (B, H, K, V): the state to begin with, may be null
  T* last;           // (B, H, K, V): the state at the end
};

template <typename T, int kVectors>
static void sweep_values(const HeadView<T>& view, const ValuePass<T>& pass, long first, long count) {
  typedef typename VectorOf<T>::Type V;
  constexpr long kLanes = VectorOf<T>::kLanes;
  const LinearAttentionProblem<T>& p = view.p;
  const long matrix = (view.b * p.heads + view.h) * p.key * p.value + first;
  Block<V> state(p.key * kVectors);
  V* s = state.data;
  Block<T> lines(6 * p.key);
  T* decay[2] = {lines.data, lines.data + p.key};
  T* read[2] = {lines.data + 2 * p.key, lines.data + 3 * p.key};
  T* none = lines.data + 4 * p.key;
  T* ones = lines.data + 5 * p.key;
  for (long k = 0; k < p.key; ++k) {
    none[k] = T(0);
    ones[k] = T(1);
    for (int j = 0; j < kVectors; ++j) {
      s[k * kVectors + j] =
          pass.initial == nullptr ? V{} : load_some(pass.initial + matrix + k * p.value + j * kLanes, count - j * kLanes);
    }
  }
  for (long start = 0; start < p.time; start += 2) {
    ValueStep<T> steps[2];
    for (int i = 0; i < 2; ++i) {
      const bool beyond = start + i >= p.time;
      const long t = pass.backward ? p.time - 1 - start - i : start + i;
      if (beyond) {
        steps[i].read = steps[i].write = none;
        steps[i].decay = ones;
      } else {
        decay_and_read(view, t, decay[i], read[i]);
        steps[i].decay = decay[i];
        steps[i].read = pass.backward ? p.k + view.key(t) : read[i];
        steps[i].write = pass.backward ? read[i] : p.k + view.key(t);
      }
      for (int j = 0; j < kVectors; ++j) {
        steps[i].value[j] = beyond ? V{} : load_some(pass.value + view.value(t) + first + j * kLanes, count - j * kLanes);
      }
    }
    two_value_steps<T, kVectors>(p.key, s, &steps[0], &steps[1]);
    for (int i = 0; i < 2 && start + i < p.time; ++i) {
      const long t = pass.backward ? p.time - 1 - start - i : start + i;
      const T own = own_share(view, t);
      for (int j = 0; j < kVectors; ++j) {
        store_some(pass.out + view.value(t) + first + j * kLanes, steps[i].out[j] + own * steps[i].value[j],
                   count - j * kLanes);
      }
    }
  }
  if (pass.last != nullptr) {
    for (long k = 0; k < p.key; ++k) {
      for (int j = 0; j < kVectors; ++j) {
        store_some(pass.last + matrix + k * p.value + j * kLanes, s[k * kVectors + j], count - j * kLanes);
      }
    }
  }
}

// dr forward in time, or P_t v_t backward.
template <typename T>
struct KeyPass {
  bool backward;
  const T* read;     // (B, T, H, V)
  const T* write;    // (B, T, H, V)
  T* out;            // (B, T, H, K); overwritten
  const T* initial;  // (B, H, K, V): the state to begin with, may be null
};

template <typename T, int kVectors>
static void sweep_keys(const HeadView<T>& view, const KeyPass<T>& pass, long first, long count) {
  typedef typename VectorOf<T>::Type V;
  constexpr long kLanes = VectorOf<T>::kLanes;
  const LinearAttentionProblem<T>& p = view.p;
  const long matrix = (view.b * p.heads + view.h) * p.key * p.value;
  Block<V> state(p.value * kVectors);
  V* s = state.data;
  Block<T> lines(2 * p.key);
  T* decay = lines.data;
  T* read = lines.data + p.key;
  for (long v = 0; v < p.value; ++v) {
    for (int j = 0; j < kVectors; ++j) {
      V column{};
      for (long lane = 0; pass.initial != nullptr && lane < kLanes && j * kLanes + lane < count; ++lane) {
        column[lane] = pass.initial[matrix + (first + j * kLanes + lane) * p.value + v];
      }
      s[v * kVectors + j] = column;
    }
  }
  for (long start = 0; start < p.time; ++start) {
    const long t = pass.backward ? p.time - 1 - start : start;
    decay_and_read(view, t, decay, read);
    const T* key = pass.backward ? read : p.k + view.key(t);
    KeyStep<T> step;
    step.read = pass.read + view.value(t);
    step.write = pass.write + view.value(t);
    for (int j = 0; j < kVectors; ++j) {
      step.decay[j] = load_some(decay + first + j * kLanes, count - j * kLanes);
      step.key[j] = load_some(key + first + j * kLanes, count - j * kLanes);
    }
    // Where everything is forgotten before a step, the state before it does not read.
    const bool forgotten = !pass.backward && view.is_reset(t);
    one_key_step<T, kVectors>(p.value, s, &step);
    for (int j = 0; j < kVectors; ++j) {
      store_some(pass.out + view.key(t) + first + j * kLanes, forgotten ? V{} : step.out[j], count - j * kLanes);
    }
  }
}

// Runs `body(view, first, count, vectors)` for every strip of every head.
template <typename T, typename Body>
static void for_each_strip(const LinearAttentionProblem<T>& p, long width, const Body& body) {
  const long strip = kStripVectors * VectorOf<T>::kLanes;
  const long strips = (width + strip - 1) / strip;
#pragma omp parallel for schedule(dynamic)
  for (long task = 0; task < p.batch * p.heads * strips; ++task) {
    flush_denormals();
    const long head = task / strips, first = task % strips * strip;
    const HeadView<T> view{p, head / p.heads, head % p.heads};
    body(view, first, width - first < strip ? width - first : strip);
  }
}

template <typename T>
static void over_values(const LinearAttentionProblem<T>& p, const ValuePass<T>& pass) {
  for_each_strip(p, p.value, [&](const HeadView<T>& view, long first, long count) {
    const long vectors = (count + VectorOf<T>::kLanes - 1) / VectorOf<T>::kLanes;
    if (vectors == 1) {
      sweep_values<T, 1>(view, pass, first, count);
    } else if (vectors == 2) {
      sweep_values<T, 2>(view, pass, first, count);
    } else {
      sweep_values<T, kStripVectors>(view, pass, first, count);
    }
  });
}

template <typename T>
static void over_keys(const LinearAttentionProblem<T>& p, const KeyPass<T>& pass) {
  for_each_strip(p, p.key, [&](const HeadView<T>& view, long first, long count) {
    const long vectors = (count + VectorOf<T>::kLanes - 1) / VectorOf<T>::kLanes;
    if (vectors == 1) {
      sweep_keys<T, 1>(view, pass, first, count);
    } else if (vectors == 2) {
      sweep_keys<T, 2>(view, pass, first, count);
    } else {
      sweep_keys<T, kStripVectors>(view, pass, first, count);
    }
  });
}

template <typename T>
static void linear_attention_forward(const LinearAttentionProblem<T>* problem) {
  over_values(*problem, ValuePass<T>{false, problem->v, problem->o, problem->initial, problem->last});
}

// From dr and P_t v_t, which lie in g.q and g.k: the gradients of q, k, the decay and the bonus for one head.
template <typename T>
static void finish_keys(const HeadView<T>& view, const LinearAttentionGradients<T>& g) {
  const LinearAttentionProblem<T>& p = view.p;
  const long head = view.b * p.heads + view.h;
  Block<double> phi(p.key), bonus(p.key);
  for (long k = 0; k < p.key; ++k) {
    bonus.data[k] = 0;
    phi.data[k] = 0;
    for (long v = 0; g.last != nullptr && v < p.value; ++v) {
      const long at = (head * p.key + k) * p.value + v;
      phi.data[k] += static_cast<double>(g.last[at]) * static_cast<double>(p.last[at]);
    }
  }
  for (long t = p.time - 1; t >= 0; --t) {
    const T* q = p.q + view.key(t);
    const T* key = p.k + view.key(t);
    const T* a = view.decay(t);
    const bool reset = view.is_reset(t);
    T dot = 0;
    for (long v = 0; v < p.value; ++v) {
      dot += p.v[view.value(t) + v] * g.o[view.value(t) + v];
    }
    dot *= p.scale;
    for (long k = 0; k < p.key; ++k) {
      const T u = p.bonus == nullptr ? T(1) : p.bonus[view.h * p.key + k];
      const T left = p.bonus == nullptr ? (reset ? T(0) : a[k * p.decay_key]) : T(1);
      T* dq = g.q + view.key(t) + k;
      T* dk = g.k + view.key(t) + k;
      const double read = static_cast<double>(p.scale * q[k] * left) * static_cast<double>(*dq);
      const double carried = phi.data[k] - static_cast<double>(key[k]) * static_cast<double>(*dk);
      const double before = reset ? 0 : carried + read;
      if (g.decay != nullptr) {
        g.decay[view.key(t) + k] = static_cast<T>(reset ? 0 : (p.bonus == nullptr ? before : carried));
      }
      phi.data[k] = before;
      bonus.data[k] += static_cast<double>(q[k] * key[k] * dot);
      *dq = p.scale * left * *dq + u * key[k] * dot;
      *dk = *dk + u * q[k] * dot;
    }
  }
  for (long k = 0; g.bonus != nullptr && k < p.key; ++k) {
    g.bonus[head * p.key + k] = static_cast<T>(bonus.data[k]);
  }
}

template <typename T>
static void linear_attention_backward(const LinearAttentionProblem<T>* problem,
                                      const LinearAttentionGradients<T>* gradients) {
  const LinearAttentionProblem<T>& p = *problem;
  const LinearAttentionGradients<T>& g = *gradients;
  over_keys(p, KeyPass<T>{false, g.o, p.v, g.q, p.initial});
  over_keys(p, KeyPass<T>{true, p.v, g.o, g.k, g.last});
  over_values(p, ValuePass<T>{true, g.o, g.v, g.last, g.initial});
#pragma omp parallel for schedule(dynamic)
  for (long head = 0; head < p.batch * p.heads; ++head) {
    flush_denormals();
    finish_keys(HeadView<T>{p, head / p.heads, head % p.heads}, g);
  }
}

}  // namespace
}  // namespace XLSTM_ISA
