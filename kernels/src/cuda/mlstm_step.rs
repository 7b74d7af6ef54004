//! One token of an mLSTM block after its up-projection, for generation (`mlstm_step.cu`, `step_product.cu`).
//!
//! Two kernels: convolution, projections, gates and the cell; norm, skip, gate and the down-projection (three for many
//! sequences). No gradients. The state is overwritten where it lies, so that a step can be recorded once and replayed, and its
//! bytes are read and written once.

use tch::{Kind, Tensor};
use xlstm_bridge::{BoxError, BridgeError};
use xlstm_cuda::mlstm_step::{StepParameters, StepSizes};

use super::inner::{InnerInput, InnerState};
use super::launch::{Gated, norm_forward};
use super::step_product::{step_down, step_down_fits};
use super::{Gpu, address, expect, make};
use crate::KernelError;
use crate::mlstm::{EPSILON, MlstmState};
use crate::shape::{dimensions, expect_shape};

const NAME: &str = "mlstm_step (CUDA)";

/// What an mLSTM block remembers while it is stepped, in memory that stays where it is.
#[derive(Debug)]
pub struct StepState {
    /// The last three inputs of the convolution, oldest first, `(B, 3, D)`, bf16.
    pub window: Tensor,
    /// The cell's, fp32.
    pub cell: MlstmState,
    /// Blocks of threads that have read what all of a head read, and of a sequence, `(B, H + 1)`, Int: zero between steps.
    pub arrived: Tensor,
}

impl StepState {
    /// A state to step from, in the memory of `state` where its types and strides are the kernel's: nobody else may use it
    /// from now on.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn from(state: InnerState) -> Result<Self, KernelError> {
        let own = |tensor: Tensor, kind| tensor.detach().f_to_kind(kind)?.f_contiguous();
        let MlstmState { matrix, normalizer, maximum } = state.cell;
        let [batch, heads] = dimensions(NAME, "state.cell.maximum", &maximum)?;
        Ok(Self {
            window: own(state.window, Kind::BFloat16)?,
            arrived: Tensor::f_zeros([batch, heads + 1], (Kind::Int, maximum.device()))?,
            cell: MlstmState {
                matrix: own(matrix, Kind::Float)?,
                normalizer: own(normalizer, Kind::Float)?,
                maximum: own(maximum, Kind::Float)?,
            },
        })
    }
}

/// Of [`mlstm_step`], bf16.
#[derive(Debug)]
pub struct Stepped {
    /// The cell's output, `(B, H, E)`.
    pub h_BHE: Tensor,
    /// The convolution's, `(B, D)`.
    pub c_BD: Tensor,
}

/// The cell's output for one token after `state`, which is moved on by it. The input has no resets and no state of its own;
/// its norm and skip come after.
///
/// # Errors
/// [`KernelError`] when a shape or type does not fit, there is no kernel for the size, or the GPU fails.
pub fn mlstm_step(input: &InnerInput<'_>, state: &StepState) -> Result<Stepped, KernelError> {
    let [batch, _, double] = dimensions(NAME, "up_BTF", input.up_BTF)?;
    expect_shape(NAME, "up_BTF", input.up_BTF, &[batch, 1, double])?;
    let (width, [gates]) = (double / 2, dimensions(NAME, "gate_bias_G", input.gate_bias_G)?);
    let heads = gates / 2;
    let head = width / heads.max(1);
    let MlstmState { matrix, normalizer, maximum } = &state.cell;
    let block = [width / 4, 4, 4];
    let shapes: [(&'static str, &Tensor, &[i64]); 11] = [
        ("conv_weight_D1W", input.conv_weight_D1W, &[width, 1, 4]),
        ("conv_bias_D", input.conv_bias_D, &[width]),
        ("query_NOI", input.query_NOI, &block),
        ("key_NOI", input.key_NOI, &block),
        ("value_NOI", input.value_NOI, &block),
        ("gate_weight_2GD", input.gate_weight_2GD, &[2, gates, width]),
        ("state.window", &state.window, &[batch, 3, width]),
        ("state.cell.matrix", matrix, &[batch, heads, head, head]),
        ("state.cell.normalizer", normalizer, &[batch, heads, head]),
        ("state.cell.maximum", maximum, &[batch, heads]),
        ("state.arrived", &state.arrived, &[batch, heads + 1]),
    ];
    for (name, tensor, shape) in shapes {
        expect_shape(NAME, name, tensor, shape)?;
    }
    let failed = |source| BridgeError::Forward { name: NAME, source };
    Ok(step(input, state, [batch, heads, head]).map_err(failed)?)
}

fn step(
    input: &InnerInput<'_>,
    state: &StepState,
    [batch, heads, head]: [i64; 3],
) -> Result<Stepped, BoxError> {
    let gpu = Gpu::of(input.up_BTF)?;
    let width = heads * head;
    let MlstmState { matrix, normalizer, maximum } = &state.cell;
    let floats = [
        input.conv_weight_D1W,
        input.conv_bias_D,
        input.query_NOI,
        input.key_NOI,
        input.value_NOI,
        input.gate_weight_2GD,
        input.gate_bias_G,
        matrix,
        normalizer,
        maximum,
    ];
    let typed = floats.iter().all(|tensor| tensor.kind() == Kind::Float)
        && state.window.kind() == Kind::BFloat16
        && state.arrived.kind() == Kind::Int;
    let dense = floats.into_iter().chain([&state.window, &state.arrived]);
    let mut dense = dense.map(|tensor| tensor.is_contiguous() && tensor.device() == input.up_BTF.device());
    if !typed || !dense.all(|fits| fits) {
        return Err(
            format!("{NAME}: expected dense float32 weights and states on the GPU of the input").into()
        );
    }
    let up_BF = input.up_BTF.f_view([batch, 2 * width])?;
    expect("up", &up_BF, Kind::BFloat16)?;
    let sizes = StepSizes::new(u32::try_from(heads)?, u32::try_from(head)?, u32::try_from(batch)?)
        .ok_or_else(|| format!("{NAME}: no kernel for {heads} heads of {head}"))?;
    let h_BHE = make(&[batch, heads, head], Kind::BFloat16, &up_BF)?;
    let c_BD = make(&[batch, width], Kind::BFloat16, &up_BF)?;
    let parameters = StepParameters {
        key_scale: (head as f64).powf(-0.5) as f32,
        epsilon: EPSILON as f32,
        input_stride: up_BF.stride()[0],
        input: address(&up_BF),
        conv_weight: address(input.conv_weight_D1W),
        conv_bias: address(input.conv_bias_D),
        query_weight: address(input.query_NOI),
        key_weight: address(input.key_NOI),
        value_weight: address(input.value_NOI),
        gate_weight: address(input.gate_weight_2GD),
        gate_bias: address(input.gate_bias_G),
        matrix: address(matrix),
        normalizer: address(normalizer),
        maximum: address(maximum),
        window: address(&state.window),
        arrived: address(&state.arrived),
        branch: address(&c_BD),
        output: address(&h_BHE),
    };
    let launch = sizes.launch(u32::try_from(batch)?);
    // SAFETY: weights and state are dense and of the sizes that the caller checked; what is written was made here. Before it
    // waits it reads weights, and of the state what only the same block's kernel writes, a token before: between the two lie
    // at least the block's products.
    unsafe { gpu.launch_overlapping(sizes.specialization(gpu.architecture()), launch, &parameters)? };
    Ok(Stepped { h_BHE, c_BD })
}

/// What leaves an mLSTM block after its cell, `(B, 1, C)`, bf16: `W_down` of what norm, skip and gate make of `stepped`.
///
/// # Errors
/// As [`mlstm_step`].
pub fn mlstm_step_down(
    input: &InnerInput<'_>,
    stepped: &Stepped,
    down_CD: &Tensor,
    epsilon: f64,
) -> Result<Tensor, KernelError> {
    let [batch, heads, head] = dimensions(NAME, "h_BHE", &stepped.h_BHE)?;
    let width = heads * head;
    let gate = input.up_BTF.f_view([batch, 2 * width])?.f_narrow(1, width, width)?;
    let gated = Gated { skip: input.skip_D, branch: &stepped.c_BD, gate: &gate };
    if step_down_fits(batch, heads, down_CD) {
        return step_down(&stepped.h_BHE, input.norm_weight_D, &gated, down_CD, epsilon);
    }
    let failed = |source| BridgeError::Forward { name: NAME, source };
    let (y_BD, _) =
        norm_forward(&stepped.h_BHE, input.norm_weight_D, Some(gated), epsilon).map_err(failed)?;
    let down_CD = down_CD.f_to_kind(Kind::BFloat16)?;
    Ok(y_BD.f_view([batch, 1, width])?.f_linear(&down_CD, None::<&Tensor>)?)
}
