//! Several ranks of the real program: that they compute what one process computes, and how they end when one is lost.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::Fixture;
use common::runs::*;
use xlstm_manifests::run_manifest::{RunManifest, rows_of_step};
use xlstm_trainer::checkpoint;
use xlstm_trainer::metrics::TakenRows;

/// Seconds after which a rank counts as lost, and seconds after which a test gives up.
const RANK_TIMEOUT: &str = "6";
const PATIENCE: Duration = Duration::from_secs(120);

fn on_ranks(command: &mut Command, world: u64) -> &mut Command {
    command.args(["--nproc", &world.to_string(), "--rank-timeout", RANK_TIMEOUT])
}

/// Loss of each step and validation loss of each measurement.
fn losses(run: &Path) -> Vec<(u64, f64)> {
    ["train", "validation"]
        .into_iter()
        .flat_map(|kind| lines(run, kind))
        .map(|line| (line.step, line.loss.unwrap()))
        .collect()
}

fn assert_close(found: &[(u64, f64)], expected: &[(u64, f64)], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for ((step, found), (other, expected)) in found.iter().zip(expected) {
        assert_eq!(step, other, "{what}");
        assert!((found - expected).abs() < 1e-5, "{what}, step {step}: {found}, expected {expected}");
    }
}

/// The process that the launcher started as `rank`.
fn process_of(launcher: &Child, rank: u64) -> u32 {
    let parent = format!("PPid:\t{}", launcher.id());
    let variable = format!("RANK={rank}");
    let begin = Instant::now();
    loop {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let variables = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let is_rank = variables.split(|&byte| byte == 0).any(|text| text == variable.as_bytes());
            if is_rank && status.lines().any(|line| line == parent) {
                return pid;
            }
        }
        assert!(begin.elapsed() < PATIENCE, "no process of rank {rank}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn send(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Waits for a program to end; one that does not fails the test and is killed.
fn end_of(mut child: Child) -> Output {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("did not end: {}", stderr(&child.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// A port that was free a moment ago.
fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// This rank of two, as `torchrun` would start it.
fn rank_of_two(command: &mut Command, rank: &str, port: &str) -> Child {
    command
        .args(["--rank-timeout", RANK_TIMEOUT])
        .envs([("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank), ("MASTER_ADDR", "127.0.0.1")])
        .env("MASTER_PORT", port)
        .spawn()
        .unwrap()
}

#[test]
fn ranks_share_the_rows_of_a_step_and_agree_with_one_process() {
    let fixture = Fixture::new();
    // Five rows a step, one at a time: ranks with different numbers of micro-batches.
    let set = ["training.tokens_per_step=160", "training.micro_batch_rows=1", "logging.rows=true"];
    succeed(&mut training(&fixture, "alone", &set));
    let expected = losses(&fixture.path("alone"));
    for world in [1, 2, 3] {
        let name = format!("ranks-{world}");
        let run = fixture.path(&name);
        let mut set = set.to_vec();
        if world == 3 {
            set.push("training.activation_checkpointing=true");
        }
        succeed(on_ranks(&mut training(&fixture, &name, &set), world));
        assert_close(&losses(&run), &expected, &name);
        let manifest = RunManifest::load(&run).unwrap();
        assert_eq!((manifest.sessions.len(), manifest.sessions[0].world), (1, world));
        assert!(manifest.sessions[0].device.starts_with("cpu ("), "{}", manifest.sessions[0].device);
        for step in 1..=12 {
            let mut whole = Vec::new();
            for rank in 0..world {
                let traced = rows_of_step(&run, step, Some(rank)).unwrap();
                let taken = taken(&run, rank, step);
                assert_eq!(
                    taken,
                    traced.iter().map(|row| (row.epoch, row.row)).collect::<Vec<_>>(),
                    "rank {rank}"
                );
                assert!(!taken.is_empty(), "rank {rank} of {world} takes part in step {step}");
                whole.extend(taken);
            }
            assert_eq!(whole, taken(&fixture.path("alone"), 0, step), "{world} ranks, step {step}");
        }
    }
}

/// The rows that a rank took for a step.
fn taken(run: &Path, rank: u64, step: u64) -> Vec<(u64, u64)> {
    let text = fs_err::read_to_string(run.join(format!("rows/rank-{rank:05}.jsonl"))).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<TakenRows>(line).unwrap());
    lines.filter(|line| line.step == step).flat_map(|line| line.rows).collect()
}

#[test]
fn a_rank_that_is_killed_ends_all_and_the_run_goes_on_with_another_number_of_ranks() {
    let fixture = Fixture::new();
    // Small steps: at large ones, differences of rounding between numbers of ranks would grow over so many.
    let set = [
        "training.steps=300",
        "optimizer.learning_rate=1e-4",
        "checkpoint.every_steps=4",
        "validation.every_steps=0",
    ];
    succeed(&mut training(&fixture, "alone", &set));
    let expected = losses(&fixture.path("alone"));
    for (victim, world) in [(1, 3), (0, 1)] {
        let name = format!("killed-{victim}");
        let run = fixture.path(&name);
        let mut child = on_ranks(&mut training(&fixture, &name, &set), 2).spawn().unwrap();
        let pid = process_of(&child, victim);
        wait_for_checkpoint(&run, 4, &mut child);
        send(pid, "-KILL");
        let output = end_of(child);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(&format!("rank {victim} (host ")), "{message}");
        assert!(message.contains(&format!("process {pid}) is lost: it was ended by signal 9")), "{message}");
        assert!(
            message.contains("all ranks end; go on from step ") && message.contains("--resume --out"),
            "{message}"
        );
        let last = *checkpoint::list(&run.join("checkpoints")).unwrap().last().unwrap();
        succeed(on_ranks(&mut resume(&fixture, &name), world));
        let sessions = RunManifest::load(&run).unwrap().sessions;
        let found: Vec<_> = sessions.iter().map(|session| (session.first_step, session.world)).collect();
        assert_eq!(found, [(1, 2), (last + 1, world)]);
        let end = |losses: &[(u64, f64)]| losses[losses.len() - 1].1;
        let (found, expected) = (end(&losses(&run)), end(&expected));
        assert!((found - expected).abs() < 1e-5, "{name}: {found}, expected {expected}");
    }
}

/// Two ranks of a run that does not end by itself, started by hand and at work: no launcher sees how one ends, and rank 0
/// holds the store.
fn two_ranks_at_work(fixture: &Fixture) -> (Child, Child) {
    let set = [
        "training.steps=100000",
        "checkpoint.every_steps=4",
        "validation.every_steps=0",
        "checkpoint.keep_last=2",
    ];
    let port = free_port();
    let mut first = rank_of_two(&mut training(fixture, "run", &set), "0", &port);
    let second = rank_of_two(&mut training(fixture, "run", &set), "1", &port);
    wait_for_checkpoint(&fixture.path("run"), 4, &mut first);
    (first, second)
}

#[test]
fn a_rank_that_is_stuck_ends_all_in_the_stated_time() {
    let fixture = Fixture::new();
    let (first, second) = two_ranks_at_work(&fixture);
    let pid = second.id();
    send(pid, "-STOP");
    let output = end_of(first);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("rank 1 (host ") && message.contains(&format!("process {pid}) is lost")),
        "{message}"
    );
    assert!(message.contains("go on from step "), "{message}");
    // Awake again, it finds itself alone.
    send(pid, "-CONT");
    let output = end_of(second);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("rank 1: error: rank 0 (host "), "{message}");
}

#[test]
fn the_rank_that_holds_the_store_may_die_as_well() {
    let fixture = Fixture::new();
    let (mut first, second) = two_ranks_at_work(&fixture);
    let pid = first.id();
    first.kill().unwrap();
    first.wait().unwrap();
    let output = end_of(second);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("rank 1: error: rank 0 (host "), "{message}");
    assert!(
        message.contains(&format!("process {pid}) is lost")) && message.contains("go on from step "),
        "{message}"
    );
}

#[test]
fn ranks_that_were_not_started_alike_are_refused() {
    let fixture = Fixture::new();
    let other = common::write_split(&fixture.path("other"), "train", &common::documents(3));
    let root = |path: &Path| xlstm_manifests::Dataset::open(path).unwrap().manifest().root.to_string();
    let roots = [root(&fixture.train), root(&other)];
    let alike = || training(&fixture, "run", &[]);
    let mut elsewhere = program();
    elsewhere.arg("--manifest").arg(&other).arg("--validation").arg(&fixture.validation);
    elsewhere.arg("--recipe").arg(&fixture.recipe).arg("--out").arg(fixture.path("run"));
    for (mut command, expected, values) in [
        (
            training(&fixture, "run", &["optimizer.beta1=0.8"]),
            "disagree on the recipe",
            ["rank 0 has beta1 = 0.9", "has beta1 = 0.8"],
        ),
        (elsewhere, "disagree on the training split's root", [&roots[0], &roots[1]]),
    ] {
        let port = free_port();
        let first = rank_of_two(&mut alike(), "0", &port);
        let second = rank_of_two(&mut command, "1", &port);
        for child in [first, second] {
            let output = end_of(child);
            let message = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{message}");
            for expected in [expected].into_iter().chain(values) {
                assert!(message.contains(expected), "{expected}: {message}");
            }
        }
        assert!(!fixture.path("run").exists(), "a refused run leaves no folder behind");
    }
}

#[test]
fn a_signal_to_one_rank_or_to_the_launcher_saves_on_all() {
    let fixture = Fixture::new();
    let set = [
        "training.steps=400",
        "checkpoint.every_steps=4",
        "validation.every_steps=0",
        "checkpoint.keep_last=3",
    ];
    succeed(on_ranks(&mut training(&fixture, "whole", &set), 2));
    for (name, to_rank) in [("rank", true), ("launcher", false)] {
        let run = fixture.path(name);
        let mut child = on_ranks(&mut training(&fixture, name, &set), 2).spawn().unwrap();
        let pid = if to_rank { process_of(&child, 1) } else { child.id() };
        wait_for_checkpoint(&run, 4, &mut child);
        send(pid, "-TERM");
        let output = end_of(child);
        assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
        assert!(stderr(&output).contains("saved; go on with `xlstm-train --resume"), "{}", stderr(&output));
        let done = lines(&run, "train").last().unwrap().step;
        assert_eq!(checkpoint::list(&run.join("checkpoints")).unwrap().last(), Some(&done), "the very step");
        succeed(on_ranks(&mut resume(&fixture, name), 2));
        assert_eq!(state_bytes(&run, 400), state_bytes(&fixture.path("whole"), 400), "bit for bit");
    }
}

#[test]
fn a_value_that_is_not_finite_stops_all_ranks_before_the_update() {
    let fixture = Fixture::new();
    let set = ["optimizer.learning_rate=1e30", "schedule.warmup_steps=0", "checkpoint.every_steps=1"];
    let message = fail(on_ranks(&mut training(&fixture, "run", &set), 2), 1);
    assert!(message.contains("stopped before the update"), "{message}");
    let bad = lines(&fixture.path("run"), "train").last().unwrap().step + 1;
    assert!(message.contains(&format!("step {bad}: ")) && !message.contains("is lost"), "{message}");
}

#[test]
fn a_port_in_use_a_missing_rank_and_half_a_set_of_variables_are_named() {
    let fixture = Fixture::new();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = end_of(rank_of_two(&mut training(&fixture, "run", &[]), "0", &port));
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains(&format!("expected port {port} to be free")) && message.contains("MASTER_PORT"),
        "{message}"
    );

    let output = end_of(rank_of_two(&mut training(&fixture, "run", &[]), "0", &free_port()));
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("found no rank 1 within 6 s"), "{message}");

    let message = fail(training(&fixture, "run", &[]).env("RANK", "0"), 1);
    assert!(message.contains("set WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as well"), "{message}");
    assert!(!fixture.path("run").exists());
}

#[test]
fn slurm_and_the_mpis_start_ranks_as_they_are() {
    let fixture = Fixture::new();
    succeed(&mut training(&fixture, "alone", &[]));
    let port = free_port();
    let slurm = ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODELIST"];
    let mpi = [
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ];
    let pmi = ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"];
    for (name, names, last) in [("slurm", slurm, "localhost,localhost"), ("mpi", mpi, "2"), ("pmi", pmi, "2")]
    {
        let children = ["0", "1"].map(|rank| {
            let mut command = training(&fixture, name, &[]);
            command.envs(names.into_iter().zip([rank, "2", rank, last])).env("MASTER_PORT", &port);
            command.stdout(Stdio::null()).spawn().unwrap()
        });
        for (rank, child) in children.into_iter().enumerate() {
            let output = end_of(child);
            assert!(output.status.success(), "{name}: {}", stderr(&output));
            assert!(rank == 0 || stderr(&output).is_empty(), "only rank 0 speaks: {}", stderr(&output));
        }
        assert_close(&losses(&fixture.path(name)), &losses(&fixture.path("alone")), name);
    }
}

#[test]
fn a_store_that_is_silent_or_not_ours_and_a_network_without_a_secret_end_in_errors() {
    let fixture = Fixture::new();
    // Somebody who accepts and says nothing: with a gate of ours to be there, and as torchrun's agent.
    for agent in [false, true] {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port().to_string();
        let mut command = training(&fixture, "run", &[]);
        if agent {
            command.env("TORCHELASTIC_USE_AGENT_STORE", "True");
        }
        let begin = Instant::now();
        let output = end_of(rank_of_two(&mut command, "1", &port));
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("expected rank 0's store"), "{}", stderr(&output));
        assert!(begin.elapsed() < Duration::from_secs(40), "{:?}", begin.elapsed());
    }
    let mut command = training(&fixture, "run", &[]);
    let ranks = [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "node7.example")];
    let message = fail(command.envs(ranks).env("MASTER_PORT", free_port()), 1);
    assert!(message.contains("XLSTM_STORE_SECRET") && message.contains("openssl"), "{message}");
    let message = fail(command.env("XLSTM_STORE_SECRET", "short"), 1);
    assert!(message.contains("at least 16 characters"), "{message}");
    assert!(!fixture.path("run").exists());
}
