//! One evaluation from arguments to report: open and check, cut, score, put together, write.

use std::path::{Path, PathBuf};

use serde_json::json;
use xlstm_manifests::atomic::FolderLock;
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::manifest::Layout;
use xlstm_manifests::token_counts::{TokenCounts, frequency_bucket};
use xlstm_manifests::{Manifest, Sha256Digest};

use super::corpus::{Corpus, Cut, TEXT_HINT, TEXT_LAYOUTS};
use super::open::{EvaluationPrecision, OpenedModel, check_dataset, find_split, link_dataset, open_model};
use super::results::{
    CountsLink, DatasetLink, Effort, Mark, MarkKind, ModelLink, Protocol, REPORT_FORMAT, REPORT_NAME,
    REPORT_VERSION, Report, Results, Setting,
};
use super::score::{ScoreOptions, Scores, batch_tokens, score};
use super::statistics::documents;
use super::{output, paloma, perplexity};
use crate::communicator::{Communicator, flags};
use crate::device::DeviceInfo;
use crate::environment;
use crate::error::{Result, TrainError};
use crate::signals::Signals;

/// Folder of a run that its evaluations are written to.
pub const EVALUATIONS_NAME: &str = "evaluations";
/// Where an unfinished evaluation notes what it has done.
const WORK_NAME: &str = ".work";

/// Which evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvaluationKind {
    /// Perplexity of a split.
    Perplexity,
    /// PALOMA.
    Paloma,
}

impl EvaluationKind {
    fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::Paloma => "paloma",
        }
    }
}

/// What the command line asks for, whatever is measured.
#[derive(Debug, Clone)]
pub struct SplitOptions {
    /// A run, a checkpoint or a safetensors file.
    pub model: PathBuf,
    /// The checkpoint after this step; none: the newest.
    pub step: Option<u64>,
    /// The split.
    pub manifest: PathBuf,
    /// Only the first rows, documents or examples.
    pub first: Option<u64>,
    /// Type of the matrix products; none: as trained.
    pub precision: Option<EvaluationPrecision>,
    /// Positions in a batch; none: chosen for the device.
    pub batch_tokens: Option<usize>,
    /// Where to write; none: in the run's folder.
    pub out: Option<PathBuf>,
}

/// What the command line asks for of text.
#[derive(Debug, Clone)]
pub struct EvaluateOptions {
    /// Model and split.
    pub split: SplitOptions,
    /// How documents become windows.
    pub protocol: Protocol,
    /// Tokens in a context; none: as trained, or as the split was prepared for where that is not known.
    pub context_length: Option<u32>,
    /// Windows as the split was prepared with, whatever the model was trained with.
    pub prepared_windows: bool,
    /// Counts by token of the training split, for figures by frequency.
    pub counts: Option<PathBuf>,
}

/// How an evaluation ended.
#[derive(Debug)]
pub enum Outcome {
    /// The report, and its folder.
    Finished(Box<Report>, PathBuf),
    /// A signal came; the same command goes on.
    Stopped(u8),
}

/// Evaluates; every rank returns the report, the first one has written it.
///
/// # Errors
/// When anything does not fit (module [`open`](super::open)), a figure is not a number, or writing fails.
pub fn evaluate(
    kind: EvaluationKind,
    options: &EvaluateOptions,
    device: &DeviceInfo,
    communicator: &dyn Communicator,
    signals: &Signals,
) -> Result<Outcome> {
    let path = find_split(&options.split.manifest, "validation")?;
    let manifest = Manifest::load(&path)?;
    check_layout(kind, &path, manifest.layout)?;
    together(communicator, || check_dataset(&path))?;
    let mut opened = open_model(&options.split.model, options.split.step, options.split.precision, device)?;
    let dataset = link_dataset(&path, &manifest, &mut opened)?;
    let cut = cut_of(&manifest, &opened, options);
    let mut corpus = Corpus::open(&path, cut)?;
    let counts =
        options.counts.as_deref().map(|file| open_counts(file, &dataset, &mut opened)).transpose()?;
    let (counts, buckets) = counts.unzip();
    corpus.buckets = buckets;
    if corpus.sequences.is_empty() {
        let hint = "there is nothing to evaluate: prepare a split with text";
        return Err(TrainError::file(&path, "at least one token", "none", hint));
    }
    let setting = Setting {
        protocol: cut.protocol,
        context_length: u64::from(corpus.context_length),
        precision: opened.precision.name().into(),
        device: device.name.clone(),
        reset_at_document_boundaries: cut.resets && is_packed(manifest.layout),
        first: options.split.first,
        counts,
    };
    let plan = plan_of(kind.name(), &opened.link, Some(&dataset), &setting);
    let folder = options.split.out.clone().unwrap_or_else(|| default_folder(kind.name(), &opened, plan));
    if let Some(report) = finished(&folder, kind.name(), plan)? {
        return Ok(Outcome::Finished(Box::new(report), folder));
    }
    let work = folder.join(WORK_NAME);
    let lock = together(communicator, || {
        fs_err::create_dir_all(&work)?;
        Ok(FolderLock::acquire(&work.join("lock"))?)
    })?;
    let batch_tokens = batch_tokens(options.split.batch_tokens, device);
    let score_options = ScoreOptions { batch_tokens, work: &work, plan };
    let Some(scores) = score(&opened.model, &corpus, &score_options, communicator, signals)? else {
        return Ok(Outcome::Stopped(signals.received().unwrap_or(15)));
    };
    let report = report(kind, opened, dataset, setting, (&corpus, &scores), communicator.world_size())?;
    together(communicator, || {
        output::write_documents(&corpus, &documents(&corpus, &scores), &folder)?;
        output::write(&report, &folder)?;
        Ok(fs_err::remove_dir_all(&work)?)
    })?;
    drop(lock);
    Ok(Outcome::Finished(Box::new(report), folder))
}

/// Whether text is cut by rows. Splits of examples were refused before.
fn is_packed(layout: Layout) -> bool {
    match layout {
        Layout::Packed => true,
        Layout::Documents | Layout::Examples | Layout::Vectors => false,
    }
}

/// Refuses a split that this evaluation has no figures for.
pub(super) fn check_layout(kind: EvaluationKind, path: &Path, layout: Layout) -> Result<()> {
    let (expected, hint) = match (kind, layout) {
        (EvaluationKind::Perplexity, Layout::Packed | Layout::Documents)
        | (EvaluationKind::Paloma, Layout::Documents) => {
            return Ok(());
        }
        (_, Layout::Examples | Layout::Vectors) => (TEXT_LAYOUTS, TEXT_HINT),
        (EvaluationKind::Paloma, Layout::Packed) => (
            "layout `documents`",
            "prepare it with `xlstm-data prepare paloma`; for a packed split use `xlstm-eval perplexity`",
        ),
    };
    Err(TrainError::file(&Manifest::locate(path), expected, format!("layout `{layout}`"), hint))
}

/// Does something on the first rank only; where it fails there, it fails on all.
pub(super) fn together<T>(
    communicator: &dyn Communicator,
    work: impl FnOnce() -> Result<T>,
) -> Result<Option<T>> {
    let result = if communicator.rank() == 0 { work().map(Some) } else { Ok(None) };
    let flag = if result.is_err() { flags::FAILED } else { 0 };
    let failed = communicator.any_flags(flag)? & flags::FAILED != 0;
    let done = result?;
    if failed {
        return Err(TrainError::AnotherRank);
    }
    Ok(done)
}

pub(super) fn cut_of(manifest: &Manifest, opened: &OpenedModel, options: &EvaluateOptions) -> Cut {
    let training = opened.recipe.as_ref().map(|recipe| &recipe.training);
    let packed = is_packed(manifest.layout);
    // As in training: a row in parts of that length, a document in windows of it (PALOMA's rule: the model's own maximum).
    let trained = opened.link.context_length.and_then(|length| u32::try_from(length).ok());
    let row_length = manifest.packing.row_length;
    let fits = |&length: &u32| {
        if packed { row_length.is_multiple_of(length) } else { u16::try_from(length).is_ok() }
    };
    let trained = trained.filter(fits).filter(|_| !options.prepared_windows);
    Cut {
        protocol: if packed { Protocol::PackedRows } else { options.protocol },
        context_length: options.context_length.or(trained),
        first: options.split.first,
        resets: training.is_some_and(|training| training.reset_at_document_boundaries),
    }
}

/// One digest of everything that decides the figures: what was scored under another plan counts for nothing.
pub(super) fn plan_of(
    kind: &str,
    model: &ModelLink,
    dataset: Option<&DatasetLink>,
    setting: &Setting,
) -> Sha256Digest {
    let mut plan = json!({
        "kind": kind,
        "model": model.files,
        "dataset": dataset.map(|dataset| dataset.root),
        "protocol": setting.protocol,
        "context_length": setting.context_length,
        "precision": setting.precision,
        "resets": setting.reset_at_document_boundaries,
        "first": setting.first,
        "program": [env!("CARGO_PKG_VERSION"), environment::COMMIT],
    });
    if let Some(counts) = &setting.counts {
        plan["counts"] = json!(counts.sha256);
    }
    Sha256Digest::of(plan.to_string().as_bytes())
}

/// The counts in a file, and the bucket of each id by them.
fn open_counts(
    file: &Path,
    dataset: &DatasetLink,
    opened: &mut OpenedModel,
) -> Result<(CountsLink, Vec<u8>)> {
    let path = TokenCounts::locate(file);
    let counts = TokenCounts::load(&path)?;
    if counts.tokenizer_sha256 != dataset.tokenizer_sha256 {
        let expected =
            format!("counts by the tokenizer of the evaluated split, SHA-256 {}", dataset.tokenizer_sha256);
        let hint = "count a split that was prepared with the same tokenizer: `xlstm-data count`";
        return Err(TrainError::file(&path, expected, counts.tokenizer_sha256.to_string(), hint));
    }
    if counts.tokens == 0 {
        let hint = "count the split that the model was trained on: `xlstm-data count`";
        return Err(TrainError::file(&path, "counts of at least one token", "none", hint));
    }
    match &opened.run {
        Some(run) if run.train.root == counts.root => {}
        Some(run) => {
            let (counted, trained) = (counts.root, run.train.root);
            let text =
                format!("frequencies are of the split of root {counted}, the model was trained on {trained}");
            opened.marks.push(Mark { kind: MarkKind::OtherCounts, text });
        }
        None => {
            let text = format!(
                "frequencies are of the split of root {}: which one the model was trained on is not known",
                counts.root
            );
            opened.marks.push(Mark { kind: MarkKind::OtherCounts, text });
        }
    }
    let (_, sha256) = digest_file(&path)?;
    // There are eight buckets.
    let buckets = counts.counts.iter().map(|&count| frequency_bucket(count) as u8).collect();
    Ok((CountsLink { path, sha256, root: counts.root }, buckets))
}

/// Where an evaluation is written that was told no other place.
pub(super) fn default_folder(kind: &str, opened: &OpenedModel, plan: Sha256Digest) -> PathBuf {
    let run = opened.run.as_ref().map_or(Path::new(""), |run| &run.path);
    let step = opened.link.step.map(|step| format!("step-{step:08}-")).unwrap_or_default();
    let digest = plan.to_string();
    run.join(EVALUATIONS_NAME).join(format!("{kind}-{step}{}", &digest[..8]))
}

/// The report in `folder`, if there is one of this very evaluation.
pub(super) fn finished(folder: &Path, kind: &str, plan: Sha256Digest) -> Result<Option<Report>> {
    let path = folder.join(REPORT_NAME);
    if !path.is_file() {
        return Ok(None);
    }
    let report = Report::load(&path)?;
    let known = plan_of(kind, &report.model, report.dataset.as_ref(), &report.setting);
    if known == plan && report.program.commit == environment::COMMIT {
        return Ok(Some(report));
    }
    let hint = "name another --out, or remove the folder";
    Err(TrainError::file(&path, "a report of this evaluation, or none", "that of another one", hint))
}

fn report(
    kind: EvaluationKind,
    opened: OpenedModel,
    dataset: DatasetLink,
    setting: Setting,
    (corpus, scores): (&Corpus, &Scores),
    world: u64,
) -> Result<Report> {
    let mut marks = opened.marks;
    marks.extend(data_marks(corpus, setting.first, opened.link.context_length));
    let results = match kind {
        EvaluationKind::Perplexity => Results::Perplexity(perplexity::results(corpus, scores)?),
        EvaluationKind::Paloma => {
            let results = paloma::results(corpus, scores)?;
            marks.extend(paloma::missing_mark(&results));
            Results::Paloma(results)
        }
    };
    let seconds = scores.time.as_secs_f64();
    let tokens: u64 = corpus.sequences.iter().map(|sequence| u64::from(sequence.length)).sum();
    Ok(Report {
        format: REPORT_FORMAT.into(),
        version: REPORT_VERSION,
        model: opened.link,
        run: opened.run,
        dataset: Some(dataset),
        program: environment::program_named("xlstm-eval"),
        setting,
        effort: Effort::new(tokens as f64, seconds, world),
        marks,
        results,
    })
}

/// What a reader must know of the data.
fn data_marks(corpus: &Corpus, first: Option<u64>, trained: Option<u64>) -> Vec<Mark> {
    let manifest = corpus.manifest();
    let mut marks = Vec::new();
    let mut mark = |kind, text| marks.push(Mark { kind, text });
    // A holdout's other side is no loss: it is what makes this split.
    let lost = manifest.totals.left_out.iter().filter(|(reason, _)| !reason.ends_with("held-out"));
    let left_out: Vec<String> = lost.map(|(reason, count)| format!("{count} {reason}")).collect();
    if !left_out.is_empty() {
        mark(MarkKind::LeftOut, format!("records that the dataset left out: {}", left_out.join(", ")));
    }
    if corpus.empty_documents > 0 {
        let text = format!("{} documents have no token and are in no figure", corpus.empty_documents);
        mark(MarkKind::LeftOut, text);
    }
    let short = corpus.documents.iter().filter(|document| document.tokens < 2).count();
    if short > 0 {
        let text = format!("{short} documents have a single token, predicted from the separator alone");
        mark(MarkKind::ShortDocuments, text);
    }
    let scored: u64 = corpus.parts.iter().map(|part| u64::from(part.tokens)).sum();
    if scored < manifest.totals.tokens {
        let (first, all) = (first.unwrap_or(0), manifest.totals.tokens);
        let unit = if is_packed(manifest.layout) { "rows" } else { "documents" };
        let text = format!("only the first {first} {unit} were evaluated: {scored} of {all} tokens");
        mark(MarkKind::Partial, text);
    }
    if let Some(trained) = trained.filter(|&trained| trained < u64::from(corpus.context_length)) {
        let used = corpus.context_length;
        let text = format!(
            "contexts of {used} tokens, where the model was trained with {trained}: perplexity past them is extrapolation"
        );
        mark(MarkKind::LongerThanTrained, text);
    }
    if corpus.other_windows {
        let (used, prepared) = (corpus.context_length, manifest.packing.row_length);
        let text =
            format!("windows of {used} tokens, where the dataset was prepared with windows of {prepared}");
        mark(MarkKind::OtherWindows, text);
    }
    marks
}
