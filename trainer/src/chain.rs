//! The chain from a figure back to source files, by digests alone, as text.
//!
//! ```text
//! validation figure ─► parameters (SHA-256) ─► run (program, recipe, seed) ─► rows of the last step ─► documents
//!                                                   └► dataset roots ─► source files (SHA-256, who published it)
//! ```
//! [`crate::provenance`] walks; this prints.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use xlstm_manifests::order::StepRow;
use xlstm_manifests::printable;

use crate::error::{Result, TrainError};
use crate::metrics::Line;
use crate::provenance::{
    self, DatasetLink, DocumentLink, Found, InitialLink, RowLink, RunLinks, SourceLink, rows_of_step,
};

/// Rows, documents and files that are listed in full.
const SHOWN: usize = 4;

/// The chain of the newest validation figure whose checkpoint is there, or of the one after `step`. Datasets are also
/// looked for below the folders `data`.
///
/// # Errors
/// When the run has no such figure, or its files cannot be read.
pub fn chain(run: &Path, step: Option<u64>, data: &[PathBuf]) -> Result<String> {
    let run = RunLinks::read(run, data)?;
    let figure = run.figure(step).ok_or_else(|| no_figure(&run, step))?;
    let mut out = Text(String::new());
    out.figure(figure)?;
    if let Some(validation) = &run.validation {
        out.measured(validation, figure)?;
    }
    out.parameters(&run, figure.step)?;
    out.made_by(&run, figure.step);
    if run.validated_on_training_data() {
        out.line(
            "caution",
            "the validation split is the training split: the figure says nothing about other text",
        );
    }
    let recipe = &run.manifest.recipe;
    out.line("recipe", &format!("{}, SHA-256 {}", recipe.name, recipe.sha256));
    out.trained_on(&run);
    if let Some(initial) = &run.initial {
        out.initial(initial);
    }
    if figure.step > 0 {
        let rows = run.manifest.rows_of_step(figure.step, None)?;
        let (order, seed) = (&run.manifest.order.algorithm, run.manifest.order.seed);
        out.line("step", &format!("{}: rows {} (order {order}, seed {seed})", figure.step, short(&rows)));
        let first = &rows[..rows.len().min(SHOWN)];
        if let Some(links) = rows_of_step(&run.manifest.order, &run.train, first)? {
            out.documents(&run.train, &links);
        }
    }
    Ok(out.0)
}

fn no_figure(run: &RunLinks, step: Option<u64>) -> TrainError {
    let expected =
        step.map_or_else(|| "a validation figure".to_owned(), |step| format!("one after step {step}"));
    let hint = "train with --validation, or name another step";
    TrainError::file(&run.metrics_file(), expected, "none", hint)
}

fn name(data: &DatasetLink) -> String {
    let recorded = &data.recorded;
    format!("`{}` of {} ({})", recorded.split, recorded.profile, data.folder.display())
}

fn short(rows: &[StepRow]) -> String {
    let shown: Vec<String> = rows.iter().take(SHOWN).map(|row| row.row.to_string()).collect();
    let more = if rows.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// The text so far: names in a column on the left.
struct Text(String);

impl Text {
    fn line(&mut self, name: &str, text: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{name:<14} {}", printable::text(text));
    }

    fn figure(&mut self, figure: &Line) -> Result<()> {
        let loss = figure.loss.ok_or_else(|| TrainError::Internal("a figure without a loss".into()))?;
        let text = match figure.target_variance {
            Some(_) => format!("validation mean squared error {loss:.4e}, after step {}", figure.step),
            None => {
                format!("validation loss {loss:.4}, perplexity {:.2}, after step {}", loss.exp(), figure.step)
            }
        };
        self.line("figure", &text);
        if let Some(entropy) = figure.unigram_entropy {
            let text = format!("entropy of single tokens {entropy:.4}: what context is worth shows below it");
            self.line("", &text);
        }
        if let Some(variance) = figure.target_variance {
            let text =
                format!("variance of the targets {variance:.4e}: what inputs are worth shows below it");
            self.line("", &text);
        }
        Ok(())
    }

    /// The validation split, and the first documents that the figure was measured on.
    fn measured(&mut self, data: &DatasetLink, figure: &Line) -> Result<()> {
        let recorded = &data.recorded;
        // Older runs recorded neither: then the whole split was measured.
        let of = figure.rows_of_split.or(recorded.rows).unwrap_or_default();
        let (rows, tokens) = (figure.rows.unwrap_or(of), figure.tokens.unwrap_or(recorded.tokens));
        let text = format!("the first {rows} of {of} rows, {tokens} tokens, split {}", name(data));
        self.line("measured on", &text);
        self.dataset(data);
        let first: Vec<StepRow> = (0..rows.min(SHOWN as u64)).map(|row| StepRow { epoch: 0, row }).collect();
        if let Some(links) = provenance::rows(data, &first)? {
            self.documents(std::slice::from_ref(data), &links);
        }
        Ok(())
    }

    fn parameters(&mut self, run: &RunLinks, step: u64) -> Result<()> {
        let Some(checkpoint) = run.checkpoint(step) else {
            self.line("parameters", "not kept: the run can be repeated from its manifest");
            return Ok(());
        };
        let wanted = crate::checkpoint::MODEL_NAME;
        let file = checkpoint.files().into_iter().find(|file| file.name == wanted).ok_or_else(|| {
            let found = match &checkpoint.state {
                Ok(_) => "none".to_owned(),
                Err(error) => error.to_string(),
            };
            let hint = "the checkpoint was altered: name another step";
            TrainError::file(&checkpoint.folder, format!("the digest of {wanted}"), found, hint)
        })?;
        self.line("parameters", &format!("{}, SHA-256 {}", file.path.display(), file.sha256));
        Ok(())
    }

    fn made_by(&mut self, run: &RunLinks, step: u64) {
        let (program, session) = run.made_by(step);
        let text = format!(
            "{} {}, commit {}, libtorch {}",
            program.name, program.version, program.commit, program.libtorch
        );
        self.line("made by", &text);
        let binary = program.binary_sha256.map_or_else(|| "unknown".to_owned(), |digest| digest.to_string());
        self.line("", &format!("binary SHA-256 {binary}"));
        if let Some(session) = session {
            let text = format!("{}, {} rank(s), {}", session.device, session.world, session.precision);
            self.line("on", &text);
        }
    }

    /// The parameters that the run began with, and the data behind them, run by run.
    fn initial(&mut self, initial: &InitialLink) {
        for file in &initial.files {
            self.line("began with", &format!("{}, SHA-256 {}", file.path.display(), file.sha256));
        }
        let Some(made_by) = &initial.recorded.run else {
            return self.line("", "a file by itself: nothing says what its parameters were trained on");
        };
        let text = format!(
            "step {} of {}, recipe SHA-256 {}",
            made_by.step, made_by.recipe.name, made_by.recipe.sha256
        );
        self.line("", &text);
        match &initial.run {
            Some(Ok(run)) => {
                for data in &run.train {
                    let text = format!("trained on {} tokens, split {}", data.recorded.tokens, name(data));
                    self.line("", &text);
                    self.dataset(data);
                }
                if let Some(before) = &run.initial {
                    self.initial(before);
                }
            }
            Some(Err(error)) => self.line("", &format!("(that run cannot be read: {error})")),
            None => self.line(
                "",
                &format!("trained on a split of root {} (that run is not at hand)", made_by.train_root),
            ),
        }
    }

    /// The datasets that the run was trained on, each with its share.
    fn trained_on(&mut self, run: &RunLinks) {
        let order = &run.manifest.order;
        if order.is_mixed() {
            let text = format!("mixture of {} datasets, root {}", run.train.len(), order.root);
            self.line("trained on", &text);
        }
        for (data, mixed) in run.train.iter().zip(order.datasets()) {
            let text = format!("{} tokens, split {}", data.recorded.tokens, name(data));
            if order.is_mixed() {
                self.line("", &format!("{} of {} rows: {text}", mixed.weight, order.epoch()));
            } else {
                self.line("trained on", &text);
            }
            self.dataset(data);
        }
    }

    /// Its root, and what was compared and what was only claimed when it was prepared.
    fn dataset(&mut self, data: &DatasetLink) {
        self.line("", &format!("root {}", data.recorded.root));
        match data.origin() {
            Some(origin) => self.line("", &format!("from: {}", origin.sentence())),
            None => self.line("", &absent(data)),
        }
    }

    /// The first documents of these rows of these datasets, and the files that they come from.
    fn documents(&mut self, data: &[DatasetLink], links: &[RowLink]) {
        let all = || links.iter().flat_map(|row| row.documents.iter().map(move |document| (row, document)));
        for (row, document) in all().take(SHOWN) {
            let dataset = match data {
                [_] => String::new(),
                _ => format!(" of dataset {}", row.dataset + 1),
            };
            self.line("", &format!("  row {}{dataset}: {}", row.row, describe(document)));
        }
        let count = all().count();
        if count > SHOWN {
            self.line("", &format!("  … {count} documents in the first {} rows", links.len()));
        }
        for (number, data) in data.iter().enumerate() {
            let own = all().filter(|(row, _)| row.dataset == number);
            let files: BTreeSet<usize> = own.map(|(_, document)| document.input).collect();
            let Some(origin) = data.origin() else { continue };
            let sources = data.sources(&origin);
            for source in files.into_iter().filter_map(|index| sources.get(index)).take(SHOWN) {
                self.source(source);
            }
        }
    }

    fn source(&mut self, SourceLink { input, evidence }: &SourceLink<'_>) {
        let (path, size, digest) = (&input.path, input.size, input.sha256);
        self.line("", &format!("  file {path}: {size} bytes, SHA-256 {digest}, {}", evidence.sentence()));
    }
}

fn describe(document: &DocumentLink) -> String {
    let DocumentLink { source, record, id, license, from, sha256, .. } = document;
    let id = id.as_deref().map_or(String::new(), |id| format!(" `{id}`"));
    let license = license.as_deref().map_or(String::new(), |license| format!(", its own license {license}"));
    let from = from.as_deref().map_or(String::new(), |from| format!(", says it is from {from}"));
    format!("{source} record {record}{id}, text SHA-256 {sha256}{license}{from}")
}

fn absent(data: &DatasetLink) -> String {
    match &data.found {
        Found::Here(_) => String::new(),
        Found::Missing => "(the dataset is no longer at this path: its root still names it)".to_owned(),
        Found::Namesake(root) => {
            format!("(another dataset of this name is at this path: its root is {root})")
        }
        Found::Other(manifest) => {
            format!("(the dataset at this path was altered or replaced: its root is {})", manifest.root)
        }
        Found::Unreadable(error) => format!("(its manifest cannot be read: {error})"),
    }
}
