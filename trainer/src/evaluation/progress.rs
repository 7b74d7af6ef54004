//! What a person sees while an evaluation goes: a bar on a terminal, a line now and then elsewhere; all on stderr.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::corpus::{Corpus, Sequence};
use super::results::rate;
use crate::command_line::say;

/// Between two lines where there is no terminal.
const PAUSE: Duration = Duration::from_secs(30);

pub(super) struct EvaluationProgress {
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    begin: (Instant, u64),
    last: Instant,
    quiet: bool,
}

impl EvaluationProgress {
    pub(super) fn new(corpus: &Corpus, done: &[f64], first_rank: bool) -> Self {
        let length = |sequence: &Sequence| u64::from(sequence.length);
        let total = corpus.sequences.iter().map(length).sum();
        let scored = corpus.sequences.iter().zip(done).filter(|&(_, &done)| done != 0.0);
        let done = scored.map(|(sequence, _)| length(sequence)).sum();
        let bar = (first_rank && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            let template = "{bar:30} {human_pos}/{human_len} tokens [{elapsed_precise} < {eta_precise}]";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        if first_rank && done > 0 {
            say(&format!("going on: {done} of {total} tokens were scored before"));
        }
        let now = Instant::now();
        Self { bar, total, done, begin: (now, done), last: now, quiet: !first_rank }
    }

    pub(super) fn add<'a>(&mut self, sequences: impl Iterator<Item = &'a Sequence>) {
        self.done += sequences.map(|sequence| u64::from(sequence.length)).sum::<u64>();
        match &self.bar {
            Some(bar) => bar.set_position(self.done),
            None if !self.quiet && self.last.elapsed() >= PAUSE => {
                self.last = Instant::now();
                let speed = rate((self.done - self.begin.1) as f64, self.begin.0.elapsed().as_secs_f64());
                let speed = speed.map_or_else(String::new, |speed| format!(", {speed:.0} tokens/s"));
                say(&format!("{}/{} tokens{speed}", self.done, self.total));
            }
            None => {}
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
