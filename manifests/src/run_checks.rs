//! What a run manifest is checked for when it is read: numbers that no run has would be counted with.

use std::path::Path;

use crate::error::{Error, Result};
use crate::mixture::{MAX_EPOCH, MixedDataset};
use crate::run_manifest::RunManifest;

/// The largest count that canonical JSON has.
const MAX_COUNTED: u64 = 1 << 53;

impl RunManifest {
    /// Refuses numbers that no run has: rows of steps are listed, which takes memory and time by them.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        const MAX_ROWS: u64 = 1 << 24;
        const MAX_RANKS: u64 = 1 << 20;
        let order = &self.order;
        let worlds = self.sessions.iter().map(|session| ("sessions.world", session.world, 1, MAX_RANKS));
        let first =
            self.sessions.iter().map(|session| ("sessions.first_step", session.first_step, 0, MAX_COUNTED));
        let counts = [
            ("order.rows", order.rows, 0, MAX_COUNTED),
            ("order.rows_per_step", order.rows_per_step, 1, MAX_ROWS),
            ("order.row_length", order.row_length, 1, u64::from(u16::MAX)),
            ("order.tokens", order.tokens, 0, MAX_COUNTED),
            ("train.rows", self.train.rows, 0, MAX_COUNTED),
            ("train.tokens", self.train.tokens, 0, MAX_COUNTED),
        ];
        for (key, found, low, high) in counts.into_iter().chain(worlds).chain(first) {
            if !(low..=high).contains(&found) {
                return Err(Error::damaged(path, format!("`{key}` from {low} to {high}"), found.to_string()));
            }
        }
        Ok(())
    }

    /// Refuses a mixture whose rows cannot be counted.
    pub(crate) fn check_mixture(&self, path: &Path) -> Result<()> {
        let (datasets, references) = (&self.order.datasets, &self.mixture);
        let refuse = |expected: String, found: String| Err(Error::damaged(path, expected, found));
        if datasets.len() != references.len() || datasets.len() == 1 {
            let expected = "`mixture` and `order.datasets` with as many datasets, at least two, or neither";
            return refuse(expected.into(), format!("{} and {}", references.len(), datasets.len()));
        }
        for (dataset, reference) in datasets.iter().zip(references) {
            if dataset.root != reference.root {
                return refuse(format!("root {} in `mixture`", dataset.root), reference.root.to_string());
            }
            let (weight, rows, tokens) = (dataset.weight, dataset.rows, dataset.tokens);
            let fits = (1..=MAX_EPOCH).contains(&weight) && (1..=MAX_COUNTED).contains(&rows);
            if !fits || tokens > MAX_COUNTED {
                let found = format!("weight {weight}, {rows} rows, {tokens} tokens");
                return refuse(format!("weights to {MAX_EPOCH}, rows and tokens to {MAX_COUNTED}"), found);
            }
        }
        let sum = |number: fn(&MixedDataset) -> u64| datasets.iter().map(number).fold(0, u64::saturating_add);
        let (epoch, rows) = (sum(|dataset| dataset.weight), sum(|dataset| dataset.rows));
        if epoch > MAX_EPOCH || rows > MAX_COUNTED {
            let expected = format!("weights that add up to at most {MAX_EPOCH}, rows to {MAX_COUNTED}");
            return refuse(expected, format!("{epoch} and {rows}"));
        }
        Ok(())
    }
}
