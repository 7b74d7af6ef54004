//! How fast samples are made: `task_rate [THREADS] [SECONDS]`, tokens a second of each task.
//!
//! Tokens are positions that count (`length`), not padding. Each thread makes samples of its own numbers for SECONDS.
//! Seconds are those that the threads had a core (`/proc/thread-self/schedstat`), so that other programs on the machine
//! do not count; where the system does not say them, those of the clock.
#![expect(clippy::print_stdout, reason = "a program that prints its result")]

use std::time::{Duration, Instant};

use xlstm_pipeline::tasks::{self, Example, Parameters, Split, Task, TaskError};

/// Seconds that this thread had a core.
fn core_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
}

/// Tokens and seconds of one thread.
fn make(task: &dyn Task, split: Split, first: u64, seconds: f64) -> Result<(u64, f64), TaskError> {
    let mut out = Example::default();
    let (mut tokens, mut number) = (0, first);
    let (begin, begin_core) = (Instant::now(), core_seconds());
    let end = Duration::from_secs_f64(seconds);
    while begin.elapsed() < end {
        for _ in 0..16 {
            task.example(split, number, &mut out)?;
            tokens += std::hint::black_box(&out).length as u64;
            number += 1;
        }
    }
    let core = core_seconds().zip(begin_core).map(|(end, begin)| end - begin);
    Ok((tokens, core.unwrap_or_else(|| begin.elapsed().as_secs_f64())))
}

/// Tokens a second of `threads` threads together.
fn rate(task: &dyn Task, split: Split, threads: u64, seconds: f64) -> Result<f64, TaskError> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || make(task, split, thread << 40, seconds)))
            .collect();
        workers.into_iter().try_fold(0.0, |sum, worker| {
            let (tokens, seconds) =
                worker.join().map_err(|_| TaskError::Parameter("a thread failed".into()))??;
            Ok(sum + tokens as f64 / seconds)
        })
    })
}

fn main() -> Result<(), TaskError> {
    let mut arguments = std::env::args().skip(1);
    let usage = || TaskError::Parameter("expected: task_rate [THREADS] [SECONDS]".into());
    let threads: u64 = arguments.next().map_or(Ok(2), |text| text.parse()).map_err(|_| usage())?;
    let seconds: f64 = arguments.next().map_or(Ok(1.0), |text| text.parse().map_err(|_| usage()))?;
    let mut cases = Vec::new();
    for name in tasks::names().filter(|name| *name != "mqar") {
        cases.push((name.to_owned(), tasks::by_name(name, 0, &Parameters::default())?));
    }
    for (context_length, pairs) in [(64, 4), (256, 16), (756, 256), (1024, 256), (2048, 256), (8192, 256)] {
        let sizes =
            Parameters { context_length: Some(context_length), pairs: Some(pairs), ..Parameters::default() };
        cases.push((format!("mqar ({context_length}, {pairs})"), tasks::by_name("mqar", 0, &sizes)?));
    }
    println!("{:<32} {:>16} {:>16}   million tokens a second, {threads} threads", "", "train", "test");
    for (name, task) in cases {
        let [train, test] = [Split::Train, Split::Test].map(|split| rate(&*task, split, threads, seconds));
        println!("{name:<32} {:>16.1} {:>16.1}", train? / 1e6, test? / 1e6);
    }
    Ok(())
}
