//! Language models of residual blocks, parameter by parameter as their authors' code has them.
//!
//! ```text
//! mod         Model: embedding ─► blocks ─► norm ─► output projection; loss, logits; the one loop over blocks
//! network     what an architecture gives: its parts, its files elsewhere; the one match over architectures
//! block       one block: a call, a state by name, the plain and the fused form
//! path        who computes: fused GPU kernels, CPU kernels, libtorch's operations
//! dropout     masks that follow from step and row
//! state       what is remembered between two calls
//! generate    text, one token at a time      sampling  how a token is drawn
//! step        one token, states moved on in place; generated_token: the same recorded as one launch
//! scoring     log-likelihoods of single tokens
//! selfcheck   steps against whole passes, on a GPU
//! weights     parameters in and out of files
//! exchange/   the same in the form of Hugging Face transformers
//! llama, gpt2          Transformers      attention  causal attention with its key-value cache, rotary positions
//! recurrent   RetNet, GLA, HGRN, HGRN2            retnet_block  RetNet in GPT-like blocks
//! mamba, rwkv          Mamba; RWKV-4, RWKV-5 and RWKV-6
//! long_filters         H3, Hyena          lstm       LSTM: stacked, residual, with feed-forwards
//! xlstm/      mLSTM and sLSTM blocks, and the official package's form of files
//! ```
//! Everything takes any length, a state to go on from, and resets at document boundaries. Matrix products run in the
//! recipe's precision; the residual, norms, gates and states stay in float32.
//!
//! Shape letters, here and in all modules below: B batch, T time, C width of the residual, D inner width of a block,
//! F width of a feed-forward, H heads, E width of a head, G gates, N = B·T, V vocabulary, W taps of a convolution.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]

mod attention;
mod block;
mod dropout;
mod exchange;
mod generate;
mod generated_token;
mod gpt2;
mod llama;
mod long_filters;
mod lstm;
mod mamba;
mod network;
mod normalization;
mod parameters;
mod path;
mod recurrent;
mod retnet_block;
mod rwkv;
mod sampling;
mod scoring;
mod selfcheck;
mod sequences;
mod state;
mod step;
mod weights;
mod xlstm;

use std::sync::{Arc, Mutex};

use tch::{Device, Kind, Tensor};
use xlstm_kernels::cross_entropy::{
    CrossEntropyOptions, CrossEntropyOutput, counted_cross_entropy, projected_cross_entropy,
};
use xlstm_kernels::embedding::embedding;
use xlstm_kernels::z_loss::{ZLossOptions, cross_entropy_with_z_loss};
use xlstm_kernels::{cuda, linear};
use xlstm_manifests::recipe::{ComputePath, ModelConfig, Precision, Recipe};

use crate::error::{Result, TrainError};
use block::{BlockCall, Residual, SharedBlock};
use generated_token::SpareToken;
use network::{Biases, Parts, network};
use normalization::Norm;
use parameters::{Builder, TiedOutput};

pub use block::BlockState;
pub use dropout::Dropout;
pub(crate) use exchange::{config_json, end_of_text, parameters, read_config, read_parameters};
pub use generate::Generation;
pub(crate) use generate::PIECE;
pub use parameters::Parameter;
pub use path::{Decision, Need, choose};
pub use sampling::Sampling;
pub use scoring::{PendingLosses, TokenScores};
pub use selfcheck::check_generation;
pub use sequences::Sequences;
pub use state::ModelState;
pub(crate) use weights::{
    check_sizes, copy_to_cpu, described_model, describes_model, metadata, own_metadata,
};
pub use weights::{export, export_with, import};
pub use xlstm::official::{config_from_json, config_to_json, official_config};

/// The target of a position that is not scored.
pub const IGNORE_TARGET: i64 = -100;

/// How many targets of a batch are scored.
#[derive(Debug, Clone, Copy)]
pub enum TargetCount<'a> {
    /// To be counted, for which a GPU is waited for.
    Unknown,
    /// So many, at least one.
    Known(i64),
    /// As many as this float32 scalar on the device says: a recorded step reads it anew each time. Now it is the number
    /// beside it.
    OnDevice(&'a Tensor, i64),
}

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
            Precision::Float32 | Precision::Tf32 => None,
            Precision::Bfloat16 => Some(Kind::BFloat16),
        };
        Self { device, kind: Kind::Float, products, activation_checkpointing }
    }

    /// As the recipe has it.
    #[must_use]
    pub fn of(recipe: &Recipe, device: Device) -> Self {
        Self::new(device, recipe.training.precision, recipe.training.activation_checkpointing)
    }
}

/// A language model.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    placement: Placement,
    parameters: Vec<Parameter>,
    embedding: Tensor,
    biases: Option<Biases>,
    position_embedding: Option<Tensor>,
    embedding_norm: Option<Norm>,
    /// Locked for the time of a call: a checkpointed block is computed again on whichever thread goes backward.
    blocks: Vec<SharedBlock>,
    norm: Norm,
    output: Tensor,
    /// The output projection's name, where it is the token embedding by choice.
    tied_output: Option<TiedOutput>,
    positional: bool,
    /// A recorded token that nobody uses at the moment.
    spare: Mutex<Option<SpareToken>>,
}

/// What a training step asks of the loss.
#[derive(Debug, Clone)]
pub struct TrainingCall<'a> {
    /// `(B, T)`, Bool: where documents begin.
    pub resets_BT: Option<&'a Tensor>,
    /// How many targets are scored.
    pub count: TargetCount<'a>,
    /// What is dropped.
    pub dropout: Option<Dropout>,
    /// Weight of the z-loss; 0: none.
    pub z_loss: f64,
}

/// The loss of a training step.
#[derive(Debug)]
pub struct TrainingLoss {
    /// What is minimized, a scalar; gradients flow from it.
    pub minimized: Tensor,
    /// The mean cross-entropy, a scalar without history: what is minimized, but for the z-loss.
    pub cross_entropy: Tensor,
}

/// How the blocks are gone through.
#[derive(Debug, Clone, Copy)]
struct Pass<'a> {
    /// What is dropped.
    dropout: Option<&'a Dropout>,
    path: ComputePath,
    /// Keep only each block's input for the backward pass.
    checkpointed: bool,
    /// Give the state after the last token; else each block's is dropped at once.
    keep_state: bool,
    state: Option<&'a ModelState>,
    resets_BT: Option<&'a Tensor>,
}

impl Model {
    /// A model with fresh parameters from `seed`.
    ///
    /// # Errors
    /// When libtorch cannot make a tensor (no memory, no such device).
    pub fn new(config: &ModelConfig, placement: Placement, seed: u64) -> Result<Self> {
        let mut builder = Builder::new(placement.device, placement.kind, seed).tied(config.tied_embedding());
        let parts = network(config).build(&mut builder)?;
        let Parts { embedding, biases, position_embedding, embedding_norm, blocks, norm, output, positional } =
            parts;
        Ok(Self {
            config: config.clone(),
            placement,
            parameters: builder.parameters,
            tied_output: builder.tied_output,
            embedding,
            biases,
            positional: positional || position_embedding.is_some(),
            position_embedding,
            embedding_norm,
            blocks: blocks.into_iter().map(|block| Arc::new(Mutex::new(block))).collect(),
            norm,
            output,
            spare: Mutex::new(None),
        })
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

    /// Who computes a forward pass.
    ///
    /// # Errors
    /// When the GPU cannot be opened.
    pub fn compute_path(&self, need: Need) -> Result<Decision> {
        choose(&self.config, self.placement, need)
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
        let need = Need { resets: resets_BT.is_some(), ..Need::default() };
        let path = self.compute_path(need)?.path;
        let pass = Pass { dropout: None, path, checkpointed: false, keep_state: true, state, resets_BT };
        self.hidden(tokens_BT, &pass)
    }

    /// Through all blocks and the last norm; the state is empty unless it is to be kept.
    fn hidden(&self, tokens_BT: &Tensor, pass: &Pass<'_>) -> Result<(Tensor, ModelState)> {
        let positions_BT = if self.positional { Some(positions(tokens_BT, pass)?) } else { None };
        let mut x_BTC = self.embed(tokens_BT, positions_BT.as_ref(), pass.state.is_some())?;
        if let Some(dropout) = pass.dropout {
            x_BTC = dropout.of_embedding(&x_BTC)?;
        }
        let mut residual = Residual::new(x_BTC);
        let mut blocks = Vec::with_capacity(if pass.keep_state { self.blocks.len() } else { 0 });
        for (index, block) in self.blocks.iter().enumerate() {
            let dropout = pass.dropout.and_then(|dropout| dropout.of_block(index));
            let call = BlockCall {
                dropout: dropout.as_ref(),
                precision: self.placement.products,
                state: pass.state.and_then(|state| state.blocks.get(index)),
                keeps_state: pass.keep_state,
                resets_BT: pass.resets_BT,
                positions_BT: positions_BT.as_ref(),
            };
            if pass.checkpointed {
                residual = residual.through_checkpointed(block, pass.path, &call)?;
                continue;
            }
            let (next, state) = residual.through(block, pass.path, &call)?;
            residual = next;
            if pass.keep_state {
                blocks.push(state);
            }
        }
        let hidden_BTC = self.norm.of_residual(&residual, pass.path)?;
        let next = |positions_BT: &Tensor| -> Result<Tensor> {
            let next_B = positions_BT.f_select(1, -1)?.f_add_scalar(1)?;
            Ok(next_B.f_expand([tokens_BT.size()[0]], false)?)
        };
        let positions_B = positions_BT.as_ref().filter(|_| pass.keep_state).map(next).transpose()?;
        Ok((hidden_BTC, ModelState { blocks, positions_B }))
    }

    fn embed(&self, tokens_BT: &Tensor, positions_BT: Option<&Tensor>, goes_on: bool) -> Result<Tensor> {
        let mut x_BTC = match &self.biases {
            Some(biases) => {
                let x_BTC = product(tokens_BT, &self.embedding, self.placement.products)?;
                x_BTC.f_to_kind(self.placement.kind)?.f_add(&biases.input)?
            }
            None => embedding(&self.embedding, tokens_BT)?,
        };
        if let (Some(table), Some(positions_BT)) = (&self.position_embedding, positions_BT) {
            // Without a state, positions are below the number of tokens: a GPU need not be waited for.
            if goes_on || positions_BT.size()[1] > table.size()[0] {
                check_positions(table.size()[0], positions_BT)?;
            }
            x_BTC = x_BTC.f_add(&embedding(table, positions_BT)?)?;
        }
        match &self.embedding_norm {
            Some(norm) => norm.apply(&x_BTC),
            None => Ok(x_BTC),
        }
    }

    /// Logits, `(B, T, V)`, of hidden values.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn logits(&self, hidden_BTC: &Tensor) -> Result<Tensor> {
        product(hidden_BTC, &self.output, self.placement.products)
    }

    /// Mean cross-entropy of `targets` after `tokens`, both `(B, T)` (Int64); positions with
    /// [`IGNORE_TARGET`] are left out. Of a model of numbers (`model.input_width` W above 0) the mean squared error: inputs
    /// are `(B, T, W)`, targets `(B, T)`, float32, NaN where nothing is scored.
    ///
    /// # Errors
    /// When shapes do not fit, no target counts, or libtorch fails.
    pub fn loss(
        &self,
        tokens_BT: &Tensor,
        targets_BT: &Tensor,
        resets_BT: Option<&Tensor>,
    ) -> Result<CrossEntropyOutput> {
        self.loss_with_count(tokens_BT, targets_BT, resets_BT, TargetCount::Unknown)
    }

    /// As [`loss`](Self::loss), for a caller that knows how many positions are scored. Nothing waits for a GPU then, and a
    /// target outside the vocabulary gives a loss of NaN there instead of an error.
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn loss_with_count(
        &self,
        tokens_BT: &Tensor,
        targets_BT: &Tensor,
        resets_BT: Option<&Tensor>,
        count: TargetCount<'_>,
    ) -> Result<CrossEntropyOutput> {
        let hidden_NC = self.hidden_for_loss(tokens_BT, resets_BT, None)?;
        self.loss_of(&hidden_NC, &targets_BT.f_reshape([-1])?, count)
    }

    /// Cross-entropy, or of a model of numbers squared error, of targets after hidden values, `(N, C)`.
    fn loss_of(
        &self,
        hidden_NC: &Tensor,
        targets_N: &Tensor,
        count: TargetCount<'_>,
    ) -> Result<CrossEntropyOutput> {
        match &self.biases {
            Some(biases) => self.squared_error(hidden_NC, biases, targets_N, count),
            None => self.cross_entropy(hidden_NC, targets_N, count),
        }
    }

    /// Mean of the squared errors of the one linear unit that is the head. Targets are numbers, NaN where none is scored.
    fn squared_error(
        &self,
        hidden_NC: &Tensor,
        biases: &Biases,
        targets_N: &Tensor,
        count: TargetCount<'_>,
    ) -> Result<CrossEntropyOutput> {
        let kind = self.placement.kind;
        let found_N1 = product(hidden_NC, &self.output, self.placement.products)?.f_to_kind(kind)?;
        let found_N = found_N1.f_add(&biases.output)?.f_squeeze_dim(1)?;
        let ignored_N = targets_N.f_isnan()?;
        // Differences to nothing are 0 before they are squared, so that no NaN comes back with the gradient.
        let difference_N = found_N.f_sub(&targets_N.f_to_kind(kind)?)?.f_masked_fill(&ignored_N, 0.0)?;
        let squares_N = difference_N.f_square()?;
        let sum = squares_N.f_sum(kind)?;
        let (loss, count) = match count {
            TargetCount::OnDevice(tensor, count) => (sum.f_div(&tensor.f_to_kind(kind)?)?, count),
            // As a recorded step divides, to the last bit: libtorch multiplies by a number's inverse there.
            TargetCount::Known(count) if matches!(self.placement.device, Device::Cuda(_)) => {
                (sum.f_div(&Tensor::f_full([], count, (kind, self.placement.device))?)?, count)
            }
            TargetCount::Known(count) => (sum.f_div_scalar(count)?, count),
            TargetCount::Unknown => {
                let count = i64::try_from(ignored_N.f_logical_not()?.f_sum(Kind::Int64)?)?;
                if count == 0 {
                    return Err(TrainError::Internal("expected a target that counts, found none".into()));
                }
                (sum.f_div_scalar(count)?, count)
            }
        };
        Ok(CrossEntropyOutput { loss, token_losses_N: squares_N.detach(), count })
    }

    /// The loss of a training step, with what the recipe adds to it.
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn training_loss(
        &self,
        tokens_BT: &Tensor,
        targets_BT: &Tensor,
        call: &TrainingCall<'_>,
    ) -> Result<TrainingLoss> {
        let hidden_NC = self.hidden_for_loss(tokens_BT, call.resets_BT, call.dropout.as_ref())?;
        let targets_N = targets_BT.f_reshape([-1])?;
        if call.z_loss == 0.0 {
            let minimized = self.loss_of(&hidden_NC, &targets_N, call.count)?.loss;
            let cross_entropy = minimized.detach();
            return Ok(TrainingLoss { minimized, cross_entropy });
        }
        let (hidden_NC, output) = self.in_products(&hidden_NC)?;
        let count = match call.count {
            TargetCount::OnDevice(tensor, _) => tensor.shallow_clone(),
            TargetCount::Known(count) => Tensor::f_full([], count, (Kind::Float, self.placement.device))?,
            TargetCount::Unknown => targets_N.f_ne(IGNORE_TARGET)?.f_sum(Kind::Float)?,
        };
        let options = ZLossOptions { ignore_index: IGNORE_TARGET, weight: call.z_loss };
        let found = cross_entropy_with_z_loss(&hidden_NC, &output, &targets_N, &count, &options)?;
        Ok(TrainingLoss { minimized: found.minimized, cross_entropy: found.cross_entropy })
    }

    /// Hidden values after the last norm as the loss takes them, `(N, C)`.
    fn hidden_for_loss(
        &self,
        tokens_BT: &Tensor,
        resets_BT: Option<&Tensor>,
        dropout: Option<&Dropout>,
    ) -> Result<Tensor> {
        let need = Need { resets: resets_BT.is_some(), ..Need::default() };
        let path = self.compute_path(need)?.path;
        let checkpointed = self.placement.activation_checkpointing;
        let pass = Pass { dropout, path, checkpointed, keep_state: false, state: None, resets_BT };
        let (hidden_BTC, _) = self.hidden(tokens_BT, &pass)?;
        Ok(hidden_BTC.f_view([-1, signed(self.config.embedding_dim())])?)
    }

    /// Hidden values and output projection in the type of the products.
    fn in_products(&self, hidden_NC: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok(match self.placement.products {
            Some(kind) => (hidden_NC.f_to_kind(kind)?, self.output.f_to_kind(kind)?),
            None => (hidden_NC.shallow_clone(), self.output.shallow_clone()),
        })
    }

    /// Whether the loss is computed by the fused kernel, whose count of targets is fixed when a step is recorded: in bf16 on
    /// a GPU, for the sizes that it has.
    #[must_use]
    pub fn has_fused_loss(&self) -> bool {
        let Placement { device, kind, products, .. } = self.placement;
        let fits = cuda::cross_entropy_fits(signed(self.config.vocabulary_size()));
        fits && cuda::enabled(device) && kind == Kind::Float && products == Some(Kind::BFloat16)
    }

    /// Cross-entropy of targets after hidden values, `(N, C)`, by the output projection.
    fn cross_entropy(
        &self,
        hidden_NC: &Tensor,
        targets_N: &Tensor,
        count: TargetCount<'_>,
    ) -> Result<CrossEntropyOutput> {
        if self.has_fused_loss() {
            let count = match count {
                TargetCount::Known(count) | TargetCount::OnDevice(_, count) => count,
                TargetCount::Unknown => i64::try_from(targets_N.f_ne(IGNORE_TARGET)?.f_sum(Kind::Int64)?)?,
            };
            return Ok(cuda::projected_cross_entropy(
                hidden_NC,
                &self.output,
                targets_N,
                IGNORE_TARGET,
                count,
            )?);
        }
        let (hidden_NC, output) = self.in_products(hidden_NC)?;
        let on_gpu = matches!(self.placement.device, Device::Cuda(_));
        match count {
            TargetCount::OnDevice(tensor, count) => {
                Ok(counted_cross_entropy(&hidden_NC, &output, targets_N, IGNORE_TARGET, (tensor, count))?)
            }
            TargetCount::Known(count) if on_gpu => {
                let tensor = Tensor::f_full([], count, (Kind::Float, self.placement.device))?;
                Ok(counted_cross_entropy(&hidden_NC, &output, targets_N, IGNORE_TARGET, (&tensor, count))?)
            }
            TargetCount::Known(_) | TargetCount::Unknown => {
                let options =
                    CrossEntropyOptions { ignore_index: IGNORE_TARGET, ..CrossEntropyOptions::default() };
                Ok(projected_cross_entropy(&hidden_NC, &output, targets_N, &options)?)
            }
        }
    }

    /// States of single sequences as the state of a batch.
    fn join(&self, states: &[ModelState]) -> Result<ModelState> {
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (index, block) in self.blocks.iter().enumerate() {
            let own: Vec<&BlockState> = states.iter().filter_map(|state| state.blocks.get(index)).collect();
            blocks.push(block::lock(block).join(&own)?);
        }
        let positions: Vec<&Tensor> = states.iter().filter_map(|state| state.positions_B.as_ref()).collect();
        let positions_B = if positions.is_empty() { None } else { Some(Tensor::f_cat(&positions, 0)?) };
        Ok(ModelState { blocks, positions_B })
    }
}

/// Refuses positions beyond the ones that a model has learned.
fn check_positions(learned: i64, positions_BT: &Tensor) -> Result<()> {
    let last = i64::try_from(positions_BT.f_max()?)?;
    if last < learned {
        return Ok(());
    }
    Err(TrainError::Usage(format!(
        "expected texts of at most {learned} tokens, the positions that this model has learned, found one of {}: choose \
         shorter contexts",
        last + 1
    )))
}

/// Each token's place in its document, `(1 or B, T)`: it goes on from the state's, and begins at 0 where a document does.
fn positions(tokens_BT: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
    let time = tokens_BT.size()[1];
    let index_T = Tensor::f_arange(time, (Kind::Int64, tokens_BT.device()))?;
    let index_BT = index_T.f_unsqueeze(0)?;
    let start = pass.state.and_then(|state| state.positions_B.as_ref());
    let carried_BT = match start {
        Some(start_B) => start_B.f_unsqueeze(1)?.f_add(&index_BT)?,
        None => index_BT.shallow_clone(),
    };
    let Some(resets_BT) = pass.resets_BT else { return Ok(carried_BT) };
    // The newest document's first token; -1 before any.
    let none = index_BT.f_full_like(-1)?;
    let (first_BT, _) = index_BT.f_where_self(resets_BT, &none)?.f_cummax(1)?;
    let own_BT = index_BT.f_sub(&first_BT)?;
    Ok(own_BT.f_where_self(&first_BT.f_ge(0)?, &carried_BT)?)
}

/// `x Wᵀ` in the given type.
fn product(x: &Tensor, weight: &Tensor, precision: Option<Kind>) -> Result<Tensor> {
    let kind = precision.unwrap_or_else(|| weight.kind());
    let convert = |tensor: &Tensor| {
        if tensor.kind() == kind { Ok(tensor.shallow_clone()) } else { tensor.f_to_kind(kind) }
    };
    Ok(linear::linear(&convert(x)?, &convert(weight)?, None)?)
}

/// A size as libtorch takes it; recipes allow none near 2^63.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
