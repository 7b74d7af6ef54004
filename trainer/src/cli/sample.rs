//! `xlstm-train sample RUN --prompt TEXT`: text from a run's newest checkpoint.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use xlstm_manifests::END_OF_TEXT;
use xlstm_manifests::recipe::Precision;
use xlstm_pipeline::tokenizer::Gpt2Tokenizer;
use xlstm_trainer::TrainError;
use xlstm_trainer::model::{Generation, Placement, Sampling, import};
use xlstm_trainer::run::find_parameters;

use super::{DeviceArguments, print};

/// Text from a run's newest checkpoint.
#[derive(Debug, Args)]
pub(super) struct SampleArguments {
    /// A run's folder, a checkpoint's, or a safetensors file
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The checkpoint after this step [default: the newest]
    #[arg(long)]
    step: Option<u64>,
    /// Text to go on from; may be given again, all are generated together [default: the start of a document]
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
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
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Generates; returns the exit code.
pub(super) fn run(arguments: &SampleArguments) -> anyhow::Result<u8> {
    let device = arguments.device.start()?;
    let file = find_parameters(&arguments.run, arguments.step)?;
    let model = import(&file, Placement::new(device.device, Precision::Float32, false))?;
    if model.config().vocabulary_size <= u64::from(END_OF_TEXT) {
        let (needed, found) = (u64::from(END_OF_TEXT) + 1, model.config().vocabulary_size);
        let text = format!(
            "expected a model of GPT-2's {needed} tokens or more, found {found}: it cannot write text"
        );
        return Err(TrainError::Usage(text).into());
    }
    let tokenizer = Gpt2Tokenizer::new()?;
    let texts = if arguments.prompt.is_empty() { vec![String::new()] } else { arguments.prompt.clone() };
    let mut prompts = Vec::with_capacity(texts.len());
    for text in &texts {
        // As in training, a document begins after a separator.
        let mut ids = vec![i64::from(END_OF_TEXT)];
        ids.extend(tokenizer.encode(text)?.into_iter().map(i64::from));
        prompts.push(ids);
    }
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        seed: arguments.seed,
    };
    let mut generation = Generation::new(&model, &prompts, sampling)?;
    let mut ids: Vec<Vec<u16>> = vec![Vec::new(); prompts.len()];
    let mut ended = vec![false; prompts.len()];
    for _ in 0..arguments.tokens {
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
    let written: Vec<String> = ids.iter().map(|ids| tokenizer.decode_lossy(ids)).collect();
    if arguments.json {
        let samples: Vec<_> = texts
            .iter()
            .zip(&written)
            .map(|(prompt, text)| json!({"prompt": prompt, "text": text}))
            .collect();
        print(&format!("{}\n", json!({"parameters": file.display().to_string(), "samples": samples})))?;
    } else {
        for (prompt, text) in texts.iter().zip(&written) {
            print(&format!("{prompt}{text}\n"))?;
        }
    }
    Ok(0)
}
