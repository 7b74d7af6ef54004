//! What the trainer asks of an architecture: its parts, and how its files look elsewhere.
//!
//! [`network`] is the only place of this crate that tells architectures apart.

use std::collections::BTreeMap;

use tch::{Device, Tensor};
use xlstm_kernels::cuda::{BetweenProducts, Recurrence, Request};
use xlstm_manifests::recipe::ModelConfig;

use super::block::Block;
use super::exchange::TransformersForm;
use super::normalization::Norm;
use super::parameters::Builder;
use crate::error::Result;
use crate::tensor_file::TensorFile;

/// A language model in pieces.
///
/// ```text
/// tokens ─► embedding (+ position_embedding) (─► embedding_norm) ─► blocks ─► norm ─► output
/// ```
#[derive(Debug)]
pub(super) struct Parts {
    /// `(V, C)`; where inputs are W numbers, the linear map that takes them, `(C, W)`.
    pub(super) embedding: Tensor,
    /// Biases of the linear map and of the head, where inputs and targets are numbers.
    pub(super) biases: Option<Biases>,
    /// Added to the embedding by position, `(P, C)`: no text can be longer than P.
    pub(super) position_embedding: Option<Tensor>,
    /// Normalizes the embedding.
    pub(super) embedding_norm: Option<Norm>,
    /// In order.
    pub(super) blocks: Vec<Box<dyn Block>>,
    /// Before the output projection.
    pub(super) norm: Norm,
    /// `(V, C)`; the embedding itself where the two are tied.
    pub(super) output: Tensor,
    /// Whether blocks ask for positions.
    pub(super) positional: bool,
}

/// What linear maps of numbers add.
#[derive(Debug)]
pub(super) struct Biases {
    /// `(C)`.
    pub(super) input: Tensor,
    /// `(V)`.
    pub(super) output: Tensor,
}

/// An architecture as the trainer sees it, implemented by its part of a recipe.
pub(super) trait Network {
    /// Adds all parameters, in the order in which initial values are drawn, and puts them together.
    fn build(&self, builder: &mut Builder) -> Result<Parts>;

    /// What keeps the fused kernels from computing what is asked for with a model of these sizes; `None`: nothing.
    fn fused_obstacle(&self, device: Device, request: &Request) -> Result<Option<String>> {
        let _ = (device, request);
        Ok(Some("no fused kernels for this architecture".into()))
    }

    /// What on a GPU this project's kernels compute between libtorch's products in bf16; `None`: nothing.
    fn between_products(&self) -> Option<BetweenProducts> {
        None
    }

    /// What goes from step to step, where something of its own computes it between libtorch's operations on a GPU; `resets`:
    /// documents begin within sequences.
    fn recurrence(&self, resets: bool) -> Option<Recurrence> {
        let _ = resets;
        None
    }

    /// Metadata by which other programs can build this model, beside this project's own.
    fn foreign_metadata(&self, context_length: u64) -> BTreeMap<String, String> {
        let _ = context_length;
        BTreeMap::new()
    }

    /// Its form in Hugging Face transformers; `None` where that has no such model.
    fn transformers(&self) -> Option<&dyn TransformersForm> {
        None
    }

    /// The parameter `name` as this program has it, from `tensor` as the file has it under `prefix` + `name`.
    fn canonical(&self, file: &TensorFile, prefix: &str, name: &str, tensor: Tensor) -> Result<Tensor> {
        let _ = (file, prefix, name);
        Ok(tensor)
    }
}

/// The network of an architecture.
pub(super) fn network(config: &ModelConfig) -> &dyn Network {
    match config {
        ModelConfig::Xlstm(config) => config,
        ModelConfig::Llama(config) => config,
        ModelConfig::Gpt2(config) => config,
        ModelConfig::Retnet(config) => config,
        ModelConfig::RetnetBlock(config) => config,
        ModelConfig::Gla(config) => config,
        ModelConfig::Hgrn(config) => config,
        ModelConfig::Hgrn2(config) => config,
        ModelConfig::Mamba(config) => config,
        ModelConfig::Rwkv4(config) => config,
        ModelConfig::Rwkv5(config) => config,
        ModelConfig::Rwkv6(config) => config,
        ModelConfig::H3(config) => config,
        ModelConfig::Hyena(config) => config,
        ModelConfig::Lstm(config) => config,
    }
}
