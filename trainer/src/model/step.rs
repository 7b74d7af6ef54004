//! One token of a batch, its state moved on where it lies.
//!
//! What is read and written keeps its address from token to token, so that a step can be recorded once and replayed
//! (`generated_token.rs`), and a state's bytes are read and written once. Only where the state keeps its size: a key-value
//! cache is joined anew at every token ([`Model::forward`]).

use tch::Tensor;
use xlstm_manifests::recipe::ComputePath;

use super::block::{self, Residual};
use super::{Model, ModelState, Need};
use crate::error::Result;

/// A state that is moved on in place.
#[derive(Debug)]
pub(super) struct StepState {
    state: ModelState,
    path: ComputePath,
}

impl StepState {
    /// The state after everything taken in so far.
    pub(super) fn state(&self) -> &ModelState {
        &self.state
    }
}

impl StepState {
    /// Goes on from another state of the same batch.
    pub(super) fn overwrite(&self, with: &ModelState) -> Result<()> {
        self.state.overwrite(with)
    }
}

impl Model {
    /// The parameters change no more: what calls would derive from them again and again is derived once, above all the
    /// weights of products in bf16. For evaluation and generation; a frozen model is not trained.
    ///
    /// # Errors
    /// When there is no memory for the copies.
    pub fn freeze(&mut self) -> Result<()> {
        let products = self.placement.products;
        tch::no_grad(|| {
            if let Some(kind) = products {
                self.output = self.output.detach().f_to_kind(kind)?;
            }
            self.blocks.iter().try_for_each(|block| block::lock(block).freeze(products))
        })
    }

    /// Whether a state grows with the text, so that it cannot be moved on in place.
    pub(super) fn state_grows(&self) -> bool {
        self.blocks.iter().any(|block| block::lock(block).state_grows())
    }

    /// What to step in from `state`, which nobody else uses from now on: it may be its memory.
    pub(super) fn step_state(&self, state: ModelState) -> Result<StepState> {
        let path = self.compute_path(Need::default())?.path;
        if path != ComputePath::FusedGpu {
            return Ok(StepState { state: state.copy()?, path });
        }
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (block, own) in self.blocks.iter().zip(state.blocks) {
            blocks.push(block::fused(block::lock(block).as_ref())?.step_state(own)?);
        }
        Ok(StepState { state: ModelState { blocks, positions_B: state.positions_B }, path })
    }

    /// Logits `(B, V)` of the token that comes after `tokens_B1` (Int64); the state is moved on.
    pub(super) fn step(&self, tokens_B1: &Tensor, step: &StepState) -> Result<Tensor> {
        if step.path != ComputePath::FusedGpu {
            let (hidden_B1C, next) = self.forward(tokens_B1, Some(&step.state), None)?;
            step.state.overwrite(&next)?;
            return self.logits(&hidden_B1C.f_select(1, 0)?);
        }
        let mut residual = Residual::new(self.embed(tokens_B1, None, true)?);
        for (block, state) in self.blocks.iter().zip(&step.state.blocks) {
            residual = block::fused(block::lock(block).as_ref())?.step(&residual, state)?;
        }
        if let Some(logits_B1V) = self.norm.step_product(&residual, &self.output)? {
            return Ok(logits_B1V.f_select(1, 0)?);
        }
        let hidden_B1C = self.norm.of_residual(&residual, step.path)?;
        self.logits(&hidden_B1C.f_select(1, 0)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};
    use xlstm_manifests::recipe::architecture::{LlamaConfig, MambaConfig, RetnetConfig};
    use xlstm_manifests::recipe::{ModelConfig, Precision, XlstmConfig};

    use super::super::{Placement, signed};
    use super::*;

    fn model(config: ModelConfig) -> Model {
        let placement = Placement::new(Device::Cpu, Precision::Float32, false);
        let mut model = Model::new(&config, Placement { kind: Kind::Double, ..placement }, 3).unwrap();
        model.freeze().unwrap();
        model
    }

    #[test]
    fn tokens_one_by_one_are_the_forward_pass() {
        let xlstm = XlstmConfig {
            vocabulary_size: 40,
            embedding_dim: 16,
            blocks: 3,
            slstm_at: vec![1],
            ..XlstmConfig::default()
        };
        let mamba =
            MambaConfig { vocabulary_size: 40, embedding_dim: 16, blocks: 2, ..MambaConfig::default() };
        let mut retnet = RetnetConfig::default();
        (retnet.vocabulary_size, retnet.embedding_dim, retnet.blocks) = (40, 16, 2);
        for config in [ModelConfig::from(xlstm), mamba.into(), retnet.into()] {
            let model = model(config);
            let tokens_BT = Tensor::randint(signed(40), [3, 80], (Kind::Int64, Device::Cpu));
            for prompt in [1, 2, 63, 64, 65] {
                tch::no_grad(|| {
                    let (hidden, _) = model.forward(&tokens_BT, None, None).unwrap();
                    let expected = model.logits(&hidden).unwrap();
                    let (_, state) = model.forward(&tokens_BT.narrow(1, 0, prompt), None, None).unwrap();
                    let step = model.step_state(state).unwrap();
                    for at in prompt..prompt + 12 {
                        let found = model.step(&tokens_BT.narrow(1, at, 1), &step).unwrap();
                        let difference = (found - expected.select(1, at)).abs().max().double_value(&[]);
                        assert!(difference < 1e-9, "token {at} after {prompt}: {difference}");
                    }
                });
            }
        }
    }

    #[test]
    fn a_state_that_grows_is_not_stepped_in_place() {
        let llama = LlamaConfig {
            vocabulary_size: 40,
            embedding_dim: 16,
            blocks: 1,
            heads: 2,
            ..LlamaConfig::default()
        };
        assert!(model(llama.into()).state_grows());
    }
}
