// Projection onto the vocabulary, cross-entropy and both gradients; logits never lie in memory.
//
// The vocabulary is cut into tiles, shared out among the threads in order; tokens are taken in chunks. What belongs to
// a tile is stored by word, tokens fastest: so the large operands (the output weight W and the exponentials e) are read
// where they lie, and only the few tokens h are ever transposed.
//
//   pass 1, for each tile of words v and all tokens i of the chunk, while the tile is in the caches:
//       l_vi = W_v . h_i     e_vi = exp(l_vi - m_i)     Z_i += sum over v of e_vi     D_i += sum over v of e_vi W_v
//       and e is written past the caches, for pass 2
//   then the threads' sums are joined:
//       loss_i = log(Z_i) + m_i - l_ti     dh_i = scale (D_i / Z_i - (1 - p_ti) W_t)
//   pass 2, for each tile:
//       dW_v = sum over i of e_vi (scale h_i / Z_i), and for words that are targets - scale (1 - p_ti) h_i
//
// m_i need not be the maximum, only near it: it is the maximum of the thread's first tile, and moves when that of a
// later one is larger by more than kSlack. What was added up before is scaled then; each m is stored as a version, so
// that pass 2 knows what a tile was computed with. The target's own term is left out of e and of its sums: so 1 - p
// loses no digits when p is near 1.
//
// Which thread has which tile depends on the number of threads only, and their sums are joined in order.
#pragma once

#include <float.h>
#include <omp.h>
#include <stdlib.h>

#include "abi.h"
#include "cross_entropy_layout.h"
#include "gemm.h"

namespace XLSTM_ISA {
namespace {

// exp(kSlack) times a vocabulary, times a weight, is far from the largest float.
constexpr double kSlack = 24;

// Takes the targets' own logits out of a panel of tokens.
template <typename T>
static void take_targets(const TokenChunk<T>& c, long first, long count, long panel, T* logits) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  for (long t = first_target(c, first); t < c.targets_count && c.targets[t].word < first + count; ++t) {
    const long token = c.targets[t].token;
    if (token / kWidth == panel) {
      T* logit = logits + (c.targets[t].word - first) * kWidth + token % kWidth;
      c.target_logits[token] = *logit;
      *logit = -static_cast<T>(INFINITY);
    }
  }
}

// Moves m where a panel's logits are far above it, and scales what was added up with the old one. A tile moves to a new
// version once, whichever of its panels needs that first.
template <typename T>
static void move_maxima(const ProjectionProblem<T>& p, const TokenChunk<T>& c, ThreadShare<T>* s, long panel,
                        const T* top, bool* moved) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  const long first = panel * kWidth, end = first + kWidth < c.tokens ? first + kWidth : c.tokens;
  T* maxima = s->maxima + s->version * c.stride;
  bool exceeded = false;
  for (long i = first; i < end; ++i) {
    exceeded |= top[i - first] > maxima[i] + static_cast<T>(kSlack);
  }
  if (!exceeded) {
    return;
  }
  const bool keep = p.hidden_gradient != nullptr;
  if (keep && !*moved) {
    memcpy(maxima + c.stride, maxima, sizeof(T) * static_cast<size_t>(c.stride));
    maxima += c.stride;
    s->version += 1;
    *moved = true;
  }
  for (long i = first; i < end; ++i) {
    const T now = top[i - first];
    if (!(now > maxima[i] + static_cast<T>(kSlack))) {
      continue;
    }
    const T factor = exponential(maxima[i] - now);
    maxima[i] = now;
    s->sums[i] *= static_cast<double>(factor);
    for (long k = 0; keep && k < p.width; ++k) {
      s->gradient[k / kWidth * kWidth * c.tokens + i * kWidth + k % kWidth] *= factor;
    }
  }
}

// A panel of logits becomes exponentials; `saved` is their place in memory, or null.
template <typename T, int kVectors>
static void panel_exponentials(long count, const T* maxima, T* logits, double* sums, T* saved, long stride) {
  typedef typename VectorOf<T>::Type V;
  constexpr long kLanes = VectorOf<T>::kLanes, kWidth = kPanelVectors * kLanes;
  V maximum[kVectors], sum[kVectors] = {};
  for (int j = 0; j < kVectors; ++j) {
    maximum[j] = *reinterpret_cast<const V*>(maxima + j * kLanes);
  }
  for (long v = 0; v < count; ++v) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      V* row = reinterpret_cast<V*>(logits + v * kWidth + j * kLanes);
      const V e = vector_exponential(*row - maximum[j]);
      sum[j] += e;
      *row = e;
      if (saved != nullptr) {
        stream(reinterpret_cast<V*>(saved + v * stride + j * kLanes), e);
      }
    }
  }
  for (int j = 0; j < kVectors; ++j) {
    for (long lane = 0; lane < kLanes; ++lane) {
      sums[j * kLanes + lane] += static_cast<double>(sum[j][lane]);
    }
  }
}

// Logits of a tile and a panel of tokens, and their exponentials.
template <typename T, int kVectors>
static void project_panel(const ProjectionProblem<T>& p, const TokenChunk<T>& c, ThreadShare<T>* s, long first,
                          long count, long panel, bool* moved) {
  typedef typename VectorOf<T>::Type V;
  constexpr long kLanes = VectorOf<T>::kLanes, kWidth = kPanelVectors * kLanes;
  T* logits = s->logits + panel * kWidth * kTileWords;
  gemm_panel<T, false>(count, rows(p.weight + first * p.width, p.width), c.hidden + panel * kWidth * p.width, p.width,
                       T(1), T(0), logits, kWidth, kVectors * kLanes);
  take_targets(c, first, count, panel, logits);
  V top[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    top[j] = *reinterpret_cast<const V*>(logits + j * kLanes);
  }
  for (long v = 1; v < count; ++v) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const V row = *reinterpret_cast<const V*>(logits + v * kWidth + j * kLanes);
      top[j] = row > top[j] ? row : top[j];
    }
  }
  T tops[kVectors * kLanes];
  memcpy(tops, top, sizeof tops);
  move_maxima(p, c, s, panel, tops, moved);
  T* saved = p.hidden_gradient == nullptr ? nullptr : c.exponentials + first * c.stride + panel * kWidth;
  panel_exponentials<T, kVectors>(count, s->maxima + s->version * c.stride + panel * kWidth, logits,
                                  s->sums + panel * kWidth, saved, c.stride);
}

// D += e W for a tile.
template <typename T>
static void tile_hidden_gradient(const ProjectionProblem<T>& p, const TokenChunk<T>& c, const ThreadShare<T>& s,
                                 long first, long count) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  for (long k = 0; k < p.width; k += kWidth) {
    const int columns = static_cast<int>(p.width - k < kWidth ? p.width - k : kWidth);
    T* words = s.word_panels + k * kTileWords;
    pack_panel(rows(p.weight + first * p.width + k, p.width), count, columns, words);
    T* sums = s.gradient + k * c.tokens;
    for (long i = 0; i < c.tokens; i += kWidth) {
      const long tokens = c.tokens - i < kWidth ? c.tokens - i : kWidth;
      gemm_panel<T, true>(tokens, transposed(s.logits + i * kTileWords, kWidth), words, count, T(1), T(1),
                          sums + i * kWidth, kWidth, columns);
    }
  }
}

template <typename T>
static void first_pass(const ProjectionProblem<T>& p, const TokenChunk<T>& c, ThreadShare<T>* s) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  const bool differentiate = p.hidden_gradient != nullptr;
  s->version = 0;
  for (long i = 0; i < c.stride; ++i) {
    s->maxima[i] = sizeof(T) == 4 ? static_cast<T>(-FLT_MAX) : static_cast<T>(-DBL_MAX);
    s->sums[i] = 0;
  }
  if (differentiate) {
    memset(s->gradient, 0, sizeof(T) * static_cast<size_t>(panels<T>(p.width) * kWidth * c.tokens));
  }
  for (long tile = s->first_tile; tile < s->end_tile; ++tile) {
    const long first = tile * kTileWords;
    const long count = p.vocabulary - first < kTileWords ? p.vocabulary - first : kTileWords;
    bool moved = false;
    for (long panel = 0; panel < panels<T>(c.tokens); ++panel) {
      switch (panel_vectors(c, panel)) {
        case 1:
          project_panel<T, 1>(p, c, s, first, count, panel, &moved);
          break;
        case 2:
          project_panel<T, 2>(p, c, s, first, count, panel, &moved);
          break;
        default:
          project_panel<T, 3>(p, c, s, first, count, panel, &moved);
      }
    }
    s->versions[tile - s->first_tile] = s->version;
    if (differentiate) {
      tile_hidden_gradient(p, c, *s, first, count);
    }
  }
}

// Loss of a token, and what each thread's exponentials of it are to be multiplied with.
template <typename T>
static void join_token(const ProjectionProblem<T>& p, const TokenChunk<T>& c, const ThreadShare<T>* shares,
                       long threads, long i) {
  const long token = c.first + i;
  const int64_t target = p.targets[token];
  if (target == p.ignore_index) {
    p.losses[token] = T(0);
    c.missing[i] = 0;
    for (long t = 0; t < threads; ++t) {
      shares[t].factors[i] = T(0);
    }
    return;
  }
  const double logit = static_cast<double>(c.target_logits[i]);
  double top = logit;
  for (long t = 0; t < threads; ++t) {
    const double maximum = static_cast<double>(shares[t].maxima[shares[t].version * c.stride + i]);
    top = maximum > top ? maximum : top;
  }
  double others = 0;
  for (long t = 0; t < threads; ++t) {
    const double maximum = static_cast<double>(shares[t].maxima[shares[t].version * c.stride + i]);
    others += shares[t].sums[i] * exp(maximum - top);
  }
  const double own = exp(logit - top);
  // log(1 + others / own), by whichever of the two is larger.
  p.losses[token] = static_cast<T>(others > own ? log(others) + top - logit + log1p(own / others)
                                                : log1p(others / own));
  const double scale = static_cast<double>(p.scale);
  c.missing[i] = others / (others + own);
  for (long t = 0; t < threads; ++t) {
    const double maximum = static_cast<double>(shares[t].maxima[shares[t].version * c.stride + i]);
    shares[t].factors[i] = static_cast<T>(scale * exp(maximum - top) / (others + own));
  }
}

template <typename T>
static void join_hidden_gradient(const ProjectionProblem<T>& p, const TokenChunk<T>& c, const ThreadShare<T>* shares,
                                 long threads, long i) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  T* out = p.hidden_gradient + (c.first + i) * p.width;
  const int64_t target = p.targets[c.first + i];
  if (target == p.ignore_index) {
    memset(out, 0, sizeof(T) * static_cast<size_t>(p.width));
    return;
  }
  const T* word = p.weight + target * p.width;
  const T missing = static_cast<T>(static_cast<double>(p.scale) * c.missing[i]);
  for (long k = 0; k < p.width; ++k) {
    const long place = k / kWidth * kWidth * c.tokens + i * kWidth + k % kWidth;
    T sum = T(0);
    for (long t = 0; t < threads; ++t) {
      sum += shares[t].factors[i] * shares[t].gradient[place];
    }
    out[k] = sum - missing * word[k];
  }
}

// Panels of the tokens, each times its factor for the exponentials of `version`.
template <typename T>
static void pack_scaled(const ProjectionProblem<T>& p, const TokenChunk<T>& c, const ThreadShare<T>& s, long version) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  const T* maxima = s.maxima + version * c.stride;
  const T* last = s.maxima + s.version * c.stride;
  for (long i = 0; i < c.tokens; ++i) {
    const T factor = s.factors[i] * exponential(maxima[i] - last[i]);
    const T* source = p.hidden + (c.first + i) * p.width;
    for (long k = 0; k < p.width; k += kWidth) {
      const long columns = p.width - k < kWidth ? p.width - k : kWidth;
      T* target = s.scaled + k * c.tokens + i * kWidth;
      if (columns < kWidth || s.factors[i] == T(0)) {
        memset(target, 0, sizeof(T) * kWidth);
      }
      if (s.factors[i] != T(0)) {
        for (long j = 0; j < columns; ++j) {
          target[j] = source[k + j] * factor;
        }
      }
    }
  }
}

template <typename T>
static void second_pass(const ProjectionProblem<T>& p, const TokenChunk<T>& c, const ThreadShare<T>& s) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  const T keep = c.first == 0 ? T(0) : T(1);
  long packed = -1;
  for (long tile = s.first_tile; tile < s.end_tile; ++tile) {
    const long version = s.versions[tile - s.first_tile];
    if (version != packed) {
      pack_scaled(p, c, s, version);
      packed = version;
    }
    const long first = tile * kTileWords;
    const long count = p.vocabulary - first < kTileWords ? p.vocabulary - first : kTileWords;
    const T* exponentials = c.exponentials + first * c.stride;
    for (long k = 0; k < p.width; k += kWidth) {
      const int columns = static_cast<int>(p.width - k < kWidth ? p.width - k : kWidth);
      gemm_panel<T, false>(count, rows(exponentials, c.stride), s.scaled + k * c.tokens, c.tokens, T(1), keep,
                           p.weight_gradient + first * p.width + k, p.width, columns);
    }
    for (long t = first_target(c, first); t < c.targets_count && c.targets[t].word < first + count; ++t) {
      const long i = c.targets[t].token;
      const T missing = static_cast<T>(static_cast<double>(p.scale) * c.missing[i]);
      const T* source = p.hidden + (c.first + i) * p.width;
      T* target = p.weight_gradient + c.targets[t].word * p.width;
      for (long k = 0; k < p.width; ++k) {
        target[k] -= missing * source[k];
      }
    }
  }
}

// One chunk, by all threads; the barriers are where one needs what others have done.
template <typename T>
static void cross_entropy_chunk(const ProjectionProblem<T>& p, const TokenChunk<T>& c, ThreadShare<T>* shares,
                                long threads, long thread) {
#pragma omp for schedule(static)
  for (long panel = 0; panel < panels<T>(c.tokens); ++panel) {
    pack_tokens(p, c, panel);
  }
  first_pass(p, c, &shares[thread]);
#pragma omp barrier
#pragma omp for schedule(static)
  for (long i = 0; i < c.tokens; ++i) {
    join_token(p, c, shares, threads, i);
    if (p.hidden_gradient != nullptr) {
      join_hidden_gradient(p, c, shares, threads, i);
    }
  }
  if (p.hidden_gradient != nullptr) {
    second_pass(p, c, shares[thread]);
  }
#pragma omp barrier
}

template <typename T>
static void cross_entropy(const ProjectionProblem<T>* problem) {
  const ProjectionProblem<T>& p = *problem;
  static thread_local Scratch common;
  const long largest = p.chunk < p.rows ? p.chunk : p.rows;
  Carver measure{nullptr};
  carve_chunk(p, largest, &measure);
  Carver memory{static_cast<char*>(common.get(measure.used))};
  TokenChunk<T> chunk = carve_chunk(p, largest, &memory);
  const long tiles = (p.vocabulary + kTileWords - 1) / kTileWords;
  const long most = omp_in_parallel() ? 1 : omp_get_max_threads();
  const long wanted = most < tiles ? most : tiles;
  ThreadShare<T>* shares = static_cast<ThreadShare<T>*>(calloc(static_cast<size_t>(wanted), sizeof(ThreadShare<T>)));
  if (shares == nullptr) {
    abort();
  }
#pragma omp parallel num_threads(static_cast<int>(wanted))
  {
    flush_denormals();
    const long thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const long first_tile = tiles * thread / threads, end_tile = tiles * (thread + 1) / threads;
    static thread_local Scratch own;
    Carver size{nullptr};
    carve_share(p, chunk, largest, end_tile - first_tile, &size);
    Carver scratch{static_cast<char*>(own.get(size.used))};
    shares[thread] = carve_share(p, chunk, largest, end_tile - first_tile, &scratch);
    shares[thread].first_tile = first_tile;
    shares[thread].end_tile = end_tile;
    for (long first = 0; first < p.rows; first += largest) {
#pragma omp single
      {
        chunk.first = first;
        chunk.tokens = p.rows - first < largest ? p.rows - first : largest;
        collect_targets(p, &chunk);
      }
      cross_entropy_chunk(p, chunk, shares, threads, thread);
    }
  }
  free(shares);
}

}  // namespace
}  // namespace XLSTM_ISA
