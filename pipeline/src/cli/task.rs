//! `prepare task` and `plan task` on the command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use xlstm_manifests::canonical;

use super::args::{parse_count, parse_task};
use super::prepare::{describe, refuse, summary};
use crate::prepare::Task as Part;
use crate::report::count;
use crate::tasks::written::TaskPlan;
use crate::tasks::{self, Parameters, Range, Split, Task, Ties};

/// Arguments of `prepare task`.
#[derive(Debug, Args)]
pub(super) struct TaskArgs {
    /// The task, such as parity, mod_arithmetic, mqar, listops, nearest-neighbor-search; any other name lists them all
    name: String,
    /// Split to make: train, validation, test; repeat for several [default: all]
    #[arg(long = "split", value_name = "SPLIT")]
    splits: Vec<Split>,
    /// Examples of each --split, in the same order: 25_600_000, 8192 [default: the paper's numbers]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    examples: Vec<u64>,
    /// Another seed makes other examples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    parameters: ParameterArgs,
    /// Output folder: one folder a split is made in it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Threads that make examples; decides no byte [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Make part I of N: a contiguous share of the examples, for `merge`
    #[arg(long, value_name = "I/N", value_parser = parse_task)]
    task: Option<Part>,
    /// Rows in a shard; decides no token
    #[arg(long, default_value_t = 65_536, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=canonical::LARGEST))]
    rows_per_shard: u64,
    /// Keep no shards: only the manifest, the same as if they were written; training makes rows when it wants them
    #[arg(long, conflicts_with = "task")]
    stream: bool,
    /// Discard what an earlier run left in the split's folder
    #[arg(long)]
    restart: bool,
    /// Only say what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What can be chosen of a task; each task has some of these.
#[derive(Debug, Args)]
struct ParameterArgs {
    /// Formal languages: lengths of prompt and answer together in training [default: 3..40]
    #[arg(long, value_name = "MIN..MAX", help_heading = "Parameters of tasks")]
    train_length: Option<Range>,
    /// Formal languages: lengths in validation and test [default: 40..256]
    #[arg(long, value_name = "MIN..MAX", help_heading = "Parameters of tasks")]
    evaluation_length: Option<Range>,
    /// listops: tokens of a list [default: 501..1999]; nearest-neighbor-search: vectors [default: 2..64]
    #[arg(long, value_name = "MIN..MAX", help_heading = "Parameters of tasks")]
    length: Option<Range>,
    /// Positions in a row [default: 256, listops 2048]
    #[arg(long, value_name = "N", help_heading = "Parameters of tasks")]
    row_length: Option<u32>,
    /// majority: which of several most frequent symbols is the answer: smallest, first [default: smallest]
    #[arg(long, value_name = "RULE", help_heading = "Parameters of tasks", value_parser = parse_ties)]
    ties: Option<Ties>,
    /// mqar: number of ids [default: 8192]
    #[arg(long, value_name = "N", help_heading = "Parameters of tasks")]
    vocabulary: Option<u32>,
    /// mqar: tokens of an example [default: 64]
    #[arg(long, value_name = "N", help_heading = "Parameters of tasks")]
    context_length: Option<u32>,
    /// mqar: pairs of a key and a value [default: 4]
    #[arg(long, value_name = "N", help_heading = "Parameters of tasks")]
    pairs: Option<u32>,
}

fn parse_ties(text: &str) -> Result<Ties, String> {
    match text {
        "smallest" => Ok(Ties::Smallest),
        "first" => Ok(Ties::First),
        _ => Err(format!("expected smallest or first, found `{text}`")),
    }
}

impl TaskArgs {
    fn task(&self) -> Result<Box<dyn Task>, tasks::TaskError> {
        let given = &self.parameters;
        let parameters = Parameters {
            train_length: given.train_length,
            evaluation_length: given.evaluation_length,
            length: given.length,
            row_length: given.row_length,
            ties: given.ties,
            vocabulary: given.vocabulary,
            context_length: given.context_length,
            pairs: given.pairs,
        };
        tasks::by_name(&self.name, self.seed, &parameters)
    }

    /// The splits with their numbers of examples.
    fn splits(&self) -> anyhow::Result<Vec<(Split, u64)>> {
        let splits = if self.splits.is_empty() { Split::ALL.to_vec() } else { self.splits.clone() };
        if splits.iter().enumerate().any(|(at, split)| splits[..at].contains(split)) {
            let found = joined(&splits);
            return Err(refuse(format!("--split: expected each split once, found {found}")));
        }
        if self.examples.is_empty() {
            return Ok(splits
                .into_iter()
                .map(|split| (split, tasks::paper_examples(&self.name, split)))
                .collect());
        }
        if self.examples.len() != splits.len() {
            return Err(refuse(format!(
                "--examples: expected one number for each of {}, found {} numbers; give --split and --examples in pairs",
                joined(&splits),
                self.examples.len()
            )));
        }
        Ok(splits.into_iter().zip(self.examples.iter().copied()).collect())
    }

    /// All plans, checked, before the first is carried out.
    fn plans<'a>(&self, task: &'a dyn Task) -> anyhow::Result<Vec<TaskPlan<'a>>> {
        let plan = |(split, examples)| {
            let plan = TaskPlan::new(task, split, examples, self.rows_per_shard)?;
            Ok(match self.task {
                Some(part) => plan.part(part.index, part.count),
                None if self.stream => plan.streamed(),
                None => plan,
            })
        };
        self.splits()?.into_iter().map(plan).collect()
    }
}

fn joined(splits: &[Split]) -> String {
    splits.iter().map(|split| split.name()).collect::<Vec<_>>().join(", ")
}

pub(super) fn prepare(args: &TaskArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    if args.dry_run {
        return plan(args, out);
    }
    let task = args.task()?;
    let threads = args.threads.map(|threads| threads as usize);
    let threads =
        threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let mut splits = Vec::new();
    for plan in args.plans(&*task)? {
        let prepared = plan.execute(&args.out, threads, args.restart)?;
        if !args.json {
            write!(out, "{}", describe(&prepared))?;
        }
        splits.push(summary(&prepared));
    }
    if args.json {
        writeln!(out, "{}", json!({ "splits": splits }))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn plan(args: &TaskArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let task = args.task()?;
    let previews: Vec<Value> = args.plans(&*task)?.iter().map(|plan| plan.preview(&args.out)).collect();
    if args.json {
        writeln!(out, "{}", json!({ "splits": previews }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for preview in &previews {
        let number = |key: &str| count(preview[key].as_u64().unwrap_or(0));
        let text = |key: &str| preview[key].as_str().unwrap_or_default().to_owned();
        writeln!(
            out,
            "{}: {} examples of {} positions, about {} tokens without padding\n  {}, about {}\n  generator {}",
            text("split"),
            number("examples"),
            number("row_length"),
            number("tokens"),
            text("folder"),
            crate::report::bytes(preview["bytes"].as_u64().unwrap_or(0)),
            preview["generator"]
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
