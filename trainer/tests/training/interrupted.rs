//! Runs that are killed or stopped by signals.

use super::*;

#[test]
fn a_killed_run_resumes_bit_for_bit() {
    let fixture = Fixture::new();
    succeed(&mut training(&fixture, "whole", &["training.steps=40"]));
    let mut child = training(&fixture, "killed", &["training.steps=40"]).spawn().unwrap();
    wait_for_checkpoint(&fixture.path("killed"), 4, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    // Somebody else's folder is no checkpoint, and stays.
    let stray = fixture.path("killed/checkpoints/step-9");
    fs_err::create_dir_all(&stray).unwrap();
    fs_err::write(stray.join("DONE"), "").unwrap();
    let last = *checkpoint::list(&fixture.path("killed/checkpoints")).unwrap().last().unwrap();
    succeed(&mut resume(&fixture, "killed"));
    assert_eq!(
        state_bytes(&fixture.path("killed"), 40),
        state_bytes(&fixture.path("whole"), 40),
        "from step {last}"
    );
    let sessions = RunManifest::load(&fixture.path("killed")).unwrap().sessions;
    assert_eq!(sessions.iter().map(|session| session.first_step).collect::<Vec<_>>(), [1, last + 1]);
}

#[test]
fn sigterm_saves_and_the_run_goes_on_as_if_nothing_had_been() {
    let fixture = Fixture::new();
    let set = [
        "training.steps=400",
        "checkpoint.every_steps=4",
        "validation.every_steps=0",
        "checkpoint.keep_last=3",
    ];
    succeed(&mut training(&fixture, "whole", &set));
    let mut child = training(&fixture, "stopped", &set).spawn().unwrap();
    wait_for_checkpoint(&fixture.path("stopped"), 4, &mut child);
    signal(&child, "-TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(stderr(&output).contains("saved; go on with `xlstm-train --resume"), "{}", stderr(&output));
    let done = lines(&fixture.path("stopped"), "train").last().unwrap().step;
    assert_eq!(
        checkpoint::list(&fixture.path("stopped/checkpoints")).unwrap().last(),
        Some(&done),
        "the very step"
    );
    succeed(&mut resume(&fixture, "stopped"));
    assert_eq!(state_bytes(&fixture.path("stopped"), 400), state_bytes(&fixture.path("whole"), 400));
}

/// A model whose steps and validation rounds take long enough to be interrupted.
const SLOW: [&str; 4] =
    ["model.embedding_dim=192", "model.blocks=24", "training.micro_batch_rows=1", "validation.every_steps=0"];

/// Waits until the run has written a line of this kind.
fn wait_for_line(run: &Path, kind: &str, child: &mut Child) {
    let begin = Instant::now();
    while !read_lines(&run.join("metrics.jsonl")).unwrap_or_default().iter().any(|line| line.kind == kind) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no line of kind {kind}");
        assert!(child.try_wait().unwrap().is_none(), "the run ended");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn sigterm_is_heard_in_validation() {
    let fixture = Fixture::new();
    let run = fixture.path("run");
    let mut child = training(&fixture, "run", &SLOW).spawn().unwrap();
    wait_for_line(&run, "session", &mut child);
    signal(&child, "-TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(lines(&run, "validation").is_empty(), "the first validation was not finished");
    assert_eq!(checkpoint::list(&run.join("checkpoints")).unwrap(), [0]);
    succeed(&mut resume(&fixture, "run"));
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let fixture = Fixture::new();
    let run = fixture.path("run");
    let mut child = training(&fixture, "run", &SLOW).spawn().unwrap();
    wait_for_line(&run, "session", &mut child);
    // Two different signals that wait for a stopped process reach it together when it goes on.
    for name in ["-STOP", "-TERM", "-INT", "-CONT"] {
        signal(&child, name);
    }
    let output = child.wait_with_output().unwrap();
    assert!(matches!(output.status.code(), Some(130 | 143)), "{}", stderr(&output));
    assert!(!stderr(&output).contains("saved;"), "{}", stderr(&output));
    assert!(checkpoint::list(&run.join("checkpoints")).unwrap_or_default().is_empty());
}
