//! Progress bars on a terminal's stderr: rate and time left; nothing anywhere else.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::engine::Observer;
use crate::hub::{DownloadObserver, HubError};
use crate::plan::Plan;

/// The bars of a run.
pub struct PrepareProgress {
    bars: MultiProgress,
    inputs: ProgressBar,
    downloads: ProgressBar,
}

impl PrepareProgress {
    /// Bars on stderr if it is a terminal and `quiet` is false.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bars = MultiProgress::with_draw_target(target);
        let (inputs, downloads) = (ProgressBar::hidden(), ProgressBar::hidden());
        Self { bars, inputs, downloads }
    }

    /// Begins a split.
    pub fn begin(&self, split: &str, plan: &Plan) {
        self.inputs.reset();
        self.inputs.set_length(plan.input_bytes());
        self.inputs
            .set_style(style("{prefix:>12} {bar:30} {bytes}/{total_bytes} of input, {eta} left  {msg}"));
        self.inputs.set_prefix(split.to_owned());
        let bar = self.bars.add(self.inputs.clone());
        bar.enable_steady_tick(Duration::from_millis(200));
        if plan.remote.is_some() {
            self.downloads.reset();
            self.downloads.set_length(plan.input_bytes());
            self.downloads
                .set_style(style("{prefix:>12} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}  {msg}"));
            self.downloads.set_prefix("download");
            self.bars.add(self.downloads.clone());
        }
    }

    /// Ends a split.
    pub fn end(&self) {
        self.inputs.finish_and_clear();
        self.downloads.finish_and_clear();
        self.bars.remove(&self.inputs);
        self.bars.remove(&self.downloads);
    }

    /// Says `line` above the bars.
    pub fn say(&self, line: &str) {
        // Without a terminal there is nowhere to say it; nothing depends on it.
        let _ = self.bars.println(line);
    }

    /// What downloads report to.
    #[must_use]
    pub fn download_observer(&self) -> Arc<dyn DownloadObserver + Send + Sync> {
        Arc::new(Downloads { bar: self.downloads.clone() })
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Observer for PrepareProgress {
    fn progress(&self, _input: u32, documents: u64, text_bytes: u64, tokens: u64) {
        let seconds = self.inputs.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rate = (seconds > 0.0).then(|| HumanBytes((text_bytes as f64 / seconds) as u64));
        let rate = rate.map_or_else(String::new, |rate| format!(", {rate}/s of text"));
        self.inputs.set_message(format!(
            "{} documents, {} tokens{rate}",
            HumanCount(documents),
            HumanCount(tokens)
        ));
    }

    fn input_done(&self, size: u64) {
        self.inputs.inc(size);
    }
}

struct Downloads {
    bar: ProgressBar,
}

impl DownloadObserver for Downloads {
    fn reused(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn advanced(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn rewound(&self, bytes: u64) {
        self.bar.set_position(self.bar.position().saturating_sub(bytes));
    }

    fn waiting(&self, reason: &str, duration: Duration) {
        self.bar.set_message(format!("{reason}: waiting {} s", duration.as_secs()));
    }

    fn replacing(&self, path: &Path, problem: &HubError) {
        self.bar.set_message(format!("fetching `{}` again: {problem}", path.display()));
    }
}
