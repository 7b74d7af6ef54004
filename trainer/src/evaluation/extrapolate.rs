//! Longer contexts than in training (paper, Figure 7): the same tokens, scored in contexts of growing length.
//!
//! ```text
//! stretch   │ t0 … t16383 │        one long document, or that much of the packed stream
//! 2048      │ │ │ │ │ │ │ │ │      eight contexts, each from a fresh state
//! 4096      │   │   │   │   │
//! 16384     │               │      one context
//! ```
//! A context's first input is the token before it (the separator at a document's start). With carried states a context is
//! read in chunks and memory does not grow with its length; a full forward reads it at once. Both give the same figures up
//! to rounding.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use tch::Tensor;
use xlstm_manifests::documents::DocumentShard;
use xlstm_manifests::manifest::Layout;
use xlstm_manifests::rows::{Sequences, shift};
use xlstm_manifests::{Dataset, Manifest, Sha256Digest};

use super::corpus::{TEXT_HINT, TEXT_LAYOUTS, position_group, positions_of};
use super::evaluate::{default_folder, plan_of};
use super::open::{EvaluationPrecision, check_dataset, find_split, link_dataset, open_model};
use super::output;
use super::results::{
    Effort, Extrapolation, ExtrapolationLength, ExtrapolationText, Mark, MarkKind, Position, Protocol,
    REPORT_FORMAT, REPORT_NAME, REPORT_VERSION, Report, Results, Setting,
};
use super::statistics::{exponential, perplexity, ratio};
use crate::device::DeviceInfo;
use crate::environment;
use crate::error::{Result, TrainError};
use crate::model::{Model, ModelState};

/// Contexts at most whose states are carried from chunk to chunk: those of a 1.3B model take 0.8 GB each.
const CARRIED: usize = 16;

/// Tokens that one forward pass sees at most, over all contexts of a batch: on the CPU, and on a GPU.
const BATCH_TOKENS: [usize; 2] = [16384, 262_144];

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct ExtrapolateOptions {
    /// A run, a checkpoint or a safetensors file.
    pub model: PathBuf,
    /// The checkpoint after this step; none: the newest.
    pub step: Option<u64>,
    /// The split.
    pub manifest: PathBuf,
    /// Context lengths; each divides the largest.
    pub lengths: Vec<usize>,
    /// Stretches at most.
    pub stretches: usize,
    /// Where they come from.
    pub text: ExtrapolationText,
    /// Tokens in a chunk between which states are carried; none: each context in one forward pass.
    pub chunk: Option<usize>,
    /// Type of the matrix products; none: as trained.
    pub precision: Option<EvaluationPrecision>,
    /// Where to write; none: in the run's folder.
    pub out: Option<PathBuf>,
}

/// A long stretch of tokens with the token before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The input that its first token follows.
    pub before: u16,
    /// Its tokens.
    pub ids: Vec<u16>,
}

/// Evaluates; returns the report and the folder that it was written to.
///
/// # Errors
/// When anything does not fit, no text is long enough, a figure is not a number, or writing fails.
pub fn extrapolate(options: &ExtrapolateOptions, device: &DeviceInfo) -> Result<(Report, PathBuf)> {
    let longest = longest(&options.lengths)?;
    let path = find_split(&options.manifest, "validation")?;
    let manifest = Manifest::load(&path)?;
    check_dataset(&path)?;
    let mut opened = open_model(&options.model, options.step, options.precision, device)?;
    let dataset = link_dataset(&path, &manifest, &mut opened)?;
    let setting = Setting {
        protocol: Protocol::Extrapolation,
        context_length: longest as u64,
        precision: opened.precision.name().into(),
        device: device.name.clone(),
        reset_at_document_boundaries: false,
        counts: None,
        first: Some(options.stretches as u64),
    };
    let plan = plan_of("extrapolation", &opened.link, Some(&dataset), &setting);
    let plan = json!([plan, options.lengths, options.text, options.chunk]).to_string();
    let plan = Sha256Digest::of(plan.as_bytes());
    let folder = match &options.out {
        Some(folder) if folder.join(REPORT_NAME).is_file() => {
            let hint = "name another --out, or remove the folder";
            return Err(TrainError::file(&folder.join(REPORT_NAME), "no report", "one", hint));
        }
        Some(folder) => folder.clone(),
        None => default_folder("extrapolation", &opened, plan),
    };
    if folder.join(REPORT_NAME).is_file() {
        return Ok((Report::load(&folder)?, folder));
    }
    let found = stretches(&path, &manifest, options.text, longest, options.stretches)?;
    let begin = Instant::now();
    let mut lengths = Vec::with_capacity(options.lengths.len());
    let mut losses = Vec::new();
    for &length in &options.lengths {
        losses = score(&opened.model, &found, length, options.chunk)?;
        lengths.push(length_figures(&losses, length));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let tokens = (found.len() * longest * lengths.len()) as f64;
    let trained_length = opened.link.context_length;
    let mut marks = opened.marks;
    if found.len() < options.stretches {
        let (asked, there) = (options.stretches, found.len());
        let text = format!("only {there} stretches of {longest} tokens are there, of {asked} asked for");
        marks.push(Mark { kind: MarkKind::Partial, text });
    }
    let report = Report {
        format: REPORT_FORMAT.into(),
        version: REPORT_VERSION,
        model: opened.link,
        run: opened.run,
        dataset: Some(dataset),
        program: environment::program_named("xlstm-eval"),
        setting,
        effort: Effort::new(tokens, seconds, 1),
        marks,
        results: Results::Extrapolation(Extrapolation {
            text: options.text,
            trained_length,
            lengths,
            positions: positions(&losses),
        }),
    };
    fs_err::create_dir_all(&folder)?;
    output::write(&report, &folder)?;
    Ok((report, folder))
}

/// The largest length; all must divide it, and ascend.
fn longest(lengths: &[usize]) -> Result<usize> {
    let longest = lengths.last().copied().unwrap_or(0);
    let ascend = lengths.windows(2).all(|pair| pair[0] < pair[1]);
    let divide = lengths.iter().all(|&length| length > 0 && longest.is_multiple_of(length));
    if longest > 0 && ascend && divide {
        return Ok(longest);
    }
    Err(TrainError::Usage(format!(
        "expected ascending context lengths that each divide the last, such as 2048,4096,8192,16384, found {lengths:?}"
    )))
}

/// The first stretches of `length` tokens.
///
/// # Errors
/// When there is none, or a shard cannot be read.
pub fn stretches(
    path: &Path,
    manifest: &Manifest,
    text: ExtrapolationText,
    length: usize,
    most: usize,
) -> Result<Vec<Stretch>> {
    let separator = manifest.tokenizer.end_of_text;
    let mut found = Vec::new();
    let mut longest = 0;
    match (text, manifest.layout) {
        (ExtrapolationText::Stream, Layout::Packed) => {
            let dataset = Dataset::open(path)?;
            let row_length = manifest.packing.row_length as usize;
            longest = usize::try_from(manifest.totals.tokens).unwrap_or(usize::MAX);
            let mut before = separator;
            for index in 0..most.min(longest / length) {
                let (start, mut ids) = (index * length, Vec::with_capacity(length));
                let offset = u16::try_from(start % row_length).map_err(|_| {
                    let found = format!("rows of {row_length}");
                    TrainError::file(path, "rows of at most 65535 tokens", found, "prepare the split again")
                })?;
                dataset.read_tokens((start / row_length) as u64, offset, length as u64, &mut ids)?;
                let last = ids.last().copied().unwrap_or(separator);
                found.push(Stretch { before, ids });
                before = last;
            }
        }
        (ExtrapolationText::Documents, Layout::Packed) => {
            let dataset = Dataset::open(path)?;
            for number in 0..manifest.shards.len() {
                for span in dataset.spans(number)?.iter() {
                    // The separator at its end is no part of the text.
                    let tokens = usize::try_from(span.length.saturating_sub(1)).unwrap_or(usize::MAX);
                    longest = longest.max(tokens);
                    if tokens >= length && found.len() < most {
                        let mut ids = Vec::with_capacity(length);
                        dataset.read_tokens(span.row, span.offset, length as u64, &mut ids)?;
                        found.push(Stretch { before: separator, ids });
                    }
                }
            }
        }
        (ExtrapolationText::Documents, Layout::Documents) => {
            let folder = Manifest::locate(path);
            let folder = folder.parent().unwrap_or(Path::new("."));
            for record in &manifest.shards {
                let shard = DocumentShard::open(&record.file.path.resolve(folder)?, record.file.records)?;
                for mut document in shard.iter() {
                    longest = longest.max(document.ids.len());
                    if document.ids.len() >= length && found.len() < most {
                        document.ids.truncate(length);
                        found.push(Stretch { before: separator, ids: document.ids });
                    }
                }
            }
        }
        (_, layout @ (Layout::Examples | Layout::Vectors)) => {
            let file = Manifest::locate(path);
            return Err(TrainError::file(&file, TEXT_LAYOUTS, format!("layout `{layout}`"), TEXT_HINT));
        }
        (ExtrapolationText::Stream, Layout::Documents) => {
            let hint = "a split stored by document has no stream: leave --text stream out";
            return Err(TrainError::file(path, "packed rows", "documents", hint));
        }
    }
    if found.is_empty() {
        let (what, hint) = match text {
            ExtrapolationText::Documents => {
                ("a document", "lower --lengths, or take the packed stream (--text stream)")
            }
            ExtrapolationText::Stream => ("a stream", "lower --lengths"),
        };
        let expected = format!("{what} of at least {length} tokens");
        return Err(TrainError::file(path, expected, format!("at most {longest}"), hint));
    }
    Ok(found)
}

/// Negative log-likelihood of every token of every stretch in contexts of `length` tokens, in nats.
///
/// # Errors
/// When a figure is not a number, or libtorch fails.
pub fn score(
    model: &Model,
    stretches: &[Stretch],
    length: usize,
    chunk: Option<usize>,
) -> Result<Vec<Vec<f64>>> {
    let chunk = chunk.unwrap_or(length).clamp(1, length);
    let on_gpu = model.placement().device.is_cuda();
    let most = BATCH_TOKENS[usize::from(on_gpu)] / chunk;
    let at_once = if chunk < length { most.min(CARRIED) } else { most }.max(1);
    let read: Vec<Sequences> = stretches
        .iter()
        .map(|stretch| {
            let mut read = Sequences::default();
            shift(stretch.before, &stretch.ids, &mut read);
            read
        })
        .collect();
    let mut losses: Vec<Vec<f64>> = read.iter().map(|read| vec![0.0; read.targets.len()]).collect();
    let of_stretch = |(index, read): (usize, &Sequences)| {
        (0..read.targets.len()).step_by(length).map(move |start| (index, start)).collect::<Vec<_>>()
    };
    let contexts: Vec<(usize, usize)> = read.iter().enumerate().flat_map(of_stretch).collect();
    for together in contexts.chunks(at_once) {
        let mut state: Option<ModelState> = None;
        for first in (0..length).step_by(chunk) {
            let size = chunk.min(length - first);
            let batch = |ids: fn(&Sequences) -> &[i64]| -> Result<Tensor> {
                let rows = together.iter().flat_map(|&(stretch, start)| {
                    ids(&read[stretch])[start + first..start + first + size].iter().copied()
                });
                let shape = [-1, i64::try_from(size).unwrap_or(i64::MAX)];
                let rows: Vec<i64> = rows.collect();
                Ok(Tensor::f_from_slice(&rows)?.f_view(shape)?.f_to_device(model.placement().device)?)
            };
            let (tokens, targets) = (batch(|read| &read.inputs)?, batch(|read| &read.targets)?);
            let found = if size == length {
                // Nothing is carried: no state need be kept.
                model.sequence_losses(&tokens, &targets, None)?
            } else {
                let (found, next) = model.token_losses(&tokens, &targets, state.as_ref(), None)?;
                state = (first + size < length).then_some(next);
                found
            };
            for (&(stretch, start), found) in together.iter().zip(found.chunks(size)) {
                losses[stretch][start + first..start + first + size].copy_from_slice(found);
            }
        }
    }
    for losses in &losses {
        if let Some(position) = losses.iter().position(|loss| !loss.is_finite()) {
            let what = format!("token {position} in a context of {length}");
            return Err(TrainError::Overflow { what, value: losses[position] });
        }
    }
    Ok(losses)
}

fn length_figures(losses: &[Vec<f64>], length: usize) -> ExtrapolationLength {
    let pairs: Vec<(f64, f64)> =
        losses.iter().map(|losses| (losses.iter().sum::<f64>(), losses.len() as f64)).collect();
    let tokens: usize = losses.iter().map(Vec::len).sum();
    let nll: f64 = pairs.iter().map(|(nll, _)| nll).sum();
    let interval = ratio(&pairs).and_then(|(_, interval)| interval);
    ExtrapolationLength {
        length: length as u64,
        contexts: (tokens / length) as u64,
        tokens: tokens as u64,
        nll,
        perplexity: perplexity(nll / tokens as f64),
        perplexity_interval: interval.map(exponential),
    }
}

/// By position in the longest context, which is a whole stretch.
fn positions(losses: &[Vec<f64>]) -> Vec<Position> {
    let mut groups: Vec<(f64, u64)> = Vec::new();
    for stretch in losses {
        for (position, loss) in stretch.iter().enumerate() {
            let group = position_group(position);
            groups.resize(groups.len().max(group + 1), (0.0, 0));
            groups[group].0 += loss;
            groups[group].1 += 1;
        }
    }
    let figures = groups.iter().enumerate().map(|(group, &(nll, tokens))| {
        let range = positions_of(group);
        let last = (range.end - 1).min(losses.first().map_or(1, Vec::len) as u64 - 1);
        Position { first: range.start, last, tokens, nll, perplexity: perplexity(nll / tokens as f64) }
    });
    figures.collect()
}
