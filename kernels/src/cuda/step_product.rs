//! One token's products with the blocks' big matrices, with what stands before them, for generation (`step_product.cu`).
//!
//! For a few sequences a product is the reading of its matrix; what stands before it would be a kernel of its own, as long as
//! that. No gradients.

use tch::{Kind, Tensor};
use xlstm_bridge::{BoxError, BridgeError};
use xlstm_cuda::step_product::{ProductSizes, ProductStage, StepProductParameters};

use super::launch::Gated;
use super::{Gpu, address, expect, make, optional_address};
use crate::KernelError;
use crate::shape::{dimensions, expect_shape};

const NAME: &str = "step_product (CUDA)";

/// The weight of a product, `(N, K)`, as the kernel takes it: bf16 and dense.
fn is_taken(weight_NK: &Tensor) -> bool {
    weight_NK.kind() == Kind::BFloat16 && weight_NK.is_contiguous()
}

fn sizes(stage: [i64; 2], is_up: bool, batch: i64, outputs: i64) -> Option<ProductSizes> {
    let [heads, head] = stage.map(u32::try_from);
    let (heads, head) = (heads.ok()?, head.ok()?);
    let stage = if is_up { ProductStage::Up { width: head } } else { ProductStage::Down { heads, head } };
    ProductSizes::new(stage, u32::try_from(batch).ok()?, u32::try_from(outputs).ok()?)
}

/// Whether [`step_up`] has a kernel for so many sequences and this weight.
pub fn step_up_fits(batch: i64, weight_NK: &Tensor) -> bool {
    let [outputs, width] = weight_NK.size()[..] else { return false };
    is_taken(weight_NK) && sizes([1, width], true, batch, outputs).is_some()
}

/// Whether [`step_down`] has a kernel for so many sequences and heads, and this weight.
pub fn step_down_fits(batch: i64, heads: i64, weight_NK: &Tensor) -> bool {
    let [outputs, width] = weight_NK.size()[..] else { return false };
    let whole = heads > 0 && width % heads == 0;
    is_taken(weight_NK) && whole && sizes([heads, width / heads], false, batch, outputs).is_some()
}

/// The residual with `delta_B1K` (bf16) added, `(B, 1, K)`, float32, and `W LN(residual)`, `(B, 1, N)`, bf16. The norm's weight
/// `(K)` is stored as the scale less one.
///
/// # Errors
/// [`KernelError`] when a tensor does not fit, there is no kernel for the size, or the GPU fails.
pub fn step_up(
    residual_B1K: &Tensor,
    delta_B1K: Option<&Tensor>,
    norm_K: &Tensor,
    weight_NK: &Tensor,
    epsilon: f64,
) -> Result<(Tensor, Tensor), KernelError> {
    let [batch, _, width] = dimensions(NAME, "residual_B1K", residual_B1K)?;
    let [outputs, _] = dimensions(NAME, "weight_NK", weight_NK)?;
    expect_shape(NAME, "residual_B1K", residual_B1K, &[batch, 1, width])?;
    expect_shape(NAME, "norm_K", norm_K, &[width])?;
    expect_shape(NAME, "weight_NK", weight_NK, &[outputs, width])?;
    if let Some(delta_B1K) = delta_B1K {
        expect_shape(NAME, "delta_B1K", delta_B1K, &[batch, 1, width])?;
    }
    let run = || -> Result<(Tensor, Tensor), BoxError> {
        let sum_B1K = make(&[batch, 1, width], Kind::Float, residual_B1K)?;
        let y_B1N = make(&[batch, 1, outputs], Kind::BFloat16, residual_B1K)?;
        let dense = [Some((residual_B1K, Kind::Float)), delta_B1K.map(|delta| (delta, Kind::BFloat16))];
        dense.into_iter().flatten().try_for_each(|(tensor, kind)| expect_dense(tensor, kind))?;
        let parameters = StepProductParameters {
            outputs: i32::try_from(outputs)?,
            epsilon: epsilon as f32,
            residual: address(residual_B1K),
            delta: optional_address(delta_B1K),
            norm: address(norm_K),
            weight: address(weight_NK),
            sum: address(&sum_B1K),
            output: address(&y_B1N),
            ..StepProductParameters::default()
        };
        launch(sizes([1, width], true, batch, outputs), [norm_K, weight_NK], &parameters)?;
        Ok((sum_B1K, y_B1N))
    };
    Ok(run().map_err(|source| BridgeError::Forward { name: NAME, source })?)
}

/// `W ((norm(h)(1 + w) + skip ⊙ branch) ⊙ SiLU(gate))`, `(B, 1, N)`, bf16, of `h_BHE` (bf16), the norm by head with weight
/// `(H·E)`.
///
/// # Errors
/// As [`step_up`].
pub fn step_down(
    h_BHE: &Tensor,
    norm_K: &Tensor,
    gated: &Gated<'_>,
    weight_NK: &Tensor,
    epsilon: f64,
) -> Result<Tensor, KernelError> {
    let [batch, heads, head] = dimensions(NAME, "h_BHE", h_BHE)?;
    let [outputs, _] = dimensions(NAME, "weight_NK", weight_NK)?;
    let width = heads * head;
    expect_shape(NAME, "norm_K", norm_K, &[width])?;
    expect_shape(NAME, "skip_K", gated.skip, &[width])?;
    expect_shape(NAME, "weight_NK", weight_NK, &[outputs, width])?;
    expect_shape(NAME, "branch_BK", gated.branch, &[batch, width])?;
    expect_shape(NAME, "gate_BK", gated.gate, &[batch, width])?;
    let run = || -> Result<Tensor, BoxError> {
        let y_B1N = make(&[batch, 1, outputs], Kind::BFloat16, h_BHE)?;
        expect_dense(h_BHE, Kind::BFloat16)?;
        expect_dense(gated.branch, Kind::BFloat16)?;
        expect("gate", gated.gate, Kind::BFloat16)?;
        expect("skip", gated.skip, Kind::Float)?;
        let parameters = StepProductParameters {
            outputs: i32::try_from(outputs)?,
            epsilon: epsilon as f32,
            gate_stride: gated.gate.stride()[0],
            hidden: address(h_BHE),
            branch: address(gated.branch),
            gate: address(gated.gate),
            skip: address(gated.skip),
            norm: address(norm_K),
            weight: address(weight_NK),
            output: address(&y_B1N),
            ..StepProductParameters::default()
        };
        launch(sizes([heads, head], false, batch, outputs), [norm_K, weight_NK], &parameters)?;
        Ok(y_B1N)
    };
    Ok(run().map_err(|source| BridgeError::Forward { name: NAME, source })?)
}

fn expect_dense(tensor: &Tensor, kind: Kind) -> Result<(), BoxError> {
    expect(NAME, tensor, kind)?;
    if tensor.is_contiguous() {
        return Ok(());
    }
    Err(format!("{NAME}: expected a dense tensor, found strides {:?}", tensor.stride()).into())
}

fn launch(
    sizes: Option<ProductSizes>,
    [norm_K, weight_NK]: [&Tensor; 2],
    parameters: &StepProductParameters,
) -> Result<(), BoxError> {
    let sizes = sizes.ok_or_else(|| format!("{NAME}: no kernel for a weight of {:?}", weight_NK.size()))?;
    expect_dense(norm_K, Kind::Float)?;
    expect_dense(weight_NK, Kind::BFloat16)?;
    let gpu = Gpu::of(weight_NK)?;
    // SAFETY: the tensors have the sizes that the caller checked, types and strides as the kernel takes them; before it waits
    // it reads weights alone.
    unsafe { gpu.launch_overlapping(sizes.specialization(gpu.architecture()), sizes.launch(), parameters) }
}
