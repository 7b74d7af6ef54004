//! The links of an evaluation report: its own figures, checkpoint, run, evaluated split.

use std::path::Path;

use xlstm_manifests::digest::digest_file;
use xlstm_manifests::run_manifest::RunManifest;
use xlstm_manifests::{Manifest, Sha256Digest, canonical};

use super::figures::close;
use super::{Chain, Depth, differ};
use crate::checkpoint::MODEL_NAME;
use crate::error::Result;
use crate::evaluation::results::{
    AverageKind, CountsLink, MAX_PERPLEXITY, ModelLink, Paloma, Perplexity, Position, Report, Results,
    RunLink, ScaledAccuracy, SquaredError, Statistics,
};
use crate::provenance::{DatasetLink, EvaluationLinks, FileLink, ParentRun, RunLinks};

/// Follows all links of the report that `path` names.
///
/// # Errors
/// When the report cannot be read. What does not hold is a failed link.
pub fn verify_report(path: &Path, depth: &Depth) -> Result<Chain> {
    let path = Report::locate(path);
    let report = Report::load(&path)?;
    let links = EvaluationLinks::of(&report, &path, &depth.data);
    let mut chain = Chain::default();
    let wrong = contradictions(&report);
    chain.list("figures", &path, "sums, means, perplexities and intervals agree with each other", &wrong);
    chain.model(&report.model, &links);
    if let Some(counts) = &report.setting.counts {
        chain.counts(counts)?;
    }
    let data = links.dataset.as_ref();
    let is_of_the_run = match &links.run {
        Some(run) => chain.run(run, data, depth)?,
        None => false,
    };
    if let Some(data) = data.filter(|_| !is_of_the_run) {
        chain.dataset(data, depth);
    }
    Ok(chain)
}

impl Chain {
    /// The counts that figures by frequency are of.
    fn counts(&mut self, counts: &CountsLink) -> Result<()> {
        let name = "counts by token";
        if !counts.path.is_file() {
            self.not_at_hand(name, &counts.path, "the file is not there");
            return Ok(());
        }
        let (_, found) = digest_file(&counts.path)?;
        let mut wrong = Vec::new();
        differ(&mut wrong, "SHA-256", &counts.sha256, &found);
        self.list(name, &counts.path, "the file that the report names", &wrong);
        Ok(())
    }

    fn model(&mut self, model: &ModelLink, links: &EvaluationLinks) {
        for file in &links.files {
            self.file(&format!("evaluated checkpoint: {}", file.name), file);
        }
        let Some(state) = &links.state else { return };
        let mut wrong = Vec::new();
        differ(&mut wrong, "step", &shown(model.step), &shown(Some(state.step)));
        differ(&mut wrong, "tokens", &shown(model.tokens), &shown(Some(state.tokens)));
        if let (Some(ours), Some(theirs)) = (model.files.get(MODEL_NAME), state.files.get(MODEL_NAME)) {
            differ(&mut wrong, "SHA-256 of the parameters", &ours.sha256, &theirs.sha256);
        }
        self.list(
            "evaluated checkpoint: state",
            &links.folder,
            "step, tokens and digest as the report has them",
            &wrong,
        );
    }

    /// Follows the run; whether the evaluated split is one of the run's own, which are followed with it.
    fn run(&mut self, parent: &ParentRun, data: Option<&DatasetLink>, depth: &Depth) -> Result<bool> {
        let recorded = &parent.recorded;
        let run = match &parent.found {
            None => {
                let digest = recorded.manifest_sha256;
                self.not_at_hand("run", &recorded.path, format!("no run here; its SHA-256 was {digest}"));
                parent.train.iter().for_each(|train| self.dataset(train, depth));
                return Ok(false);
            }
            Some(Err(error)) => {
                self.failed("run", &recorded.path, error.to_string());
                return Ok(false);
            }
            Some(Ok(run)) => run,
        };
        self.same_run(recorded, run)?;
        // The same root is the same dataset, wherever it lies; but where the report's own folder is at hand and another one, its
        // manifest may name the source files otherwise, and is followed for itself.
        let is_own = |split: &&DatasetLink| {
            data.is_some_and(|data| {
                data.recorded.root == split.recorded.root
                    && (data.manifest().is_none() || is_same_folder(&data.folder, &split.folder))
            })
        };
        let own =
            run.validation.iter().chain(&run.train).find(is_own).filter(|split| split.manifest().is_some());
        let checked = data.and_then(|data| data.recorded.manifest_sha256).zip(own);
        if let Some((sha256, own)) = checked {
            let path = Manifest::locate(&own.folder);
            let link = FileLink { name: "manifest.json".into(), path, sha256, size: None };
            self.file("evaluated split: manifest", &link);
        }
        self.run_links(run, depth)?;
        Ok(checked.is_some())
    }

    /// Compares a run with what a report recorded of it.
    fn same_run(&mut self, recorded: &RunLink, links: &RunLinks) -> Result<()> {
        let (path, run) = (links.manifest_file(), &links.manifest);
        let mut wrong = Vec::new();
        let found = Sha256Digest::of(&fs_err::read(&path)?);
        let sessions = sessions_with_digest(run, recorded.manifest_sha256);
        if found != recorded.manifest_sha256 && sessions.is_none() {
            wrong.push(format!("expected SHA-256 {}, found {found}", recorded.manifest_sha256));
        }
        differ(&mut wrong, "recipe", &recorded.recipe.name, &run.recipe.name);
        differ(&mut wrong, "recipe's SHA-256", &recorded.recipe.sha256, &run.recipe.sha256);
        differ(&mut wrong, "training root", &recorded.train.root, &run.train.root);
        differ(&mut wrong, "training tokens", &recorded.train.tokens, &run.train.tokens);
        let later = sessions.map_or(0, |sessions| run.sessions.len() - sessions);
        let detail = match later {
            0 => format!("SHA-256 {found}"),
            later => format!("SHA-256 {} but for {later} later session(s)", recorded.manifest_sha256),
        };
        self.list("run", &path, detail, &wrong);
        Ok(())
    }
}

fn is_same_folder(one: &Path, other: &Path) -> bool {
    one == other
        || fs_err::canonicalize(one).ok().is_some_and(|one| fs_err::canonicalize(other).ok() == Some(one))
}

fn shown(number: Option<u64>) -> String {
    number.map_or_else(|| "none".to_owned(), |number| number.to_string())
}

/// How many of the first sessions give a manifest of this digest: a resume appends to it and changes nothing else.
fn sessions_with_digest(run: &RunManifest, digest: Sha256Digest) -> Option<usize> {
    (1..=run.sessions.len()).rev().find(|&count| {
        let earlier = RunManifest { sessions: run.sessions[..count].to_vec(), ..run.clone() };
        canonical::to_canonical_file(&earlier).is_ok_and(|bytes| Sha256Digest::of(&bytes) == digest)
    })
}

/// What in a report contradicts itself.
struct Contradictions(Vec<String>);

impl Contradictions {
    fn same(&mut self, what: &str, expected: f64, found: f64) {
        if !close(expected, found) {
            self.0.push(format!("{what}: expected {expected}, found {found}"));
        }
    }

    /// Buckets of frequency hold all targets once.
    fn frequencies(&mut self, results: &Perplexity) {
        if results.frequencies.is_empty() {
            return;
        }
        for one in results.frequencies.iter().filter(|one| one.tokens > 0) {
            let name = format!("perplexity of tokens that occur {} times", one.name());
            let mean = self.mean(&name, one.nll, one.tokens);
            self.same(&name, capped(mean), one.perplexity.unwrap_or(f64::NAN));
        }
        let nll = results.frequencies.iter().map(|one| one.nll).sum();
        self.same("nll over all frequencies", nll, results.total.nll);
        let tokens: u64 = results.frequencies.iter().map(|one| one.tokens).sum();
        self.same("tokens over all frequencies", tokens as f64, results.total.tokens as f64);
    }

    /// Sums over lengths and positions are the total's, and means follow from sums.
    fn squared_error(&mut self, results: &SquaredError) {
        for (name, figures) in std::iter::once(("all".to_owned(), &results.total))
            .chain(results.lengths.iter().map(|length| (length.name(), &length.figures)))
        {
            let name = format!("squared error of {name}");
            let mean = self.mean(&name, figures.squared_error, figures.targets);
            self.same(&name, mean, figures.mean_squared_error);
        }
        for place in &results.positions {
            let name = format!("squared error at position {}", place.name());
            let mean = self.mean(&name, place.squared_error, place.targets);
            self.same(&name, mean, place.mean_squared_error);
        }
        let end = &results.at_end;
        let mean = self.mean("squared error at the last target", end.squared_error, end.examples);
        self.same("squared error at the last target", mean, end.mean_squared_error);
        let lengths = results.lengths.iter().map(|length| length.figures.squared_error).sum();
        self.same("squared error over all lengths", lengths, results.total.squared_error);
        let positions = results.positions.iter().map(|place| place.squared_error).sum();
        self.same("squared error over all positions", positions, results.total.squared_error);
    }

    /// `sum / tokens`; a figure over no token is a contradiction in itself.
    fn mean(&mut self, name: &str, sum: f64, tokens: u64) -> f64 {
        if tokens == 0 {
            self.0.push(format!("{name}: expected a figure over at least one token, found none"));
        }
        sum / tokens as f64
    }

    fn statistics(&mut self, name: &str, one: &Statistics, whole: bool) {
        let mean = self.mean(name, one.nll, one.tokens);
        self.same(&format!("{name}: loss"), mean, one.loss);
        self.same(&format!("{name}: perplexity"), capped(one.loss), one.perplexity);
        for (what, from, to, value, map) in [
            (
                "perplexity_interval",
                one.loss_interval,
                one.perplexity_interval,
                one.loss,
                capped as fn(f64) -> f64,
            ),
            (
                "bits_per_byte_interval",
                one.bits_per_byte_interval,
                one.bits_per_byte_interval,
                one.bits_per_byte.unwrap_or(0.0),
                |v| v,
            ),
        ] {
            if let (Some(from), Some(to)) = (from, to) {
                self.same(&format!("{name}: {what}.low"), map(from.low), to.low);
                self.same(&format!("{name}: {what}.high"), map(from.high), to.high);
                // An interval of a ratio lies around it.
                self.same(
                    &format!("{name}: middle of the interval of {what}"),
                    value,
                    (from.low + from.high) / 2.0,
                );
            }
        }
        if let Some(bits) = one.bits_per_byte.filter(|_| whole) {
            self.same(
                &format!("{name}: bits_per_byte"),
                one.nll / (one.bytes as f64 * std::f64::consts::LN_2),
                bits,
            );
        }
    }

    fn parts<'a>(
        &mut self,
        name: &str,
        total: &Statistics,
        parts: impl Iterator<Item = &'a Statistics> + Clone,
    ) {
        let nll: f64 = parts.clone().map(|part| part.nll).sum();
        self.same(&format!("{name}: nll, the sum over its parts,"), nll, total.nll);
        for (what, count) in [
            ("tokens", (|one| one.tokens) as fn(&Statistics) -> u64),
            ("documents", |one| one.documents),
            ("bytes", |one| one.bytes),
        ] {
            let sum: u64 = parts.clone().map(count).sum();
            differ(&mut self.0, &format!("{name}: {what}, the sum over its parts,"), &sum, &count(total));
        }
    }

    fn positions(&mut self, positions: &[Position]) {
        for position in positions {
            let name = format!("perplexity at {} to {}", position.first, position.last);
            let mean = self.mean(&name, position.nll, position.tokens);
            self.same(&name, capped(mean), position.perplexity);
        }
    }

    fn paloma(&mut self, results: &Paloma, whole: bool) {
        let there =
            || results.sources.iter().filter_map(|source| Some((source, source.statistics.as_ref()?)));
        for (source, statistics) in there() {
            self.statistics(&source.source, statistics, whole);
            for domain in &source.domains {
                self.statistics(&format!("{}/{}", source.source, domain.name), &domain.statistics, whole);
            }
            self.parts(&source.source, statistics, source.domains.iter().map(|domain| &domain.statistics));
            for file in &source.files {
                self.statistics(&format!("{}, file {}", source.source, file.name), &file.statistics, whole);
            }
            if !source.files.is_empty() {
                self.parts(&source.source, statistics, source.files.iter().map(|file| &file.statistics));
            }
            let mean = mean(source.domains.iter().map(|domain| domain.statistics.perplexity));
            self.same(
                &format!("{}: macro_perplexity", source.source),
                mean,
                source.macro_perplexity.unwrap_or(f64::NAN),
            );
        }
        self.statistics("total", &results.total, whole);
        self.parts("total", &results.total, there().map(|(_, statistics)| statistics));
        for average in &results.averages {
            let over = || there().filter(|(source, _)| average.over.contains(&source.source));
            let expected = match average.kind {
                AverageKind::PaperTable4 | AverageKind::MeanOfSources => {
                    mean(over().map(|(_, statistics)| statistics.perplexity))
                }
                AverageKind::MeanOfDomains => mean(over().flat_map(|(source, _)| {
                    source.domains.iter().map(|domain| domain.statistics.perplexity)
                })),
                AverageKind::Micro | AverageKind::MicroWithoutFringeAndCode => {
                    let nll: f64 = over().map(|(_, statistics)| statistics.nll).sum();
                    let tokens: u64 = over().map(|(_, statistics)| statistics.tokens).sum();
                    if tokens == 0 { f64::NAN } else { capped(nll / tokens as f64) }
                }
            };
            self.same(&average.name, expected, average.perplexity.unwrap_or(f64::NAN));
        }
    }
}

fn capped(loss: f64) -> f64 {
    loss.exp().min(MAX_PERPLEXITY)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

fn contradictions(report: &Report) -> Vec<String> {
    let mut wrong = Contradictions(Vec::new());
    let whole = report.setting.first.is_none();
    match &report.results {
        Results::Perplexity(results) => {
            wrong.statistics("total", &results.total, whole);
            for set in &results.sets {
                wrong.statistics(&set.name, &set.statistics, whole);
            }
            wrong.positions(&results.positions);
            wrong.frequencies(results);
        }
        Results::Paloma(results) => {
            wrong.paloma(results, whole);
            wrong.positions(&results.positions);
        }
        Results::Extrapolation(results) => {
            for length in &results.lengths {
                let name = format!("perplexity at context {}", length.length);
                let mean = wrong.mean(&name, length.nll, length.tokens);
                wrong.same(&name, capped(mean), length.perplexity);
            }
            wrong.positions(&results.positions);
        }
        Results::Accuracy(results) => {
            for (name, figures) in std::iter::once(("all".to_owned(), &results.total))
                .chain(results.lengths.iter().map(|length| (length.name(), &length.figures)))
            {
                let share =
                    wrong.mean(&format!("accuracy of {name}"), figures.correct as f64, figures.targets);
                wrong.same(&format!("accuracy of {name}"), share, figures.accuracy);
                let loss = figures.nll / figures.targets as f64;
                wrong.same(&format!("loss of {name}"), loss, figures.loss);
            }
            let correct: u64 = results.lengths.iter().map(|length| length.figures.correct).sum();
            wrong.same("correct targets over all lengths", correct as f64, results.total.correct as f64);
            for place in &results.positions {
                let name = format!("accuracy at position {}", place.name());
                let share = wrong.mean(&name, place.correct as f64, place.targets);
                wrong.same(&name, share, place.accuracy);
            }
            if !results.positions.is_empty() {
                let correct: u64 = results.positions.iter().map(|place| place.correct).sum();
                wrong.same(
                    "correct targets over all positions",
                    correct as f64,
                    results.total.correct as f64,
                );
            }
            if let Some(scaled) = results.scaled {
                let again = ScaledAccuracy::of(results.total.accuracy, scaled.chance);
                wrong.same("scaled accuracy", again.total, scaled.total);
            }
        }
        Results::SquaredError(results) => wrong.squared_error(results),
        Results::Throughput(_) => {}
    }
    wrong.0
}
