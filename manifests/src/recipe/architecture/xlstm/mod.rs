//! xLSTM's part of a recipe (paper, section 2 and figures 10 and 11; options of tables 2 and 8).
//!
//! The defaults are the paper's xLSTM\[7:1\] with 350M parameters. What follows from these options by arithmetic
//! (sizes, operations, memory, contradictions) is in `arithmetic`.

mod arithmetic;

use serde::{Deserialize, Serialize};

/// Architecture and initial values of an xLSTM language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct XlstmConfig {
    /// Rows of the embedding and of the output projection; the paper pads GPT-2's 50257 to a multiple of 64.
    pub vocabulary_size: u64,
    /// Numbers of a position where inputs are numbers and not tokens: a linear map takes them in place of the embedding,
    /// and the head is one linear unit. 0: tokens.
    pub input_width: u64,
    /// Width of the residual.
    pub embedding_dim: u64,
    /// Blocks.
    pub blocks: u64,
    /// Whether the output projection is the token embedding (weight tying); neither then decays.
    pub tied_embedding: bool,
    /// Which blocks (from 0) are sLSTM blocks; all others are mLSTM blocks.
    pub slstm_at: Vec<u64>,
    /// The mLSTM blocks.
    pub mlstm: MlstmConfig,
    /// The sLSTM blocks.
    pub slstm: SlstmConfig,
}

/// Where an mLSTM block projects up (table 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockKind {
    /// Before the cell: figure 11.
    PreUpProjection,
    /// After it: dense projections of the residual's width, sigmoid output gate, then a feed-forward with squared ReLU.
    PostUpProjection,
}

/// mLSTM blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MlstmConfig {
    /// Heads.
    pub heads: u64,
    /// Where the block projects up.
    pub block: BlockKind,
    /// Inner width, as a multiple of the residual's.
    pub projection_factor: f64,
    /// Taps of the causal convolution; 0: none.
    pub convolution: u64,
    /// Size of the diagonal blocks of the query, key and value projections.
    pub qkv_block_size: u64,
    /// Width of a post-up-projection block's feed-forward, as a multiple of the residual's.
    pub feed_forward_factor: f64,
    /// Whether the input gate sees the input, or is its bias alone.
    pub input_gate_input_dependent: bool,
    /// Whether the input gate's bias is trained.
    pub input_gate_bias_learnable: bool,
    /// First value of the input gate's bias.
    pub input_gate_bias: InputBias,
    /// Whether the forget gate sees the input.
    pub forget_gate_input_dependent: bool,
    /// Whether the forget gate's bias is trained.
    pub forget_gate_bias_learnable: bool,
    /// First values of the forget gate's bias, equidistant over the heads; `[inf, inf]` never forgets.
    pub forget_gate_bias: [f64; 2],
}

/// First value of the mLSTM input gate's bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputBias {
    /// Normal with standard deviation 0.1.
    Normal,
    /// Zero.
    Zero,
}

/// sLSTM blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlstmConfig {
    /// The cell: an LSTM in the same block is the official package's comparison.
    pub function: SlstmFunction,
    /// Heads.
    pub heads: u64,
    /// Taps of the causal convolution before the input and forget gates; 0: none.
    pub convolution: u64,
    /// Shape of the gates' input weights.
    pub gate_weights: GateWeights,
    /// Width of the feed-forward, as a multiple of the residual's, rounded up to a multiple of 64.
    pub feed_forward_factor: f64,
    /// Forget gate: the paper allows both, the released code and the published runs have the sigmoid.
    pub forget_gate: ForgetGate,
    /// First values of the recurrent weights.
    pub recurrent_init: RecurrentInit,
    /// First values of the biases.
    pub bias_init: SlstmBias,
    /// First values of the gates' input weights.
    pub weight_init: WeightInit,
    /// Bound on each number of the gradient that goes back through the recurrence (paper: 10; released code: none);
    /// 0: no bound.
    pub recurrent_gradient_clip: f64,
}

/// The cell of an sLSTM block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlstmFunction {
    /// sLSTM.
    Slstm,
    /// LSTM: sigmoid gates, no normalizer.
    Lstm,
}

/// What the sLSTM forget gate does with its sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForgetGate {
    /// Logistic function: between 0 and 1.
    Sigmoid,
    /// Exponential, as the input gate (paper, equation 14).
    Exponential,
}

/// Shape of the sLSTM gates' input weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateWeights {
    /// One block for each head.
    Headwise,
    /// Full matrices (the xLSTM\[0:1\] of table 2).
    Dense,
}

/// First values of the sLSTM recurrent weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecurrentInit {
    /// Zero.
    Zeros,
    /// Uniform within one over the root of the residual's width.
    Standard,
}

/// First values of the sLSTM biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlstmBias {
    /// Forget bias from 5 down to -7 within each head by a power law that depends on the block; others 0.
    PowerlawBlockdependent,
    /// Forget bias from 3 to 6 within each head; others 0.
    SmallInit,
    /// Uniform within one over the root of the residual's width.
    Standard,
    /// Zero.
    Zeros,
}

/// First values of the sLSTM gates' input weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightInit {
    /// Normal with standard deviation √(2 / (5·d)).
    Small,
    /// Uniform within one over the root of the fan-in, as PyTorch's `Linear` (the formal-language runs).
    Standard,
}

impl Default for XlstmConfig {
    fn default() -> Self {
        Self {
            vocabulary_size: 50304,
            input_width: 0,
            embedding_dim: 1024,
            blocks: 48,
            tied_embedding: false,
            slstm_at: vec![3, 5, 7, 40, 42, 44],
            mlstm: MlstmConfig::default(),
            slstm: SlstmConfig::default(),
        }
    }
}

impl Default for MlstmConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            block: BlockKind::PreUpProjection,
            projection_factor: 2.0,
            convolution: 4,
            qkv_block_size: 4,
            feed_forward_factor: 4.0,
            input_gate_input_dependent: true,
            input_gate_bias_learnable: true,
            input_gate_bias: InputBias::Normal,
            forget_gate_input_dependent: true,
            forget_gate_bias_learnable: true,
            forget_gate_bias: [3.0, 6.0],
        }
    }
}

impl Default for SlstmConfig {
    fn default() -> Self {
        Self {
            function: SlstmFunction::Slstm,
            heads: 4,
            convolution: 4,
            gate_weights: GateWeights::Headwise,
            feed_forward_factor: 1.3,
            forget_gate: ForgetGate::Sigmoid,
            recurrent_init: RecurrentInit::Zeros,
            bias_init: SlstmBias::PowerlawBlockdependent,
            weight_init: WeightInit::Small,
            recurrent_gradient_clip: 0.0,
        }
    }
}

impl XlstmConfig {
    /// Whether block `index` is an sLSTM block.
    #[must_use]
    pub fn is_slstm(&self, index: u64) -> bool {
        self.slstm_at.contains(&index)
    }

    /// Width inside an mLSTM block: the cell's heads together.
    #[must_use]
    pub fn inner_dim(&self) -> u64 {
        match self.mlstm.block {
            BlockKind::PreUpProjection => {
                // The official package rounds up to a multiple of 64, like the feed-forward.
                round_up_64(self.mlstm.projection_factor * self.embedding_dim as f64)
            }
            BlockKind::PostUpProjection => self.embedding_dim,
        }
    }

    /// Width of an sLSTM block's feed-forward.
    #[must_use]
    pub fn feed_forward_dim(&self) -> u64 {
        round_up_64(self.slstm.feed_forward_factor * self.embedding_dim as f64)
    }

    /// Width of a post-up-projection mLSTM block's feed-forward.
    #[must_use]
    pub fn mlstm_feed_forward_dim(&self) -> u64 {
        round_up_64(self.mlstm.feed_forward_factor * self.embedding_dim as f64)
    }
}

fn round_up_64(width: f64) -> u64 {
    (width / 64.0).ceil() as u64 * 64
}
