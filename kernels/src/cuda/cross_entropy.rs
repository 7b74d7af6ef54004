//! Vocabulary projection and cross-entropy on the GPU, in chunks of rows: all logits never exist at once.
//!
//! A chunk's logits are a bf16 product that the kernel overwrites with their gradient, from which the two products of
//! the backward pass follow at once; the weight's gradient is summed over chunks in fp32. Where nothing is to be
//! differentiated the logits are fp32 and the loss has their precision.

use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Output;
use xlstm_bridge::{BoxError, BridgeError, named_tensors};

use super::launch;
use crate::KernelError;
use crate::cross_entropy::CrossEntropyOutput;
use crate::shape::{dimensions, expect_device, expect_shape};

const NAME: &str = "projected_cross_entropy (CUDA)";

/// Bytes of a chunk's logits.
const CHUNK_BYTES: i64 = 768 << 20;

/// Whether [`projected_cross_entropy`] has a kernel for a vocabulary of this size: a multiple of 8.
#[must_use]
pub fn cross_entropy_fits(vocabulary: i64) -> bool {
    vocabulary % 8 == 0
}

/// Mean cross-entropy over `count` targets of `softmax(hidden_ND · weight_VDᵀ)`, hidden bf16, weight fp32 (rounded to
/// bf16 for the products), targets Int64. A target of `ignore` counts for nothing; one outside the vocabulary makes
/// the loss NaN. Gradients of `loss` flow to both; nothing waits for the GPU.
///
/// # Errors
/// [`KernelError`] when a shape, type or device does not fit, or the GPU fails.
pub fn projected_cross_entropy(
    hidden_ND: &Tensor,
    weight_VD: &Tensor,
    targets_N: &Tensor,
    ignore: i64,
    count: i64,
) -> Result<CrossEntropyOutput, KernelError> {
    let [rows, width] = dimensions(NAME, "hidden_ND", hidden_ND)?;
    let [vocabulary, _] = dimensions(NAME, "weight_VD", weight_VD)?;
    expect_shape(NAME, "weight_VD", weight_VD, &[vocabulary, width])?;
    expect_shape(NAME, "targets_N", targets_N, &[rows])?;
    expect_device(NAME, "targets_N", targets_N, hidden_ND)?;
    let hidden_ND = hidden_ND.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
    let mut losses_N = None;
    let Output { y: loss } = node(
        NAME,
        Inputs { hidden: Some(&hidden_ND), weight: Some(weight_VD) },
        |recorded| {
            let pass = Pass { hidden: &hidden_ND, weight: weight_VD, targets: targets_N, ignore, count };
            let (losses, saved) = pass.run(recorded)?;
            let loss = losses.f_sum(Kind::Double)?.f_div_scalar(count.max(1))?.f_to_kind(Kind::Float)?;
            losses_N = Some(losses);
            Ok((Output { y: loss }, saved))
        },
        |saved: Inputs<Option<Tensor>>, upstream: Output<Option<Tensor>>, _| {
            let upstream = upstream.gradient()?;
            let scaled = |saved: Option<Tensor>| -> Result<Option<Tensor>, BoxError> {
                let Some(saved) = saved else { return Ok(None) };
                Ok(Some(saved.f_mul(&upstream.f_to_kind(saved.kind())?)?))
            };
            Ok(Inputs { hidden: scaled(saved.hidden)?, weight: scaled(saved.weight)? })
        },
    )?;
    let missing = || BridgeError::Contract { name: NAME, expected: "losses".into(), found: "none".into() };
    let token_losses_N = losses_N.ok_or_else(missing)?;
    Ok(CrossEntropyOutput { loss, token_losses_N, count })
}

named_tensors! {
    /// What is differentiated; its gradients, up to a factor, are also all that the backward pass needs.
    struct Inputs<T> { hidden: T, weight: T }
}

struct Pass<'a> {
    hidden: &'a Tensor,
    weight: &'a Tensor,
    targets: &'a Tensor,
    ignore: i64,
    count: i64,
}

impl Pass<'_> {
    /// The losses, and gradients of hidden values and weight where they are wanted.
    fn run(&self, recorded: bool) -> Result<(Tensor, Inputs<Option<Tensor>>), BoxError> {
        let (rows, vocabulary) = (self.hidden.size()[0], self.weight.size()[0]);
        let weight = self.weight.f_to_kind(Kind::BFloat16)?;
        let targets = self.targets.f_contiguous()?;
        let losses = super::make(&[rows], Kind::Float, self.hidden)?;
        let chunk = (CHUNK_BYTES / (if recorded { 2 } else { 4 } * vocabulary)).clamp(1, rows);
        let scratch = recorded
            .then(|| {
                let logits = super::make(&[chunk, vocabulary], Kind::BFloat16, self.hidden)?;
                Ok::<_, BoxError>((logits, self.hidden.f_empty_like()?, self.weight.f_zeros_like()?))
            })
            .transpose()?;
        let mut start = 0;
        while start < rows {
            let length = chunk.min(rows - start);
            let part = |tensor: &Tensor| tensor.f_narrow(0, start, length);
            let hidden = part(self.hidden)?;
            let logits = match &scratch {
                Some((logits, ..)) => hidden.f_mm_out(&logits.f_narrow(0, 0, length)?, &weight.f_tr()?)?,
                None => hidden.f_mm_dtype(&weight.f_tr()?, Kind::Float)?,
            };
            let scale = 1.0 / self.count.max(1) as f64;
            launch::cross_entropy(&logits, &part(&targets)?, &part(&losses)?, (self.ignore, scale))?;
            if let Some((_, hidden_gradient, weight_gradient)) = &scratch {
                let _ = logits.f_mm_out(&part(hidden_gradient)?, &weight)?;
                let product = logits.f_tr()?.f_mm_dtype(&hidden, Kind::Float)?;
                let _ = weight_gradient.shallow_clone().f_add_(&product)?;
            }
            start += length;
        }
        let (hidden, weight) = match scratch {
            Some((_, hidden, weight)) => (Some(hidden), Some(weight)),
            None => (None, None),
        };
        Ok((losses, Inputs { hidden, weight }))
    }
}
