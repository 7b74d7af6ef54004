//! Pages about evaluations, and the section on them in a run's page.
//!
//! Every figure links to the chain at the page's end; every mark of the report (a source that is missing, documents
//! left out) stands above the figures that it touches.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use xlstm_manifests::digest::digest_file;
use xlstm_manifests::{Sha256Digest, printable};
use xlstm_pipeline::overlap::OverlapReport;
use xlstm_pipeline::report::axis::label;
use xlstm_pipeline::report::{Cell, Page, Table, count, duration, percent};

use super::chain::{quote, sum_command};
use super::figures::statistics_cells;
use super::{figures, paloma};
use crate::error::{Result, TrainError};
use crate::evaluation::results::{Named, Protocol, REPORT_NAME, Report, Results};
use crate::provenance::{DatasetLink, EvaluationLinks};

/// Folder of a run that its evaluations are written to.
const EVALUATIONS_NAME: &str = "evaluations";
/// The chain's id on an evaluation's page.
const CHAIN: &str = "chain";

/// A report with where it lies.
#[derive(Debug, Clone)]
pub struct EvaluationView {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file as it was read.
    pub sha256: Sha256Digest,
    /// What it says.
    pub report: Report,
}

impl EvaluationView {
    /// Reads the report that `path` names: an evaluation's folder or the file.
    ///
    /// # Errors
    /// As [`Report::load`].
    pub fn load(path: &Path) -> Result<Self> {
        let path = Report::locate(path);
        let report = Report::load(&path)?;
        let (_, sha256) = digest_file(&path)?;
        Ok(Self { path, sha256, report })
    }
}

/// The evaluations in a run's folder that are finished, by name.
///
/// # Errors
/// When the folder cannot be listed or a report cannot be read.
pub fn evaluations_of(run: &Path) -> Result<Vec<EvaluationView>> {
    let folder = run.join(EVALUATIONS_NAME);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs_err::read_dir(&folder)? {
        let path = entry?.path();
        if path.join(REPORT_NAME).is_file() {
            found.push(path);
        }
    }
    found.sort();
    found.iter().map(|path| EvaluationView::load(path)).collect()
}

/// Reads what `xlstm-data overlap --json` printed.
///
/// # Errors
/// When it cannot be read or is something else.
pub fn load_overlap(path: &Path) -> Result<OverlapReport> {
    let bytes = fs_err::read(path)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let hint = "name the output of `xlstm-data overlap TRAIN EVAL --json`";
        TrainError::file(path, "an overlap report", error.to_string(), hint)
    })
}

/// What was measured, in words.
fn kind(results: &Results) -> &'static str {
    match results {
        Results::Perplexity(_) => "Perplexity",
        Results::Paloma(_) => "PALOMA",
        Results::Extrapolation(_) => "Length extrapolation",
        Results::Throughput(_) => "Generation speed",
        Results::Accuracy(_) => "Accuracy",
        Results::SquaredError(_) => "Squared error",
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::PackedRows => "packed rows, as in training",
        Protocol::Paper => {
            "the xLSTM paper's: windows of the context's length, the last one filled up with preceding tokens"
        }
        Protocol::Official => "the xLSTM paper's (then called the official evaluator's)",
        Protocol::Disjoint => "windows that never overlap",
        Protocol::Extrapolation => "long stretches of growing length",
        Protocol::Throughput => "time, no data",
        Protocol::StoredTargets => "the targets that the examples store",
    }
}

/// The page of an evaluation, complete HTML; `overlap` adds contamination by domain to PALOMA's.
#[must_use]
pub fn evaluation_page(view: &EvaluationView, overlap: Option<&OverlapReport>) -> String {
    let report = &view.report;
    let mut page = Page::new(&format!("{}: {}", kind(&report.results), model_name(report)));
    let headline = headline(report);
    let whole = report.marks.is_empty();
    let word = if whole { "Complete." } else { "With reservations." };
    page.verdict(whole, word, &headline);
    report.marks.iter().for_each(|mark| page.warning(&mark.text));
    facts(&mut page, report);
    match &report.results {
        Results::Perplexity(results) => figures::perplexity(&mut page, results),
        Results::Paloma(results) => paloma::write(&mut page, results, overlap, CHAIN),
        Results::Extrapolation(results) => figures::extrapolation(&mut page, results, CHAIN),
        Results::Throughput(results) => figures::throughput(&mut page, results),
        Results::Accuracy(results) => figures::accuracy(&mut page, results, CHAIN),
        Results::SquaredError(results) => figures::squared_error(&mut page, results, CHAIN),
    }
    page.section(CHAIN, "Where the figures come from");
    chain(&mut page, view);
    printable::lines(&page.render())
}

/// The figure for the whole, in words.
fn headline(report: &Report) -> String {
    match (&report.results, report.headline()) {
        (Results::Accuracy(results), _) => {
            let total = &results.total;
            format!(
                "Accuracy {:.4}: {} of {} targets came out first.",
                total.accuracy, total.correct, total.targets
            )
        }
        (Results::SquaredError(results), _) => format!(
            "Mean squared error {:.4e} over {} targets; the best constant has {:.4e}.",
            results.total.mean_squared_error, results.total.targets, results.target_variance
        ),
        (_, Some(perplexity)) => format!("Perplexity {perplexity:.3} over everything that was scored."),
        (_, None) => "No perplexity was measured.".to_owned(),
    }
}

fn model_name(report: &Report) -> String {
    let model = &report.model;
    let name = report.run.as_ref().and_then(|run| run.path.file_name()).or(model.path.file_name());
    let name =
        name.map_or_else(|| model.path.display().to_string(), |name| name.to_string_lossy().into_owned());
    model.step.map_or(name.clone(), |step| format!("{name}, step {step}"))
}

fn facts(page: &mut Page, report: &Report) {
    let (model, setting, effort) = (&report.model, &report.setting, &report.effort);
    let mut facts = vec![(
        "Model",
        Cell::text(&format!("{}, {} parameters", model.architecture, count(model.parameters))),
    )];
    if let Some(tokens) = model.tokens {
        facts.push(("Trained on", Cell::text(&format!("{} tokens", count(tokens)))));
    }
    if let Some(data) = &report.dataset {
        let text = format!(
            "{}, split {}: {} documents, {} tokens",
            data.profile,
            data.split,
            count(data.documents),
            count(data.tokens)
        );
        facts.push(("Data", Cell::text(&text).link(CHAIN)));
    }
    facts.push(("Protocol", Cell::text(protocol(setting.protocol))));
    let trained =
        model.context_length.map(|length| format!("; the model was trained with {}", count(length)));
    facts.push((
        "Context",
        Cell::text(&format!("{} tokens{}", count(setting.context_length), trained.unwrap_or_default())),
    ));
    facts.push(("Computed", Cell::text(&format!("in {} on {}", setting.precision, setting.device))));
    facts.push((
        "Effort",
        Cell::text(&format!(
            "{} on {} rank(s){}",
            duration(effort.seconds),
            effort.world,
            effort.tokens_per_second.map_or_else(
                || ", a time too short for a speed".into(),
                |speed| format!(", {} tokens a second", label(speed))
            )
        )),
    ));
    page.fact_cells(&facts);
}

/// The links of an evaluation, with the commands that check them.
fn chain(page: &mut Page, view: &EvaluationView) {
    let report = &view.report;
    page.commands(&[format!("xlstm-eval verify {}", quote(&view.path.display().to_string()))]);
    let mut table = Table::new(
        "From these figures to their bytes, link by link",
        &["Link", "Where", "What it is", "SHA-256 or root"],
    );
    let mut row = |link: &str, place: &Path, what: &str, digest: String| {
        table.cells(vec![
            Cell::text(link),
            Cell::code(&place.display().to_string()),
            Cell::text(what),
            Cell::code(&digest),
        ]);
    };
    row("report", &view.path, "the figures of this page", view.sha256.to_string());
    let links = EvaluationLinks::of(report, &view.path, &[]);
    for file in &links.files {
        let size = file.size.map_or_else(String::new, |size| format!("{} bytes", count(size)));
        row("checkpoint", &file.path, &size, file.sha256.to_string());
    }
    let mut commands: Vec<String> =
        links.files.iter().map(|file| sum_command(file.sha256, &file.path)).collect();
    if let Some(parent) = &links.run {
        let run = &parent.recorded;
        row("run", &run.path.join("run.json"), "the run that made it", run.manifest_sha256.to_string());
        row("recipe", &run.path.join("recipe.toml"), &run.recipe.name, run.recipe.sha256.to_string());
        if !run.mixture.is_empty() {
            let what = format!("{} datasets with their weights", run.mixture.len());
            row("mixture", &run.path.join("run.json"), &what, run.train.root.to_string());
        }
        for data in parent.trained_on() {
            let what = format!("{} tokens{}", count(data.recorded.tokens), origin_of(Some(data)));
            row(&data.name(), &data.folder, &what, data.recorded.root.to_string());
        }
        commands.push(sum_command(run.recipe.sha256, &run.path.join("recipe.toml")));
        let audit =
            |data: &DatasetLink| format!("xlstm-data audit {}", quote(&data.folder.display().to_string()));
        commands.extend(parent.trained_on().iter().map(audit));
    }
    if let (Some(data), Some(link)) = (&report.dataset, &links.dataset) {
        row(
            "evaluated split",
            &link.folder,
            &format!("{}, split {}{}", data.profile, data.split, origin_of(Some(link))),
            data.root.to_string(),
        );
        row(
            "its manifest",
            &link.folder.join("manifest.json"),
            "every digest and count",
            data.manifest_sha256.to_string(),
        );
        // Without a commit nothing was compared with the repository: then it is a claim, told above.
        if let (Some(repository), Some(revision)) = (&data.repository, &data.revision) {
            row("repository", Path::new(repository), "on the Hub, at this commit", revision.clone());
        }
        row(
            "tokenizer",
            Path::new(&data.tokenizer),
            "what pins its behavior",
            data.tokenizer_sha256.to_string(),
        );
        let sources = if data.revision.is_some() { " --sources" } else { "" };
        commands.push(format!("xlstm-data audit {}{sources}", quote(&link.folder.display().to_string())));
    }
    let program = &report.program;
    let binary = program.binary_sha256.map_or_else(|| "unknown".to_owned(), |digest| digest.to_string());
    row(
        "program",
        Path::new(&program.name),
        &format!("{}, commit {}, libtorch {}", program.version, program.commit, program.libtorch),
        binary,
    );
    page.table(&table);
    page.details("The same links with other tools", |page| page.commands(&commands));
}

/// What was compared and what was only claimed, after a semicolon; empty where the manifest is not here.
fn origin_of(link: Option<&DatasetLink>) -> String {
    link.and_then(DatasetLink::origin).map_or_else(String::new, |origin| format!("; {}", origin.sentence()))
}

/// The beginning of the data's root, marked where others of its kind have another one.
fn root_cell(report: &Report, differs: bool) -> Cell {
    Cell::of(report.dataset.as_ref(), |data| {
        let cell = Cell::code(&format!("{}…", &data.root.to_string()[..12]));
        if differs { cell.warn() } else { cell }
    })
}

/// The section on evaluations in a run's page.
pub(super) fn write(page: &mut Page, views: &[EvaluationView]) {
    if views.is_empty() {
        return;
    }
    page.section("evaluations", "Evaluations");
    let mut warned = BTreeSet::new();
    let columns = [
        "Evaluation",
        "Model",
        "Data",
        "Data, root",
        "Protocol",
        "#Context",
        "#Perplexity",
        "#Bits a byte",
        "#Accuracy",
        "#Squared error",
        "Reservations",
        "Report, SHA-256",
    ];
    let mut table =
        Table::new("Evaluations; each report holds the digests of its checkpoint and data", &columns)
            .sortable();
    // Figures of one kind over different data do not compare.
    let differ = |results: &Results| {
        let same_kind = views.iter().filter(|view| kind(&view.report.results) == kind(results));
        let roots: BTreeSet<_> =
            same_kind.filter_map(|view| Some(view.report.dataset.as_ref()?.root)).collect();
        roots.len() > 1
    };
    for results in views.iter().map(|view| &view.report.results) {
        if differ(results) && !warned.contains(kind(results)) {
            warned.insert(kind(results));
            page.warning(&format!(
                "{}: these evaluations are of different data (their roots differ): their figures do not compare.",
                kind(results)
            ));
        }
    }
    for view in views {
        let report = &view.report;
        let bits = match &report.results {
            Results::Perplexity(results) => results.total.bits_per_byte,
            Results::Paloma(results) => results.total.bits_per_byte,
            _ => None,
        };
        let accuracy = match &report.results {
            Results::Accuracy(results) => Some(results.total.accuracy),
            _ => None,
        };
        let error = match &report.results {
            Results::SquaredError(results) => Some(results.total.mean_squared_error),
            _ => None,
        };
        let data = report.dataset.as_ref().map(|data| format!("{}, split {}", data.profile, data.split));
        let marks: Vec<&str> = report.marks.iter().map(|mark| mark.text.as_str()).collect();
        table.cells(vec![
            Cell::text(kind(&report.results)),
            Cell::text(&model_name(report)),
            Cell::of(data.as_deref(), Cell::text),
            root_cell(report, differ(&report.results)),
            Cell::text(protocol(report.setting.protocol)),
            Cell::count(report.setting.context_length),
            Cell::of(report.headline(), |perplexity| Cell::decimals(perplexity, 3)),
            Cell::of(bits, |bits| Cell::decimals(bits, 4)),
            Cell::of(accuracy, |accuracy| Cell::decimals(accuracy, 4)),
            Cell::of(error, |error| Cell::number(error, &format!("{error:.4e}"))),
            if marks.is_empty() { Cell::text("none") } else { Cell::text(&marks.join(" ")).warn() },
            Cell::code(&view.sha256.to_string()),
        ]);
    }
    page.table(&table);
    let commands =
        views.iter().map(|view| format!("xlstm-eval verify {}", quote(&view.path.display().to_string())));
    page.commands(&commands.collect::<Vec<_>>());
    for view in views {
        let parts = match &view.report.results {
            Results::Perplexity(results) => results.sets.len(),
            _ => 0,
        };
        if let (Results::Perplexity(results), true) = (&view.report.results, parts > 0) {
            let data = view.report.dataset.as_ref();
            let data = data.map_or_else(String::new, |data| {
                format!(" on {}, split {}, root {}…", data.profile, data.split, &data.root.to_string()[..12])
            });
            page.subheading(&format!("Perplexity of {} by set{data}", model_name(&view.report)));
            let mut table = Table::new(
                "By set",
                &[
                    "Set",
                    "#Documents",
                    "#Tokens",
                    "#Loss",
                    "#Perplexity, 95 % interval",
                    "#Bits a byte",
                    "#Share of tokens",
                ],
            )
            .sortable();
            for Named { name, statistics } in &results.sets {
                let mut cells = statistics_cells(name, statistics);
                let of = Some(results.total.tokens).filter(|&of| of > 0);
                cells.push(Cell::of(of, |of| {
                    let share = 100.0 * statistics.tokens as f64 / of as f64;
                    Cell::number(share, &percent(share))
                }));
                table.cells(cells);
            }
            page.table(&table);
        }
    }
}
