//! `xlstm-eval accuracy`: how many stored targets come out first, over a split of examples.
//!
//! Accuracy is pooled over targets, so an example with many of them weighs more than one with few; the interval is over
//! examples, whose targets are not independent of each other. Figures are also given by length, the positions of an
//! example that count, and by the position at which a target stands: the paper's formal-language tasks ask whether a model
//! goes on beyond the lengths it was trained on. Of a generated task the accuracy is also given scaled, as in Figure 4.

use std::path::{Path, PathBuf};
use std::time::Instant;

use xlstm_manifests::manifest::Layout;
use xlstm_manifests::order::StepRow;
use xlstm_manifests::{Dataset, Manifest};
use xlstm_pipeline::tasks;

use super::evaluate::{Outcome, default_folder, finished, plan_of, together};
use super::open::{EvaluationPrecision, OpenedModel, check_dataset, find_split, link_dataset, open_model};
use super::output;
use super::results::{
    Accuracy, AccuracyFigures, AccuracyLengths, AccuracyPositions, Effort, Interval, Mark, MarkKind,
    Protocol, REPORT_FORMAT, REPORT_VERSION, Report, Results, ScaledAccuracy, Setting,
};
use super::statistics::ratio_of_sums;
use crate::communicator::{Communicator, flags};
use crate::device::DeviceInfo;
use crate::environment;
use crate::error::{Result, TrainError};
use crate::loader::{BatchShape, MicroBatch};
use crate::metrics::score_targets;
use crate::model::IGNORE_TARGET;
use crate::signals::Signals;

/// The evaluation's name in folders and plans.
const NAME: &str = "accuracy";

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct AccuracyOptions {
    /// A run, a checkpoint or a safetensors file.
    pub model: PathBuf,
    /// The checkpoint after this step; none: the newest.
    pub step: Option<u64>,
    /// The split.
    pub manifest: PathBuf,
    /// Only the first examples.
    pub first: Option<u64>,
    /// Type of the matrix products; none: as trained.
    pub precision: Option<EvaluationPrecision>,
    /// Positions in a batch; none: chosen for the device.
    pub batch_tokens: Option<usize>,
    /// Where to write; none: in the run's folder.
    pub out: Option<PathBuf>,
}

/// Sums over examples of one length.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    examples: f64,
    targets: f64,
    correct: f64,
    nll: f64,
    /// Sums of squares and products over examples, for the interval.
    correct_squared: f64,
    correct_targets: f64,
    targets_squared: f64,
}

/// Numbers of a [`Sums`].
const FIELDS: usize = 7;

impl Sums {
    fn add(&mut self, targets: u64, correct: u64, nll: f64) {
        let (targets, correct) = (targets as f64, correct as f64);
        self.absorb(&Self {
            examples: 1.0,
            targets,
            correct,
            nll,
            correct_squared: correct * correct,
            correct_targets: correct * targets,
            targets_squared: targets * targets,
        });
    }

    fn to_numbers(self) -> [f64; FIELDS] {
        [
            self.examples,
            self.targets,
            self.correct,
            self.nll,
            self.correct_squared,
            self.correct_targets,
            self.targets_squared,
        ]
    }

    fn of_numbers(numbers: &[f64; FIELDS]) -> Self {
        let &[examples, targets, correct, nll, correct_squared, correct_targets, targets_squared] = numbers;
        Self { examples, targets, correct, nll, correct_squared, correct_targets, targets_squared }
    }

    fn absorb(&mut self, other: &Self) {
        let sums: [f64; FIELDS] = std::array::from_fn(|at| self.to_numbers()[at] + other.to_numbers()[at]);
        *self = Self::of_numbers(&sums);
    }

    /// The figures; `None` where no target was scored.
    fn figures(&self) -> Option<AccuracyFigures> {
        let squares = (self.correct_squared, self.correct_targets, self.targets_squared);
        let (accuracy, interval) = ratio_of_sums(self.examples, self.correct, self.targets, squares)?;
        Some(AccuracyFigures {
            examples: self.examples as u64,
            targets: self.targets as u64,
            correct: self.correct as u64,
            accuracy,
            accuracy_interval: interval
                .map(|Interval { low, high }| Interval { low: low.max(0.0), high: high.min(1.0) }),
            nll: self.nll,
            loss: self.nll / self.targets,
        })
    }
}

/// Evaluates; every rank returns the report, the first one has written it.
///
/// # Errors
/// When the split holds no examples, anything does not fit (module [`open`](super::open)), a figure is not a number, or
/// writing fails.
pub fn evaluate_accuracy(
    options: &AccuracyOptions,
    device: &DeviceInfo,
    communicator: &dyn Communicator,
    signals: &Signals,
) -> Result<Outcome> {
    let path = find_split(&options.manifest, "validation")?;
    let manifest = Manifest::load(&path)?;
    check_layout(&path, manifest.layout)?;
    together(communicator, || check_dataset(&path))?;
    let mut opened = open_model(&options.model, options.step, options.precision, device)?;
    let dataset = link_dataset(&path, &manifest, &mut opened)?;
    let rows = Dataset::open_checked(&path)?;
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
    };
    let plan = plan_of(NAME, &opened.link, Some(&dataset), &setting);
    let folder = options.out.clone().unwrap_or_else(|| default_folder(NAME, &opened, plan));
    if let Some(report) = finished(&folder, NAME, plan)? {
        return Ok(Outcome::Finished(Box::new(report), folder));
    }
    let begin = Instant::now();
    let Some(counted) = measure(options, &opened, &rows, communicator, signals)? else {
        return Ok(Outcome::Stopped(signals.received().unwrap_or(15)));
    };
    let seconds = begin.elapsed().as_secs_f64();
    let results = results(&counted, chance(&manifest)).ok_or_else(|| {
        let hint = "prepare examples of which at least one has a target that is not null";
        TrainError::file(&path, "at least one scored target", "none", hint)
    })?;
    let world = communicator.world_size();
    let positions = (results.total.examples * setting.context_length) as f64;
    let mut marks = opened.marks;
    if results.total.examples < rows.rows() {
        let text =
            format!("only the first {} of {} examples were evaluated", results.total.examples, rows.rows());
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
        effort: Effort {
            seconds: seconds * world as f64,
            tokens_per_second: positions / seconds.max(f64::MIN_POSITIVE),
            world,
        },
        marks,
        results: Results::Accuracy(results),
    };
    together(communicator, || {
        fs_err::create_dir_all(&folder)?;
        output::write(&report, &folder)
    })?;
    Ok(Outcome::Finished(Box::new(report), folder))
}

/// The accuracy of a guess, of a split that this program can make again.
fn chance(manifest: &Manifest) -> Option<f64> {
    let task = tasks::from_spec(manifest.source.generator.as_ref()?).ok()?;
    let (right, of) = task.random_accuracy();
    Some(f64::from(right) / f64::from(of))
}

fn check_layout(path: &Path, layout: Layout) -> Result<()> {
    match layout {
        Layout::Examples => Ok(()),
        Layout::Packed | Layout::Documents => Err(TrainError::file(
            &Manifest::locate(path),
            format!("stored targets: layout `{}`", Layout::Examples),
            format!("layout `{layout}`, whose targets are the next tokens"),
            "score text with `xlstm-eval perplexity`; `xlstm-data prepare examples` makes a split of examples",
        )),
    }
}

/// What was counted of a split.
#[derive(Debug, Default)]
struct Counted {
    /// By length.
    lengths: Vec<Sums>,
    /// By the position of a target.
    positions: Vec<PositionSums>,
}

/// What was counted at a position, over rows.
#[derive(Debug, Clone, Copy, Default)]
struct PositionSums {
    targets: f64,
    correct: f64,
    /// Negative log-likelihood, nats.
    nll: f64,
}

impl PositionSums {
    fn add(&mut self, correct: bool, nll: f64) {
        self.targets += 1.0;
        self.correct += f64::from(u8::from(correct));
        self.nll += nll;
    }

    fn absorb(mut self, other: &Self) -> Self {
        self.targets += other.targets;
        self.correct += other.correct;
        self.nll += other.nll;
        self
    }

    /// As numbers that ranks add up.
    fn to_numbers(self) -> [f64; 3] {
        [self.targets, self.correct, self.nll]
    }

    fn of_numbers(&[targets, correct, nll]: &[f64; 3]) -> Self {
        Self { targets, correct, nll }
    }
}

/// Sums by length and position, over all ranks; `None` when a signal came in between.
fn measure(
    options: &AccuracyOptions,
    opened: &OpenedModel,
    dataset: &Dataset,
    communicator: &dyn Communicator,
    signals: &Signals,
) -> Result<Option<Counted>> {
    let row_length = dataset.manifest().packing.row_length as usize;
    let model = &opened.model;
    let device = model.placement().device;
    let batch_tokens = options.batch_tokens.unwrap_or(if device.is_cuda() { 65536 } else { 8192 });
    let shape = BatchShape { rows: (batch_tokens / row_length).max(1), context: row_length, resets: false };
    let rows = options.first.unwrap_or(u64::MAX).min(dataset.rows());
    let (rank, world) = (communicator.rank(), communicator.world_size());
    let bound = |rank: u64| rank * rows / world;
    let own: Vec<StepRow> = (bound(rank)..bound(rank + 1)).map(|row| StepRow { epoch: 0, row }).collect();
    let mut batches = own.chunks(shape.rows);
    let mut by_length = vec![Sums::default(); row_length + 1];
    let mut by_position = vec![PositionSums::default(); row_length];
    for _ in 0..rows.div_ceil(world).div_ceil(shape.rows as u64) {
        let stop = if signals.received().is_some() { flags::STOP } else { 0 };
        if communicator.any_flags(stop)? & flags::STOP != 0 {
            return Ok(None);
        }
        let Some(rows) = batches.next() else { continue };
        let batch = MicroBatch::read(dataset, rows, shape)?;
        let (inputs, targets, _) = batch.tensors(device)?;
        let scores = score_targets(model, &inputs, &targets, None)?;
        let mut scored = scores.losses.iter().zip(&scores.correct);
        for ((loss, right), place) in scored.clone().zip(places(&batch)) {
            if let Some(sums) = by_position.get_mut(place) {
                sums.add(*right, *loss);
            }
        }
        for row in rows {
            let Some(example) = dataset.example(row.row)? else { continue };
            let (mut targets, mut correct, mut nll) = (0, 0, 0.0);
            for (loss, right) in scored.by_ref().take(example.scored()) {
                targets += 1;
                correct += u64::from(*right);
                nll += loss;
            }
            if !nll.is_finite() {
                return Err(TrainError::Overflow { what: format!("example {}", row.row), value: nll });
            }
            if let Some(sums) = by_length.get_mut(usize::from(example.length)) {
                sums.add(targets, correct, nll);
            }
        }
    }
    let mut numbers: Vec<f64> = by_length.iter().flat_map(|sums| sums.to_numbers()).collect();
    communicator.sum(&mut numbers)?;
    let mut positions: Vec<f64> = by_position.iter().flat_map(|sums| sums.to_numbers()).collect();
    communicator.sum(&mut positions)?;
    Ok(Some(Counted {
        lengths: numbers.as_chunks().0.iter().map(Sums::of_numbers).collect(),
        positions: positions.as_chunks().0.iter().map(PositionSums::of_numbers).collect(),
    }))
}

/// Where the scored targets of a batch stand in their rows, row by row.
fn places(batch: &MicroBatch) -> impl Iterator<Item = usize> {
    let rows = batch.targets.chunks(batch.context.max(1));
    rows.flat_map(|row| (0..row.len()).filter(|&place| row[place] != IGNORE_TARGET))
}

/// Most lines of figures by length or position; more than these are put together in equal ranges.
const MAX_LINES: usize = 256;

fn results(counted: &Counted, chance: Option<f64>) -> Option<Accuracy> {
    let by_length = &counted.lengths;
    let mut total = Sums::default();
    by_length.iter().for_each(|sums| total.absorb(sums));
    let width = by_length.len().div_ceil(MAX_LINES).max(1);
    let lengths = by_length.chunks(width).enumerate().filter_map(|(index, sums)| {
        let mut together = Sums::default();
        sums.iter().for_each(|sums| together.absorb(sums));
        let first = (index * width) as u64;
        let last = first + sums.len() as u64 - 1;
        Some(AccuracyLengths { first, last, figures: together.figures()? })
    });
    let total = total.figures()?;
    Some(Accuracy {
        total,
        lengths: lengths.collect(),
        positions: positions(&counted.positions),
        scaled: chance.map(|chance| ScaledAccuracy::of(total.accuracy, chance)),
    })
}

fn positions(by_position: &[PositionSums]) -> Vec<AccuracyPositions> {
    let width = by_position.len().div_ceil(MAX_LINES).max(1);
    let ranges = by_position.chunks(width).enumerate().filter_map(|(index, sums)| {
        let PositionSums { targets, correct, nll } =
            sums.iter().fold(PositionSums::default(), PositionSums::absorb);
        let first = (index * width) as u64;
        (targets > 0.0).then(|| AccuracyPositions {
            first,
            last: first + sums.len() as u64 - 1,
            targets: targets as u64,
            correct: correct as u64,
            accuracy: correct / targets,
            nll,
        })
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_weigh_alike_and_the_interval_is_over_examples() {
        let mut by_length = vec![Sums::default(); 4];
        by_length[2].add(1, 1, 0.5);
        by_length[2].add(2, 0, 3.0);
        by_length[3].add(3, 3, 1.0);
        let positions =
            [[0.0; 3], [4.0, 1.0, 3.5], [2.0, 2.0, 1.0]].iter().map(PositionSums::of_numbers).collect();
        let counted = Counted { lengths: by_length, positions };
        let found = results(&counted, Some(0.5)).unwrap();
        let scaled = found.scaled.unwrap();
        assert!((scaled.total - 1.0 / 3.0).abs() < 1e-15 && scaled.chance == 0.5, "{scaled:?}");
        let places: Vec<_> = found.positions.iter().map(|p| (p.first, p.targets, p.correct)).collect();
        assert_eq!(places, [(1, 4, 1), (2, 2, 2)]);
        let total = found.total;
        assert_eq!((total.examples, total.targets, total.correct), (3, 6, 4));
        assert!((total.accuracy - 4.0 / 6.0).abs() < 1e-15 && (total.loss - 0.75).abs() < 1e-15);
        // An interval takes five examples. Of six: R = 1/2; squares of deviations 6/4; t of 5 degrees of freedom 2.570582.
        assert!(total.accuracy_interval.is_none());
        let mut six = vec![Sums::default(); 2];
        (0..6).for_each(|index| six[1].add(1, index % 2, 1.0));
        let six = Counted { lengths: six, ..Counted::default() };
        let interval = results(&six, None).unwrap().total.accuracy_interval.unwrap();
        let half = 2.570_582 * (6.0 / 5.0 * 1.5 / 36.0_f64).sqrt();
        assert!((interval.high - (0.5 + half).min(1.0)).abs() < 1e-3, "{interval:?}");
        let lengths: Vec<_> = found.lengths.iter().map(|l| (l.first, l.last, l.figures.correct)).collect();
        assert_eq!(lengths, [(2, 2, 1), (3, 3, 3)]);
        let nothing = Counted { lengths: vec![Sums::default()], ..Counted::default() };
        assert!(results(&nothing, None).is_none(), "no figure stands on nothing");
    }
}
