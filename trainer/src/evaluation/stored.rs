//! Stored targets: `xlstm-eval accuracy` (how many of them come out first) and `xlstm-eval squared-error` (how far off the
//! numbers are), over a split of examples.
//!
//! One path for both: rows from shards, or made again where the split keeps none; the same losses as training and
//! validation; sums by length, the positions of an example that count, and by the position at which a target stands. What
//! the sums mean is in `accuracy.rs` and `squared_error.rs`. Figures are pooled over
//! targets, so an example with many of them weighs more than one with few; intervals are over examples, whose targets are
//! not independent of each other.

use std::path::Path;
use std::time::Instant;

use xlstm_manifests::Manifest;
use xlstm_manifests::manifest::Layout;
use xlstm_manifests::order::StepRow;
use xlstm_manifests::rows::{self, Rows};
use xlstm_pipeline::tasks::streamed::{self, StreamedRows};

use super::evaluate::{Outcome, SplitOptions, default_folder, finished, plan_of, together};
use super::open::{OpenedModel, check_dataset, find_split, link_dataset, open_model};
use super::results::{
    Effort, Interval, Mark, MarkKind, Protocol, REPORT_FORMAT, REPORT_VERSION, Report, Results, Setting,
};
use super::statistics::ratio_of_sums;
use super::{accuracy, output, squared_error};
use crate::communicator::{Communicator, flags};
use crate::device::DeviceInfo;
use crate::environment;
use crate::error::{Result, TrainError};
use crate::loader::{BatchShape, MicroBatch};
use crate::metrics::score_targets;
use crate::signals::Signals;

/// What is measured at stored targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredMeasure {
    /// Of tokens: how many come out first.
    Accuracy,
    /// Of numbers: the squared error.
    SquaredError,
}

impl StoredMeasure {
    /// The evaluation's name in folders and plans.
    fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::SquaredError => "squared-error",
        }
    }

    fn check_layout(self, path: &Path, layout: Layout) -> Result<()> {
        let (expected, hint) = match (self, layout) {
            (Self::Accuracy, Layout::Examples) | (Self::SquaredError, Layout::Vectors) => return Ok(()),
            (Self::Accuracy, Layout::Vectors) => (
                format!("stored targets that are tokens: layout `{}`", Layout::Examples),
                "numbers are not right or wrong: measure them with `xlstm-eval squared-error`",
            ),
            (Self::Accuracy, Layout::Packed | Layout::Documents) => (
                format!("stored targets: layout `{}`", Layout::Examples),
                "score text with `xlstm-eval perplexity`; `xlstm-data prepare examples` makes a split of examples",
            ),
            (Self::SquaredError, _) => (
                format!("stored targets that are numbers: layout `{}`", Layout::Vectors),
                "score examples of tokens with `xlstm-eval accuracy`, and text with `xlstm-eval perplexity`",
            ),
        };
        let found = format!("layout `{layout}`, whose targets are {}", targets_of(layout));
        Err(TrainError::file(&Manifest::locate(path), expected, found, hint))
    }
}

fn targets_of(layout: Layout) -> &'static str {
    match layout {
        Layout::Packed | Layout::Documents => "the next tokens",
        Layout::Examples => "tokens",
        Layout::Vectors => "numbers",
    }
}

/// Sums over examples of one length.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) examples: f64,
    pub(super) targets: f64,
    /// Right targets, or squared errors.
    pub(super) value: f64,
    /// Of tokens: negative log-likelihood.
    pub(super) nll: f64,
    /// Sums of squares and products over examples, for the interval.
    value_squared: f64,
    value_targets: f64,
    targets_squared: f64,
    /// The value at each example's last target, and its square.
    pub(super) end: f64,
    pub(super) end_squared: f64,
}

/// Numbers of a [`Sums`].
const FIELDS: usize = 9;

impl Sums {
    /// Adds an example.
    pub(super) fn add(&mut self, targets: u64, value: f64, nll: f64, end: f64) {
        let targets = targets as f64;
        self.absorb(&Self {
            examples: 1.0,
            targets,
            value,
            nll,
            value_squared: value * value,
            value_targets: value * targets,
            targets_squared: targets * targets,
            end,
            end_squared: end * end,
        });
    }

    fn to_numbers(self) -> [f64; FIELDS] {
        [
            self.examples,
            self.targets,
            self.value,
            self.nll,
            self.value_squared,
            self.value_targets,
            self.targets_squared,
            self.end,
            self.end_squared,
        ]
    }

    fn of_numbers(numbers: &[f64; FIELDS]) -> Self {
        let &[examples, targets, value, nll, value_squared, value_targets, targets_squared, end, end_squared] =
            numbers;
        Self {
            examples,
            targets,
            value,
            nll,
            value_squared,
            value_targets,
            targets_squared,
            end,
            end_squared,
        }
    }

    pub(super) fn absorb(&mut self, other: &Self) {
        let sums: [f64; FIELDS] = std::array::from_fn(|at| self.to_numbers()[at] + other.to_numbers()[at]);
        *self = Self::of_numbers(&sums);
    }

    /// The value a target, with its interval over examples; `None` where no target was scored.
    pub(super) fn ratio(&self) -> Option<(f64, Option<Interval>)> {
        let squares = (self.value_squared, self.value_targets, self.targets_squared);
        ratio_of_sums(self.examples, self.value, self.targets, squares)
    }
}

/// What was counted of a split.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// By length.
    pub(super) lengths: Vec<Sums>,
    /// By the position of a target.
    pub(super) positions: Vec<Place>,
    /// Of numbers: sum of the targets and of their squares.
    pub(super) targets: [f64; 2],
}

/// Targets, values and negative log-likelihood at a position.
pub(super) type Place = [f64; 3];

/// Most lines of figures by length or position; more than these are put together in equal ranges.
const MAX_LINES: usize = 256;

/// Equal ranges of lengths or positions, each with its first number and its last.
pub(super) fn ranges<T>(all: &[T]) -> impl Iterator<Item = (u64, u64, &[T])> {
    let width = all.len().div_ceil(MAX_LINES).max(1);
    all.chunks(width).enumerate().map(move |(index, part)| {
        let first = (index * width) as u64;
        (first, first + part.len() as u64 - 1, part)
    })
}

/// All sums together.
pub(super) fn together_of<'a>(sums: impl IntoIterator<Item = &'a Sums>) -> Sums {
    let mut total = Sums::default();
    sums.into_iter().for_each(|sums| total.absorb(sums));
    total
}

/// The rows of a split whose every row was compared with the manifest: its files as an audit does, or made again.
fn checked_rows(path: &Path, communicator: &dyn Communicator) -> Result<Box<dyn Rows>> {
    if !streamed::is_streamed(path)? {
        together(communicator, || check_dataset(path))?;
        return Ok(rows::open(path)?);
    }
    let rows = StreamedRows::open(path)?;
    together(communicator, || Ok(rows.check()?))?;
    Ok(Box::new(rows))
}

/// Evaluates; every rank returns the report, the first one has written it.
///
/// # Errors
/// When the split holds no examples of the kind that is measured, anything does not fit (module [`open`](super::open)), a
/// figure is not a number, or writing fails.
pub fn evaluate_stored(
    measured: StoredMeasure,
    options: &SplitOptions,
    device: &DeviceInfo,
    communicator: &dyn Communicator,
    signals: &Signals,
) -> Result<Outcome> {
    let path = find_split(&options.manifest, "validation")?;
    let manifest = Manifest::load(&path)?;
    measured.check_layout(&path, manifest.layout)?;
    let mut opened = open_model(&options.model, options.step, options.precision, device)?;
    let dataset = link_dataset(&path, &manifest, &mut opened)?;
    let rows = checked_rows(&path, communicator)?;
    if rows.rows() == 0 {
        let hint = "there is nothing to evaluate: prepare a split with examples";
        return Err(TrainError::file(&path, "at least one example", "none", hint));
    }
    let setting = Setting {
        protocol: Protocol::StoredTargets,
        context_length: u64::from(manifest.packing.row_length),
        precision: opened.precision.name().into(),
        device: device.name.clone(),
        reset_at_document_boundaries: false,
        first: options.first,
        counts: None,
    };
    let plan = plan_of(measured.name(), &opened.link, Some(&dataset), &setting);
    let folder = options.out.clone().unwrap_or_else(|| default_folder(measured.name(), &opened, plan));
    if let Some(report) = finished(&folder, measured.name(), plan)? {
        return Ok(Outcome::Finished(Box::new(report), folder));
    }
    let begin = Instant::now();
    let Some(counted) = measure(options, &opened, rows.as_ref(), communicator, signals)? else {
        return Ok(Outcome::Stopped(signals.received().unwrap_or(15)));
    };
    let seconds = begin.elapsed().as_secs_f64();
    let results = match measured {
        StoredMeasure::Accuracy => {
            accuracy::results(&counted, accuracy::chance(&manifest)).map(Results::Accuracy)
        }
        StoredMeasure::SquaredError => squared_error::results(&counted).map(Results::SquaredError),
    };
    let results = results.ok_or_else(|| {
        let hint = "prepare examples of which at least one has a target that is not null";
        TrainError::file(&path, "at least one scored target", "none", hint)
    })?;
    let world = communicator.world_size();
    let examples = together_of(&counted.lengths).examples as u64;
    let positions = (examples * setting.context_length) as f64;
    let mut marks = opened.marks;
    if examples < rows.rows() {
        let text = format!("only the first {examples} of {} examples were evaluated", rows.rows());
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
        effort: Effort::new(positions, seconds * world as f64, world),
        marks,
        results,
    };
    together(communicator, || {
        fs_err::create_dir_all(&folder)?;
        output::write(&report, &folder)
    })?;
    Ok(Outcome::Finished(Box::new(report), folder))
}

/// Sums by length and position, over all ranks; `None` when a signal came in between.
fn measure(
    options: &SplitOptions,
    opened: &OpenedModel,
    dataset: &dyn Rows,
    communicator: &dyn Communicator,
    signals: &Signals,
) -> Result<Option<Counted>> {
    let row_length = dataset.manifest().packing.row_length as usize;
    let on_gpu = opened.model.placement().device.is_cuda();
    let batch_tokens = options.batch_tokens.unwrap_or(if on_gpu { 65536 } else { 8192 });
    let shape = BatchShape { rows: (batch_tokens / row_length).max(1), context: row_length, resets: false };
    let rows = options.first.unwrap_or(u64::MAX).min(dataset.rows());
    let (rank, world) = (communicator.rank(), communicator.world_size());
    let bound = |rank: u64| rank * rows / world;
    let own: Vec<StepRow> = (bound(rank)..bound(rank + 1)).map(|row| StepRow { epoch: 0, row }).collect();
    let mut batches = own.chunks(shape.rows);
    let mut counted = Counted {
        lengths: vec![Sums::default(); row_length + 1],
        positions: vec![Place::default(); row_length],
        targets: [0.0; 2],
    };
    for _ in 0..rows.div_ceil(world).div_ceil(shape.rows as u64) {
        let stop = if signals.received().is_some() { flags::STOP } else { 0 };
        if communicator.any_flags(stop)? & flags::STOP != 0 {
            return Ok(None);
        }
        let Some(rows) = batches.next() else { continue };
        count(opened, &MicroBatch::read(dataset, rows, shape)?, &mut counted)?;
    }
    let mut numbers: Vec<f64> = counted.lengths.iter().flat_map(|sums| sums.to_numbers()).collect();
    communicator.sum(&mut numbers)?;
    let mut places = counted.positions.concat();
    communicator.sum(&mut places)?;
    communicator.sum(&mut counted.targets)?;
    Ok(Some(Counted {
        lengths: numbers.as_chunks().0.iter().map(Sums::of_numbers).collect(),
        positions: places.as_chunks().0.to_vec(),
        targets: counted.targets,
    }))
}

/// Adds a batch.
fn count(opened: &OpenedModel, batch: &MicroBatch, into: &mut Counted) -> Result<()> {
    let model = &opened.model;
    let (inputs, targets, _) = batch.tensors(model.placement().device)?;
    // Of each target its value and its negative log-likelihood.
    let scored: Vec<(f64, f64)> = if batch.is_of_numbers() {
        let errors = model.sequence_losses(&inputs, &targets, None)?;
        let targets = batch.numbers.targets.iter().filter(|target| !target.is_nan());
        for target in targets.copied().map(f64::from) {
            into.targets[0] += target;
            into.targets[1] += target * target;
        }
        errors.into_iter().map(|error| (error, 0.0)).collect()
    } else {
        let scores = score_targets(model, &inputs, &targets, None)?;
        let right = scores.correct.iter().map(|&right| f64::from(u8::from(right)));
        right.zip(scores.losses).collect()
    };
    // A batch that was cut has shorter rows than the split; positions are the same.
    let (mut place_of, mut scored) = (batch.row_of_targets().peekable(), scored.into_iter());
    for (number, (row, &length)) in batch.rows.iter().zip(&batch.lengths).enumerate() {
        let (mut targets, mut value, mut nll, mut end) = (0, 0.0, 0.0, 0.0);
        while let Some((_, place)) = place_of.next_if(|(row, _)| *row == number) {
            let Some((one, loss)) = scored.next() else { break };
            targets += 1;
            value += one;
            nll += loss;
            end = one;
            if let Some([targets, value, nll]) = into.positions.get_mut(place) {
                *targets += 1.0;
                *value += one;
                *nll += loss;
            }
        }
        if !(nll + value).is_finite() {
            return Err(TrainError::Overflow { what: format!("example {}", row.row), value: nll + value });
        }
        if let Some(sums) = into.lengths.get_mut(usize::from(length)) {
            sums.add(targets, value, nll, end);
        }
    }
    Ok(())
}
