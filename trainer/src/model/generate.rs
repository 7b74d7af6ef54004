//! Text generation: the state after the prompt, then one token at a time.
//!
//! Prompts of a batch may differ in length: each is read on its own, and the states are put together afterwards, so a
//! sequence does not depend on its neighbors. Each sequence draws from its own generator, keyed by seed and number.

use tch::{Kind, Tensor};

use super::{Model, ModelState, signed};
use crate::error::{Result, TrainError};

/// Tokens of a prompt that are read at a time: what a longer one takes in memory beside its state.
pub(crate) const PIECE: usize = 8192;

/// How the next token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only the most likely tokens, this many; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability; 1: all.
    pub top_p: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// SplitMix64: small, seedable anywhere, the same on every machine.
#[derive(Debug, Clone)]
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((value ^ (value >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A batch of sequences being generated.
pub struct Generation<'a> {
    model: &'a Model,
    sampling: Sampling,
    draws: Vec<Draws>,
    state: ModelState,
    logits_BV: Tensor,
}

impl<'a> Generation<'a> {
    /// Reads the prompts, each at least one token.
    ///
    /// # Errors
    /// When there is no prompt, one is empty or holds ids outside the vocabulary, or options have no meaning.
    pub fn new(model: &'a Model, prompts: &[Vec<i64>], sampling: Sampling) -> Result<Self> {
        Self::new_while(model, prompts, sampling, &|| true)
    }

    /// As [`new`](Self::new), while `wanted` says so: it is asked before each piece of a prompt.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`TrainError::GivenUp`] where it is no longer wanted.
    pub fn new_while(
        model: &'a Model,
        prompts: &[Vec<i64>],
        sampling: Sampling,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Self> {
        check(model, prompts, &sampling)?;
        tch::no_grad(|| {
            let (mut states, mut logits) = (Vec::new(), Vec::new());
            for prompt in prompts {
                let mut state = None;
                let mut last_BC = None;
                for piece in prompt.chunks(PIECE) {
                    if !wanted() {
                        return Err(TrainError::GivenUp);
                    }
                    let tokens =
                        Tensor::f_from_slice(piece)?.f_unsqueeze(0)?.f_to_device(model.placement().device)?;
                    let (hidden_BTC, next) = model.forward(&tokens, state.as_ref(), None)?;
                    last_BC = Some(hidden_BTC.f_select(1, -1)?);
                    state = Some(next);
                }
                // `check` has seen that no prompt is empty.
                let (Some(last_BC), Some(state)) = (last_BC, state) else { continue };
                logits.push(model.logits(&last_BC)?);
                states.push(state);
            }
            let draws = (0..prompts.len() as u64).map(|index| Draws(sampling.seed ^ (index << 40))).collect();
            let logits_BV = Tensor::f_cat(&logits, 0)?;
            Ok(Self { model, sampling, draws, state: model.join(&states)?, logits_BV })
        })
    }

    /// Draws the next token of each sequence and takes it in.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn next_tokens(&mut self) -> Result<Vec<i64>> {
        let logits_BV = self.logits_BV.f_to_kind(Kind::Float)?.f_to_device(tch::Device::Cpu)?;
        let mut tokens = Vec::with_capacity(self.draws.len());
        for (index, draws) in self.draws.iter_mut().enumerate() {
            let row = Vec::<f32>::try_from(logits_BV.f_get(signed(index as u64))?)?;
            tokens.push(draw(&row, &self.sampling, draws));
        }
        tch::no_grad(|| -> Result<()> {
            let input =
                Tensor::f_from_slice(&tokens)?.f_unsqueeze(1)?.f_to_device(self.model.placement().device)?;
            let (hidden_BTC, state) = self.model.forward(&input, Some(&self.state), None)?;
            self.state = state;
            self.logits_BV = self.model.logits(&hidden_BTC.f_select(1, -1)?)?;
            Ok(())
        })?;
        Ok(tokens)
    }

    /// The state after everything taken in so far.
    #[must_use]
    pub fn state(&self) -> &ModelState {
        &self.state
    }
}

fn check(model: &Model, prompts: &[Vec<i64>], sampling: &Sampling) -> Result<()> {
    let fail = |text: String| Err(TrainError::Usage(text));
    if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
        return fail("expected prompts of at least one token each, found an empty one".into());
    }
    if model.config().input_width() > 0 {
        return fail("expected a model of tokens, which text is made of, found one of numbers (model.input_width above 0)".into());
    }
    let size = signed(model.config().vocabulary_size());
    if let Some(id) = prompts.iter().flatten().find(|&&id| id < 0 || id >= size) {
        return fail(format!("expected token ids below {size}, the model's vocabulary, found {id}"));
    }
    if sampling.temperature.is_nan() || sampling.temperature < 0.0 {
        return fail(format!("expected a temperature of 0 or more, found {}", sampling.temperature));
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return fail(format!("expected top-p above 0 and at most 1, found {}", sampling.top_p));
    }
    Ok(())
}

/// One token from a row of logits.
fn draw(logits: &[f32], sampling: &Sampling, draws: &mut Draws) -> i64 {
    if sampling.temperature == 0.0 {
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
        return signed(best.unwrap_or(0) as u64);
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Ties go to the smaller id, so that a seed means one text.
    order.sort_unstable_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k.max(1));
    }
    let highest = f64::from(logits[order[0]]);
    let mut weights: Vec<f64> =
        order.iter().map(|&id| ((f64::from(logits[id]) - highest) / sampling.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let enough = weights.iter().position(|weight| {
        kept += weight;
        kept >= sampling.top_p * total
    });
    weights.truncate(enough.map_or(weights.len(), |last| last + 1));
    let mut point = draws.next() * weights.iter().sum::<f64>();
    for (&id, weight) in order.iter().zip(&weights) {
        point -= weight;
        if point < 0.0 {
            return signed(id as u64);
        }
    }
    signed(order[weights.len() - 1] as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut draws = Draws(sampling.seed);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..4000 {
            counts[usize::try_from(draw(logits, &sampling, &mut draws)).unwrap()] += 1.0 / 4000.0;
        }
        counts
    }

    #[test]
    fn draws_follow_temperature_top_k_and_top_p() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let plain = Sampling { seed: 3, ..Sampling::default() };
        let close = |found: &[f64], expected: &[f64]| {
            found.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 0.04, "{found:?}"));
        };
        close(&share(plain, &logits), &[0.5, 0.3, 0.2]);
        close(&share(Sampling { top_k: 2, ..plain }, &logits), &[0.625, 0.375, 0.0]);
        close(&share(Sampling { top_p: 0.6, ..plain }, &logits), &[0.625, 0.375, 0.0]);
        close(&share(Sampling { temperature: 0.0, ..plain }, &logits), &[1.0, 0.0, 0.0]);
        close(&share(Sampling { temperature: 0.5, ..plain }, &logits), &[0.658, 0.237, 0.105]);
    }
}
