//! The same bytes whatever the threads, tasks and kills.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use xlstm_tests::corpus;
use xlstm_tests::program::{assert_same_files, data, data_command, xlstm_data};

const BYTES: usize = 52 << 20;

/// `prepare local` over every format, with shards small enough that a run has many.
fn arguments<'a>(corpus: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments =
        vec!["prepare", "local", corpus, "--out", out, "--set-field", "meta.redpajama_set_name"];
    arguments.extend(["--rows-per-shard", "512", "--quiet"]);
    arguments.extend(more);
    arguments
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

#[test]
fn threads_tasks_and_kills_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("corpus");
    corpus::write_all_formats(&corpus, 1, BYTES);
    let reference = folder.path().join("reference");
    // Built before the clock starts.
    let _ = xlstm_data();
    let started = Instant::now();
    data(arguments(text(&corpus), text(&reference), &["--threads", "2"])).success();
    let whole_run = started.elapsed();

    let one = folder.path().join("one-thread");
    data(arguments(text(&corpus), text(&one), &["--threads", "1"])).success();
    assert_same_files(&reference.join("train"), &one.join("train"));

    for count in [1, 3, 7] {
        let out = folder.path().join(format!("tasks-{count}"));
        for index in (1..=count).rev() {
            let task = format!("{index}/{count}");
            data(arguments(text(&corpus), text(&out), &["--task", &task])).success();
        }
        data(["merge", "--out", text(&out), "--remove-parts"]).success();
        assert_same_files(&reference.join("train"), &out.join("train"));
    }

    let out = folder.path().join("killed");
    let kills = kill_at_random(&arguments(text(&corpus), text(&out), &["--threads", "2"]), 20, whole_run);
    assert_same_files(&reference.join("train"), &out.join("train"));
    assert!(kills >= 15, "only {kills} kills hit a run that was not finished: the corpus is too small");
}

/// Runs the command again and again, killing it at a random moment each time, then lets it finish. Returns how
/// many of the kills met a process that was still at work.
fn kill_at_random(arguments: &[&str], times: u32, whole_run: Duration) -> u32 {
    let mut random = StdRng::seed_from_u64(7);
    let mut kills = 0;
    for _ in 0..times {
        // A share of the run each, so that progress adds up to about one run over all kills.
        let delay = whole_run.mul_f64(random.random_range(0.02..0.16));
        let mut child = data_command(arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(delay);
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    data(arguments).success();
    kills
}

#[test]
fn a_prefix_is_the_same_prefix_for_one_process_and_for_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("corpus");
    corpus::write_all_formats(&corpus, 2, 6 << 20);
    let reference = folder.path().join("reference");
    let prefix = ["--max-tokens", "700k", "--exclude-set", "RedPajamaBook", "--holdout", "0.1"];
    data(arguments(text(&corpus), text(&reference), &prefix)).success();
    let out = folder.path().join("tasks");
    for task in ["1/3", "2/3", "3/3"] {
        data(arguments(text(&corpus), text(&out), &[&prefix[..], &["--task", task]].concat())).success();
    }
    data(["merge", "--out", text(&out)]).success();
    for split in ["train", "validation"] {
        assert_same_files(&reference.join(split), &out.join(split));
        let manifest = xlstm_manifests::Manifest::load(&reference.join(split)).unwrap();
        let last = manifest.inputs.last().unwrap();
        if split == "train" {
            assert!(manifest.totals.tokens >= 700_000 && manifest.totals.tokens < 800_000);
            assert!(last.counts.left_out.contains_key("beyond-max-tokens"), "{:?}", last.counts);
        }
        assert!(manifest.totals.left_out["excluded-set"] > 0);
        assert!(manifest.sets.iter().all(|set| set.name != "RedPajamaBook"));
    }
}
