//! One step of mLSTM, for generation: constant memory, any device, differentiated by libtorch.

use super::{EPSILON, MlstmState};
use crate::KernelError;
use crate::shape::{computing_kind, dimensions, expect_shape};
use tch::Tensor;

/// Arguments as in [`super::mlstm`], without time: `q_BHK`, `k_BHK`, `v_BHV`, gates `i_BH`, `f_BH`. Returns `h_BHV`
/// in the type of `v_BHV` and the next state in the type of the computation.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape or type does not fit.
pub fn mlstm_step(
    q_BHK: &Tensor,
    k_BHK: &Tensor,
    v_BHV: &Tensor,
    i_BH: &Tensor,
    f_BH: &Tensor,
    state: &MlstmState,
) -> Result<(Tensor, MlstmState), KernelError> {
    const NAME: &str = "mlstm_step";
    let [batch, heads, key] = dimensions(NAME, "q_BHK", q_BHK)?;
    let [_, _, value] = dimensions(NAME, "v_BHV", v_BHV)?;
    expect_shape(NAME, "k_BHK", k_BHK, &[batch, heads, key])?;
    expect_shape(NAME, "v_BHV", v_BHV, &[batch, heads, value])?;
    expect_shape(NAME, "i_BH", i_BH, &[batch, heads])?;
    expect_shape(NAME, "f_BH", f_BH, &[batch, heads])?;
    expect_shape(NAME, "state.matrix", &state.matrix, &[batch, heads, key, value])?;
    expect_shape(NAME, "state.normalizer", &state.normalizer, &[batch, heads, key])?;
    expect_shape(NAME, "state.maximum", &state.maximum, &[batch, heads])?;
    let kind = computing_kind(NAME, "q_BHK", q_BHK)?;

    let scale = (key as f64).powf(-0.5);
    let (q_BHK, k_BHK) = (q_BHK.to_kind(kind), k_BHK.to_kind(kind) * scale);
    let i_BH = i_BH.to_kind(kind);
    let state = state.to_kind(kind);
    let kept_BH = f_BH.to_kind(kind).log_sigmoid() + &state.maximum;
    let maximum_BH = kept_BH.maximum(&i_BH);
    let forget_BH1 = (kept_BH - &maximum_BH).exp().unsqueeze(-1);
    let written_BHK = k_BHK * (i_BH - &maximum_BH).exp().unsqueeze(-1);
    let matrix_BHKV = &state.matrix * forget_BH1.unsqueeze(-1)
        + written_BHK.unsqueeze(-1) * v_BHV.to_kind(kind).unsqueeze(-2);
    let normalizer_BHK = &state.normalizer * forget_BH1 + written_BHK;

    let read_BH1K = q_BHK.unsqueeze(-2);
    let numerator_BHV = read_BH1K.matmul(&matrix_BHKV).squeeze_dim(-2);
    let normalizer_BH1 = read_BH1K.matmul(&normalizer_BHK.unsqueeze(-1)).squeeze_dim(-1);
    let denominator_BH1 = normalizer_BH1.abs().maximum(&(-&maximum_BH).exp().unsqueeze(-1)) + EPSILON;
    let h_BHV = (numerator_BHV / denominator_BH1).to_kind(v_BHV.kind());
    Ok((h_BHV, MlstmState { matrix: matrix_BHKV, normalizer: normalizer_BHK, maximum: maximum_BH }))
}
