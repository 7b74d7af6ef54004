//! The next token of every sequence, recorded once as a CUDA graph and replayed.
//!
//! A token of a small batch is a hundred launches of a few microseconds each, which the host cannot start as fast as the GPU
//! ends them. Recorded, it is one: draw from the logits, take the tokens in, give the next logits.
//!
//! ```text
//! logits ─► draw ─► tokens ─► model ─► logits        each in memory that stays; states are moved on where they lie
//!            ▲ numbers of the draws, copied before each launch
//! ```

use std::sync::PoisonError;

use tch::{Device, Kind, Tensor};
use xlstm_bridge::graph::Graph;
use xlstm_bridge::memory::upload;

use super::sampling::{Draws, Sampling, draw_on_device};
use super::step::StepState;
use super::{Model, ModelState};
use crate::error::{Result, TrainError};

/// A recorded token whose generation has ended: the next one of the same batch and manner to draw need not record again.
#[derive(Debug)]
pub(super) struct SpareToken {
    sampling: Sampling,
    pub(super) token: GeneratedToken,
    pub(super) step: StepState,
    pub(super) logits_BV: Tensor,
}

impl Model {
    /// The spare token for this batch and manner to draw, going on from `state` with `logits_BV`; `None` where there is none.
    pub(super) fn take_spare(
        &self,
        sampling: &Sampling,
        state: &ModelState,
        logits_BV: &Tensor,
    ) -> Result<Option<SpareToken>> {
        let mut place = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        // The seed is no part of a recording.
        let fits = |spare: &mut SpareToken| {
            Sampling { seed: sampling.seed, ..spare.sampling } == *sampling
                && spare.logits_BV.size() == logits_BV.size()
        };
        let Some(spare) = place.take_if(fits) else { return Ok(None) };
        spare.step.overwrite(state)?;
        spare.logits_BV.shallow_clone().f_copy_(logits_BV)?;
        Ok(Some(spare))
    }

    /// Keeps a recorded token, in place of another that nobody uses.
    pub(super) fn keep_spare(
        &self,
        sampling: Sampling,
        token: GeneratedToken,
        step: StepState,
        logits_BV: Tensor,
    ) {
        let mut place = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(SpareToken { sampling, token, step, logits_BV });
    }
}

/// A recorded token.
#[derive(Debug)]
pub(super) struct GeneratedToken {
    graph: Graph,
    /// `(B, 1)`, Int64: what was drawn last.
    tokens_B1: Tensor,
    /// `(B)`, float64: the numbers of the next draws.
    shares_B: Tensor,
    greedy: bool,
}

impl GeneratedToken {
    /// Records. `logits_BV` are those of the next token now, and stay the place of all later ones.
    pub(super) fn record(
        model: &Model,
        sampling: &Sampling,
        logits_BV: &Tensor,
        step: &StepState,
    ) -> Result<Self> {
        let Device::Cuda(number) = logits_BV.device() else {
            return Err(TrainError::internal("expected a GPU to record a token on"));
        };
        let (batch, device) = (logits_BV.size()[0], logits_BV.device());
        let tokens_B1 = Tensor::f_zeros([batch, 1], (Kind::Int64, device))?;
        let shares_B = Tensor::f_zeros([batch], (Kind::Double, device))?;
        let (graph, ()) = Graph::record(number, || -> Result<()> {
            tch::no_grad(|| {
                let drawn_B1 = draw_on_device(logits_BV, sampling, &shares_B)?;
                tokens_B1.shallow_clone().f_copy_(&drawn_B1)?;
                let next_BV = model.step(&tokens_B1, step)?;
                logits_BV.shallow_clone().f_copy_(&next_BV)?;
                Ok(())
            })
        })?;
        Ok(Self { graph, tokens_B1, shares_B, greedy: sampling.is_greedy() })
    }

    /// The next token of every sequence, taken in.
    pub(super) fn next(&self, draws: &mut [Draws]) -> Result<Vec<i64>> {
        if !self.greedy {
            let shares: Vec<f64> = draws.iter_mut().map(Draws::next).collect();
            upload(&self.shares_B, &Tensor::f_from_slice(&shares)?)?;
        }
        self.graph.replay()?;
        Ok(Vec::<i64>::try_from(self.tokens_B1.f_view([-1])?.f_to_device(Device::Cpu)?)?)
    }
}
