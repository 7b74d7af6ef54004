//! The chain from a run's figure to bytes on the Hub, link by link, each with the command that checks it.
//!
//! ```text
//! figure ─► checkpoint ─► run ─► rows of the last step ─► documents ─► source files ─► repository @ revision, or a claim
//! ```
//! [`crate::provenance`] walks; this shows.

use std::path::Path;

use xlstm_manifests::run_manifest::{CHECKPOINTS_NAME, METRICS_NAME, RECIPE_NAME, RUN_NAME};
use xlstm_pipeline::report::{Cell, Page, Table, bytes, count};

use super::RunView;
use super::data::origin_facts;
use crate::checkpoint::{self, MODEL_NAME};
use crate::error::TrainError;
use crate::provenance::{DatasetLink, Evidence, InitialLink, RowLink, SourceLink, made_by, rows_of_step};

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
    if step > 0 {
        documents(page, run, step);
    }
    for data in &run.train {
        dataset(page, &in_a_heading(&data.name()), data);
    }
    if let Some(data) = &run.validation {
        dataset(page, "Validation split", data);
    }
    if let Some(link) = &run.initial {
        initial(page, link);
    }
}

/// The parameters that a run began with, and the data behind them, run by run.
fn initial(page: &mut Page, initial: &InitialLink) {
    let mut facts = Vec::new();
    let mut commands = Vec::new();
    for file in &initial.files {
        facts.push(("File", Cell::code(&file.path.display().to_string())));
        facts.push(("SHA-256", Cell::code(&file.sha256.to_string())));
        commands.push(sum_command(file.sha256, &file.path));
    }
    match &initial.recorded.run {
        Some(run) => {
            facts.push(("Made by", Cell::text(&format!("step {} of {}", run.step, run.recipe.name))));
            facts.push(("Its recipe", Cell::code(&run.recipe.sha256.to_string()).note("SHA-256")));
            facts.push(("Its training root", Cell::code(&run.train_root.to_string())));
        }
        None => {
            facts.push(("Made by", Cell::text("nothing says what a file by itself was trained on").warn()))
        }
    }
    if let (Some(folder), Some(Ok(_))) = (&initial.folder, &initial.run) {
        commands.push(format!("xlstm-eval verify {}", path(folder)));
    }
    link(page, "6. First parameters", &facts, &commands);
    if let Some(Ok(run)) = &initial.run {
        for data in &run.train {
            dataset(page, &format!("{} of the run before", in_a_heading(&data.name())), data);
        }
        if let Some(before) = &run.initial {
            self::initial(page, before);
        }
    }
}

/// With a capital letter.
fn in_a_heading(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn link(page: &mut Page, name: &str, facts: &[(&str, Cell)], commands: &[String]) {
    page.push(&format!("<h4>{}</h4>\n", xlstm_pipeline::report::escape(name)));
    page.fact_cells(facts);
    if !commands.is_empty() {
        page.commands(commands);
    }
}

fn figure(page: &mut Page, run: &RunView) {
    let Some((line, loss)) = run.figure().and_then(|line| Some((line, line.loss?))) else {
        return page
            .paragraph("This run has no validation figure; the chain begins at its newest checkpoint.");
    };
    let mut facts = vec![
        ("Figure", Cell::text(&format!("validation {}, after step {}", run.loss_in_words(loss), line.step))),
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
    let (program, session) = made_by(manifest, step);
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

fn documents(page: &mut Page, run: &RunView, step: u64) {
    let command = format!("xlstm-data trace --run {} --step {step}", path(&run.folder));
    let title = "4. Rows and documents";
    let traced = run.manifest.rows_of_step(step, None).map_err(TrainError::from).and_then(|wanted| {
        let links = rows_of_step(&run.manifest.order, &run.train, &wanted)?;
        Ok((wanted, links))
    });
    let links = match traced {
        Ok((_, Some(links))) => links,
        Ok((wanted, None)) => {
            let shown: Vec<String> = wanted.iter().take(SHOWN).map(|row| row.row.to_string()).collect();
            let more = if wanted.len() > SHOWN { ", …" } else { "" };
            let text =
                format!("{}{more}; the documents cannot be named without the dataset", shown.join(", "));
            return link(page, title, &[("Rows of the step", Cell::text(&text))], &[command]);
        }
        Err(error) => {
            let text = format!("the documents cannot be read: {error}");
            return link(page, title, &[("Rows of the step", Cell::text(&text).warn())], &[command]);
        }
    };
    let documents: usize = links.iter().map(|row| row.documents.len()).sum();
    let text = format!(
        "{} rows with {} documents went into step {step}, recomputed from root, seed and step",
        count(links.len() as u64),
        count(documents as u64)
    );
    link(page, title, &[("Step", Cell::text(&text))], &[command]);
    documents_table(page, run, &links, step);
}

fn documents_table(page: &mut Page, run: &RunView, links: &[RowLink], step: u64) {
    let mut columns = vec![
        "#Row",
        "#Pass",
        "Document",
        "Set",
        "Its own license",
        "Source file",
        "#Record",
        "Text, SHA-256",
        "Source file, SHA-256",
    ];
    let caption = if links.len() > SHOWN {
        format!("Documents of the first {SHOWN} rows of step {step}")
    } else {
        format!("Documents of step {step}")
    };
    let mixed = run.manifest.order.is_mixed();
    if mixed {
        columns.insert(0, "#Dataset");
    }
    let mut table = Table::new(&caption, &columns);
    for row in links.iter().take(SHOWN) {
        for document in row.documents.iter().take(SHOWN) {
            let mut cells = vec![
                Cell::count(row.row),
                Cell::count(row.epoch),
                Cell::text(document.id.as_deref().unwrap_or("–")),
                Cell::text(document.set.as_deref().unwrap_or("–")),
                Cell::of(document.license.as_deref(), Cell::text),
                Cell::text(&document.source),
                Cell::count(document.record),
                Cell::code(&document.sha256.to_string()),
                Cell::code(&document.source_sha256.to_string()),
            ];
            if mixed {
                cells.insert(0, Cell::count(row.dataset as u64 + 1));
            }
            table.cells(cells);
        }
    }
    page.table(&table);
}

fn dataset(page: &mut Page, name: &str, data: &DatasetLink) {
    let folder = &data.folder;
    let mut facts = vec![
        ("Folder", Cell::code(&folder.display().to_string())),
        ("Root", Cell::code(&data.recorded.root.to_string())),
    ];
    let mut commands = vec![
        format!("(cd {} && sha256sum --quiet -c manifest-sha256.txt)", path(folder)),
        format!("xlstm-data audit {} --deep all", path(folder)),
    ];
    let origin = data.origin();
    if let (Some(manifest), Some(origin)) = (data.manifest(), &origin) {
        facts.push((
            "Tokens",
            Cell::code(&manifest.tokens_root.to_string()).note("Merkle root over the rows"),
        ));
        facts.push((
            "Documents",
            Cell::code(&manifest.documents_root.to_string()).note("Merkle root over the documents"),
        ));
        facts.push(("Shards", Cell::count(manifest.shards.len() as u64)));
        facts.extend(origin_facts(origin));
        if origin.repository.is_some() {
            commands.push(format!("xlstm-data audit {} --sources", path(folder)));
        }
    }
    link(page, &format!("5. {name}"), &facts, &commands);
    if let Some(origin) = &origin {
        sources(page, name, &data.sources(origin));
    }
}

fn sources(page: &mut Page, name: &str, sources: &[SourceLink<'_>]) {
    let caption =
        format!("Source files of the {}, and what their bytes were compared with", name.to_lowercase());
    let columns = ["File", "#Size", "SHA-256", "Compared with", "License", "#Documents"];
    let mut table = Table::new(&caption, &columns);
    for SourceLink { input, evidence } in sources.iter().take(SHOWN) {
        let compared = match evidence {
            Evidence::Compared(declared) => {
                Cell::text(&format!("{} by {}", declared.algorithm, declared.by)).note(&declared.digest)
            }
            Evidence::Claimed(claim) => Cell::text("nothing").note(&claim.sentence()).warn(),
            Evidence::Nothing => Cell::text("nothing"),
        };
        table.cells(vec![
            Cell::text(&input.path.to_string()),
            Cell::number(input.size as f64, &bytes(input.size)),
            Cell::code(&input.sha256.to_string()),
            compared,
            Cell::of(input.licence.as_deref(), Cell::text),
            Cell::count(input.counts.documents),
        ]);
    }
    page.table(&table);
    if sources.len() > SHOWN {
        let more = count((sources.len() - SHOWN) as u64);
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
