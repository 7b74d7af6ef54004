// The steps of an LSTM, for the loops over time of slstm.h (the formulas: src/lstm/fused.rs).
#pragma once

#include "abi.h"
#include "vector.h"

namespace XLSTM_ISA {
namespace {

// One step of one head of one sequence. `raw` holds (i, f, z, o) sums; the state is updated in place.
template <typename T>
static void lstm_advance(long width, const T* raw, T* hidden, T* cell, const SlstmSaved<T>& saved, long at) {
#pragma omp simd
  for (long e = 0; e < width; ++e) {
    const T i = sigmoid(raw[e]);
    const T f = sigmoid(raw[width + e]);
    const T z = hyperbolic_tangent(raw[2 * width + e]);
    const T o = sigmoid(raw[3 * width + e]);
    const T c = f * cell[e] + i * z;
    const T bounded = hyperbolic_tangent(c);
    saved.input[at + e] = i;
    saved.forget[at + e] = f;
    saved.z[at + e] = z;
    saved.o[at + e] = o;
    saved.cell[at + e] = c;
    saved.normalizer[at + e] = bounded;
    cell[e] = c;
    hidden[e] = o * bounded;
  }
}

// One step back. `hidden` holds the whole gradient of h_t, `cell` that of c_t from the steps after it, and afterwards
// that of c_{t-1}; `raw` receives those of the four sums.
template <typename T>
static void lstm_retreat(long width, const SlstmSaved<T>& saved, long at, const T* cell_before, const T* hidden,
                         T* cell, T* raw) {
#pragma omp simd
  for (long e = 0; e < width; ++e) {
    const T i = saved.input[at + e];
    const T f = saved.forget[at + e];
    const T z = saved.z[at + e];
    const T o = saved.o[at + e];
    const T bounded = saved.normalizer[at + e];
    const T dh = hidden[e];
    const T dc = cell[e] + dh * o * (T(1) - bounded * bounded);
    raw[e] = dc * z * i * (T(1) - i);
    raw[width + e] = dc * cell_before[e] * f * (T(1) - f);
    raw[2 * width + e] = dc * i * (T(1) - z * z);
    raw[3 * width + e] = dh * bounded * o * (T(1) - o);
    cell[e] = dc * f;
  }
}

}  // namespace
}  // namespace XLSTM_ISA
