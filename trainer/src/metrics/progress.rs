//! What a person sees while a run goes: a bar on a terminal, a line now and then elsewhere; all on stderr.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use xlstm_manifests::printable;

use super::Line;

/// Between two lines where there is no terminal.
const PAUSE: Duration = Duration::from_secs(30);

/// Progress of a run.
pub struct TrainingProgress {
    bar: Option<ProgressBar>,
    steps: u64,
    last: Option<Instant>,
    quiet: bool,
}

impl TrainingProgress {
    /// Progress of a run of `steps` steps that has done `done`; silent on all ranks but the first.
    #[must_use]
    pub fn new(steps: u64, done: u64, first_rank: bool) -> Self {
        let bar = (first_rank && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(steps).with_position(done);
            let template = "{bar:30} step {pos}/{len} {msg} [{elapsed_precise} < {eta_precise}]";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, steps, last: None, quiet: !first_rank }
    }

    /// Shows a logged step.
    pub fn step(&mut self, line: &Line) {
        let told = [
            line.loss.map(|loss| {
                let small = loss != 0.0 && loss.abs() < 0.01;
                if small { format!("loss {loss:.3e}") } else { format!("loss {loss:.4}") }
            }),
            line.gradient_norm.map(|norm| format!("gradient {norm:.3}")),
            line.tokens_per_second.map(|speed| format!("{speed:.0} tokens/s")),
        ];
        let message = told.into_iter().flatten().collect::<Vec<_>>().join(" · ");
        match &self.bar {
            Some(bar) => {
                bar.set_message(message);
                bar.set_position(line.step);
            }
            None => {
                let due = self.last.is_none_or(|last| last.elapsed() >= PAUSE) || line.step == self.steps;
                if due {
                    self.last = Some(Instant::now());
                    self.say(&format!("step {}/{}: {message}", line.step, self.steps));
                }
            }
        }
    }

    /// Prints a message above the bar.
    pub fn say(&self, text: &str) {
        if self.quiet {
            return;
        }
        let text = printable::lines(text);
        match &self.bar {
            Some(bar) => bar.println(text),
            #[expect(clippy::print_stderr, reason = "messages go to stderr")]
            None => eprintln!("{text}"),
        }
    }

    /// Ends the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
