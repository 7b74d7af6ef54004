//! How large a model is: parameters to the last one, operations, and memory by part.
//!
//! ```text
//! mLSTM block (pre up-projection, D = 2d): norm d · up 2Dd · conv 5D · q, k, v 3D·b · gates 2·H(3D+1) ·
//!                                          outnorm D · skip D · down Dd                      = 6d² + 87d + 8
//! sLSTM block: norms 3d · conv 5d · gates d² · recurrent d² · bias 4d · up 2Pd · down Pd = 2d² + 12d + 3Pd
//! model: token embedding Vd · output Vd · last norm d
//! ```
//! Numbers in the paper's table 7 are reproduced to the parameter with a vocabulary of 50304.

use super::{BlockKind, GateWeights, ModelConfig, Precision, Recipe};

/// Sizes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelSize {
    /// All trainable numbers.
    pub parameters: u64,
    /// Those that take part in matrix products: all matrices but the token embedding.
    pub product_parameters: u64,
    /// Σ over mLSTM blocks of heads × head dimension²: numbers in the matrix memories.
    pub memory_cells: u64,
}

impl ModelSize {
    /// The size of a model.
    #[must_use]
    pub fn of(model: &ModelConfig) -> Self {
        let (d, v) = (model.embedding_dim, model.vocabulary_size);
        let mut size = Self { parameters: 2 * v * d + d, product_parameters: v * d, memory_cells: 0 };
        for index in 0..model.blocks {
            let (parameters, products, cells) =
                if model.is_slstm(index) { slstm_block(model) } else { mlstm_block(model) };
            size.parameters += parameters;
            size.product_parameters += products;
            size.memory_cells += cells;
        }
        size
    }

    /// Operations of forward and backward pass for one token: `6·P + 12·M`, where `P` is
    /// [`product_parameters`](Self::product_parameters) and `M` is [`memory_cells`](Self::memory_cells), each cell
    /// written and read once (2 operations each), and twice that in the backward pass. Recomputation is not counted.
    #[must_use]
    pub fn operations_per_token(&self) -> u64 {
        6 * self.product_parameters + 12 * self.memory_cells
    }
}

fn mlstm_block(model: &ModelConfig) -> (u64, u64, u64) {
    let (d, inner, mlstm) = (model.embedding_dim, model.inner_dim(), &model.mlstm);
    let heads = mlstm.heads;
    let cells = inner * inner / heads.max(1);
    let gate_input = match mlstm.block {
        BlockKind::PreUpProjection => 3 * inner,
        BlockKind::PostUpProjection => d,
    };
    let gate = |dependent: bool, learnable: bool| {
        (if dependent { heads * gate_input } else { 0 }, if learnable { heads } else { 0 })
    };
    let (input_weights, input_bias) = gate(mlstm.input_gate_input_dependent, mlstm.input_gate_bias_learnable);
    let (forget_weights, forget_bias) =
        gate(mlstm.forget_gate_input_dependent, mlstm.forget_gate_bias_learnable);
    let gates = input_weights + forget_weights;
    let (products, rest) = match mlstm.block {
        BlockKind::PreUpProjection => {
            let convolution = if mlstm.convolution > 0 { inner * (mlstm.convolution + 1) } else { 0 };
            // norm, outnorm, skip, convolution.
            (3 * inner * d + 3 * inner * mlstm.qkv_block_size + gates, d + 2 * inner + convolution)
        }
        // query, key, value, output gate, output; then the feed-forward; two norms and the outnorm.
        BlockKind::PostUpProjection => (5 * d * d + 2 * d * model.mlstm_feed_forward_dim() + gates, 3 * d),
    };
    (products + rest + input_bias + forget_bias, products, cells)
}

fn slstm_block(model: &ModelConfig) -> (u64, u64, u64) {
    let (d, slstm) = (model.embedding_dim, &model.slstm);
    let headwise = d * d / slstm.heads.max(1);
    let gates = match slstm.gate_weights {
        GateWeights::Headwise => 4 * headwise,
        GateWeights::Dense => 4 * d * d,
    };
    let products = gates + 4 * headwise + 3 * d * model.feed_forward_dim();
    let convolution = if slstm.convolution > 0 { d * (slstm.convolution + 1) } else { 0 };
    (products + 3 * d + 4 * d + convolution, products, 0)
}

/// Memory of training, in bytes, by part. Activations are an estimate from the tensors that each block keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Parameters in float32.
    pub parameters: u64,
    /// Their gradients.
    pub gradients: u64,
    /// First and second moments.
    pub optimizer: u64,
    /// What the backward pass needs of one micro-batch.
    pub activations: u64,
    /// The largest piece of the output projection's logits that is alive at a time.
    pub logits: u64,
}

/// Rows of hidden states whose logits are computed at a time.
const LOGIT_CHUNK: u64 = 1024;
/// Bytes of logits at a time on a card.
const CARD_LOGITS: u64 = 768 << 20;

impl MemoryEstimate {
    /// The memory of one rank for a micro-batch of `tokens` tokens.
    #[must_use]
    pub fn of(recipe: &Recipe, tokens: u64) -> Self {
        let model = &recipe.model;
        let parameters = ModelSize::of(model).parameters * 4;
        let width = match recipe.training.precision {
            Precision::Float32 => 4,
            Precision::Bfloat16 => 2,
        };
        let block = |index| block_activations(model, width, index);
        let stream = 4 * model.embedding_dim;
        let per_token = if recipe.training.activation_checkpointing {
            stream * model.blocks + (0..model.blocks).map(block).max().unwrap_or(0)
        } else {
            (0..model.blocks).map(block).sum()
        };
        Self {
            parameters,
            gradients: parameters,
            optimizer: 2 * parameters,
            activations: tokens * (per_token + 4 * stream),
            logits: 2 * 4 * LOGIT_CHUNK.min(tokens) * model.vocabulary_size,
        }
    }

    /// As [`of`](Self::of), for a card whose kernels compute in bf16: they keep states between chunks and scores (a fifth of
    /// what a block keeps, worth more than the rows they displace), bf16 copies of the matrices, and the backward pass of
    /// one block is a good part of what all keep.
    #[must_use]
    pub fn on_card(recipe: &Recipe, tokens: u64) -> Self {
        let model = &recipe.model;
        let size = ModelSize::of(model);
        let (d, inner) = (model.embedding_dim, model.inner_dim());
        let checkpointing = recipe.training.activation_checkpointing;
        let block = |index| card_activations(model, index);
        let per_token = if checkpointing {
            6 * d * model.blocks + (0..model.blocks).map(block).max().unwrap_or(0)
        } else {
            (0..model.blocks).map(block).sum()
        };
        // Gradients alive at once, bf16, and those of states and scores.
        let working = 44 * inner + card_cells(model);
        let weights = 2 * size.product_parameters;
        let output = 4 * model.vocabulary_size * d;
        Self {
            activations: tokens * (per_token + working + 8 * d) + weights,
            logits: CARD_LOGITS.min(2 * tokens * model.vocabulary_size) + 2 * output,
            ..Self::of(recipe, 0)
        }
    }

    /// All parts together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.parameters + self.gradients + self.optimizer + self.activations + self.logits
    }
}

/// Bytes of an mLSTM block's states and scores for one token, bf16, in chunks of 512 where a head has as many units,
/// else of 256: `MlstmSizes::fastest` of `xlstm-cuda`, but for heads below 256.
fn card_cells(model: &ModelConfig) -> u64 {
    let (inner, heads) = (model.inner_dim(), model.mlstm.heads.max(1));
    let chunk = if inner / heads >= 512 { 512 } else { 256 };
    2 * inner * inner / heads / chunk + 2 * chunk * heads
}

/// Bytes that one block keeps for one token where the kernels of a card compute.
fn card_activations(model: &ModelConfig, index: u64) -> u64 {
    let (d, inner) = (model.embedding_dim, model.inner_dim());
    if model.is_slstm(index) {
        // Two streams fp32; norms, convolution, cell and feed-forward bf16; gates 5 bf16 and states 2 fp32 a unit.
        44 * d + 6 * model.feed_forward_dim()
    } else {
        // Stream fp32 and norm; up 2D, convolution, q, k, v, h and output, bf16; a byte of h's rest; gates; cells.
        6 * d + 17 * inner + 64 * model.mlstm.heads + card_cells(model)
    }
}

/// Bytes that one block keeps for one token.
fn block_activations(model: &ModelConfig, width: u64, index: u64) -> u64 {
    let (d, inner) = (model.embedding_dim, model.inner_dim());
    if model.is_slstm(index) {
        // Stream and norms 4d, gates 4d, states 4d in float32; feed-forward 3P in the products' type.
        4 * 12 * d + width * (4 * d + 3 * model.feed_forward_dim())
    } else {
        // Stream and norm 2d; up 2D, convolution 2D, q, k, v 3D, cell, norm, skip and gate 4D.
        let chunk_states = inner * inner / model.mlstm.heads.max(1) / 64;
        4 * 2 * d + width * 11 * inner + 4 * chunk_states
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MlstmConfig, SlstmConfig, load};
    use super::*;

    fn parameters(embedding_dim: u64, blocks: u64, slstm_at: &[u64]) -> u64 {
        let model =
            ModelConfig { embedding_dim, blocks, slstm_at: slstm_at.into(), ..ModelConfig::default() };
        ModelSize::of(&model).parameters
    }

    #[test]
    fn the_ten_published_sizes_to_the_parameter() {
        let six = [3, 5, 7, 40, 42, 44];
        let eight = [3, 5, 7, 9, 54, 56, 58, 60];
        assert_eq!(parameters(768, 24, &[]), 163_806_144);
        assert_eq!(parameters(1024, 48, &[]), 409_290_112);
        assert_eq!(parameters(1536, 48, &[]), 840_427_392);
        assert_eq!(parameters(2048, 48, &[]), 1_422_559_616);
        assert_eq!(parameters(2560, 64, &[]), 2_788_396_032);
        assert_eq!(parameters(768, 24, &[3, 20]), 163_690_928);
        assert_eq!(parameters(1024, 48, &six), 408_436_048);
        assert_eq!(parameters(1536, 48, &six), 839_736_144);
        assert_eq!(parameters(2048, 48, &six), 1_420_065_104);
        assert_eq!(parameters(2560, 64, &eight), 2_781_617_088);
    }

    #[test]
    fn a_card_takes_what_was_measured_on_one() {
        // docs/benchmarks/cuda-training.md: peaks in GiB on an H200.
        for (name, rows, measured) in [
            ("125m-1to0", 32, 59.2),
            ("125m-7to1", 32, 59.3),
            ("350m-1to0", 24, 115.8),
            ("350m-7to1", 16, 79.4),
            ("1300m-1to0", 11, 123.8),
        ] {
            let kept = ["training.activation_checkpointing=false".to_owned()];
            let recipe = load(&format!("figure6-scaling-15b/{name}"), &kept).unwrap();
            let planned = MemoryEstimate::on_card(&recipe, rows * 2048).total() as f64 / f64::from(1 << 30);
            assert!((0.98..1.15).contains(&(planned / measured)), "{name}: {planned}");
        }
    }

    #[test]
    fn the_official_test_model_has_its_count() {
        let model = ModelConfig {
            vocabulary_size: 256,
            embedding_dim: 64,
            blocks: 8,
            slstm_at: vec![1],
            mlstm: MlstmConfig::default(),
            slstm: SlstmConfig::default(),
        };
        assert_eq!(ModelSize::of(&model).parameters, 277_432);
    }

    #[test]
    fn the_ablations_have_the_counts_of_tables_2_and_8() {
        for (name, millions) in [
            ("table2-lstm-to-xlstm/0to1", 427.3),
            ("table2-lstm-to-xlstm/7to1", 408.4),
            ("table8-matrix-memory/post-up-projection", 430.4),
            ("table8-matrix-memory/no-convolution", 408.8),
            ("table8-matrix-memory/convolution", 409.3),
        ] {
            let count = ModelSize::of(&load(name, &[]).unwrap().model).parameters as f64 / 1e6;
            assert!((count - millions).abs() < 0.05, "{name}: {count}");
        }
    }
}
