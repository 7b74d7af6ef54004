//! Queries, keys and values.

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::Specialisation;
use xlstm_cuda::layers::ProjectionParameters;

use super::super::{Card, address, expect, make};
use super::{dense, int, matrix, partial_sums, sum_columns};

/// The three block-diagonal weights of an mLSTM block, each `(D / 4, 4, 4)`, fp32.
#[derive(Debug, Clone, Copy)]
pub struct BlockWeights<'a> {
    /// Of queries.
    pub query: &'a Tensor,
    /// Of keys.
    pub key: &'a Tensor,
    /// Of values.
    pub value: &'a Tensor,
}

fn projection_parameters(
    conv: &Tensor,
    input: &Tensor,
    weights: BlockWeights<'_>,
) -> Result<(ProjectionParameters, [i64; 2]), BoxError> {
    let shape = dense("projections: c", conv)?;
    let (other, stride) = matrix("projections: a", input)?;
    for weight in [weights.query, weights.key, weights.value] {
        expect("projections: weight", weight, Kind::Float)?;
        if weight.size() != [shape[1] / 4, 4, 4] || !weight.is_contiguous() {
            return Err(format!("projections: expected blocks of 4 by 4, found {:?}", weight.size()).into());
        }
    }
    if other != shape {
        return Err(format!("projections: c is {shape:?}, a {other:?}").into());
    }
    let parameters = ProjectionParameters {
        tokens: shape[0],
        width: int(shape[1])?,
        input_stride: stride,
        conv: address(conv),
        input: address(input),
        query_weight: address(weights.query),
        key_weight: address(weights.key),
        value_weight: address(weights.value),
        ..ProjectionParameters::default()
    };
    Ok((parameters, shape))
}

/// `q = Wq c`, `k = Wk c`, `v = Wv a`.
///
/// # Errors
/// When a tensor does not fit, or the card fails.
pub fn projections_forward(
    conv: &Tensor,
    input: &Tensor,
    weights: BlockWeights<'_>,
) -> Result<[Tensor; 3], BoxError> {
    let card = Card::of(conv)?;
    let (parameters, shape) = projection_parameters(conv, input, weights)?;
    let made = [
        make(&shape, Kind::BFloat16, conv)?,
        make(&shape, Kind::BFloat16, conv)?,
        make(&shape, Kind::BFloat16, conv)?,
    ];
    let (tokens, width) = (u64::try_from(shape[0])?, u32::try_from(shape[1])?);
    let parameters = ProjectionParameters {
        run: i32::try_from(ProjectionParameters::run(tokens, width, false))?,
        query: address(&made[0]),
        key: address(&made[1]),
        value: address(&made[2]),
        ..parameters
    };
    // The forward kernel knows no gates: any number will do.
    let specialisation = Specialisation::projections(card.architecture(), 8);
    let launch = ProjectionParameters::launch(tokens, width, false);
    // SAFETY: checked above.
    unsafe { card.launch(specialisation, launch, &parameters)? };
    Ok(made)
}

/// What arrives at q, k, v, at the gates and, by the skip branch, at c.
#[derive(Debug, Clone, Copy)]
pub struct ProjectionUpstream<'a> {
    /// Gradients of q, k, v, `(N, D)`.
    pub projected: [&'a Tensor; 3],
    /// M, `(2, G, D)`, fp32: the gates' weights on c and on a.
    pub gate_weight: &'a Tensor,
    /// Gradient of the gates, `(N, G)`, fp32.
    pub gates: &'a Tensor,
    /// Added to c's gradient, `(N, D)`.
    pub added: &'a Tensor,
}

/// Gradients of c, of a, and of the three weights in one tensor `(3, D / 4, 4, 4)`.
///
/// # Errors
/// When a tensor does not fit, or the card fails.
pub fn projections_backward(
    conv: &Tensor,
    input: &Tensor,
    weights: BlockWeights<'_>,
    upstream: ProjectionUpstream<'_>,
) -> Result<[Tensor; 3], BoxError> {
    let card = Card::of(conv)?;
    let (parameters, shape) = projection_parameters(conv, input, weights)?;
    for gradient in upstream.projected.into_iter().chain([upstream.added]) {
        if dense("projections: gradient", gradient)? != shape {
            return Err("projections: a gradient of another shape than c".into());
        }
    }
    let gates = upstream.gates.size().get(1).copied().unwrap_or(0);
    expect("projections: gate weight", upstream.gate_weight, Kind::Float)?;
    expect("projections: gradient of the gates", upstream.gates, Kind::Float)?;
    if upstream.gate_weight.size() != [2, gates, shape[1]]
        || upstream.gates.size() != [shape[0], gates]
        || !upstream.gate_weight.is_contiguous()
        || !upstream.gates.is_contiguous()
    {
        return Err(format!("projections: {gates} gates of {:?}", upstream.gate_weight.size()).into());
    }
    let made = [make(&shape, Kind::BFloat16, conv)?, make(&shape, Kind::BFloat16, conv)?];
    let (tokens, width) = (u64::try_from(shape[0])?, u32::try_from(shape[1])?);
    let launch = ProjectionParameters::launch(tokens, width, true);
    let partial = partial_sums(&launch, shape[1] * i64::from(ProjectionParameters::PARTIAL), conv)?;
    let parameters = ProjectionParameters {
        run: i32::try_from(ProjectionParameters::run(tokens, width, true))?,
        query_gradient: address(upstream.projected[0]),
        key_gradient: address(upstream.projected[1]),
        value_gradient: address(upstream.projected[2]),
        gate_weight: address(upstream.gate_weight),
        gate_gradient: address(upstream.gates),
        added: address(upstream.added),
        conv_gradient: address(&made[0]),
        input_gradient: address(&made[1]),
        partial: address(&partial),
        ..parameters
    };
    let specialisation = Specialisation::projections(card.architecture(), u32::try_from(gates)?);
    // SAFETY: checked above.
    unsafe { card.launch(specialisation, launch, &parameters)? };
    let weights = sum_columns(card, &partial)?.f_view([3, shape[1] / 4, 4, 4])?;
    let [conv_gradient, input_gradient] = made;
    Ok([conv_gradient, input_gradient, weights])
}
