//! GELU gate and cross-entropy.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::Specialization;
use xlstm_cuda::layers::{CrossEntropyParameters, GeluParameters};

use super::super::{Gpu, address, cross_entropy_fits, expect, make};
use super::{any_head, dense, expect_same, int};

/// `GELU(g) ⊙ u` of `(g, u)` side by side, `(N, 2 F)`; with a gradient of the result, its gradient instead.
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn gelu(projected: &Tensor, y_gradient: Option<&Tensor>) -> Result<Tensor, BoxError> {
    let gpu = Gpu::of(projected)?;
    expect_same("gelu", &[Some(projected), y_gradient])?;
    let [rows, double] = dense("gelu: projected", projected)?;
    let width = double / 2;
    if double % 16 != 0 {
        return Err(format!("gelu: expected halves of a multiple of 8, found {double} for both").into());
    }
    let mut parameters = GeluParameters {
        rows,
        width: int(width)?,
        projected: address(projected),
        ..GeluParameters::default()
    };
    let made = match y_gradient {
        None => make(&[rows, width], projected.kind(), projected)?,
        Some(gradient) if dense("gelu: gradient", gradient)? == [rows, width] => {
            parameters.output_gradient = address(gradient);
            make(&[rows, double], projected.kind(), projected)?
        }
        Some(gradient) => return Err(format!("gelu: a gradient of shape {:?}", gradient.size()).into()),
    };
    match y_gradient {
        None => parameters.output = address(&made),
        Some(_) => parameters.projected_gradient = address(&made),
    }
    let launch = GeluParameters::launch(u64::try_from(rows)?, u32::try_from(width)?, y_gradient.is_some());
    // SAFETY: checked above.
    unsafe { gpu.launch(any_head(gpu, projected), launch, &parameters)? };
    Ok(made)
}

/// Losses `(R)` of rows of logits. bf16 logits are overwritten by their gradients, times `scale`; fp32 logits are read.
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    losses: &Tensor,
    (ignore, scale): (i64, f64),
) -> Result<(), BoxError> {
    let gpu = Gpu::of(logits)?;
    let gradients = logits.kind() == Kind::BFloat16;
    expect("cross-entropy: logits", logits, if gradients { Kind::BFloat16 } else { Kind::Float })?;
    let [rows, vocabulary] = <[i64; 2]>::try_from(logits.size().as_slice())?;
    let fits = targets.kind() == Kind::Int64
        && losses.kind() == Kind::Float
        && [targets.size(), losses.size()].iter().all(|size| *size == [rows])
        && [logits, targets, losses].iter().all(|tensor| tensor.is_contiguous())
        && cross_entropy_fits(vocabulary);
    if !fits {
        return Err(format!("cross-entropy: expected a vocabulary of a multiple of 8, a target and a loss for each row, found {:?}", logits.size()).into());
    }
    let mut parameters = CrossEntropyParameters {
        rows: int(rows)?,
        scale: scale as f32,
        ignore,
        targets: address(targets),
        losses: address(losses),
        ..CrossEntropyParameters::default()
    };
    if gradients {
        parameters.logits = address(logits);
    } else {
        parameters.wide_logits = address(logits);
    }
    let specialization = Specialization::cross_entropy(gpu.architecture(), u32::try_from(vocabulary)?);
    let launch = CrossEntropyParameters::launch(u32::try_from(rows)?, u32::try_from(vocabulary)?, gradients);
    // SAFETY: checked above.
    unsafe { gpu.launch(specialization, launch, &parameters)? };
    Ok(())
}
