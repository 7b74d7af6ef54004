//! The chain from a figure back to source files, by digests alone.
//!
//! ```text
//! validation figure ─► parameters (SHA-256) ─► run (program, recipe, seed) ─► rows of the last step ─► documents
//!                                                   └► dataset roots ─► source files (SHA-256, who published it)
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use xlstm_manifests::manifest::Input;
use xlstm_manifests::run_manifest::{CHECKPOINTS_NAME, DatasetRef, METRICS_NAME, RunManifest};
use xlstm_manifests::{Dataset, Manifest};

use crate::checkpoint;
use crate::error::{Result, TrainError};
use crate::evaluation::text::visible;
use crate::metrics::{Line, read_lines};

/// Rows, documents and files that are listed in full.
const SHOWN: usize = 4;

/// The chain of the newest validation figure whose checkpoint is there, or of the one after `step`.
///
/// # Errors
/// When the run has no such figure, or its files cannot be read.
pub fn chain(run: &Path, step: Option<u64>) -> Result<String> {
    let manifest = RunManifest::load(run)?.located(run, &[]);
    let figure = figure(run, step)?;
    let mut out = String::new();
    let mut line = |name: &str, text: &str| {
        let _ = writeln!(out, "{name:<14} {}", visible(text));
    };
    let loss = figure.loss.ok_or_else(|| TrainError::Internal("a figure without a loss".into()))?;
    line(
        "figure",
        &format!("validation loss {loss:.4}, perplexity {:.2}, after step {}", loss.exp(), figure.step),
    );
    if let Some(entropy) = figure.unigram_entropy {
        line("", &format!("entropy of single tokens {entropy:.4}: what context is worth shows below it"));
    }
    if let Some(validation) = &manifest.validation {
        let rows = figure.rows.unwrap_or(validation.rows);
        let (of, tokens) = (validation.rows, figure.tokens.unwrap_or(validation.tokens));
        line(
            "measured on",
            &format!("the first {rows} of {of} rows, {tokens} tokens, split {}", name(validation)),
        );
        line("", &format!("root {}", validation.root));
        for text in sources(validation, &(0..rows).collect::<Vec<_>>())? {
            line("", &text);
        }
    }
    for text in parameters(run, figure.step)? {
        line("parameters", &text);
    }
    let session = manifest.session_of_step(figure.step.max(1));
    let program = session.map_or(&manifest.program, |session| &session.program);
    let binary = program.binary_sha256.map_or_else(|| "unknown".to_owned(), |digest| digest.to_string());
    line(
        "made by",
        &format!(
            "{} {}, commit {}, libtorch {}",
            program.name, program.version, program.commit, program.libtorch
        ),
    );
    line("", &format!("binary SHA-256 {binary}"));
    if let Some(session) = session {
        line("on", &format!("{}, {} rank(s), {}", session.device, session.world, session.precision));
    }
    if manifest.validation.as_ref().is_some_and(|data| data.root == manifest.train.root) {
        line(
            "caution",
            "the validation split is the training split: the figure says nothing about other text",
        );
    }
    line("recipe", &format!("{}, SHA-256 {}", manifest.recipe.name, manifest.recipe.sha256));
    line("trained on", &format!("{} tokens, split {}", manifest.train.tokens, name(&manifest.train)));
    line("", &format!("root {}", manifest.train.root));
    if figure.step > 0 {
        let rows: Vec<u64> = manifest.rows_of_step(figure.step, None)?.iter().map(|row| row.row).collect();
        let (order, seed) = (&manifest.order.algorithm, manifest.order.seed);
        line("step", &format!("{}: rows {} (order {order}, seed {seed})", figure.step, short(&rows)));
        for text in sources(&manifest.train, &rows)? {
            line("", &text);
        }
    }
    Ok(out)
}

fn figure(run: &Path, step: Option<u64>) -> Result<Line> {
    let path = run.join(METRICS_NAME);
    let lines = read_lines(&path)?;
    let mut measured = lines.into_iter().filter(Line::is_validation).collect::<Vec<_>>();
    measured.retain(|line| step.is_none_or(|step| line.step == step));
    // The newest one that was saved, or, where none was, the newest.
    let saved = checkpoint::list(&run.join(CHECKPOINTS_NAME))?;
    let best = measured.iter().rposition(|line| saved.contains(&line.step)).or(measured.len().checked_sub(1));
    best.map(|index| measured.swap_remove(index)).ok_or_else(|| {
        let expected =
            step.map_or_else(|| "a validation figure".to_owned(), |step| format!("one after step {step}"));
        TrainError::file(&path, expected, "none", "train with --validation, or name another step")
    })
}

fn name(data: &DatasetRef) -> String {
    format!("`{}` of {} ({})", data.split, data.profile, data.path.display())
}

fn short(rows: &[u64]) -> String {
    let shown: Vec<String> = rows.iter().take(SHOWN).map(u64::to_string).collect();
    let more = if rows.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn parameters(run: &Path, step: u64) -> Result<Vec<String>> {
    let checkpoints = run.join(CHECKPOINTS_NAME);
    if !checkpoint::list(&checkpoints)?.contains(&step) {
        return Ok(vec!["not kept: the run can be repeated from its manifest".to_owned()]);
    }
    let folder = checkpoint::folder_of(&checkpoints, step);
    let state = checkpoint::open(&folder)?;
    let digest =
        state.files.get(checkpoint::MODEL_NAME).map(|file| file.sha256.to_string()).unwrap_or_default();
    Ok(vec![format!("{}, SHA-256 {digest}", folder.join(checkpoint::MODEL_NAME).display())])
}

/// The first documents of these rows and the files that they come from.
fn sources(data: &DatasetRef, rows: &[u64]) -> Result<Vec<String>> {
    if !Manifest::locate(&data.path).is_file() {
        return Ok(vec!["(the dataset is no longer at this path: its root still names it)".to_owned()]);
    }
    let dataset = Dataset::open(&data.path)?;
    data.check(dataset.manifest(), &data.path)?;
    let inputs = &dataset.manifest().inputs;
    let (mut documents, mut files, mut count) = (Vec::new(), BTreeSet::new(), 0);
    for &row in rows.iter().take(SHOWN) {
        for span in dataset.documents_in_row(row)? {
            count += 1;
            files.insert(span.input as usize);
            if documents.len() < SHOWN {
                let path =
                    inputs.get(span.input as usize).map(|input| input.path.to_string()).unwrap_or_default();
                let name = span.id.as_deref().map(|id| format!(" `{id}`")).unwrap_or_default();
                documents.push(format!(
                    "  row {row}: {path} record {}{name}, text SHA-256 {}",
                    span.record, span.digest
                ));
            }
        }
    }
    if count > documents.len() {
        documents.push(format!("  … {count} documents in the first {} rows", rows.len().min(SHOWN)));
    }
    let files = files.into_iter().filter_map(|index| inputs.get(index)).take(SHOWN).map(describe);
    Ok(documents.into_iter().chain(files).collect())
}

fn describe(input: &Input) -> String {
    let published = input.declared.as_ref().map(|declared| {
        format!(", checked against {} {} published by {}", declared.algorithm, declared.digest, declared.by)
    });
    let (path, size, digest) = (&input.path, input.size, input.sha256);
    format!("  file {path}: {size} bytes, SHA-256 {digest}{}", published.unwrap_or_default())
}
