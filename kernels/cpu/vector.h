// Vectors of the instruction set that this file is compiled for, and the elementary functions that loops need.
//
// Every source in this folder except dispatch.cpp is compiled several times, each time with other -m flags and
// another XLSTM_ISA, the name of the namespace that holds the result. Nothing here may have a name that the linker
// could merge between those copies: all is static, and no template of the standard library is used.
//
// The elementary functions have no branches, so that a compiler turns a loop over them into vector code. In fp32
// they are right to about one unit in the last place; in fp64 the C library is called: that precision is for checks.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace XLSTM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 8;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 4;
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 4;
#endif

// Multiplications from which on a second thread is worth waking: those of a single token of a small model are done sooner alone.
constexpr long kWorthThreads = 1 << 16;

template <typename T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
};

// Writes an aligned vector past the caches, where the processor can: for what is not needed again soon.
template <typename V>
static inline void stream(V* target, V value) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(target), reinterpret_cast<__m512i>(value));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(target), reinterpret_cast<__m256i>(value));
#else
  *target = value;
#endif
}

// Denormal numbers cost a hundred cycles each; the mode belongs to a thread.
static inline void flush_denormals() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
}

static inline float bits_to_float(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline int32_t float_to_bits(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// exp(x): 2^n times a polynomial on [-ln2/2, ln2/2].
static inline float exponential(float x) {
  const float clamped = x < -88.0f ? -88.0f : (x > 89.0f ? 89.0f : x);
  const float shifted = clamped * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const float n = shifted - 12582912.0f;
  float r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // In two factors, so that 2^128 does not overflow the exponent on the way.
  const int32_t exponent = float_to_bits(shifted) - 0x4b400000;
  const int32_t half = exponent >> 1;
  const float value = p * bits_to_float((half + 127) << 23) * bits_to_float((exponent - half + 127) << 23);
  const float bounded = x < -87.3365447f ? 0.0f : value;
  return x > 88.7228394f ? INFINITY : bounded;
}
static inline double exponential(double x) { return exp(x); }

// exp of a vector's elements, none above 80: what is below -87 becomes zero.
static inline typename VectorOf<float>::Type vector_exponential(typename VectorOf<float>::Type x) {
  typedef typename VectorOf<float>::Type V;
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
  const V clamped = x < -87.0f ? V{} - 87.0f : x;
  const V shifted = clamped * 1.44269504088896341f + 12582912.0f;
  const V n = shifted - 12582912.0f;
  V r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // p lies between 0.7 and 1.5 and n is at least -126: the exponents can be added.
  const I bits = reinterpret_cast<I>(p) + (reinterpret_cast<I>(shifted) << 23);
  // What is not a number stays none, whatever its bits.
  return x >= -87.0f ? reinterpret_cast<V>(bits) : (x < -87.0f ? V{} : x);
}
static inline typename VectorOf<double>::Type vector_exponential(typename VectorOf<double>::Type x) {
  for (int lane = 0; lane < VectorOf<double>::kLanes; ++lane) {
    x[lane] = exp(x[lane]);
  }
  return x;
}

// log(1 + x) for x in [0, 1].
static inline float log_one_plus(float x) {
  const float u = 1.0f + x;
  const float lost = (x - (u - 1.0f)) / u;
  // u in [1, 2]: halve what is above sqrt(2).
  const bool high = u > 1.41421356f;
  const float f = (high ? 0.5f * u : u) - 1.0f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float square = f * f;
  const float logarithm = f + (f * square * p - 0.5f * square);
  return logarithm + (high ? 0.693147180559945f : 0.0f) + lost;
}
static inline double log_one_plus(double x) { return log1p(x); }

template <typename T>
static inline T absolute(T x) {
  return x < T(0) ? -x : x;
}

template <typename T>
static inline T sigmoid(T x) {
  const T e = exponential(-absolute(x));
  const T reciprocal = T(1) / (T(1) + e);
  return x < T(0) ? e * reciprocal : reciprocal;
}

template <typename T>
static inline T log_sigmoid(T x) {
  return (x < T(0) ? x : T(0)) - log_one_plus(exponential(-absolute(x)));
}

static inline float hyperbolic_tangent(float x) {
  const float magnitude = absolute(x);
  const float e = exponential(-2.0f * magnitude);
  const float outer = (1.0f - e) / (1.0f + e);
  const float square = x * x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const float inner = p * square * x + x;
  return magnitude < 0.625f ? inner : (x < 0.0f ? -outer : outer);
}
static inline double hyperbolic_tangent(double x) { return tanh(x); }

}  // namespace
}  // namespace XLSTM_ISA
