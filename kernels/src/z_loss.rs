//! Cross-entropy with a z-loss: what is minimized is `mean(-log p(target) + w · z²)`, where `z` is the logarithm of the
//! softmax's sum. By libtorch's operations, chunk by chunk, on any device.

use tch::{Kind, Tensor};
use xlstm_bridge::autograd::checkpoint;

use crate::KernelError;
use crate::cross_entropy::check_shapes;
use crate::shape::{expect_device, expect_shape};

/// The logits of a chunk take at most about this much memory.
const LOGIT_BYTES: i64 = 256 << 20;

/// How to compute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ZLossOptions {
    /// Targets of this value count for nothing.
    pub ignore_index: i64,
    /// Weight of the squared logarithm of the softmax's sum.
    pub weight: f64,
}

/// Result of [`cross_entropy_with_z_loss`].
#[derive(Debug)]
pub struct ZLossOutput {
    /// Cross-entropy and weighted z-loss, means over the targets that count: a scalar.
    pub minimized: Tensor,
    /// The mean cross-entropy alone, a scalar without history.
    pub cross_entropy: Tensor,
}

/// The loss of `hidden_ND · weight_VDᵀ` against `targets_N` (Int64). Gradients of `minimized` flow to `hidden_ND` and
/// `weight_VD`. `count` is a float32 scalar on the device: the targets that count, at least 1; nothing waits for it. A
/// target outside the vocabulary makes the loss NaN.
///
/// # Errors
/// [`KernelError`] when a shape, type or device does not fit.
pub fn cross_entropy_with_z_loss(
    hidden_ND: &Tensor,
    weight_VD: &Tensor,
    targets_N: &Tensor,
    count: &Tensor,
    options: &ZLossOptions,
) -> Result<ZLossOutput, KernelError> {
    const NAME: &str = "cross_entropy_with_z_loss";
    let (kind, vocabulary) = check_shapes(NAME, hidden_ND, weight_VD, targets_N)?;
    expect_shape(NAME, "count", count, &[])?;
    expect_device(NAME, "count", count, hidden_ND)?;
    let (hidden_ND, weight_VD) = (hidden_ND.f_to_kind(kind)?, weight_VD.f_to_kind(kind)?);
    let (rows, chunk) = (hidden_ND.size()[0], (LOGIT_BYTES / (4 * vocabulary)).max(1));
    let (mut entropies, mut squares, mut start) = (Vec::new(), Vec::new(), 0);
    while start < rows {
        let length = chunk.min(rows - start);
        let targets_R = targets_N.f_narrow(0, start, length)?;
        let hidden_RD = hidden_ND.f_narrow(0, start, length)?;
        let ignore = options.ignore_index;
        let mut outputs = checkpoint("z_loss", &[&hidden_RD, &weight_VD], move |inputs| {
            Ok(losses(&inputs[0], &inputs[1], &targets_R, ignore)?)
        })?;
        squares.extend(outputs.pop());
        entropies.extend(outputs.pop());
        start += length;
    }
    let count = count.f_to_kind(wide(kind))?;
    let mean = |parts: &[Tensor]| Tensor::f_cat(parts, 0)?.f_sum(wide(kind))?.f_div(&count);
    let (cross_entropy, square) = (mean(&entropies)?, mean(&squares)?);
    let minimized = cross_entropy.f_add(&square.f_mul_scalar(options.weight)?)?;
    Ok(ZLossOutput { minimized, cross_entropy: cross_entropy.detach() })
}

/// Cross-entropy and squared logarithm of the softmax's sum of each row, zero where the target does not count.
fn losses(
    hidden_RD: &Tensor,
    weight_VD: &Tensor,
    targets_R: &Tensor,
    ignore: i64,
) -> Result<Vec<Tensor>, tch::TchError> {
    let logits_RV = hidden_RD.f_matmul(&weight_VD.f_tr()?)?;
    let logits_RV = logits_RV.f_to_kind(wide(logits_RV.kind()))?;
    let ignored_R = targets_R.f_eq(ignore)?;
    let vocabulary = weight_VD.size()[0];
    let outside_R = targets_R.f_lt(0)?.f_logical_or(&targets_R.f_ge(vocabulary)?)?;
    let wrong_R = outside_R.f_logical_and(&ignored_R.f_logical_not()?)?;
    let safe_R1 = targets_R.f_masked_fill(&outside_R, 0)?.f_unsqueeze(1)?;
    let z_R = logits_RV.f_logsumexp(-1, false)?;
    let entropy_R = z_R.f_sub(&logits_RV.f_gather(1, &safe_R1, false)?.f_squeeze_dim(1)?)?;
    let entropy_R = entropy_R.f_masked_fill(&ignored_R, 0.0)?.f_masked_fill(&wrong_R, f64::NAN)?;
    Ok(vec![entropy_R, z_R.f_square()?.f_masked_fill(&ignored_R, 0.0)?])
}

/// The type of sums: float32, or float64 where the operands are.
fn wide(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// PyTorch's numbers: `tests/golden/z_loss.py`.
    #[test]
    fn the_loss_and_its_gradients_are_those_of_pytorch() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/z_loss.json")).unwrap();
        let number = |name: &str| golden[name].as_f64().unwrap();
        let numbers = |name: &str| -> Vec<f64> {
            golden[name].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
        };
        let matrix = |name: &str, rows: i64| {
            Tensor::from_slice(&numbers(name)).view([rows, -1]).set_requires_grad(true)
        };
        let (hidden, output) = (matrix("hidden", 6), matrix("output", 11));
        let targets: Vec<i64> =
            golden["targets"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
        let (targets, count) = (Tensor::from_slice(&targets), Tensor::from(5.0_f32));
        let options = ZLossOptions { ignore_index: -100, weight: number("weight") };
        let found = cross_entropy_with_z_loss(&hidden, &output, &targets, &count, &options).unwrap();
        let near =
            |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        near(found.minimized.double_value(&[]), number("minimized"));
        near(found.cross_entropy.double_value(&[]), number("cross_entropy"));
        let sources = [&hidden, &output];
        let gradients =
            xlstm_bridge::autograd::gradients(&[&found.minimized], &[None], &sources, false).unwrap();
        for (gradient, name) in gradients.iter().zip(["hidden_gradient", "output_gradient"]) {
            let gradient = Vec::<f64>::try_from(gradient.as_ref().unwrap().view(-1)).unwrap();
            gradient.iter().zip(numbers(name)).for_each(|(&found, expected)| near(found, expected));
        }
        let wrong = Tensor::from_slice(&[1_i64, 2, -100, 11, 0, 3]);
        let found = cross_entropy_with_z_loss(&hidden, &output, &wrong, &count, &options).unwrap();
        assert!(found.minimized.double_value(&[]).is_nan());
    }
}
