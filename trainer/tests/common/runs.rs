//! Runs of the real program, and how they end.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use xlstm_trainer::checkpoint;
use xlstm_trainer::metrics::{Line, read_lines};

use super::Fixture;

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    command.args(["--threads", "1", "--device", "cpu"]).stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

pub(crate) fn training(fixture: &Fixture, run: &str, set: &[&str]) -> Command {
    let mut command = program();
    command.arg("--manifest").arg(&fixture.train).arg("--validation").arg(&fixture.validation);
    command.arg("--recipe").arg(&fixture.recipe).arg("--out").arg(fixture.path(run));
    for text in set {
        command.args(["--set", text]);
    }
    command
}

pub(crate) fn resume(fixture: &Fixture, run: &str) -> Command {
    let mut command = program();
    command.arg("--resume").arg("--out").arg(fixture.path(run));
    command
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

/// Runs to failure with this exit code; returns what it said.
pub(crate) fn fail(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    stderr(&output)
}

/// Parameters and moments after a step, as bytes.
pub(crate) fn state_bytes(run: &Path, step: u64) -> Vec<u8> {
    let folder = checkpoint::folder_of(&run.join("checkpoints"), step);
    [checkpoint::MODEL_NAME, checkpoint::OPTIMIZER_NAME]
        .map(|name| fs_err::read(folder.join(name)).unwrap())
        .concat()
}

pub(crate) fn lines(run: &Path, kind: &str) -> Vec<Line> {
    read_lines(&run.join("metrics.jsonl")).unwrap().into_iter().filter(|line| line.kind == kind).collect()
}

/// Waits until the checkpoint after `step` is whole.
pub(crate) fn wait_for_checkpoint(run: &Path, step: u64, child: &mut Child) {
    let begin = Instant::now();
    while !checkpoint::list(&run.join("checkpoints")).unwrap_or_default().contains(&step) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint after step {step}");
        assert!(child.try_wait().unwrap().is_none(), "the run ended before step {step}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}
