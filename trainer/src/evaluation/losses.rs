//! Losses by token, as a table for other programs: `xlstm-eval losses`.
//!
//! Sequences are those of `xlstm-eval perplexity`, so the losses of a split add up to its figure. They are written in stream
//! order, batch after batch, into one Parquet file that is there whole or not at all; a killed run begins again. Several ranks
//! take batches in turn; the first one is handed all scores and alone writes. Batches are the same for any number of ranks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use xlstm_manifests::{Manifest, Sha256Digest};
use xlstm_pipeline::export::{TokenLossTable, TokenLosses};
use xlstm_pipeline::report::CommandError;

use super::corpus::{Corpus, Sequence};
use super::evaluate::{EvaluateOptions, EvaluationKind, check_layout, cut_of, together};
use super::handed_over::hand_over;
use super::open::{OpenedModel, check_dataset, find_split, link_dataset, open_model};
use super::progress::EvaluationProgress;
use super::results::{DatasetLink, Mark};
use super::score::{MAX_SEQUENCES, batch_tokens, not_finite, to_batch};
use super::statistics::perplexity;
use crate::communicator::{Communicator, flags};
use crate::device::DeviceInfo;
use crate::environment;
use crate::error::{Result, TrainError};
use crate::model::{Model, TokenScores};
use crate::signals::Signals;

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LossesReport {
    /// The table.
    pub path: PathBuf,
    /// SHA-256 of it.
    pub sha256: Sha256Digest,
    /// Root of the split.
    pub root: Sha256Digest,
    /// Tokens scored: records of the table.
    pub tokens: u64,
    /// Documents that they are of.
    pub documents: u64,
    /// Mean negative log-likelihood, nats a token.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// What a reader must know before using the figures.
    pub marks: Vec<Mark>,
}

/// How it ended.
#[derive(Debug)]
pub enum LossesOutcome {
    /// The table is there.
    Written(Box<LossesReport>),
    /// It is there, and the first rank has the report.
    OnFirstRank,
    /// A signal came, which leaves nothing behind.
    Stopped(u8),
}

/// Scores every token of the split that the options name and writes the table `to`, with the `top` likeliest ids beside each
/// token.
///
/// # Errors
/// As [`evaluate`](super::evaluate::evaluate), and when the model has fewer ids than `top`.
pub fn losses(
    options: &EvaluateOptions,
    (to, top): (&Path, usize),
    device: &DeviceInfo,
    communicator: &dyn Communicator,
    signals: &Signals,
) -> Result<LossesOutcome> {
    let path = find_split(&options.split.manifest, "validation")?;
    let manifest = Manifest::load(&path)?;
    check_layout(EvaluationKind::Perplexity, &path, manifest.layout)?;
    together(communicator, || check_dataset(&path))?;
    let mut opened = open_model(&options.split.model, options.split.step, options.split.precision, device)?;
    let dataset = link_dataset(&path, &manifest, &mut opened)?;
    if top as u64 > opened.link.vocabulary_size {
        let most = opened.link.vocabulary_size;
        return Err(TrainError::Usage(format!("--top {top}: expected at most {most}, the ids of the model")));
    }
    let corpus = Corpus::open(&path, cut_of(&manifest, &opened, options))?;
    if corpus.sequences.is_empty() {
        let hint = "there is nothing to score: prepare a split with text";
        return Err(TrainError::file(&path, "at least one token", "none", hint));
    }
    let facts = metadata(&opened, &dataset, &corpus);
    let batches = batches(&corpus.sequences, batch_tokens(options.split.batch_tokens, device));
    agree(&facts, (&batches, top), communicator)?;
    let table = together(communicator, || {
        TokenLossTable::create(to, top, facts).map_err(|error| table_error(to, error))
    })?;
    let mut writing = table.map(|table| Writing {
        corpus: &corpus,
        to,
        table,
        done: vec![0; corpus.documents.len()],
        nll: 0.0,
        tokens: 0,
    });
    let mut progress =
        EvaluationProgress::new(&corpus, &vec![0.0; corpus.sequences.len()], communicator.rank() == 0);
    let own_rank = usize::try_from(communicator.rank()).map_err(TrainError::internal)?;
    let ranks = usize::try_from(communicator.world_size()).map_err(TrainError::internal)?;
    for round in batches.chunks(ranks.max(1)) {
        let stop = if signals.received().is_some() { flags::STOP } else { 0 };
        if communicator.any_flags(stop)? & flags::STOP != 0 {
            return Ok(LossesOutcome::Stopped(signals.received().unwrap_or(15)));
        }
        let mut own =
            round.get(own_rank).map(|batch| compute(&opened.model, &corpus, batch, top)).transpose()?;
        for (rank, batch) in round.iter().enumerate() {
            let targets = batch.iter().map(Sequence::targets).sum();
            let brought = if rank == own_rank { own.take() } else { None };
            let scores = hand_over(brought, (targets, top), communicator)?;
            writing.as_mut().map_or(Ok(()), |writing| writing.write(batch, scores))?;
            progress.add(batch.iter());
        }
    }
    progress.finish();
    let written = together(communicator, || {
        let writing = writing.ok_or_else(|| TrainError::internal("the first rank writes no table"))?;
        writing.finish(&dataset, opened.marks)
    })?;
    Ok(written.map_or(LossesOutcome::OnFirstRank, |report| LossesOutcome::Written(Box::new(report))))
}

/// Ranks that score other things would hand over what fits nothing.
fn agree(
    facts: &BTreeMap<String, String>,
    (batches, top): (&[&[Sequence]], usize),
    communicator: &dyn Communicator,
) -> Result<()> {
    communicator.agree(&[
        ("model and split", format!("{facts:?}")),
        ("number of batches", batches.len().to_string()),
        ("--top", top.to_string()),
    ])
}

/// The scores of a batch.
fn compute(model: &Model, corpus: &Corpus, batch: &[Sequence], top: usize) -> Result<TokenScores> {
    let mut sequences = Vec::with_capacity(batch.len());
    for (index, sequence) in batch.iter().enumerate() {
        sequences.push((index, sequence, corpus.tokens(sequence)?));
    }
    let tensors = to_batch(model, &sequences)?;
    model.sequence_alternatives(&tensors.inputs_BT, &tensors.targets_BT, tensors.resets_BT.as_ref(), top)
}

/// Sequences in stream order, up to so many tokens at a time, padding included.
fn batches(sequences: &[Sequence], batch_tokens: usize) -> Vec<&[Sequence]> {
    let (mut batches, mut first, mut longest) = (Vec::new(), 0, 0);
    for (index, sequence) in sequences.iter().enumerate() {
        let length = sequence.length as usize;
        let count = index - first;
        if count > 0 && (count >= MAX_SEQUENCES || (count + 1) * longest.max(length) > batch_tokens) {
            batches.push(&sequences[first..index]);
            (first, longest) = (index, 0);
        }
        longest = longest.max(length);
    }
    batches.push(&sequences[first..]);
    batches
}

/// The table under construction, on the first rank.
struct Writing<'a> {
    corpus: &'a Corpus,
    to: &'a Path,
    table: TokenLossTable,
    /// Tokens of each document so far.
    done: Vec<u64>,
    nll: f64,
    tokens: u64,
}

impl Writing<'_> {
    /// The next batch in stream order.
    fn write(&mut self, batch: &[Sequence], scores: TokenScores) -> Result<()> {
        let id = |id: i64| {
            u16::try_from(id)
                .map_err(|_| TrainError::Internal(format!("expected an id of 16 bits, found {id}")))
        };
        let mut columns = TokenLosses::default();
        let mut losses = scores.losses.iter();
        for sequence in batch {
            let tokens = self.corpus.tokens(sequence)?;
            let mut targets = tokens.targets.iter();
            let mut context = sequence.skipped;
            for part in &self.corpus.parts[sequence.parts.clone()] {
                let position = &mut self.done[part.document as usize];
                for (&token, &loss) in targets.by_ref().zip(losses.by_ref()).take(part.tokens as usize) {
                    if !loss.is_finite() {
                        return Err(not_finite(self.corpus, part.document, loss));
                    }
                    columns.document.push(u64::from(part.document));
                    columns.position.push(*position);
                    columns.context.push(context);
                    columns.token.push(id(token)?);
                    columns.loss.push(loss);
                    self.nll += loss;
                    self.tokens += 1;
                    *position += 1;
                    context += 1;
                }
            }
        }
        columns.alternatives = scores.tokens.into_iter().map(id).collect::<Result<_>>()?;
        columns.alternative_losses = scores.token_losses;
        self.table.write(columns).map_err(|error| table_error(self.to, error))
    }

    fn finish(self, dataset: &DatasetLink, marks: Vec<Mark>) -> Result<LossesReport> {
        let written = self.table.finish().map_err(|error| table_error(self.to, error))?;
        let loss = self.nll / self.tokens as f64;
        Ok(LossesReport {
            path: written.path,
            sha256: written.sha256,
            root: dataset.root,
            tokens: self.tokens,
            documents: self.done.iter().filter(|&&tokens| tokens > 0).count() as u64,
            loss,
            perplexity: perplexity(loss),
            marks,
        })
    }
}

/// What the losses are of: enough to compute them again.
fn metadata(opened: &OpenedModel, dataset: &DatasetLink, corpus: &Corpus) -> BTreeMap<String, String> {
    let files: Vec<String> =
        opened.link.files.iter().map(|(name, file)| format!("{name} {}", file.sha256)).collect();
    let program = environment::program_named("xlstm-eval");
    let mut facts = vec![
        ("model_sha256", files.join(", ")),
        ("split_root", dataset.root.to_string()),
        ("tokenizer", dataset.tokenizer.clone()),
        ("tokenizer_sha256", dataset.tokenizer_sha256.to_string()),
        ("context_length", corpus.context_length.to_string()),
        ("precision", opened.precision.name().into()),
        ("program", format!("{} {}, commit {}", program.name, program.version, program.commit)),
    ];
    facts.extend(opened.link.step.map(|step| ("step", step.to_string())));
    facts.extend(opened.run.as_ref().map(|run| ("run_manifest_sha256", run.manifest_sha256.to_string())));
    facts.into_iter().map(|(name, value)| (format!("xlstm.{name}"), value)).collect()
}

fn table_error(path: &Path, error: CommandError) -> TrainError {
    match error {
        CommandError::Dataset(error) => error.into(),
        CommandError::Io(error) => error.into(),
        other => TrainError::internal(format!("`{}`: {other}", path.display())),
    }
}
