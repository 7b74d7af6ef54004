//! Sequences that are generated together and begin and end at different times.
//!
//! ```text
//! begin: prompts read ─► their states after those that are there      end: rows taken out of every state
//! next:  a draw for each row, with its own options ─► one forward pass of a token for all
//! ```
//! Each sequence draws as it would alone ([`Generation`](super::Generation)): its generator is keyed by its options' seed and its number
//! among the prompts that began with it. Nothing is padded but what a growing state pads by itself, so no sequence sees another.
//! Every token is launched operation by operation: on a GPU a batch that stays the same is faster, because it is recorded.

use tch::Tensor;

use super::generate::{check, read_all};
use super::sampling::{Draws, Sampling, draw, rows_on_host};
use super::{Model, ModelState, signed};
use crate::error::Result;

/// A batch whose sequences come and go.
#[derive(Debug)]
pub struct Sequences<'a> {
    model: &'a Model,
    /// One for each row of the state, in its order.
    rows: Vec<Row>,
    state: ModelState,
    logits_BV: Tensor,
    /// Tokens that were drawn and are not taken in yet: what failed is tried again with the same ones.
    drawn: Option<Vec<i64>>,
    /// The next sequence's number.
    next: u64,
}

#[derive(Debug)]
struct Row {
    number: u64,
    sampling: Sampling,
    draws: Draws,
}

impl<'a> Sequences<'a> {
    /// None yet.
    #[must_use]
    pub fn new(model: &'a Model) -> Self {
        let (state, logits_BV) = (ModelState::default(), Tensor::new());
        Self { model, rows: Vec::new(), state, logits_BV, drawn: None, next: 0 }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Reads the prompts, while `wanted` says so, and adds them; their numbers. Where this fails, those that were there go on.
    ///
    /// # Errors
    /// As [`Generation::new_while`](super::Generation::new_while).
    pub fn begin(
        &mut self,
        prompts: &[Vec<i64>],
        sampling: Sampling,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<u64>> {
        check(self.model, prompts, &sampling)?;
        tch::no_grad(|| {
            let (mut states, mut logits) = read_all(self.model, prompts, wanted)?;
            if !self.rows.is_empty() {
                // The same memory: where joining fails, they go on from it.
                states.insert(0, self.state.detach());
                logits.insert(0, self.logits_BV.shallow_clone());
            }
            (self.state, self.logits_BV) = (self.model.join(&states)?, Tensor::f_cat(&logits, 0)?);
            let first = self.next;
            self.next += prompts.len() as u64;
            self.rows.extend((0..prompts.len() as u64).map(|index| Row {
                number: first + index,
                sampling,
                draws: Draws::new(&sampling, index),
            }));
            // What was drawn for the others stays theirs.
            if let Some(drawn) = &mut self.drawn {
                let rows = rows_on_host(&self.logits_BV.f_narrow(
                    0,
                    signed(drawn.len() as u64),
                    signed(prompts.len() as u64),
                )?)?;
                let new = self.rows.iter_mut().skip(drawn.len());
                drawn.extend(new.zip(&rows).map(|(row, logits)| draw(logits, &row.sampling, &mut row.draws)));
            }
            Ok((first..self.next).collect())
        })
    }

    /// Draws the next token of each sequence and takes it in: numbers with tokens. After a failure the same tokens are tried again.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn next_tokens(&mut self) -> Result<Vec<(u64, i64)>> {
        if self.rows.is_empty() {
            return Ok(Vec::new());
        }
        if self.drawn.is_none() {
            let logits = rows_on_host(&self.logits_BV)?;
            let rows = self.rows.iter_mut().zip(&logits);
            self.drawn =
                Some(rows.map(|(row, logits)| draw(logits, &row.sampling, &mut row.draws)).collect());
        }
        let tokens: Vec<i64> = self.drawn.iter().flatten().copied().collect();
        tch::no_grad(|| -> Result<()> {
            let device = self.model.placement().device;
            let tokens_B1 = Tensor::f_from_slice(&tokens)?.f_unsqueeze(1)?.f_to_device(device)?;
            let (hidden_B1C, next) = self.model.forward(&tokens_B1, Some(&self.state), None)?;
            let logits_BV = self.model.logits(&hidden_B1C.f_select(1, -1)?)?;
            (self.state, self.logits_BV, self.drawn) = (next, logits_BV, None);
            Ok(())
        })?;
        Ok(self.rows.iter().map(|row| row.number).zip(tokens).collect())
    }

    /// Ends sequences by their numbers; the others go on.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn end(&mut self, numbers: &[u64]) -> Result<()> {
        let stays = |row: &Row| !numbers.contains(&row.number);
        let kept: Vec<usize> =
            self.rows.iter().enumerate().filter(|(_, row)| stays(row)).map(|(index, _)| index).collect();
        if kept.len() == self.rows.len() {
            return Ok(());
        }
        if kept.is_empty() {
            *self = Self { next: self.next, ..Self::new(self.model) };
            return Ok(());
        }
        tch::no_grad(|| {
            let index: Vec<i64> = kept.iter().map(|&row| signed(row as u64)).collect();
            let index = Tensor::f_from_slice(&index)?.f_to_device(self.model.placement().device)?;
            let state = self.state.select(&index)?;
            let logits_BV = self.logits_BV.f_index_select(0, &index)?;
            (self.state, self.logits_BV) = (state, logits_BV);
            if let Some(drawn) = &mut self.drawn {
                *drawn = kept.iter().filter_map(|&row| drawn.get(row).copied()).collect();
            }
            self.rows.retain(stays);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tch::Device;
    use xlstm_manifests::recipe::architecture::{Gpt2Config, LlamaConfig, MambaConfig};
    use xlstm_manifests::recipe::{ModelConfig, Precision, XlstmConfig};

    use super::super::{Generation, Placement};
    use super::*;

    fn models() -> Vec<Model> {
        let xlstm = XlstmConfig {
            vocabulary_size: 40,
            embedding_dim: 16,
            blocks: 3,
            slstm_at: vec![1],
            ..XlstmConfig::default()
        };
        let mamba =
            MambaConfig { vocabulary_size: 40, embedding_dim: 16, blocks: 2, ..MambaConfig::default() };
        let llama = LlamaConfig {
            vocabulary_size: 40,
            embedding_dim: 16,
            blocks: 2,
            heads: 2,
            ..LlamaConfig::default()
        };
        let mut gpt2 = Gpt2Config::default();
        (gpt2.vocabulary_size, gpt2.embedding_dim, gpt2.blocks, gpt2.heads) = (40, 16, 2, 2);
        let configs: [ModelConfig; 4] = [xlstm.into(), mamba.into(), llama.into(), gpt2.into()];
        let placement = Placement::new(Device::Cpu, Precision::Float32, false);
        configs.iter().map(|config| Model::new(config, placement, 3).unwrap()).collect()
    }

    fn prompt(seed: i64, length: i64) -> Vec<i64> {
        (0..length).map(|at| (seed * 7 + at * 11) % 40).collect()
    }

    #[test]
    fn a_sequence_is_the_same_whoever_comes_and_goes() {
        // Beginning, prompts, options, tokens.
        let requests: Vec<(usize, Vec<Vec<i64>>, Sampling, usize)> = vec![
            (0, vec![prompt(1, 5)], Sampling { temperature: 0.0, ..Sampling::default() }, 40),
            (3, vec![prompt(2, 70), prompt(3, 2)], Sampling { seed: 5, ..Sampling::default() }, 9),
            (4, vec![prompt(4, 1)], Sampling { seed: 6, top_k: 5, ..Sampling::default() }, 30),
            (
                20,
                vec![prompt(5, 17), prompt(6, 17)],
                Sampling { seed: 7, top_p: 0.8, ..Sampling::default() },
                8,
            ),
        ];
        for model in models() {
            let alone: Vec<Vec<Vec<i64>>> = requests
                .iter()
                .map(|(_, prompts, sampling, tokens)| {
                    let mut generation = Generation::new(&model, prompts, *sampling).unwrap();
                    let steps: Vec<Vec<i64>> =
                        (0..*tokens).map(|_| generation.next_tokens().unwrap()).collect();
                    (0..prompts.len()).map(|row| steps.iter().map(|step| step[row]).collect()).collect()
                })
                .collect();
            let mut together = Sequences::new(&model);
            let mut found: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
            let mut numbers: Vec<Vec<u64>> = vec![Vec::new(); requests.len()];
            for step in 0..60 {
                for (own, (begin, prompts, sampling, _)) in numbers.iter_mut().zip(&requests) {
                    if *begin == step {
                        *own = together.begin(prompts, *sampling, &|| true).unwrap();
                    }
                }
                for (number, token) in together.next_tokens().unwrap() {
                    found.entry(number).or_default().push(token);
                }
                for (own, (.., tokens)) in numbers.iter().zip(&requests) {
                    let done =
                        own.iter().all(|number| found.get(number).is_some_and(|ids| ids.len() == *tokens));
                    if done {
                        together.end(own).unwrap();
                    }
                }
            }
            assert!(together.is_empty());
            let found: Vec<Vec<Vec<i64>>> =
                numbers.iter().map(|own| own.iter().map(|number| found[number].clone()).collect()).collect();
            assert_eq!(found, alone, "{}", model.config().label());
        }
    }

    #[test]
    fn what_cannot_begin_leaves_the_others_as_they_are() {
        let model = &models()[0];
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let mut alone = Generation::new(model, &[prompt(1, 5)], greedy).unwrap();
        let mut together = Sequences::new(model);
        together.begin(&[prompt(1, 5)], greedy, &|| true).unwrap();
        for step in 0..6 {
            assert!(together.begin(&[vec![41]], greedy, &|| true).is_err());
            assert!(together.begin(&[prompt(2, 3)], greedy, &|| step > 9).is_err());
            let found: Vec<i64> =
                together.next_tokens().unwrap().into_iter().map(|(_, token)| token).collect();
            assert_eq!(found, alone.next_tokens().unwrap());
            assert_eq!(together.len(), 1);
        }
    }
}
