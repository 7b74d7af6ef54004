//! `xlstm-train sample RUN --prompt TEXT` and `xlstm-eval generate RUN --prompt TEXT`, which are one command.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use xlstm_manifests::END_OF_TEXT;
use xlstm_pipeline::tokenizer::Gpt2Tokenizer;

use super::{DeviceArguments, print, print_json};
use crate::error::{Result, TrainError};
use crate::evaluation::open::EvaluationPrecision;
use crate::model::{Generation, Model, Sampling};
use crate::run::load_model;

/// Text from a run's newest checkpoint.
#[derive(Debug, Args)]
pub struct GenerateArguments {
    /// A run's folder, a checkpoint's, or a safetensors file
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The checkpoint after this step [default: the newest]
    #[arg(long)]
    step: Option<u64>,
    /// Text to go on from; may be given again, all are generated together [default: the start of a document]
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Texts to generate after each prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: usize,
    /// Tokens to generate at most
    #[arg(long, default_value_t = 100)]
    tokens: usize,
    /// Divides the logits; 0 takes the most likely token
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Only this many of the most likely tokens; 0: all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Only the most likely tokens that together reach this probability
    #[arg(long, default_value_t = 0.95)]
    top_p: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Type of the matrix products
    #[arg(long, value_enum, default_value_t = EvaluationPrecision::Float32)]
    precision: EvaluationPrecision,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArguments,
}

impl GenerateArguments {
    /// Generates and prints; returns the exit code.
    ///
    /// # Errors
    /// When there are no such parameters, they are no model of GPT-2's tokens, or libtorch fails.
    pub fn run(&self) -> anyhow::Result<u8> {
        let device = self.device.start()?;
        let placement = self.precision.placement(device.device);
        let (mut model, file) = load_model(&self.run, self.step, placement)?;
        model.freeze()?;
        let asked = if self.prompt.is_empty() { vec![String::new()] } else { self.prompt.clone() };
        let prompts: Vec<&str> =
            asked.iter().flat_map(|text| std::iter::repeat_n(text.as_str(), self.samples)).collect();
        let sampling =
            Sampling { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p, seed: self.seed };
        let written = complete(&model, &prompts, sampling, self.tokens)?;
        let both = prompts.iter().zip(&written);
        if self.json {
            let samples: Vec<_> =
                both.map(|(prompt, text)| json!({"prompt": prompt, "text": text})).collect();
            print_json(&json!({"parameters": file.display().to_string(), "samples": samples}))?;
        } else {
            for (prompt, text) in both {
                print(&format!("{prompt}{text}\n"))?;
            }
        }
        Ok(0)
    }
}

/// What the model writes after each prompt, all as one batch: at most `tokens` tokens, to the end of a document.
///
/// # Errors
/// When the model has fewer tokens than GPT-2, the options have no meaning, or libtorch fails.
pub fn complete(model: &Model, prompts: &[&str], sampling: Sampling, tokens: usize) -> Result<Vec<String>> {
    let (needed, found) = (u64::from(END_OF_TEXT) + 1, model.config().vocabulary_size());
    if found < needed {
        return Err(TrainError::Usage(format!(
            "expected a model of GPT-2's {needed} tokens or more, found {found}: it cannot write text"
        )));
    }
    let tokenizer = Gpt2Tokenizer::new().map_err(|error| TrainError::Internal(error.to_string()))?;
    let mut starts = Vec::with_capacity(prompts.len());
    for text in prompts {
        // As in training, a document begins after a separator.
        let mut ids = vec![i64::from(END_OF_TEXT)];
        let encoded = tokenizer.encode(text).map_err(|error| TrainError::Internal(error.to_string()))?;
        ids.extend(encoded.into_iter().map(i64::from));
        starts.push(ids);
    }
    let mut generation = Generation::new(model, &starts, sampling)?;
    let mut ids: Vec<Vec<u16>> = vec![Vec::new(); starts.len()];
    let mut ended = vec![false; starts.len()];
    for _ in 0..tokens {
        for ((ids, ended), token) in ids.iter_mut().zip(&mut ended).zip(generation.next_tokens()?) {
            *ended |= token == i64::from(END_OF_TEXT);
            if !*ended {
                // Ids past the vocabulary are padding rows that training never meets.
                ids.extend(u16::try_from(token));
            }
        }
        if ended.iter().all(|&ended| ended) {
            break;
        }
    }
    Ok(ids.iter().map(|ids| tokenizer.decode_lossy(ids)).collect())
}
