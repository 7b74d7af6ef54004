//! `xlstm-train sweep NAME`: an experiment's grid of runs, their table and their page.

use std::path::PathBuf;

use clap::Args;
use xlstm_manifests::atomic::write_atomic;
use xlstm_manifests::printable;
use xlstm_trainer::sweep::{
    Cell, Options, Results, Sweep, collect, measure_run, names, page, run as carry_out,
};

use super::{DeviceArguments, print, print_json, say};

/// An experiment's grid of runs.
#[derive(Debug, Args)]
pub(super) struct SweepArguments {
    /// A built-in sweep or a TOML file [without it: the built-in ones are listed]
    #[arg(value_name = "NAME|FILE")]
    sweep: Option<String>,
    /// The sweep's folder: data, runs, results.json and report.html [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Runs at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Do the I-th of N shares of the runs, as one task of a cluster's array
    #[arg(long, value_name = "I/N", value_parser = parse_task)]
    task: Option<(usize, usize)>,
    /// Change a value of the recipe for all runs, such as `training.steps=100`; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where runs compute, as `xlstm-train --device` takes it
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Train nothing: only make the table and the page of what is finished
    #[arg(long, conflicts_with_all = ["task", "list"])]
    report: bool,
    /// Only print the runs
    #[arg(long)]
    list: bool,
    /// Print the results as one JSON object
    #[arg(long)]
    json: bool,
}

/// A run and its data.
#[derive(Debug, Args)]
pub(super) struct MeasureArguments {
    /// The run's folder
    run: PathBuf,
    /// Folder with `validation` and `test`
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Folder of other data with `test`, named by its label; may be given again
    #[arg(long, value_name = "DIR")]
    also: Vec<PathBuf>,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Measures; returns the exit code.
pub(super) fn measure(arguments: &MeasureArguments) -> anyhow::Result<u8> {
    let device = arguments.device.start()?;
    let measured = measure_run(&arguments.run, &arguments.data, &arguments.also, &device)?;
    print_json(&measured)?;
    Ok(0)
}

/// `3/7`.
fn parse_task(text: &str) -> Result<(usize, usize), String> {
    let parse = || {
        let (index, count) = text.split_once('/')?;
        let (index, count) = (index.parse().ok()?, count.parse().ok()?);
        (1..=count).contains(&index).then_some((index, count))
    };
    parse().ok_or_else(|| format!("expected I/N with 1 ≤ I ≤ N, such as 3/7, found `{text}`"))
}

/// Carries the sweep out; returns the exit code.
pub(super) fn run(arguments: &SweepArguments) -> anyhow::Result<u8> {
    let Some(name) = &arguments.sweep else {
        for name in names() {
            print(&format!("{name:<25} {}\n", Sweep::load(name)?.description))?;
        }
        return Ok(0);
    };
    let sweep = Sweep::load(name)?;
    if arguments.list {
        for run in sweep.runs() {
            print(&format!("{}\n", run.name()))?;
        }
        return Ok(0);
    }
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&sweep.name));
    if let Some(small) = &sweep.small {
        say(&format!("a small twin, not the paper's experiment: {small}"));
    }
    let (mut failed, mut signal) = (Vec::new(), None);
    if !arguments.report {
        let device = arguments.device.iter().flat_map(|device| ["--device".to_owned(), device.clone()]);
        let options = Options {
            out: out.clone(),
            jobs: usize::from(arguments.jobs),
            task: arguments.task,
            set: arguments.set.clone(),
            arguments: device.collect(),
        };
        (failed, signal) = carry_out(&sweep, &options, &mut |text| say(text))?;
    }
    let results = collect(&sweep, &out)?;
    fs_err::create_dir_all(&out)?;
    let text = serde_json::to_string_pretty(&results)?;
    write_atomic(&out.join("results.json"), format!("{text}\n").as_bytes())?;
    write_atomic(&out.join("report.html"), page(&sweep, &results).as_bytes())?;
    if arguments.json {
        print_json(&results)?;
    } else {
        print(&table(&results))?;
        say(&format!("page: {}", printable::path(&out.join("report.html"))));
    }
    for failure in &failed {
        say(&format!("failed: {failure}"));
    }
    if let Some(signal) = signal {
        say("stopped; the same command goes on");
        return Ok(128 + signal);
    }
    let short: Vec<_> = sweep.expected.map_or_else(Vec::new, |expected| below(&results, expected));
    for cell in &short {
        say(&format!("{cell}, not the {} that the sweep expects", sweep.expected.unwrap_or_default()));
    }
    Ok(u8::from(!failed.is_empty() || !short.is_empty()))
}

/// Cells of a finished sweep that do not come up to `expected`.
fn below(results: &Results, expected: f64) -> Vec<String> {
    let finished = results.runs.len() as u64 == results.planned;
    let cells = results.best.iter().filter(|cell| finished && results.measure.is_better(expected, cell.test));
    let name = results.measure.name().to_lowercase();
    let said =
        |cell: &Cell| format!("{} {}: {name} {}", cell.task, cell.variant, results.measure.shown(cell.test));
    cells.map(said).collect()
}

/// The best of each task and variant, as text.
fn table(results: &Results) -> String {
    let measure = results.measure;
    let name = measure.name().to_lowercase();
    let mut text = format!("{} of {} runs finished; {name}\n", results.runs.len(), results.planned);
    for cell in &results.best {
        let deviation = cell
            .test_half_width
            .or(cell.test_deviation)
            .map(|spread| format!(" ± {}", measure.shown(spread)));
        let deviation = deviation.unwrap_or_default();
        text += &format!(
            "{:<32} {:<12} test {}{deviation}  validation {}  learning rate {:e}\n",
            cell.task,
            cell.variant,
            measure.shown(cell.test),
            measure.shown(cell.validation),
            cell.learning_rate
        );
        for (label, accuracy) in &cell.also {
            text += &format!(
                "{:<32} {:<12} test {}  (the same runs on {label})\n",
                "",
                "",
                measure.shown(*accuracy)
            );
        }
    }
    text
}
