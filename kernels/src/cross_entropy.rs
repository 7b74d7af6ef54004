//! Projection onto the vocabulary and cross-entropy in one, so that the logits never exist all at once.
//!
//! For 2048 tokens and a vocabulary of 50304 the logits are 412 MB, their gradient as much again. On the CPU
//! (`cpu/cross_entropy.h`) tokens are taken in chunks and words in tiles that stay in the caches; the forward pass
//! already finds both gradients, of a mean loss, and the backward pass only scales them. In memory lie, once, the
//! exponentials of a chunk. Elsewhere libtorch computes, chunk by chunk.

use crate::KernelError;
use crate::cpu::{Precision, ProjectionProblem, address, call, empty, optional_address};
use crate::shape::{computing_kind, dimensions, expect_device, expect_shape};
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Device, Kind, Reduction, TchError, Tensor};
use xlstm_bridge::autograd::{checkpoint, node};
use xlstm_bridge::named::{Named, Output};
use xlstm_bridge::{BoxError, BridgeError, named_tensors};

/// The exponentials of a chunk take at most about this much memory.
const CHUNK_BYTES: i64 = 144 << 20;
/// The logits of a chunk on a GPU take at most about this much memory.
const LOGIT_BYTES: i64 = 256 << 20;
/// Tokens of a chunk come in multiples of this where the function chooses: whole panels of the matrix product.
const CHUNK_UNIT: i64 = 48;

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
    let (hidden_ND, weight_VD) = (hidden_ND.to_kind(kind), weight_VD.to_kind(kind));
    if hidden_ND.device() == Device::Cpu {
        return fused(&hidden_ND, &weight_VD, targets_N, options, count);
    }
    composed(&hidden_ND, &weight_VD, targets_N, options, count)
}

/// As [`projected_cross_entropy`] for a caller that knows how many targets count: nothing waits for the device, so that a
/// step can be recorded. `count` is a float32 scalar on the device, at least 1; a target outside the vocabulary makes the
/// loss NaN. The output's own `count` is what `known` says.
///
/// # Errors
/// [`KernelError`] when a shape, type or device does not fit.
pub fn counted_cross_entropy(
    hidden_ND: &Tensor,
    weight_VD: &Tensor,
    targets_N: &Tensor,
    ignore: i64,
    (count, known): (&Tensor, i64),
) -> Result<CrossEntropyOutput, KernelError> {
    const NAME: &str = "counted_cross_entropy";
    let (kind, vocabulary) = check_shapes(NAME, hidden_ND, weight_VD, targets_N)?;
    expect_shape(NAME, "count", count, &[])?;
    expect_device(NAME, "count", count, hidden_ND)?;
    let (hidden_ND, weight_VD) = (hidden_ND.f_to_kind(kind)?, weight_VD.f_to_kind(kind)?);
    let outside_N = targets_N.f_lt(0)?.f_logical_or(&targets_N.f_ge(vocabulary)?)?;
    let safe_N = targets_N.f_masked_fill(&outside_N, ignore)?;
    let chunk = (LOGIT_BYTES / (4 * vocabulary)).max(1);
    let losses_N = chunked_losses(&hidden_ND, &weight_VD, &safe_N, ignore, chunk)?;
    let wrong_N = outside_N.f_logical_and(&targets_N.f_ne(ignore)?)?;
    let losses_N = losses_N.f_masked_fill(&wrong_N, f64::NAN)?;
    let loss = losses_N.f_sum(losses_N.kind())?.f_div(&count.f_to_kind(losses_N.kind())?)?;
    Ok(CrossEntropyOutput { loss, token_losses_N: losses_N.detach(), count: known })
}

/// By libtorch's operations; any device.
fn composed(
    hidden_ND: &Tensor,
    weight_VD: &Tensor,
    targets_N: &Tensor,
    options: &CrossEntropyOptions,
    count: i64,
) -> Result<CrossEntropyOutput, KernelError> {
    let chunk = options.chunk_rows.and_then(|rows| i64::try_from(rows).ok()).unwrap_or(1024).max(1);
    let losses_N = chunked_losses(hidden_ND, weight_VD, targets_N, options.ignore_index, chunk)?;
    let loss = losses_N.f_sum(losses_N.kind())?.f_div_scalar(count as f64)?;
    Ok(CrossEntropyOutput { loss, token_losses_N: losses_N.detach(), count })
}

/// The loss of every target, `chunk` rows at a time; with several chunks, a chunk's logits are computed again in the
/// backward pass.
fn chunked_losses(
    hidden_ND: &Tensor,
    weight_VD: &Tensor,
    targets_N: &Tensor,
    ignore: i64,
    chunk: i64,
) -> Result<Tensor, KernelError> {
    let rows = hidden_ND.size()[0];
    let losses = move |hidden_RD: &Tensor, weight_VD: &Tensor, targets_R: &Tensor| {
        let logits_RV = hidden_RD.f_matmul(&weight_VD.f_tr()?)?;
        logits_RV.f_cross_entropy_loss(targets_R, None::<&Tensor>, Reduction::None, ignore, 0.0)
    };
    if rows <= chunk {
        return Ok(losses(hidden_ND, weight_VD, targets_N)?);
    }
    let mut parts = Vec::new();
    let mut start = 0;
    while start < rows {
        let length = chunk.min(rows - start);
        let targets_R = targets_N.narrow(0, start, length);
        let mut outputs =
            checkpoint("cross_entropy", &[&hidden_ND.narrow(0, start, length), weight_VD], move |inputs| {
                Ok(vec![losses(&inputs[0], &inputs[1], &targets_R)?])
            })?;
        parts.push(outputs.swap_remove(0));
        start += length;
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}

named_tensors! {
    /// What the loss is differentiated by.
    struct Inputs<T> { hidden_ND: T, weight_VD: T }

    /// Dense, of one type.
    struct Saved { hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor }
}

/// On the CPU; the gradients are computed on the way, and given away by the first backward pass: a tensor that somebody
/// else still holds would be copied. Another pass over the same graph computes them again.
fn fused(
    hidden_ND: &Tensor,
    weight_VD: &Tensor,
    targets_N: &Tensor,
    options: &CrossEntropyOptions,
    count: i64,
) -> Result<CrossEntropyOutput, KernelError> {
    const NAME: &str = "projected_cross_entropy";
    let options = *options;
    let mut losses_N = None;
    let ready = Arc::new(Mutex::new(None));
    let given = Arc::clone(&ready);
    let output = node(
        NAME,
        Inputs { hidden_ND: Some(hidden_ND), weight_VD: Some(weight_VD) },
        |recorded| {
            let saved = Saved {
                hidden_ND: hidden_ND.contiguous(),
                weight_VD: weight_VD.contiguous(),
                targets_N: targets_N.contiguous(),
            };
            let projection = Projection::new(&saved, recorded, &options)?;
            projection.run(count, &options);
            let loss = (projection.losses_N.sum(Kind::Double) / count as f64).to_kind(hidden_ND.kind());
            losses_N = Some(projection.losses_N);
            *ready.lock().unwrap_or_else(PoisonError::into_inner) = projection.gradients;
            Ok((Output { y: loss }, saved))
        },
        move |saved, upstream, _| {
            let upstream = upstream.gradient()?;
            let first = given.lock().unwrap_or_else(PoisonError::into_inner).take();
            let again = || {
                let projection = Projection::new(&saved, true, &options)?;
                projection.run(count, &options);
                Ok::<_, BoxError>(projection.gradients)
            };
            let gradients = if first.is_some() { first } else { again()? };
            let mut gradients = gradients.ok_or("no gradients were computed")?;
            if upstream.double_value(&[]) != 1.0 {
                let _ = gradients.hidden_ND.f_mul_(&upstream)?;
                let _ = gradients.weight_VD.f_mul_(&upstream)?;
            }
            Ok(gradients.map(Some))
        },
    )?;
    let missing = || BridgeError::Contract { name: NAME, expected: "losses".into(), found: "none".into() };
    let token_losses_N = losses_N.ok_or_else(missing)?;
    Ok(CrossEntropyOutput { loss: output.y, token_losses_N, count })
}

/// The tensors of a call.
struct Projection<'a> {
    saved: &'a Saved,
    losses_N: Tensor,
    /// Of the mean loss, when they are wanted.
    gradients: Option<Inputs<Tensor>>,
    /// Rows at a time.
    chunk: i64,
    /// Scratch for the exponentials of a chunk, by word, where there shall be gradients. A tensor, so that what is missing
    /// is named where memory is short, and others use it in between.
    exponentials_VR: Option<Tensor>,
}

impl<'a> Projection<'a> {
    fn new(saved: &'a Saved, differentiate: bool, options: &CrossEntropyOptions) -> Result<Self, TchError> {
        let Saved { hidden_ND, weight_VD, targets_N } = saved;
        let kind = hidden_ND.kind();
        let (rows, vocabulary) = (hidden_ND.size()[0], weight_VD.size()[0]);
        let bytes = if kind == Kind::Double { 8 } else { 4 };
        let chosen = options.chunk_rows.and_then(|rows| i64::try_from(rows).ok());
        let chunk = chosen.unwrap_or_else(|| chunk_rows(rows, vocabulary, bytes)).min(rows).max(1);
        let exponentials_VR = if differentiate {
            Some(Tensor::f_empty([vocabulary, stride(chunk, bytes)], (kind, Device::Cpu))?)
        } else {
            None
        };
        let gradients =
            differentiate.then(|| Inputs { hidden_ND, weight_VD }.map(|tensor| empty(&tensor.size(), kind)));
        let losses_N = empty(&targets_N.size(), kind);
        Ok(Self { saved, losses_N, gradients, chunk, exponentials_VR })
    }

    fn run(&self, count: i64, options: &CrossEntropyOptions) {
        call!(
            self.saved.hidden_ND.kind(),
            cross_entropy_f32,
            cross_entropy_f64,
            &self.problem(1.0 / count as f64, options)
        );
    }

    fn problem<T: Precision>(&self, scale: f64, options: &CrossEntropyOptions) -> ProjectionProblem<T> {
        let Saved { hidden_ND, weight_VD, targets_N } = self.saved;
        let (rows, vocabulary) = (hidden_ND.size()[0], weight_VD.size()[0]);
        ProjectionProblem {
            rows,
            width: hidden_ND.size()[1],
            vocabulary,
            ignore_index: options.ignore_index,
            chunk: self.chunk,
            stride: stride(self.chunk, size_of::<T>() as i64),
            scale: T::from_f64(scale),
            hidden: address::<T>(hidden_ND).cast_const(),
            weight: address::<T>(weight_VD).cast_const(),
            targets: address::<i64>(targets_N).cast_const(),
            losses: address(&self.losses_N),
            hidden_gradient: optional_address(self.gradients.as_ref().map(|all| &all.hidden_ND)),
            weight_gradient: optional_address(self.gradients.as_ref().map(|all| &all.weight_VD)),
            exponentials: optional_address(self.exponentials_VR.as_ref()),
        }
    }
}

/// Equal chunks whose exponentials fit.
fn chunk_rows(rows: i64, vocabulary: i64, bytes: i64) -> i64 {
    let fitting = (CHUNK_BYTES / (bytes * vocabulary)).clamp(CHUNK_UNIT, 1024);
    let chunks = (rows + fitting - 1) / fitting;
    let equal = (rows + chunks - 1) / chunks;
    (equal + CHUNK_UNIT - 1) / CHUNK_UNIT * CHUNK_UNIT
}

/// Elements from one word's exponentials to the next: whole panels, and an odd number of lines of the caches, so that
/// neighboring words do not meet in the same sets.
fn stride(chunk: i64, bytes: i64) -> i64 {
    let line = 64 / bytes;
    let panels = (chunk + CHUNK_UNIT - 1) / CHUNK_UNIT * CHUNK_UNIT;
    ((panels / line) | 1) * line
}

fn check(
    hidden_ND: &Tensor,
    weight_VD: &Tensor,
    targets_N: &Tensor,
    options: &CrossEntropyOptions,
) -> Result<(i64, Kind), KernelError> {
    const NAME: &str = "projected_cross_entropy";
    let (kind, vocabulary) = check_shapes(NAME, hidden_ND, weight_VD, targets_N)?;
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
    Ok((count, kind))
}

/// Checks everything that needs no waiting; the type to compute in, and the vocabulary's size.
pub(crate) fn check_shapes(
    name: &'static str,
    hidden_ND: &Tensor,
    weight_VD: &Tensor,
    targets_N: &Tensor,
) -> Result<(Kind, i64), KernelError> {
    let [rows, width] = dimensions(name, "hidden_ND", hidden_ND)?;
    let [vocabulary, _] = dimensions(name, "weight_VD", weight_VD)?;
    expect_shape(name, "weight_VD", weight_VD, &[vocabulary, width])?;
    expect_shape(name, "targets_N", targets_N, &[rows])?;
    expect_device(name, "weight_VD", weight_VD, hidden_ND)?;
    expect_device(name, "targets_N", targets_N, hidden_ND)?;
    if targets_N.kind() != Kind::Int64 {
        let found = targets_N.kind();
        return Err(KernelError::Kind { function: name, argument: "targets_N", expected: "Int64", found });
    }
    Ok((computing_kind(name, "hidden_ND", hidden_ND)?, vocabulary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_on_the_device_gives_the_same_loss_and_bad_targets_give_nan() {
        let random =
            |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (hidden_ND, weight_VD) = (random([6, 5]), random([11, 5]));
        let options = CrossEntropyOptions::default();
        let gradients = |loss: &Tensor| {
            let sources = [&hidden_ND, &weight_VD];
            xlstm_bridge::autograd::gradients(&[loss], &[None], &sources, false).unwrap()
        };
        let count = Tensor::from(5.0_f32);
        let counted = |targets: &[i64]| {
            let targets = Tensor::from_slice(targets);
            counted_cross_entropy(&hidden_ND, &weight_VD, &targets, -100, (&count, 5)).unwrap()
        };
        let targets = [1_i64, 2, -100, 10, 0, 3];
        let expected =
            projected_cross_entropy(&hidden_ND, &weight_VD, &Tensor::from_slice(&targets), &options).unwrap();
        let found = counted(&targets);
        assert_eq!(found.count, expected.count);
        assert!((&found.loss - &expected.loss).abs().double_value(&[]) < 1e-6);
        for (a, b) in gradients(&found.loss).into_iter().zip(gradients(&expected.loss)) {
            assert!((a.unwrap() - b.unwrap()).abs().max().double_value(&[]) < 1e-6);
        }
        for bad in [11_i64, -1] {
            assert!(counted(&[1, 2, -100, bad, 0, 3]).loss.double_value(&[]).is_nan(), "{bad}");
        }
    }

    #[test]
    fn both_ways_agree() {
        let random =
            |shape: [i64; 2]| Tensor::randn(shape, (Kind::Double, Device::Cpu)).set_requires_grad(true);
        let (hidden_ND, weight_VD) = (random([13, 5]), random([11, 5]));
        let targets_N = Tensor::from_slice(&[1_i64, 2, -100, 10, 0, 3, 3, 9, -100, 5, 6, 7, 8]);
        let options = CrossEntropyOptions { chunk_rows: Some(4), ..CrossEntropyOptions::default() };
        let gradients = |output: CrossEntropyOutput| {
            let found = xlstm_bridge::autograd::gradients(
                &[&(output.loss.shallow_clone() * 3.0)],
                &[None],
                &[&hidden_ND, &weight_VD],
                false,
            );
            let mut all: Vec<Tensor> = found.unwrap().into_iter().flatten().collect();
            all.extend([output.loss.detach(), output.token_losses_N]);
            all
        };
        let output = fused(&hidden_ND, &weight_VD, &targets_N, &options, 11).unwrap();
        let twice: Vec<Tensor> = [true, false]
            .into_iter()
            .map(|keep| {
                let sources = [&hidden_ND, &weight_VD];
                xlstm_bridge::autograd::gradients(&[&output.loss], &[None], &sources, keep).unwrap()[1]
                    .as_ref()
                    .unwrap()
                    .copy()
            })
            .collect();
        assert!(twice[0].equal(&twice[1]), "a second pass over the same graph");
        let ours = gradients(fused(&hidden_ND, &weight_VD, &targets_N, &options, 11).unwrap());
        let libtorch = gradients(composed(&hidden_ND, &weight_VD, &targets_N, &options, 11).unwrap());
        assert_eq!(ours.len(), 4);
        for (a, b) in ours.iter().zip(&libtorch) {
            assert!((a - b).abs().max().double_value(&[]) < 1e-12);
        }
    }
}
