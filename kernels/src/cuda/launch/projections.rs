//! Queries, keys and values in float32.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::Specialization;
use xlstm_cuda::layers::ProjectionParameters;

use super::super::{Gpu, address, expect, make};
use super::{dense, int, matrix, partial_sums, sum_columns};

fn parameters(
    (c, a): (&Tensor, &Tensor),
    blocks: [&Tensor; 3],
) -> Result<(ProjectionParameters, [i64; 2]), BoxError> {
    expect("projections: c", c, Kind::Float)?;
    expect("projections: a", a, Kind::Float)?;
    let shape = dense("projections: c", c)?;
    let (a_shape, a_stride) = matrix("projections: a", a)?;
    let [tokens, width] = shape;
    if a_shape != shape || width % 8 != 0 {
        return Err(format!(
            "projections: expected a like c, {shape:?}, a multiple of 8 wide, found {a_shape:?}"
        )
        .into());
    }
    for weight in blocks {
        expect("projections: blocks", weight, Kind::Float)?;
        if weight.size() != [width / 4, 4, 4] || !weight.is_contiguous() {
            return Err(format!("projections: expected dense blocks of 4, found {:?}", weight.size()).into());
        }
    }
    let run = ProjectionParameters::run(u64::try_from(tokens)?, u32::try_from(width)?);
    let parameters = ProjectionParameters {
        tokens,
        a_stride,
        width: int(width)?,
        run: i32::try_from(run)?,
        c: address(c),
        a: address(a),
        query_weight: address(blocks[0]),
        key_weight: address(blocks[1]),
        value_weight: address(blocks[2]),
        ..ProjectionParameters::default()
    };
    Ok((parameters, shape))
}

/// `Wq c`, `Wk c` and `Wv a`, `(N, D)` each, fp32; blocks `(D / 4, 4, 4)`.
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn projections_forward(
    inputs: (&Tensor, &Tensor),
    blocks: [&Tensor; 3],
) -> Result<[Tensor; 3], BoxError> {
    let gpu = Gpu::of(inputs.0)?;
    let (parameters, shape) = parameters(inputs, blocks)?;
    let new = || make(&shape, Kind::Float, inputs.0);
    let [query, key, value] = [new()?, new()?, new()?];
    let parameters = ProjectionParameters {
        query: address(&query),
        key: address(&key),
        value: address(&value),
        ..parameters
    };
    let launch = ProjectionParameters::launch(u64::try_from(shape[0])?, u32::try_from(shape[1])?, false);
    // SAFETY: checked above; what is written was allocated above.
    unsafe { gpu.launch(Specialization::projections(gpu.architecture()), launch, &parameters)? };
    Ok([query, key, value])
}

/// Of [`projections_backward`].
#[derive(Debug)]
pub struct ProjectionGradients {
    /// Of c, `(N, D)`.
    pub c: Tensor,
    /// Of a, `(N, D)`.
    pub a: Tensor,
    /// Of the blocks, `(3, D / 4, 4, 4)`.
    pub blocks: Tensor,
}

/// Gradients from those of queries, keys and values, `(N, D)` each.
///
/// # Errors
/// When a tensor does not fit, or the GPU fails.
pub fn projections_backward(
    inputs: (&Tensor, &Tensor),
    blocks: [&Tensor; 3],
    upstream: [&Tensor; 3],
) -> Result<ProjectionGradients, BoxError> {
    let gpu = Gpu::of(inputs.0)?;
    let (parameters, shape) = parameters(inputs, blocks)?;
    for gradient in upstream {
        expect("projections: gradient", gradient, Kind::Float)?;
        if dense("projections: gradient", gradient)? != shape {
            return Err("projections: a gradient of another shape than c".into());
        }
    }
    let [tokens, width] = shape;
    let launch = ProjectionParameters::launch(u64::try_from(tokens)?, u32::try_from(width)?, true);
    let partial = partial_sums(&launch, 12 * width, inputs.0)?;
    let (c, a) = (make(&shape, Kind::Float, inputs.0)?, make(&shape, Kind::Float, inputs.0)?);
    let parameters = ProjectionParameters {
        query_gradient: address(upstream[0]),
        key_gradient: address(upstream[1]),
        value_gradient: address(upstream[2]),
        c_gradient: address(&c),
        a_gradient: address(&a),
        partial: address(&partial),
        ..parameters
    };
    // SAFETY: checked above; what is written was allocated above.
    unsafe { gpu.launch(Specialization::projections(gpu.architecture()), launch, &parameters)? };
    let blocks = sum_columns(gpu, &partial)?.f_view([3, width / 4, 4, 4])?;
    Ok(ProjectionGradients { c, a, blocks })
}
