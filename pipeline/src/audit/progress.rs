//! A progress bar over bytes on stderr, shown only to a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// How far a command is.
pub(crate) struct ByteProgress {
    bar: ProgressBar,
}

impl ByteProgress {
    /// A bar over `total` bytes, labeled `what`. Hidden where stderr is no terminal.
    pub(crate) fn over_bytes(what: &str, total: u64) -> Self {
        let template =
            "{prefix} {bar:24} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left";
        let bar = ProgressBar::new(total).with_prefix(what.to_owned());
        // A template that does not parse is a fault of ours that a plain bar survives.
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self { bar }
    }

    /// `bytes` more were looked at.
    pub(crate) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl Drop for ByteProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
