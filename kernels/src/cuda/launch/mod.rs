//! One Rust function for each kernel around the cells: tensors in, tensors out, no autograd.
//!
//! What [`super::mlstm_inner`] and the others are put together from, and what the selfcheck compares with float64.
//! N = B·T tokens; activations bf16 `(N, D)`, parameters fp32. An `x` with a stride may be half of a wider tensor.

mod convolution;
mod inner;
mod loss;
mod norms;
mod projections;

pub use convolution::{ConvLayer, ConvTarget, ConvUpstream, conv_backward, conv_forward};
pub use inner::{
    InnerGradients, InnerOutputs, InnerTarget, InnerUpstream, InnerWeights, inner_backward, inner_forward,
};
pub use loss::{cross_entropy, gelu};
pub use norms::{
    Division, Gated, NormGradients, NormTarget, Normed, ResidualGradients, ResidualNorm, norm_backward,
    norm_forward, residual_backward, residual_forward,
};
pub use projections::{ProjectionGradients, projections_backward, projections_forward};

use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_cuda::Specialization;
use xlstm_cuda::layers::{ColumnParameters, LayerLaunch};

use super::{Gpu, address, expect, make};

/// Where sequences begin anew, and what stands before their first token.
#[derive(Debug, Clone, Copy, Default)]
pub struct Boundaries<'a> {
    /// `(B, T)`, boolean: zeros stand before these tokens.
    pub resets: Option<&'a Tensor>,
    /// The three inputs of the convolution before the first token, oldest first, `(B, 3, D)`, in its type; `None` for zeros.
    pub window: Option<&'a Tensor>,
}

impl Boundaries<'_> {
    /// Whether there are any.
    fn any(&self) -> bool {
        self.resets.is_some() || self.window.is_some()
    }

    /// Checks both for B sequences of T tokens and D channels.
    fn check(&self, name: &str, kind: Kind, [batch, tokens, width]: [i64; 3]) -> Result<(), BoxError> {
        let wanted =
            [(self.resets, Kind::Bool, vec![batch, tokens]), (self.window, kind, vec![batch, 3, width])];
        for (tensor, kind, size) in wanted {
            let Some(tensor) = tensor else { continue };
            if tensor.kind() != kind || tensor.size() != size || !tensor.is_contiguous() {
                let (found, kind_found) = (tensor.size(), tensor.kind());
                return Err(format!(
                    "{name}: expected {kind:?} {size:?}, dense, found {kind_found:?} {found:?}"
                )
                .into());
            }
        }
        Ok(())
    }
}

fn int(value: i64) -> Result<i32, BoxError> {
    Ok(i32::try_from(value)?)
}

/// Rows and columns of a matrix of bf16 or float32, and the stride of its rows.
fn matrix(name: &str, tensor: &Tensor) -> Result<([i64; 2], i64), BoxError> {
    expect(name, tensor, if float32(tensor) { Kind::Float } else { Kind::BFloat16 })?;
    let size = tensor.size();
    let shape = <[i64; 2]>::try_from(size.as_slice())
        .map_err(|_| format!("{name}: expected two dimensions, found {size:?}"))?;
    let stride = tensor.stride()[0];
    if shape[0] > 1 && (stride % 8 != 0 || stride < shape[1]) {
        return Err(format!(
            "{name}: expected rows apart by a multiple of 8 that is at least their width, found a stride of {stride}"
        )
        .into());
    }
    Ok((shape, stride))
}

/// As [`matrix`], dense.
fn dense(name: &str, tensor: &Tensor) -> Result<[i64; 2], BoxError> {
    let (shape, _) = matrix(name, tensor)?;
    if tensor.is_contiguous() { Ok(shape) } else { Err(format!("{name}: expected a dense tensor").into()) }
}

/// Adds up the rows of partial sums, in a fixed order.
pub(super) fn sum_columns(gpu: &Gpu, partial: &Tensor) -> Result<Tensor, BoxError> {
    let [rows, columns] = <[i64; 2]>::try_from(partial.size().as_slice())?;
    let sums = make(&[columns], Kind::Float, partial)?;
    let parameters = ColumnParameters {
        rows: int(rows)?,
        columns: int(columns)?,
        values: address(partial),
        sums: address(&sums),
    };
    let launch = ColumnParameters::launch(u32::try_from(columns)?);
    // SAFETY: `partial` has rows × columns numbers, `sums` one for each column.
    unsafe { gpu.launch(Specialization::sums(gpu.architecture()), launch, &parameters)? };
    Ok(sums)
}

/// Sums of the columns of partial sums `(rows, columns)`, dense and fp32, in a fixed order: `(columns)`.
pub(crate) fn sum_of_rows(partial: &Tensor) -> Result<Tensor, BoxError> {
    sum_columns(Gpu::of(partial)?, partial)
}

/// Whether activations like this one are float32, rather than bf16.
fn float32(tensor: &Tensor) -> bool {
    tensor.kind() == Kind::Float
}

/// The pointwise kernels that do not depend on a head's size, for activations like this one.
fn any_head(gpu: &Gpu, like: &Tensor) -> Specialization {
    Specialization::pointwise(gpu.architecture(), 64, float32(like))
}

/// That all activations of a call have the type of the first.
fn expect_same(name: &str, tensors: &[Option<&Tensor>]) -> Result<(), BoxError> {
    let mut kinds = tensors.iter().flatten().map(|tensor| tensor.kind());
    let first = kinds.next();
    match kinds.find(|kind| Some(*kind) != first) {
        Some(found) => Err(format!("{name}: expected {first:?} for all activations, found {found:?}").into()),
        None => Ok(()),
    }
}

/// Room for a launch's partial sums.
fn partial_sums(launch: &LayerLaunch, columns: i64, like: &Tensor) -> Result<Tensor, BoxError> {
    make(&[i64::from(launch.parts), columns], Kind::Float, like)
}
