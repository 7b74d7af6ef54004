//! The chain from a run's figure to bytes on the Hub, link by link, each with the command that checks it.
//!
//! ```text
//! figure ─► checkpoint ─► run ─► rows of the last step ─► documents ─► source files ─► repository @ revision
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use xlstm_manifests::Manifest;
use xlstm_manifests::run_manifest::{CHECKPOINTS_NAME, DatasetRef, METRICS_NAME, RECIPE_NAME, RUN_NAME};
use xlstm_pipeline::report::{Cell, Page, Table, bytes, count};
use xlstm_pipeline::trace::TraceArgs;
use xlstm_pipeline::trace::step::{StepReport, trace_step};

use super::RunView;
use crate::checkpoint::{self, MODEL_NAME};

/// Rows of the step and source files that are listed.
const SHOWN: usize = 6;

/// The id of the chain of the run with this index.
pub(super) fn id(index: usize) -> String {
    format!("chain-{index}")
}

/// A path or text for a shell: quoted where it must be.
pub(super) fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn path(path: &Path) -> String {
    quote(&path.display().to_string())
}

/// A command that fails when the file is not the one with this digest.
pub(super) fn sum_command(digest: impl std::fmt::Display, file: &Path) -> String {
    format!("echo {} | sha256sum -c", quote(&format!("{digest}  {}", file.display())))
}

/// The section on provenance.
pub(super) fn write(page: &mut Page, runs: &[RunView]) {
    page.section("chain", "Where the figures come from");
    page.paragraph(
        "Each link names the next by a digest. The commands recompute it; run them where this page was made. All links \
         of a run at once:",
    );
    page.commands(
        &runs.iter().map(|run| format!("xlstm-eval verify {}", path(&run.folder))).collect::<Vec<_>>(),
    );
    for (index, run) in runs.iter().enumerate() {
        page.push(&format!("<h3 id=\"{}\">", id(index)));
        page.push(&xlstm_pipeline::report::escape(&format!("Chain of {}", run.name)));
        page.push("</h3>\n");
        write_run(page, run);
    }
}

fn write_run(page: &mut Page, run: &RunView) {
    let step = run.figure().map_or_else(|| run.last_step(), |line| line.step);
    figure(page, run);
    parameters(page, run, step);
    manifest(page, run, step);
    let data = &run.manifest.train;
    if step > 0 {
        rows(page, run, step);
    }
    dataset(page, "Training split", data, run.train.as_ref());
    if let Some(data) = &run.manifest.validation {
        dataset(page, "Validation split", data, run.validation.as_ref());
    }
}

fn link(page: &mut Page, name: &str, facts: &[(&str, Cell)], commands: &[String]) {
    page.push(&format!("<h4>{}</h4>\n", xlstm_pipeline::report::escape(name)));
    page.fact_cells(facts);
    if !commands.is_empty() {
        page.commands(commands);
    }
}

fn figure(page: &mut Page, run: &RunView) {
    let Some(line) = run.figure() else {
        return page
            .paragraph("This run has no validation figure; the chain begins at its newest checkpoint.");
    };
    let loss = line.loss.unwrap_or(f64::NAN); // a figure has one: `Line::is_validation`
    let mut facts = vec![
        (
            "Figure",
            Cell::text(&format!(
                "validation loss {loss:.4} nats a token, perplexity {:.2}, after step {}",
                loss.exp(),
                line.step
            )),
        ),
        ("Stands in", Cell::code(&run.folder.join(METRICS_NAME).display().to_string())),
    ];
    if let Some(data) = &run.manifest.validation {
        let rows = line.rows.unwrap_or(data.rows);
        let of = line.rows_of_split.unwrap_or(data.rows);
        facts.push((
            "Measured on",
            Cell::text(&format!("the first {rows} of {of} rows of the validation split")),
        ));
    }
    let commands = vec![format!("xlstm-train chain {} --step {}", path(&run.folder), line.step)];
    link(page, "1. Figure", &facts, &commands);
}

fn parameters(page: &mut Page, run: &RunView, step: u64) {
    let Some(state) = run.checkpoint(step) else {
        let text = format!(
            "The checkpoint after step {step} was not kept; the run can be repeated from its manifest."
        );
        return link(page, "2. Checkpoint", &[("Parameters", Cell::text(&text))], &[]);
    };
    let folder = checkpoint::folder_of(&run.folder.join(CHECKPOINTS_NAME), step);
    let mut facts = vec![
        ("Checkpoint", Cell::code(&folder.display().to_string())),
        ("After", Cell::text(&format!("step {step}, {} tokens", count(state.tokens)))),
        ("Training root", Cell::code(&state.train_root.to_string())),
    ];
    let mut commands = Vec::new();
    for (name, file) in &state.files {
        let what = if name == MODEL_NAME { "Parameters" } else { "Optimizer" };
        facts.push((
            what,
            Cell::code(&file.sha256.to_string()).note(&format!("SHA-256 of {name}, {}", bytes(file.size))),
        ));
        commands.push(sum_command(file.sha256, &folder.join(name)));
    }
    link(page, "2. Checkpoint", &facts, &commands);
}

fn manifest(page: &mut Page, run: &RunView, step: u64) {
    let manifest = &run.manifest;
    let session = manifest.session_of_step(step.max(1));
    let program = session.map_or(&manifest.program, |session| &session.program);
    let mut facts = vec![
        ("Run", Cell::code(&run.folder.display().to_string())),
        (
            "Made by",
            Cell::text(&format!(
                "{} {}, commit {}, libtorch {}",
                program.name, program.version, program.commit, program.libtorch
            )),
        ),
    ];
    if let Some(binary) = program.binary_sha256 {
        facts.push(("Binary", Cell::code(&binary.to_string()).note("SHA-256")));
    }
    if let Some(session) = session {
        let text = format!("{}, {} rank(s), {}", session.device, session.world, session.precision);
        facts.push(("On", Cell::text(&text)));
    }
    facts.push((
        "Recipe",
        Cell::code(&manifest.recipe.sha256.to_string())
            .note(&format!("SHA-256 of {}'s {RECIPE_NAME}", manifest.recipe.name)),
    ));
    let order = &manifest.order;
    facts.push((
        "Order",
        Cell::text(&format!(
            "{}, seed {}, {} rows a step; initial values from seed {}",
            order.algorithm, order.seed, order.rows_per_step, manifest.initialization_seed
        )),
    ));
    let mut commands = vec![sum_command(manifest.recipe.sha256, &run.folder.join(RECIPE_NAME))];
    if let Some(digest) = run.digests.get(RUN_NAME) {
        facts.push((
            "Run manifest",
            Cell::code(&digest.to_string()).note(&format!("SHA-256 of {RUN_NAME} as this page read it")),
        ));
        commands.push(sum_command(digest, &run.folder.join(RUN_NAME)));
    }
    link(page, "3. Run", &facts, &commands);
}

fn rows(page: &mut Page, run: &RunView, step: u64) {
    let command = format!("xlstm-data trace --run {} --step {step}", path(&run.folder));
    let args = TraceArgs {
        path: None,
        row: None,
        document: None,
        run: Some(run.folder.clone()),
        step: Some(step),
        rank: None,
        token: None,
        inputs: None,
        around: 0,
        json: false,
    };
    let traced: Option<StepReport> =
        run.train.as_ref().and_then(|_| trace_step(&args, &run.folder, step).ok());
    let Some(traced) = traced else {
        let rows = run.manifest.rows_of_step(step, None).unwrap_or_default();
        let shown: Vec<String> = rows.iter().take(SHOWN).map(|row| row.row.to_string()).collect();
        let more = if rows.len() > SHOWN { ", …" } else { "" };
        let text = format!("{}{more}; the documents cannot be named without the dataset", shown.join(", "));
        return link(page, "4. Rows and documents", &[("Rows of the step", Cell::text(&text))], &[command]);
    };
    let documents: usize = traced.rows.iter().map(|row| row.documents.len()).sum();
    let text = format!(
        "{} rows with {} documents went into step {step}, recomputed from root, seed and step",
        count(traced.rows.len() as u64),
        count(documents as u64)
    );
    link(page, "4. Rows and documents", &[("Step", Cell::text(&text))], &[command]);
    let columns = [
        "#Row",
        "#Pass",
        "Document",
        "Set",
        "Source file",
        "#Record",
        "Text, SHA-256",
        "Source file, SHA-256",
    ];
    let caption = if traced.rows.len() > SHOWN {
        format!("Documents of the first {SHOWN} rows of step {step}")
    } else {
        format!("Documents of step {step}")
    };
    let mut table = Table::new(&caption, &columns);
    for row in traced.rows.iter().take(SHOWN) {
        for document in row.documents.iter().take(SHOWN) {
            table.cells(vec![
                Cell::count(row.row),
                Cell::count(row.epoch),
                Cell::text(document.id.as_deref().unwrap_or("–")),
                Cell::text(document.set.as_deref().unwrap_or("–")),
                Cell::text(&document.source),
                Cell::count(document.record),
                Cell::code(&document.digest.to_string()),
                Cell::code(&document.source_sha256.to_string()),
            ]);
        }
    }
    page.table(&table);
}

fn dataset(page: &mut Page, name: &str, data: &DatasetRef, manifest: Option<&Manifest>) {
    let folder = &data.path;
    let mut facts = vec![
        ("Folder", Cell::code(&folder.display().to_string())),
        ("Root", Cell::code(&data.root.to_string())),
    ];
    let mut commands = vec![
        format!("(cd {} && sha256sum --quiet -c manifest-sha256.txt)", path(folder)),
        format!("xlstm-data audit {} --deep all", path(folder)),
    ];
    if let Some(manifest) = manifest {
        facts.push((
            "Tokens",
            Cell::code(&manifest.tokens_root.to_string()).note("Merkle root over the rows"),
        ));
        facts.push((
            "Documents",
            Cell::code(&manifest.documents_root.to_string()).note("Merkle root over the documents"),
        ));
        facts.push(("Shards", Cell::count(manifest.shards.len() as u64)));
        if let Some(repository) = &manifest.source.repository {
            let revision = manifest.source.resolved_revision.as_deref().unwrap_or("a revision not recorded");
            facts.push(("Repository", Cell::text(&format!("{repository} @ {revision}"))));
            commands.push(format!("xlstm-data audit {} --sources", path(folder)));
        }
    }
    link(page, &format!("5. {name}"), &facts, &commands);
    if let Some(manifest) = manifest {
        sources(page, name, manifest);
    }
}

fn sources(page: &mut Page, name: &str, manifest: &Manifest) {
    let mut by: BTreeMap<String, u64> = BTreeMap::new();
    for input in &manifest.inputs {
        let who = input.declared.as_ref().map_or("nobody", |declared| declared.by.as_str());
        *by.entry(who.to_owned()).or_default() += 1;
    }
    let by: Vec<String> = by.into_iter().map(|(who, files)| format!("{} by {who}", count(files))).collect();
    let caption =
        format!("Source files of the {}, digests published: {}", name.to_lowercase(), by.join(", "));
    let columns = ["File", "#Size", "SHA-256", "Published digest", "Licence", "#Documents"];
    let mut table = Table::new(&caption, &columns);
    for input in manifest.inputs.iter().take(SHOWN) {
        let declared = input.declared.as_ref();
        table.cells(vec![
            Cell::text(&input.path.to_string()),
            Cell::number(input.size as f64, &bytes(input.size)),
            Cell::code(&input.sha256.to_string()),
            Cell::of(declared, |declared| Cell::text(&format!("{} by {}", declared.algorithm, declared.by))),
            Cell::of(input.licence.as_deref(), Cell::text),
            Cell::count(input.counts.documents),
        ]);
    }
    page.table(&table);
    if manifest.inputs.len() > SHOWN {
        let more = count((manifest.inputs.len() - SHOWN) as u64);
        page.paragraph(&format!("… and {more} more files, all in the manifest."));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_safe_to_paste() {
        assert_eq!(quote("runs/demo"), "runs/demo");
        assert_eq!(quote("my runs/it's $HOME"), "'my runs/it'\\''s $HOME'");
        let command = sum_command("ab", Path::new("a b"));
        assert_eq!(command, "echo 'ab  a b' | sha256sum -c");
    }
}
