//! The cells of the other methods as functions of leaves, for tests that compare versions and golden vectors.

use super::{leaf, random, random_flags, relative_error};
use tch::{Kind, Tensor};

/// A cell: its arguments by name, and all results from them.
pub struct Cell<'a> {
    pub names: &'a [&'a str],
    pub values: Vec<Tensor>,
    pub run: &'a dyn Fn(&[Tensor]) -> Vec<Tensor>,
}

impl Cell<'_> {
    /// Results and gradients in `kind`; results are weighted at random, so that each gradient is.
    pub fn all(&self, kind: Kind) -> Vec<(String, Tensor)> {
        let leaves: Vec<Tensor> = self.values.iter().map(|value| leaf(&value.to_kind(kind))).collect();
        let outputs = (self.run)(&leaves);
        let weighted = outputs.iter().enumerate().filter(|(_, output)| output.requires_grad());
        weighted
            .map(|(index, output)| {
                let weights = random(700 + index as i64, &output.size(), kind);
                (output.to_kind(kind) * weights).sum(kind)
            })
            .reduce(|left, right| left + right)
            .unwrap()
            .backward();
        let mut found: Vec<(String, Tensor)> = outputs
            .iter()
            .enumerate()
            .map(|(index, output)| (format!("output {index}"), output.detach()))
            .collect();
        let gradients = self.names.iter().zip(&leaves);
        found.extend(gradients.map(|(name, leaf)| (format!("gradient of {name}"), leaf.grad())));
        found
    }
}

/// Relative to the largest value, but to no less than 0.01 of what goes in: some gradients are zero but for rounding.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    let largest = expected.abs().max().to_kind(Kind::Double).double_value(&[]);
    relative_error(found, expected) * largest.max(f64::MIN_POSITIVE) / largest.max(1e-2)
}

/// Compare two runs, value by value.
#[track_caller]
pub fn compare(what: &str, found: &[(String, Tensor)], expected: &[(String, Tensor)], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        let error = error(found, expected);
        assert!(error <= tolerance, "{what}: {name}: relative error {error:.3e} exceeds {tolerance:.1e}");
    }
}

/// Document borders, about one in fifteen steps, and one at the very first step of the last row.
pub fn resets(seed: i64, batch: i64, time: i64) -> Tensor {
    let flags = random_flags(seed, &[batch, time], 0.07);
    let _ = flags.select(0, batch - 1).narrow(0, 0, 1).fill_(1);
    flags
}
