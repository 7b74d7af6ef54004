//! xLSTM\[a:b\] language models, parameter by parameter as the official package has them.
//!
//! ```text
//! tokens ─► token_embedding ─► blocks (mLSTM | sLSTM, pre-norm, residual) ─► post_blocks_norm ─► lm_head (untied)
//! ```
//! No positional encoding, no dropout. Norm weights are stored as residuals (scale `1 + w`). Everything takes any
//! length, a state to go on from, and resets at document boundaries. Matrix products run in the recipe's precision;
//! the residual stream, norms, gates and states stay in float32.
//!
//! Shape letters: B batch, T time, C or D width of the stream, D inner width of an mLSTM block, F feed-forward,
//! H heads, E head width, N = B·T, V vocabulary.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]

mod config_json;
mod generate;
mod mlstm_block;
mod parameters;
mod scoring;
mod slstm_block;
mod state;
mod weights;

use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Kind, Tensor};
use xlstm_kernels::cross_entropy::{CrossEntropyOptions, CrossEntropyOutput, projected_cross_entropy};
use xlstm_kernels::{cuda, linear, norm};
use xlstm_manifests::recipe::{ModelConfig, Precision};

use crate::error::{Result, TrainError};
use mlstm_block::MlstmBlock;
use parameters::{Builder, Init, small_init};
use slstm_block::SlstmBlock;

pub use config_json::{config_from_json, config_to_json, official_config};
pub use generate::{Generation, Sampling};
pub use parameters::{OUTPUT_PROJECTION, Parameter, TOKEN_EMBEDDING};
pub use state::{BlockState, CellState, ModelState};
pub(crate) use weights::{copy_to_cpu, metadata};
pub use weights::{export, import};

/// All norms.
const NORM_EPSILON: f64 = 1e-5;

/// A target that counts for nothing.
pub const IGNORE_TARGET: i64 = -100;

/// Where and how a model computes.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// The device of all parameters.
    pub device: Device,
    /// Type of the parameters: `Float`, or `Double` for tests.
    pub kind: Kind,
    /// Type of the matrix products; `None`: that of the parameters.
    pub products: Option<Kind>,
    /// Keep only each block's input for the backward pass.
    pub activation_checkpointing: bool,
}

impl Placement {
    /// float32 on `device`, products in the recipe's precision.
    #[must_use]
    pub fn new(device: Device, precision: Precision, activation_checkpointing: bool) -> Self {
        let products = match precision {
            Precision::Float32 => None,
            Precision::Bfloat16 => Some(Kind::BFloat16),
        };
        Self { device, kind: Kind::Float, products, activation_checkpointing }
    }
}

/// What one pass through a block is given besides its input.
struct Call<'a> {
    precision: Option<Kind>,
    state: Option<&'a BlockState>,
    resets: Option<&'a Tensor>,
}

#[derive(Debug)]
enum Block {
    Mlstm(MlstmBlock),
    Slstm(SlstmBlock),
}

impl Block {
    fn forward(&self, x_BTC: &Tensor, call: &Call<'_>) -> Result<(Tensor, BlockState)> {
        match self {
            Self::Mlstm(block) => block.forward(x_BTC, call),
            Self::Slstm(block) => block.forward(x_BTC, call),
        }
    }

    fn fits_card(&self, resets: bool) -> Result<bool> {
        match self {
            Self::Mlstm(block) => Ok(block.fits_card()),
            Self::Slstm(block) => Ok(!resets && block.fits_card()?),
        }
    }

    /// The stream with what came before added, and what this block gives.
    fn forward_card(
        &self,
        x_BTC: &Tensor,
        delta_BTC: Option<&Tensor>,
        resets_BT: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Mlstm(block) => block.forward_card(x_BTC, delta_BTC, resets_BT),
            Self::Slstm(block) => block.forward_card(x_BTC, delta_BTC),
        }
    }
}

/// A language model.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    placement: Placement,
    parameters: Vec<Parameter>,
    embedding: Tensor,
    /// Locked for the time of a call: a checkpointed block is computed again on whichever thread goes backward.
    blocks: Vec<Arc<Mutex<Block>>>,
    post_norm: Tensor,
    output: Tensor,
}

impl Model {
    /// A model with fresh parameters from `seed`.
    ///
    /// # Errors
    /// When libtorch cannot make a tensor (no memory, no such device).
    pub fn new(config: &ModelConfig, placement: Placement, seed: u64) -> Result<Self> {
        let mut builder = Builder::new(placement.device, placement.kind, seed);
        let (width, vocabulary) = (signed(config.embedding_dim), signed(config.vocabulary_size));
        let small = small_init(config.embedding_dim);
        let embedding = builder.add(TOKEN_EMBEDDING.into(), &[vocabulary, width], &small)?;
        let mut blocks = Vec::new();
        for index in 0..config.blocks {
            let prefix = format!("xlstm_block_stack.blocks.{index}");
            let block = if config.is_slstm(index) {
                Block::Slstm(SlstmBlock::new(&mut builder, config, &prefix, index)?)
            } else {
                Block::Mlstm(MlstmBlock::new(&mut builder, config, &prefix)?)
            };
            blocks.push(Arc::new(Mutex::new(block)));
        }
        let name = "xlstm_block_stack.post_blocks_norm.weight".into();
        let post_norm = builder.add(name, &[width], &Init::Constant(0.0))?;
        let output = builder.add(OUTPUT_PROJECTION.into(), &[vocabulary, width], &small)?;
        let parameters = builder.parameters;
        Ok(Self { config: config.clone(), placement, parameters, embedding, blocks, post_norm, output })
    }

    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where and how it computes.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// All parameters, in a fixed order.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Trainable numbers.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        let trainable = self.parameters.iter().filter(|parameter| parameter.trainable);
        trainable.map(|parameter| parameter.tensor.numel() as u64).sum()
    }

    /// Hidden values after the last norm, `(B, T, C)`, for tokens `(B, T)` (Int64), with the state after them.
    ///
    /// # Errors
    /// When shapes do not fit, or libtorch fails.
    pub fn forward(
        &self,
        tokens_BT: &Tensor,
        state: Option<&ModelState>,
        resets_BT: Option<&Tensor>,
    ) -> Result<(Tensor, ModelState)> {
        let mut x_BTC = self.embed(tokens_BT)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (index, block) in self.blocks.iter().enumerate() {
            let state = state.and_then(|state| state.blocks.get(index));
            let call = Call { precision: self.placement.products, state, resets: resets_BT };
            let (output, next) = lock(block).forward(&x_BTC, &call)?;
            x_BTC = output;
            blocks.push(next);
        }
        Ok((norm::layer_norm(&x_BTC, &self.post_norm, NORM_EPSILON)?, ModelState { blocks }))
    }

    fn embed(&self, tokens_BT: &Tensor) -> Result<Tensor> {
        Ok(Tensor::f_embedding(&self.embedding, tokens_BT, -1, false, false)?)
    }

    /// Logits, `(B, T, V)`, of hidden values.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn logits(&self, hidden_BTC: &Tensor) -> Result<Tensor> {
        product(hidden_BTC, &self.output, self.placement.products)
    }

    /// Mean cross-entropy of `targets` after `tokens`, both `(B, T)` (Int64); [`IGNORE_TARGET`] counts for nothing.
    ///
    /// # Errors
    /// When shapes do not fit, no target counts, or libtorch fails.
    pub fn loss(
        &self,
        tokens_BT: &Tensor,
        targets_BT: &Tensor,
        resets_BT: Option<&Tensor>,
    ) -> Result<CrossEntropyOutput> {
        self.loss_of_counted(tokens_BT, targets_BT, resets_BT, None)
    }

    /// As [`loss`](Self::loss), for a caller that knows how many targets count: on a card nothing waits for the
    /// device then, and targets outside the vocabulary are no error but a loss of NaN.
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn loss_of_counted(
        &self,
        tokens_BT: &Tensor,
        targets_BT: &Tensor,
        resets_BT: Option<&Tensor>,
        count: Option<i64>,
    ) -> Result<CrossEntropyOutput> {
        if self.fits_card(resets_BT.is_some())? {
            return self.loss_card(tokens_BT, targets_BT, resets_BT, count);
        }
        let hidden_BTC = if self.placement.activation_checkpointing {
            self.forward_checkpointed(tokens_BT, resets_BT)?
        } else {
            self.forward(tokens_BT, None, resets_BT)?.0
        };
        let hidden_NC = hidden_BTC.f_view([-1, signed(self.config.embedding_dim)])?;
        let (hidden_NC, output) = match self.placement.products {
            Some(kind) => (hidden_NC.f_to_kind(kind)?, self.output.f_to_kind(kind)?),
            None => (hidden_NC, self.output.shallow_clone()),
        };
        let options = CrossEntropyOptions { ignore_index: IGNORE_TARGET, ..CrossEntropyOptions::default() };
        Ok(projected_cross_entropy(&hidden_NC, &output, &targets_BT.f_reshape([-1])?, &options)?)
    }

    /// Whether [`loss`](Self::loss), with resets or without, is computed by the kernels of the card: bf16 products, and
    /// sizes that every block has kernels for. Otherwise libtorch's operations compute.
    ///
    /// # Errors
    /// When the card cannot be opened.
    pub fn fits_card(&self, resets: bool) -> Result<bool> {
        let Placement { device, kind, products, .. } = self.placement;
        let fits = cuda::enabled(device)
            && kind == Kind::Float
            && products == Some(Kind::BFloat16)
            && cuda::stream_fits(signed(self.config.embedding_dim))
            && self.config.vocabulary_size.is_multiple_of(8);
        if !fits {
            return Ok(false);
        }
        for block in &self.blocks {
            if !lock(block).fits_card(resets)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn loss_card(
        &self,
        tokens_BT: &Tensor,
        targets_BT: &Tensor,
        resets_BT: Option<&Tensor>,
        count: Option<i64>,
    ) -> Result<CrossEntropyOutput> {
        let targets_N = targets_BT.f_reshape([-1])?;
        let count = match count {
            Some(count) => count,
            None => i64::try_from(targets_N.f_ne(IGNORE_TARGET)?.f_sum(Kind::Int64)?)?,
        };
        let mut x_BTC = self.embed(tokens_BT)?;
        let mut delta_BTC: Option<Tensor> = None;
        for block in &self.blocks {
            let (x, delta) = if self.placement.activation_checkpointing {
                let (block, resets) = (Arc::clone(block), resets_BT.map(Tensor::shallow_clone));
                let inputs: Vec<&Tensor> = std::iter::once(&x_BTC).chain(&delta_BTC).collect();
                let mut outputs = xlstm_bridge::autograd::checkpoint("block", &inputs, move |inputs| {
                    let (x, delta) = lock(&block).forward_card(&inputs[0], inputs.get(1), resets.as_ref())?;
                    // The first block's stream is its input, and an output must be a tensor of its own.
                    let x = if inputs.len() == 1 { x.f_mul_scalar(1.0)? } else { x };
                    Ok(vec![x, delta])
                })?
                .into_iter();
                match (outputs.next(), outputs.next()) {
                    (Some(x), Some(delta)) => (x, delta),
                    _ => return Err(TrainError::Internal("a block gave fewer than two outputs".into())),
                }
            } else {
                lock(block).forward_card(&x_BTC, delta_BTC.as_ref(), resets_BT)?
            };
            (x_BTC, delta_BTC) = (x, Some(delta));
        }
        let (_, y_BTC) = cuda::add_layer_norm(&x_BTC, delta_BTC.as_ref(), &self.post_norm, NORM_EPSILON)?;
        let hidden_NC = y_BTC.f_view([-1, signed(self.config.embedding_dim)])?;
        Ok(cuda::projected_cross_entropy(&hidden_NC, &self.output, &targets_N, IGNORE_TARGET, count)?)
    }

    fn forward_checkpointed(&self, tokens_BT: &Tensor, resets_BT: Option<&Tensor>) -> Result<Tensor> {
        let mut x_BTC = self.embed(tokens_BT)?;
        let precision = self.placement.products;
        for block in &self.blocks {
            let (block, resets) = (Arc::clone(block), resets_BT.map(Tensor::shallow_clone));
            let mut outputs = xlstm_bridge::autograd::checkpoint("block", &[&x_BTC], move |inputs| {
                let call = Call { precision, state: None, resets: resets.as_ref() };
                Ok(vec![lock(&block).forward(&inputs[0], &call)?.0])
            })?;
            x_BTC = outputs.swap_remove(0);
        }
        Ok(norm::layer_norm(&x_BTC, &self.post_norm, NORM_EPSILON)?)
    }
}

fn lock(block: &Mutex<Block>) -> std::sync::MutexGuard<'_, Block> {
    block.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `x Wᵀ` in the given type.
fn product(x: &Tensor, weight: &Tensor, precision: Option<Kind>) -> Result<Tensor> {
    let kind = precision.unwrap_or_else(|| weight.kind());
    let convert = |tensor: &Tensor| {
        if tensor.kind() == kind { Ok(tensor.shallow_clone()) } else { tensor.f_to_kind(kind) }
    };
    Ok(linear::linear(&convert(x)?, &convert(weight)?, None)?)
}

/// Weight `(width, 1, taps)` and bias of a causal convolution, with PyTorch's initial values; none for 0 taps.
fn convolution(builder: &mut Builder, name: &str, width: i64, taps: u64) -> Result<Option<(Tensor, Tensor)>> {
    if taps == 0 {
        return Ok(None);
    }
    let init = Init::Uniform((taps as f64).powf(-0.5));
    let weight = builder.add(format!("{name}.conv.weight"), &[width, 1, signed(taps)], &init)?;
    let bias = builder.add(format!("{name}.conv.bias"), &[width], &init)?;
    Ok(Some((weight, bias)))
}

/// Sizes are validated to be far below 2^63.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
