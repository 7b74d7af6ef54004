// What lies where while the cross-entropy of a chunk of tokens is computed; see cross_entropy.h.
#pragma once

#include <stdlib.h>

#include "abi.h"
#include "gemm.h"

namespace XLSTM_ISA {
namespace {

// Words of a tile.
constexpr long kTileWords = 192;

struct Target {
  int64_t word;
  long token;  // of the chunk
};

// Some tokens, and what all threads see of them.
template <typename T>
struct TokenChunk {
  long first, tokens;
  long stride;  // all tokens, rounded up: of the problem
  T* hidden;        // panels of tokens: [panel][width][panel's tokens]
  T* exponentials;  // [vocabulary][stride]
  Target* targets;  // of the tokens that count, by word
  long targets_count;
  T* target_logits;  // [tokens]
  double* missing;   // [tokens]: 1 - p of the target; 0 where it is ignored
};

// What one thread has of a chunk.
template <typename T>
struct ThreadShare {
  long first_tile, end_tile, version;
  T* logits;       // panels of tokens: [panel][kTileWords][panel's tokens]; then their exponentials
  T* word_panels;  // panels of the width: [panel][kTileWords][panel's width]
  T* maxima;       // [version][stride]
  long* versions;  // [tile]
  double* sums;    // [stride]: Z without the target
  T* gradient;     // panels of the width: [panel][tokens][panel's width]: D
  T* factors;      // [stride]: scale exp(m - maximum) / Z
  T* scaled;       // panels of the width: [panel][tokens][panel's width], hidden times factors
};

template <typename T>
static inline long panels(long count) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  return (count + kWidth - 1) / kWidth;
}

// Cuts arrays from one piece of memory, each from a line of the caches on; with a null pointer it measures.
struct Carver {
  char* base;
  size_t used = 0;
  template <typename E>
  E* take(long count) {
    E* taken = base == nullptr ? nullptr : reinterpret_cast<E*>(base + used);
    used += (sizeof(E) * static_cast<size_t>(count) + 63) / 64 * 64;
    return taken;
  }
};

template <typename T>
static TokenChunk<T> carve_chunk(const ProjectionProblem<T>& p, long tokens, Carver* memory) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  TokenChunk<T> c{};
  c.stride = p.stride;
  c.hidden = memory->take<T>(panels<T>(tokens) * kWidth * p.width);
  c.exponentials = p.exponentials;
  c.targets = memory->take<Target>(tokens);
  c.target_logits = memory->take<T>(tokens);
  c.missing = memory->take<double>(tokens);
  return c;
}

template <typename T>
static ThreadShare<T> carve_share(const ProjectionProblem<T>& p, const TokenChunk<T>& c, long tokens, long tiles,
                                  Carver* memory) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  const bool differentiate = p.hidden_gradient != nullptr;
  ThreadShare<T> s{};
  s.logits = memory->take<T>(panels<T>(tokens) * kWidth * kTileWords);
  s.maxima = memory->take<T>((differentiate ? tiles + 1 : 1) * c.stride);
  s.versions = memory->take<long>(tiles);
  s.sums = memory->take<double>(c.stride);
  s.factors = memory->take<T>(c.stride);
  if (differentiate) {
    s.word_panels = memory->take<T>(panels<T>(p.width) * kWidth * kTileWords);
    s.gradient = memory->take<T>(panels<T>(p.width) * kWidth * tokens);
    s.scaled = memory->take<T>(panels<T>(p.width) * kWidth * tokens);
  }
  return s;
}

static int by_word(const void* left, const void* right) {
  const Target* a = static_cast<const Target*>(left);
  const Target* b = static_cast<const Target*>(right);
  if (a->word != b->word) {
    return a->word < b->word ? -1 : 1;
  }
  return a->token < b->token ? -1 : 1;
}

template <typename T>
static void collect_targets(const ProjectionProblem<T>& p, TokenChunk<T>* c) {
  c->targets_count = 0;
  for (long i = 0; i < c->tokens; ++i) {
    const int64_t word = p.targets[c->first + i];
    if (word != p.ignore_index) {
      c->targets[c->targets_count++] = Target{word, i};
    }
  }
  qsort(c->targets, static_cast<size_t>(c->targets_count), sizeof(Target), by_word);
}

// Index of the first target that is not before `word`.
template <typename T>
static long first_target(const TokenChunk<T>& c, long word) {
  long low = 0, high = c.targets_count;
  while (low < high) {
    const long middle = (low + high) / 2;
    if (c.targets[middle].word < word) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// A transposed panel of hidden values. Ignored tokens are zeros, so that a NaN in them cannot spread.
template <typename T>
static void pack_tokens(const ProjectionProblem<T>& p, const TokenChunk<T>& c, long panel) {
  constexpr long kWidth = kPanelVectors * VectorOf<T>::kLanes;
  const long first = panel * kWidth;
  const long count = c.tokens - first < kWidth ? c.tokens - first : kWidth;
  T* target = c.hidden + first * p.width;
  pack_panel(transposed(p.hidden + (c.first + first) * p.width, p.width), p.width, static_cast<int>(count), target);
  for (long i = 0; i < count; ++i) {
    if (p.targets[c.first + first + i] == p.ignore_index) {
      for (long k = 0; k < p.width; ++k) {
        target[k * kWidth + i] = T(0);
      }
    }
  }
}

// Vectors of tokens in a panel.
template <typename T>
static inline int panel_vectors(const TokenChunk<T>& c, long panel) {
  constexpr long kLanes = VectorOf<T>::kLanes;
  const long rest = (c.tokens - panel * kPanelVectors * kLanes + kLanes - 1) / kLanes;
  return static_cast<int>(rest < kPanelVectors ? rest : kPanelVectors);
}

}  // namespace
}  // namespace XLSTM_ISA
