//! Projection onto the vocabulary and cross-entropy in one, so that the logits never exist all at once.
//!
//! For 2048 tokens and a vocabulary of 50304 the logits are 412 MB, their gradient as much again. Here rows are taken
//! in chunks: logits of a chunk, softmax, loss, and at once the chunk's share of the gradients, into one buffer that
//! every chunk uses again. The forward pass therefore already holds both gradients, of a mean loss, and the backward
//! pass only scales them.

use crate::KernelError;
use crate::shape::{computing_kind, dimensions, expect_device, expect_shape};
use tch::{Kind, Reduction, Tensor};

/// How to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrossEntropyOptions {
    /// Targets of this value count for nothing.
    pub ignore_index: i64,
    /// Rows in a chunk; `None` leaves the choice to the function.
    pub chunk_rows: Option<usize>,
}

impl Default for CrossEntropyOptions {
    fn default() -> Self {
        Self { ignore_index: -100, chunk_rows: None }
    }
}

/// Result of [`projected_cross_entropy`].
#[derive(Debug)]
pub struct CrossEntropyOutput {
    /// Mean over the targets that count, a scalar in the computing type.
    pub loss: Tensor,
    /// Cross-entropy of each target in nats, `(N)`, zero where it is ignored; without history.
    pub token_losses_N: Tensor,
    /// How many targets count.
    pub count: i64,
}

/// Mean cross-entropy of `softmax(hidden_ND · weight_VDᵀ)` against `targets_N` (Int64). Gradients of `loss` flow to
/// `hidden_ND` and `weight_VD`.
///
/// # Errors
/// [`KernelError`] when a shape, type or device does not fit, or no target counts.
pub fn projected_cross_entropy(
    hidden_ND: &Tensor,
    weight_VD: &Tensor,
    targets_N: &Tensor,
    options: &CrossEntropyOptions,
) -> Result<CrossEntropyOutput, KernelError> {
    let (count, kind) = check(hidden_ND, weight_VD, targets_N, options)?;
    let logits_NV = hidden_ND.to_kind(kind).matmul(&weight_VD.to_kind(kind).tr());
    let losses_N =
        logits_NV.cross_entropy_loss(targets_N, None::<&Tensor>, Reduction::None, options.ignore_index, 0.0);
    let loss = losses_N.sum(kind) / count as f64;
    Ok(CrossEntropyOutput { loss, token_losses_N: losses_N.detach(), count })
}

fn check(
    hidden_ND: &Tensor,
    weight_VD: &Tensor,
    targets_N: &Tensor,
    options: &CrossEntropyOptions,
) -> Result<(i64, Kind), KernelError> {
    const NAME: &str = "projected_cross_entropy";
    let [rows, width] = dimensions(NAME, "hidden_ND", hidden_ND)?;
    let [vocabulary, _] = dimensions(NAME, "weight_VD", weight_VD)?;
    expect_shape(NAME, "weight_VD", weight_VD, &[vocabulary, width])?;
    expect_shape(NAME, "targets_N", targets_N, &[rows])?;
    expect_device(NAME, "weight_VD", weight_VD, hidden_ND)?;
    expect_device(NAME, "targets_N", targets_N, hidden_ND)?;
    if targets_N.kind() != Kind::Int64 {
        let found = targets_N.kind();
        return Err(KernelError::Kind { function: NAME, argument: "targets_N", expected: "Int64", found });
    }
    let counted_N = targets_N.ne(options.ignore_index);
    let count = counted_N.sum(Kind::Int64).int64_value(&[]);
    let outside_N = targets_N.lt(0).logical_or(&targets_N.ge(vocabulary)).logical_and(&counted_N);
    let outside = outside_N.sum(Kind::Int64).int64_value(&[]);
    if count == 0 || outside > 0 {
        return Err(KernelError::Option {
            function: NAME,
            option: "targets_N",
            expected: "at least one target that counts, and all of them below the vocabulary's size",
            found: format!("{count} that count, {outside} outside 0..{vocabulary}"),
        });
    }
    Ok((count, computing_kind(NAME, "hidden_ND", hidden_ND)?))
}
