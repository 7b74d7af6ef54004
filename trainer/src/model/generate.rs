//! Text generation: the state after the prompt, then one token at a time.
//!
//! Prompts of a batch may differ in length: neighbors of one length are read together, and the states are put together
//! afterwards. Nothing is padded, so a sequence does not see its neighbors. Each sequence draws from its own generator, keyed by seed and number.
//!
//! On a GPU, states that keep their size are moved on where they lie, and after the first tokens, which compile and load
//! the kernels, a token is recorded and replayed as one launch. A model is best frozen before ([`Model::freeze`]).

use std::fmt;

use tch::{Device, Tensor};

use super::generated_token::{GeneratedToken, SpareToken};
use super::sampling::{Draws, Sampling, draw, rows_on_host};
use super::step::StepState;
use super::{Model, ModelState, signed};
use crate::error::{Result, TrainError};

/// Tokens of a prompt that are read at a time: what a longer one takes in memory beside its state.
pub(crate) const PIECE: usize = 8192;

/// Tokens that are launched operation by operation first.
const EAGER_TOKENS: u64 = 2;

/// A batch of sequences being generated.
#[derive(Debug)]
pub struct Generation<'a> {
    model: &'a Model,
    sampling: Sampling,
    draws: Vec<Draws>,
    state: State,
    logits_BV: Tensor,
    recording: Recording,
}

/// What is remembered of everything taken in.
#[derive(Debug)]
enum State {
    /// Made anew at every token.
    New(ModelState),
    /// Moved on where it lies.
    InPlace(StepState),
}

/// Whether tokens are recorded.
#[derive(Debug)]
enum Recording {
    /// They are launched operation by operation, and why.
    Never(String),
    /// Recorded after so many more.
    After(u64),
    /// Recorded.
    Ready(Box<GeneratedToken>),
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never(reason) => write!(f, "computed operation by operation ({reason})"),
            Self::After(_) | Self::Ready(_) => write!(f, "recorded as one CUDA graph"),
        }
    }
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
            let (states, logits) = read_all(model, prompts, wanted)?;
            let draws = (0..prompts.len() as u64).map(|index| Draws::new(&sampling, index)).collect();
            let (state, logits_BV) = (model.join(&states)?, Tensor::f_cat(&logits, 0)?);
            if let Some(spare) = model.take_spare(&sampling, &state, &logits_BV)? {
                let SpareToken { token, step, logits_BV, .. } = spare;
                let (state, recording) = (State::InPlace(step), Recording::Ready(Box::new(token)));
                return Ok(Self { model, sampling, draws, state, logits_BV, recording });
            }
            let (state, recording) = placed(model, state)?;
            Ok(Self { model, sampling, draws, state, logits_BV, recording })
        })
    }

    /// Draws the next token of each sequence and takes it in.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn next_tokens(&mut self) -> Result<Vec<i64>> {
        if let (Recording::After(0), State::InPlace(step)) = (&self.recording, &self.state) {
            self.recording = match GeneratedToken::record(self.model, &self.sampling, &self.logits_BV, step) {
                Ok(token) => Recording::Ready(Box::new(token)),
                Err(error) => Recording::Never(format!("a token could not be recorded: {error}")),
            };
        }
        match &mut self.recording {
            Recording::Ready(token) => return token.next(&mut self.draws),
            Recording::After(tokens) => *tokens = tokens.saturating_sub(1),
            Recording::Never(_) => {}
        }
        let rows = rows_on_host(&self.logits_BV)?;
        let drawn = rows.iter().zip(&mut self.draws);
        let tokens: Vec<i64> = drawn.map(|(row, draws)| draw(row, &self.sampling, draws)).collect();
        tch::no_grad(|| self.take_in(&tokens))?;
        Ok(tokens)
    }

    fn take_in(&mut self, tokens: &[i64]) -> Result<()> {
        let device = self.model.placement().device;
        let tokens_B1 = Tensor::f_from_slice(tokens)?.f_unsqueeze(1)?.f_to_device(device)?;
        match &mut self.state {
            State::InPlace(step) => self.logits_BV = self.model.step(&tokens_B1, step)?,
            State::New(state) => {
                let (hidden_B1C, next) = self.model.forward(&tokens_B1, Some(state), None)?;
                *state = next;
                self.logits_BV = self.model.logits(&hidden_B1C.f_select(1, -1)?)?;
            }
        }
        Ok(())
    }

    /// The state after everything taken in so far.
    #[must_use]
    pub fn state(&self) -> &ModelState {
        match &self.state {
            State::New(state) => state,
            State::InPlace(step) => step.state(),
        }
    }

    /// The same, and never recorded.
    pub(super) fn launched(mut self) -> Self {
        self.recording = Recording::Never("asked for".into());
        self
    }

    /// Whether tokens are recorded by now.
    pub(super) fn is_recorded(&self) -> bool {
        matches!(self.recording, Recording::Ready(_))
    }

    /// How tokens are computed, in words that fit after "tokens are".
    #[must_use]
    pub fn manner(&self) -> String {
        self.recording.to_string()
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut self.state, State::New(ModelState::default()));
        let recording = std::mem::replace(&mut self.recording, Recording::After(0));
        if let (State::InPlace(step), Recording::Ready(token)) = (state, recording) {
            self.model.keep_spare(self.sampling, *token, step, self.logits_BV.shallow_clone());
        }
    }
}

/// States and logits after all prompts, of those that are read together.
pub(super) fn read_all(
    model: &Model,
    prompts: &[Vec<i64>],
    wanted: &dyn Fn() -> bool,
) -> Result<(Vec<ModelState>, Vec<Tensor>)> {
    let (mut states, mut logits) = (Vec::new(), Vec::new());
    for together in of_one_length(prompts) {
        let (state, last_BV) = read(model, together, wanted)?;
        states.push(state);
        logits.push(last_BV);
    }
    Ok((states, logits))
}

/// Neighbors of one length, as many as are read at a time.
fn of_one_length(prompts: &[Vec<i64>]) -> Vec<&[Vec<i64>]> {
    let same = prompts.chunk_by(|a, b| a.len() == b.len());
    same.flat_map(|same| same.chunks((PIECE / same[0].len().max(1)).max(1))).collect()
}

/// State and logits `(B, V)` after prompts of one length.
fn read(model: &Model, prompts: &[Vec<i64>], wanted: &dyn Fn() -> bool) -> Result<(ModelState, Tensor)> {
    let length = prompts.first().map_or(0, Vec::len);
    let mut read: Option<(ModelState, Tensor)> = None;
    for first in (0..length).step_by(PIECE) {
        if !wanted() {
            return Err(TrainError::GivenUp);
        }
        let pieces = prompts.iter().flat_map(|prompt| &prompt[first..length.min(first + PIECE)]);
        let pieces: Vec<i64> = pieces.copied().collect();
        let shape = [signed(prompts.len() as u64), -1];
        let tokens_BT =
            Tensor::f_from_slice(&pieces)?.f_view(shape)?.f_to_device(model.placement().device)?;
        let before = read.as_ref().map(|(state, _)| state);
        let (hidden_BTC, next) = model.forward(&tokens_BT, before, None)?;
        read = Some((next, hidden_BTC.f_select(1, -1)?));
    }
    // `check` has seen that no prompt is empty.
    let (state, last_BC) = read.ok_or_else(|| TrainError::internal("an empty prompt was let in"))?;
    Ok((state, model.logits(&last_BC)?))
}

/// The state where it is to be moved on, and whether that is recorded.
fn placed(model: &Model, state: ModelState) -> Result<(State, Recording)> {
    if !matches!(model.placement().device, Device::Cuda(_)) {
        return Ok((State::New(state), Recording::Never("no GPU".into())));
    }
    if model.state_grows() {
        return Ok((State::New(state), Recording::Never("the state grows with the text".into())));
    }
    Ok((State::InPlace(model.step_state(state)?), Recording::After(EAGER_TOKENS)))
}

pub(super) fn check(model: &Model, prompts: &[Vec<i64>], sampling: &Sampling) -> Result<()> {
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
    sampling.check()
}
