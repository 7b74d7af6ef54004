//! Carrying a sweep out: runs as processes of their own, several at once.

use std::collections::VecDeque;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use xlstm_manifests::run_manifest::RUN_NAME;

use super::{Data, Planned, Sweep, data, measure};
use crate::error::{Result, TrainError};
use crate::signals::Signals;

/// How a sweep is carried out.
#[derive(Debug, Clone)]
pub struct Options {
    /// The sweep's folder.
    pub out: PathBuf,
    /// Runs at once.
    pub jobs: usize,
    /// Do the I-th (from 1) of N shares of the runs.
    pub task: Option<(usize, usize)>,
    /// More overrides of the recipe.
    pub set: Vec<String>,
    /// More arguments for each run: the device, for example.
    pub arguments: Vec<String>,
}

/// Carries out all runs that are not finished. Returns those that ended badly, and the signal that stopped the sweep.
///
/// # Errors
/// When data cannot be made, or no run can be started.
pub fn run(sweep: &Sweep, options: &Options, say: &mut dyn FnMut(&str)) -> Result<(Vec<String>, Option<u8>)> {
    let share = share(sweep.runs(), options.task);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for data in sweep.data.iter().filter(|data| share.iter().any(|run| run.task == data.label())) {
        say(&format!("data of {}", data.label()));
        data::prepare(&options.out, data, cores)?;
    }
    let is_waiting = |run: &Planned| measure::load(&run.folder(&options.out)).is_none();
    let mut waiting: VecDeque<Planned> = share.into_iter().filter(is_waiting).collect();
    let total = waiting.len();
    let starter = Starter { sweep, options, threads: (cores / options.jobs.max(1)).max(1) };
    let signals = Signals::forward()?;
    let mut running: Vec<Running> = Vec::new();
    let (mut failed, mut passed_on) = (Vec::new(), 0);
    while !running.is_empty() || !waiting.is_empty() {
        while running.len() < options.jobs.max(1) && signals.received().is_none() {
            let Some(run) = waiting.pop_front() else { break };
            say(&format!("{} ({} of {total})", run.name(), total - waiting.len()));
            running.push(starter.train(run)?);
        }
        if signals.received().is_some() {
            waiting.clear();
        }
        while passed_on < signals.count() {
            passed_on += 1;
            let number = signals.received().map_or(signal_hook::consts::SIGTERM, i32::from);
            running.iter().for_each(|one| xlstm_bridge::runtime::send_signal(one.child.id(), number));
        }
        for (one, status) in ended(&mut running)? {
            match (status.success(), one.phase) {
                (true, Phase::Train) => running.push(starter.measure(one.run)?),
                (true, Phase::Measure) => {}
                (false, _) if signals.received().is_some() => {}
                (false, _) => {
                    let log = starter.log(&one.run);
                    failed.push(format!("{}: {status}; see `{}`", one.run.name(), log.display()));
                }
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((failed, signals.received()))
}

/// Every N-th run from the I-th on: shares have the same mix of tasks and variants.
fn share(runs: Vec<Planned>, task: Option<(usize, usize)>) -> Vec<Planned> {
    let (index, count) = task.unwrap_or((1, 1));
    runs.into_iter().skip(index - 1).step_by(count).collect()
}

/// What a run's process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `xlstm-train`.
    Train,
    /// `xlstm-train sweep-measure`: its newest checkpoint on the validation and the test split.
    Measure,
}

struct Running {
    run: Planned,
    phase: Phase,
    child: Child,
}

struct Starter<'a> {
    sweep: &'a Sweep,
    options: &'a Options,
    /// Threads of a process.
    threads: usize,
}

impl Starter<'_> {
    fn log(&self, run: &Planned) -> PathBuf {
        self.options.out.join("logs").join(format!("{}.log", run.name()))
    }

    fn data(&self, run: &Planned) -> Result<&Data> {
        let data = self.sweep.data.iter().find(|data| data.label() == run.task);
        data.ok_or_else(|| TrainError::Usage(format!("the sweep has no data for {}", run.task)))
    }

    /// What the sweep sets of the recipe.
    fn overrides(&self, run: &Planned, vocabulary: u64) -> Result<Vec<String>> {
        let mut all = self.sweep.set.clone();
        all.extend(self.data(run)?.set.iter().cloned());
        all.extend([
            // A task of numbers has one. As the paper pads GPT-2's 50257 ids: kernels of a GPU take multiples of 8.
            format!(
                "model.vocabulary_size={}",
                if vocabulary == 1 { 1 } else { vocabulary.next_multiple_of(8) }
            ),
            format!("optimizer.learning_rate={:e}", run.learning_rate),
            format!("schedule.final_fraction={:e}", self.sweep.final_learning_rate / run.learning_rate),
            format!("training.seed={}", run.seed),
        ]);
        all.extend(self.options.set.iter().cloned());
        Ok(all)
    }

    /// A process of the run; what it says goes to the run's log.
    fn command(&self, program: &Path, run: &Planned) -> Result<Command> {
        let log = self.log(run);
        fs_err::create_dir_all(self.options.out.join("logs"))?;
        let log = fs_err::OpenOptions::new().create(true).append(true).open(log)?.into_parts().0;
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A group of its own: a Ctrl-C at the terminal reaches this process alone, which passes it on once.
        command.process_group(0);
        Ok(command)
    }

    /// Where to compute: runs at once share the cores.
    fn shared_arguments(&self, command: &mut Command) {
        if self.options.jobs > 1 {
            command.arg("--threads").arg(self.threads.to_string());
        }
        command.args(&self.options.arguments);
    }

    fn train(&self, run: Planned) -> Result<Running> {
        let folder_of_data = data::folder(&self.options.out, self.data(&run)?);
        let folder = run.folder(&self.options.out);
        let mut command = self.command(&std::env::current_exe()?, &run)?;
        command.arg("--manifest").arg(&folder_of_data).arg("--out").arg(&folder);
        command.arg("--recipe").arg(self.sweep.recipe_of(&run.variant));
        for set in self.overrides(&run, data::vocabulary_size(&folder_of_data)?)? {
            command.arg("--set").arg(set);
        }
        if folder.join(RUN_NAME).is_file() {
            command.arg("--resume");
        }
        self.shared_arguments(&mut command);
        Ok(Running { run, phase: Phase::Train, child: command.spawn()? })
    }

    fn measure(&self, run: Planned) -> Result<Running> {
        let data = self.data(&run)?;
        let mut command = self.command(&std::env::current_exe()?, &run)?;
        command.arg("sweep-measure").arg(run.folder(&self.options.out));
        command.arg("--data").arg(data::folder(&self.options.out, data));
        for also in &data.also {
            command.arg("--also").arg(data::folder_of(&self.options.out, &also.label));
        }
        self.shared_arguments(&mut command);
        Ok(Running { run, phase: Phase::Measure, child: command.spawn()? })
    }
}

/// Takes the processes that have ended.
fn ended(running: &mut Vec<Running>) -> Result<Vec<(Running, ExitStatus)>> {
    let mut ended = Vec::new();
    let mut still = Vec::with_capacity(running.len());
    for mut one in running.drain(..) {
        match one.child.try_wait()? {
            Some(status) => ended.push((one, status)),
            None => still.push(one),
        }
    }
    *running = still;
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_an_array_are_all_runs_once() {
        let runs = Sweep::load("formal-languages").unwrap().runs();
        let mut all: Vec<String> = Vec::new();
        for index in 1..=7 {
            all.extend(share(runs.clone(), Some((index, 7))).iter().map(Planned::name));
        }
        all.sort();
        let mut expected: Vec<String> = runs.iter().map(Planned::name).collect();
        expected.sort();
        assert_eq!(all, expected);
    }
}
