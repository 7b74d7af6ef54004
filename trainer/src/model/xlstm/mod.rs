//! xLSTM\[a:b\]: mLSTM and sLSTM blocks, parameter by parameter as the official package has them.
//!
//! ```text
//! tokens ─► token_embedding ─► blocks (mLSTM | sLSTM, pre-norm, residual) ─► post_blocks_norm ─► lm_head (untied, unless `tied_embedding`)
//! ```
//! No positional encoding. Dropout, where a recipe asks for it, is on what a cell and a feed-forward add to the residual.
//! Norm weights are stored as residuals (scale `1 + w`). Weight decay follows the
//! official package: it applies to matrices and convolutions, not to norms, biases, the skip, the sLSTM's recurrent
//! weights, or the token embedding.

mod mlstm_block;
pub(super) mod official;
mod slstm_block;

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use xlstm_kernels::cuda::{self, FusedCell, Request};
use xlstm_manifests::recipe::{BlockKind, ForgetGate, SlstmFunction, XlstmConfig};

use super::block::{Block, BlockState};
use super::network::{Network, Parts};
use super::normalization::Norm;
use super::parameters::{Builder, Decay, Init, InputMap, small_init};
use super::{product, signed};
use crate::error::Result;
use crate::tensor_file::TensorFile;
use mlstm_block::MlstmBlock;
use slstm_block::SlstmBlock;

/// Epsilon of all norms.
const NORM_EPSILON: f64 = 1e-5;

/// The name of a convolution's window in a block's state.
const CONVOLUTION: &str = "convolution";

impl Network for XlstmConfig {
    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        let (width, vocabulary) = (signed(self.embedding_dim), signed(self.vocabulary_size));
        let small = small_init(self.embedding_dim);
        let (embedding, input_bias) = builder.input(&InputMap {
            name: "token_embedding.weight",
            vocabulary,
            width,
            init: &small,
            numbers: self.input_width,
        })?;
        let mut blocks: Vec<Box<dyn Block>> = Vec::new();
        for index in 0..self.blocks {
            let prefix = format!("xlstm_block_stack.blocks.{index}");
            blocks.push(if self.is_slstm(index) {
                Box::new(SlstmBlock::new(builder, self, &prefix, index)?)
            } else {
                Box::new(MlstmBlock::new(builder, self, &prefix)?)
            });
        }
        let weight = norm_weight(builder, "xlstm_block_stack.post_blocks_norm.weight".into(), width)?;
        let output = builder.output("lm_head.weight", &embedding, &[vocabulary, width], &small)?;
        let biases = builder.biases(input_bias, vocabulary)?;
        Ok(Parts {
            embedding,
            biases,
            position_embedding: None,
            embedding_norm: None,
            blocks,
            norm: Norm::ResidualWeight { weight, epsilon: NORM_EPSILON },
            output,
            positional: false,
        })
    }

    fn fused_obstacle(&self, device: Device, request: &Request) -> Result<Option<String>> {
        let (scalar, matrix) = (!self.slstm_at.is_empty(), (self.slstm_at.len() as u64) < self.blocks);
        for (used, cell) in [(matrix, FusedCell::Mlstm), (scalar, FusedCell::Slstm)] {
            if let Some(obstacle) = cuda::supports(device, cell, request).err().filter(|_| used) {
                return Ok(Some(obstacle.into()));
            }
        }
        let width = signed(self.embedding_dim);
        if !cuda::residual_fits(width) {
            return Ok(Some(format!("model.embedding_dim = {width} has no fused kernel")));
        }
        // Of a model of numbers the head is one unit, which libtorch computes.
        if self.input_width == 0 && !cuda::cross_entropy_fits(signed(self.vocabulary_size)) {
            return Ok(Some(format!("model.vocabulary_size = {} is no multiple of 8", self.vocabulary_size)));
        }
        if matrix && !mlstm_is_fused(self) {
            return Ok(Some("model.mlstm has sizes or options without a fused kernel".into()));
        }
        if scalar && !slstm_is_fused(self, device)? {
            return Ok(Some("model.slstm has sizes or options without a fused kernel".into()));
        }
        Ok(None)
    }

    fn foreign_metadata(&self, context_length: u64) -> BTreeMap<String, String> {
        // The official package has models of tokens alone.
        if self.input_width > 0 { BTreeMap::new() } else { official::metadata(self, context_length) }
    }

    fn canonical(&self, file: &TensorFile, prefix: &str, name: &str, tensor: Tensor) -> Result<Tensor> {
        slstm_block::to_vanilla(file, prefix, name, tensor, signed(self.slstm.heads))
    }
}

fn mlstm_is_fused(model: &XlstmConfig) -> bool {
    let mlstm = &model.mlstm;
    let (inner, heads) = (signed(model.inner_dim()), signed(mlstm.heads));
    // Without a convolution the kernels take four taps that pass on what they meet.
    let taps = if mlstm.convolution == 0 { 4 } else { signed(mlstm.convolution) };
    let block = signed(mlstm.qkv_block_size);
    mlstm.block == BlockKind::PreUpProjection && cuda::inner_fits(inner, heads, taps, block)
}

fn slstm_is_fused(model: &XlstmConfig, device: Device) -> Result<bool> {
    let slstm = &model.slstm;
    let known = matches!(slstm.convolution, 0 | 4)
        && model.feed_forward_dim().is_multiple_of(8)
        && slstm.recurrent_gradient_clip == 0.0
        && slstm.forget_gate == ForgetGate::Sigmoid
        && slstm.function == SlstmFunction::Slstm;
    if !known {
        return Ok(false);
    }
    let probe = Tensor::f_empty([0], (Kind::Float, device))?;
    Ok(cuda::slstm_fits(signed(model.embedding_dim / slstm.heads), &probe)?)
}

/// A norm's weight, stored as the scale less one; it does not decay.
fn norm_weight(builder: &mut Builder, name: String, width: i64) -> Result<Tensor> {
    builder.add(name, &[width], &Init::Constant(0.0), Decay::No)
}

/// Weight `(width, 1, taps)` and bias of a causal convolution, with PyTorch's initial values; none for 0 taps.
fn convolution(builder: &mut Builder, name: &str, width: i64, taps: u64) -> Result<Option<(Tensor, Tensor)>> {
    if taps == 0 {
        return Ok(None);
    }
    let init = Init::Uniform((taps as f64).powf(-0.5));
    let weight = builder.add(format!("{name}.conv.weight"), &[width, 1, signed(taps)], &init, Decay::Yes)?;
    let bias = builder.add(format!("{name}.conv.bias"), &[width], &init, Decay::No)?;
    Ok(Some((weight, bias)))
}
