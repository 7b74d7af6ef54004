// What Rust passes to the kernels of this folder; mirrored field by field in src/cpu.rs.
//
// All arrays are dense and laid out as their comments say, last dimension fastest. A null pointer stands for what is
// absent. Sizes are at least 1.
#pragma once

#include <stdint.h>

// mLSTM. A sequence is cut into chunks no longer than `chunk`; every reset begins one. `states` holds, for every
// chunk of every sequence in order, the state before its first step.
template <typename T>
struct MlstmProblem {
  int64_t batch, time, heads, key, value, chunk;
  const T* q;  // (B, T, H, K)
  const T* k;  // (B, T, H, K)
  const T* v;  // (B, T, H, V)
  const T* i;  // (B, T, H)
  const T* f;  // (B, T, H)
  const uint8_t* resets;  // (B, T)
  const T* initial_matrix;  // (B, H, K, V)
  const T* initial_normalizer;  // (B, H, K)
  const T* initial_maximum;  // (B, H)
  T* h;  // (B, T, H, V)
  T* read;  // (B, T, H): n·q of every step, which the backward pass needs
  T* states;  // (chunks, H, K, V)
  T* normalizers;  // (chunks, H, K)
  T* final_matrix;  // (B, H, K, V); may be null, with the next two: nobody wants the last state
  T* final_normalizer;  // (B, H, K)
  T* final_maximum;  // (B, H)
};

template <typename T>
struct MlstmGradients {
  const T* h;  // gradient of h
  const T* final_matrix;  // may be null, as the next two
  const T* final_normalizer;
  const T* final_maximum;
  T* q;
  T* k;
  T* v;
  T* i;
  T* f;
  T* initial_matrix;  // null when there was no initial state, as the next two
  T* initial_normalizer;
  T* initial_maximum;
  T* states;  // (chunks, H, K, V): scratch
  T* normalizers;  // (chunks, H, K): scratch
};

// sLSTM and LSTM. What the forward pass keeps for the backward pass, each (B, T, H, E).
template <typename T>
struct SlstmSaved {
  T* input;       // i~; of an LSTM σ(i~)
  T* forget;      // log σ(f~); of an LSTM σ(f~)
  T* z;           // tanh(z~)
  T* o;           // σ(o~)
  T* cell;        // c
  T* normalizer;  // n; of an LSTM tanh(c)
  T* maximum;     // m; of an LSTM null
};

template <typename T>
struct SlstmProblem {
  int64_t batch, time, heads, width;
  int64_t exponential_forget;  // f = exp(f~) instead of σ(f~)
  int64_t lstm;  // 1: an LSTM, whose states are the first two alone; all pointers to the other two are null
  T clip;  // magnitude to which the recurrent gradient is clamped; 0: not
  const T* x;  // (B, T, G, H, E)
  const T* recurrent;  // (H, E, G, E)
  const T* bias;  // (G, H, E)
  const uint8_t* resets;  // (B, T)
  const T* initial_hidden;  // (B, H, E), as all states
  const T* initial_cell;
  const T* initial_normalizer;
  const T* initial_maximum;
  T* y;  // (B, T, H, E)
  SlstmSaved<T> saved;
  T* final_hidden;
  T* final_cell;
  T* final_normalizer;
  T* final_maximum;
};

template <typename T>
struct SlstmGradients {
  const T* y;  // may be null, as the next four
  const T* final_hidden;
  const T* final_cell;
  const T* final_normalizer;
  const T* final_maximum;
  T* x;
  T* recurrent;
  T* bias;
  T* initial_hidden;
  T* initial_cell;
  T* initial_normalizer;
  T* initial_maximum;
};

// C = alpha A B + beta C; element (i, j) of a matrix lies at i * row + j * column, and one of the two is 1.
template <typename T>
struct GemmProblem {
  int64_t m, n, k;
  T alpha, beta;
  const T* a;
  int64_t a_row, a_column;
  const T* b;
  int64_t b_row, b_column;
  T* c;
  int64_t c_row;
};

// Projection onto the vocabulary, cross-entropy, and scale times the gradients of its sum.
template <typename T>
struct ProjectionProblem {
  int64_t rows, width, vocabulary, ignore_index;
  int64_t chunk;  // rows at a time
  int64_t stride;  // of the exponentials' rows: whole lines of 64 bytes, at least the chunk rounded up to 48
  T scale;
  const T* hidden;  // (rows, width)
  const T* weight;  // (vocabulary, width)
  const int64_t* targets;  // (rows)
  T* losses;  // (rows)
  T* hidden_gradient;  // (rows, width); null when there shall be no gradients, as the next
  T* weight_gradient;  // (vocabulary, width)
  T* exponentials;  // (vocabulary, stride): scratch, from a line on
};

// Causal depthwise convolution and SiLU.
template <typename T>
struct ConvProblem {
  int64_t batch, time, width, taps;
  int64_t x_row;  // distance between steps of x
  const T* x;  // (B, T, D), rows `x_row` apart
  const T* weight;  // (taps, D); the last tap meets the current step
  const T* bias;  // (D)
  const T* state;  // (B, taps - 1, D), oldest first
  const uint8_t* resets;  // (B, T)
  T* y;  // (B, T, D)
};

template <typename T>
struct ConvGradients {
  const T* y;
  T* x;
  T* weight;
  T* bias;
};

// Block-diagonal map, blocks of 4 by 4. `weight[i * width + 4 b + o]` leads from input i to output o of block b.
template <typename T>
struct BlocksProblem {
  int64_t rows, width;
  int64_t x_row;  // distance between rows of x
  const T* x;  // (rows, width), rows `x_row` apart
  const T* weight;  // (4, width)
  T* y;  // (rows, width)
};

template <typename T>
struct BlocksGradients {
  const T* y;
  const T* transposed;  // the blocks transposed, in the layout of `weight`
  T* x;
  T* weight;
};

// Queries, keys, values and gates of an mLSTM block. Weights of blocks are laid out as in BlocksProblem.
template <typename T>
struct QkvGatesProblem {
  int64_t rows, width, gates;
  int64_t a_row;  // distance between rows of a
  const T* c;  // (rows, width)
  const T* a;  // (rows, width), rows `a_row` apart
  const T* query;  // (4, width), as the next two
  const T* key;
  const T* value;
  const T* gate_weight;  // (gates, 3, width): for q, k and v
  const T* gate_bias;  // (gates)
  T* q;  // (rows, width), as the next two
  T* k;
  T* v;
  T* sums;  // (rows, gates)
};

template <typename T>
struct QkvGatesGradients {
  const T* q;  // what arrives, (rows, width), as the next two
  const T* k;
  const T* v;
  const T* sums;  // (rows, gates)
  const T* transposed_query;  // the blocks transposed, in the layout of `query`, as the next two
  const T* transposed_key;
  const T* transposed_value;
  T* c;
  T* a;  // dense
  T* query;
  T* key;
  T* value;
  T* gate_weight;
};

// (norm of each head times (1 + norm) + skip conv) SiLU(z)
template <typename T>
struct OutputProblem {
  int64_t rows, heads, width;
  int64_t z_row;  // distance between rows of z
  T epsilon;
  const T* h;  // (rows, heads, width)
  const T* norm;  // (heads * width)
  const T* skip;  // (heads * width)
  const T* conv;  // (rows, heads * width)
  const T* z;  // (rows, heads * width), rows `z_row` apart
  T* y;  // (rows, heads * width)
};

template <typename T>
struct OutputGradients {
  const T* y;
  T* h;
  T* norm;
  T* skip;
  T* conv;
  T* z;  // (rows, heads * width), dense
};

// Gated linear attention. A decay lies at b * decay_batch + t * decay_time + h * decay_head + k * decay_key: strides of
// 0 are for what is shared.
template <typename T>
struct LinearAttentionProblem {
  int64_t batch, time, heads, key, value;
  int64_t decay_batch, decay_time, decay_head, decay_key;
  T scale;
  const T* q;  // (B, T, H, K)
  const T* k;  // (B, T, H, K)
  const T* v;  // (B, T, H, V)
  const T* decay;  // exp(g)
  const T* bonus;  // (H, K); null where the state is read after the update
  const uint8_t* resets;  // (B, T)
  const T* initial;  // (B, H, K, V)
  T* o;  // (B, T, H, V)
  T* last;  // (B, H, K, V): the final state
};

template <typename T>
struct LinearAttentionGradients {
  const T* o;
  const T* last;  // may be null
  T* q;
  T* k;
  T* v;
  T* decay;  // of g, for each token whatever is shared: (B, T, H, K); null when not wanted
  T* bonus;  // (B, H, K): sums over time; null when there is no bonus
  T* initial;  // null when there was no initial state
};

// h_t = a_t h_{t-1} + x_t
template <typename T>
struct LinearScanProblem {
  int64_t batch, time, width;
  const T* a;  // (B, T, D)
  const T* x;  // (B, T, D)
  const T* initial;  // (B, D)
  const uint8_t* resets;  // (B, T)
  T* h;  // (B, T, D)
};

template <typename T>
struct LinearScanGradients {
  const T* h;
  T* a;
  T* x;
  T* initial;  // null when there was no initial state
};

// Mamba's scan; N states a channel.
template <typename T>
struct SelectiveScanProblem {
  int64_t batch, time, width, states;
  const T* u;  // (B, T, D)
  const T* step;  // (B, T, D): Δ
  const T* a;  // (D, N): A
  const T* write;  // (B, T, N): B
  const T* read;  // (B, T, N): C
  const T* initial;  // (B, D, N)
  const uint8_t* resets;  // (B, T)
  T* y;  // (B, T, D)
  T* last;  // (B, D, N): the final state
  T* saved;  // (B, chunks, N, D): the states that the backward pass begins with; null when there will be none
};

template <typename T>
struct SelectiveScanGradients {
  int64_t groups;  // channels are shared out into so many
  const T* y;
  const T* last;  // may be null
  T* u;
  T* step;
  T* a;  // (B, D, N): sums over time
  T* write;  // (B, groups, T, N): sums over a group's channels
  T* read;  // likewise
  T* initial;  // null when there was no initial state
};

// RWKV-4's wkv; arrays of states are numerator, denominator and maximum.
template <typename T>
struct WkvProblem {
  int64_t batch, time, width;
  const T* omega;  // (D)
  const T* bonus;  // (D)
  const T* k;  // (B, T, D)
  const T* v;  // (B, T, D)
  const T* initial[3];  // (B, D)
  const uint8_t* resets;  // (B, T)
  T* y;  // (B, T, D)
  T* last[3];  // (B, D)
  T* saved[3];  // (B, chunks, D)
};

template <typename T>
struct WkvGradients {
  const T* y;
  const T* last[2];  // may be null
  T* omega;  // (B, D): sums over time, as the next
  T* bonus;
  T* k;
  T* v;
  T* initial[2];
};

struct KernelTable {
  const char* name;
  void (*mlstm_forward_f32)(const MlstmProblem<float>*);
  void (*mlstm_forward_f64)(const MlstmProblem<double>*);
  void (*mlstm_backward_f32)(const MlstmProblem<float>*, const MlstmGradients<float>*);
  void (*mlstm_backward_f64)(const MlstmProblem<double>*, const MlstmGradients<double>*);
  void (*slstm_forward_f32)(const SlstmProblem<float>*);
  void (*slstm_forward_f64)(const SlstmProblem<double>*);
  void (*slstm_backward_f32)(const SlstmProblem<float>*, const SlstmGradients<float>*);
  void (*slstm_backward_f64)(const SlstmProblem<double>*, const SlstmGradients<double>*);
  void (*gemm_f32)(const GemmProblem<float>*);
  void (*gemm_f64)(const GemmProblem<double>*);
  void (*cross_entropy_f32)(const ProjectionProblem<float>*);
  void (*cross_entropy_f64)(const ProjectionProblem<double>*);
  void (*conv_forward_f32)(const ConvProblem<float>*);
  void (*conv_forward_f64)(const ConvProblem<double>*);
  void (*conv_backward_f32)(const ConvProblem<float>*, const ConvGradients<float>*);
  void (*conv_backward_f64)(const ConvProblem<double>*, const ConvGradients<double>*);
  void (*blocks_forward_f32)(const BlocksProblem<float>*);
  void (*blocks_forward_f64)(const BlocksProblem<double>*);
  void (*blocks_backward_f32)(const BlocksProblem<float>*, const BlocksGradients<float>*);
  void (*blocks_backward_f64)(const BlocksProblem<double>*, const BlocksGradients<double>*);
  void (*qkv_gates_forward_f32)(const QkvGatesProblem<float>*);
  void (*qkv_gates_forward_f64)(const QkvGatesProblem<double>*);
  void (*qkv_gates_backward_f32)(const QkvGatesProblem<float>*, const QkvGatesGradients<float>*);
  void (*qkv_gates_backward_f64)(const QkvGatesProblem<double>*, const QkvGatesGradients<double>*);
  void (*output_forward_f32)(const OutputProblem<float>*);
  void (*output_forward_f64)(const OutputProblem<double>*);
  void (*output_backward_f32)(const OutputProblem<float>*, const OutputGradients<float>*);
  void (*output_backward_f64)(const OutputProblem<double>*, const OutputGradients<double>*);
  void (*linear_attention_forward_f32)(const LinearAttentionProblem<float>*);
  void (*linear_attention_forward_f64)(const LinearAttentionProblem<double>*);
  void (*linear_attention_backward_f32)(const LinearAttentionProblem<float>*, const LinearAttentionGradients<float>*);
  void (*linear_attention_backward_f64)(const LinearAttentionProblem<double>*, const LinearAttentionGradients<double>*);
  void (*linear_scan_forward_f32)(const LinearScanProblem<float>*);
  void (*linear_scan_forward_f64)(const LinearScanProblem<double>*);
  void (*linear_scan_backward_f32)(const LinearScanProblem<float>*, const LinearScanGradients<float>*);
  void (*linear_scan_backward_f64)(const LinearScanProblem<double>*, const LinearScanGradients<double>*);
  void (*selective_scan_forward_f32)(const SelectiveScanProblem<float>*);
  void (*selective_scan_forward_f64)(const SelectiveScanProblem<double>*);
  void (*selective_scan_backward_f32)(const SelectiveScanProblem<float>*, const SelectiveScanGradients<float>*);
  void (*selective_scan_backward_f64)(const SelectiveScanProblem<double>*, const SelectiveScanGradients<double>*);
  void (*wkv_forward_f32)(const WkvProblem<float>*);
  void (*wkv_forward_f64)(const WkvProblem<double>*);
  void (*wkv_backward_f32)(const WkvProblem<float>*, const WkvGradients<float>*);
  void (*wkv_backward_f64)(const WkvProblem<double>*, const WkvGradients<double>*);
};
