//! The pointwise and block-wise operations between the big products of a block (paper fig. 10 and 11).
//!
//! | function | computes | where |
//! |---|---|---|
//! | [`block_linear`] | y = W x, W block-diagonal | queries, keys, values of mLSTM (blocks of 4); gates of sLSTM (one block a head) |
//! | [`mlstm_gates`] | i~, f~ = W [q; k; v] + b | mLSTM |
//! | [`mlstm_output`] | (norm(h)·(1+w) + skip ⊙ c) ⊙ SiLU(z) | mLSTM, before the down-projection |
//! | [`gelu_gate`] | GELU(g) ⊙ u | the feed-forward part of an sLSTM block |

use crate::KernelError;
use crate::norm::head_norm;
use crate::shape::{computing_kind, dimensions, expect_device, expect_shape};
use tch::Tensor;

/// Block-diagonal linear map without bias: `x_BTD` is cut into N blocks, `weight_NOI` holds each block's matrix
/// (out by in), the result is `(B, T, N·O)`.
///
/// # Errors
/// [`KernelError`] when the weight does not fit.
pub fn block_linear(x_BTD: &Tensor, weight_NOI: &Tensor) -> Result<Tensor, KernelError> {
    const NAME: &str = "block_linear";
    let [batch, time, _] = dimensions(NAME, "x_BTD", x_BTD)?;
    let [blocks, outputs, inputs] = dimensions(NAME, "weight_NOI", weight_NOI)?;
    expect_shape(NAME, "x_BTD", x_BTD, &[batch, time, blocks * inputs])?;
    expect_device(NAME, "weight_NOI", weight_NOI, x_BTD)?;
    let kind = computing_kind(NAME, "x_BTD", x_BTD)?;
    let x_NRI = x_BTD.to_kind(kind).view([batch * time, blocks, inputs]).transpose(0, 1);
    let y_NRO = x_NRI.matmul(&weight_NOI.to_kind(kind).transpose(1, 2));
    let y_BTD = y_NRO.transpose(0, 1).reshape([batch, time, blocks * outputs]);
    Ok(y_BTD.to_kind(x_BTD.kind()))
}

/// Weights of the gates of mLSTM, as the official package stores them: `(H, 3·D)` over `[q; k; v]`, and `(H)`.
#[derive(Debug, Clone, Copy)]
pub struct GateWeights<'a> {
    /// `igate.weight`, `(H, 3·D)`.
    pub input_weight: &'a Tensor,
    /// `igate.bias`, `(H)`.
    pub input_bias: &'a Tensor,
    /// `fgate.weight`, `(H, 3·D)`.
    pub forget_weight: &'a Tensor,
    /// `fgate.bias`, `(H)`.
    pub forget_bias: &'a Tensor,
}

/// Pre-activations of mLSTM's gates, `(i_BTH, f_BTH)`, in the computing type: they are exponents, and deserve it.
///
/// # Errors
/// [`KernelError`] when a weight does not fit.
pub fn mlstm_gates(
    q_BTD: &Tensor,
    k_BTD: &Tensor,
    v_BTD: &Tensor,
    weights: &GateWeights<'_>,
) -> Result<(Tensor, Tensor), KernelError> {
    const NAME: &str = "mlstm_gates";
    let [batch, time, width] = dimensions(NAME, "q_BTD", q_BTD)?;
    expect_shape(NAME, "k_BTD", k_BTD, &[batch, time, width])?;
    expect_shape(NAME, "v_BTD", v_BTD, &[batch, time, width])?;
    let [heads] = dimensions(NAME, "input_bias", weights.input_bias)?;
    expect_shape(NAME, "input_weight", weights.input_weight, &[heads, 3 * width])?;
    expect_shape(NAME, "forget_weight", weights.forget_weight, &[heads, 3 * width])?;
    expect_shape(NAME, "forget_bias", weights.forget_bias, &[heads])?;
    let kind = computing_kind(NAME, "q_BTD", q_BTD)?;
    // Both gates in one product for each of q, k and v; nothing is concatenated along time.
    let weight_GF = Tensor::cat(&[weights.input_weight, weights.forget_weight], 0).to_kind(kind);
    let bias_G = Tensor::cat(&[weights.input_bias, weights.forget_bias], 0).to_kind(kind);
    let sum_BTG = [q_BTD, k_BTD, v_BTD].into_iter().enumerate().fold(bias_G, |sum, (index, part_BTD)| {
        let part_GD = weight_GF.narrow(1, width * index as i64, width);
        sum + part_BTD.to_kind(kind).matmul(&part_GD.tr())
    });
    Ok((sum_BTG.narrow(-1, 0, heads), sum_BTG.narrow(-1, heads, heads)))
}

/// Arguments of [`mlstm_output`].
#[derive(Debug, Clone, Copy)]
pub struct MlstmOutputInput<'a> {
    /// Hidden values of mLSTM, `(B, T, H, E)`.
    pub h_BTHE: &'a Tensor,
    /// Weight of the head-wise norm, `(D)`, D = H·E.
    pub norm_weight_D: &'a Tensor,
    /// Learnable skip, `(D)`.
    pub skip_D: &'a Tensor,
    /// What the convolution gave, `(B, T, D)`.
    pub conv_BTD: &'a Tensor,
    /// The branch that gates, `(B, T, D)`.
    pub z_BTD: &'a Tensor,
}

/// What mLSTM sends to the down-projection: `(norm(h)·(1+w) + skip ⊙ c) ⊙ SiLU(z)`, `(B, T, D)`.
///
/// # Errors
/// [`KernelError`] when a shape does not fit.
pub fn mlstm_output(input: &MlstmOutputInput<'_>, epsilon: f64) -> Result<Tensor, KernelError> {
    const NAME: &str = "mlstm_output";
    let [batch, time, heads, width] = dimensions(NAME, "h_BTHE", input.h_BTHE)?;
    expect_shape(NAME, "skip_D", input.skip_D, &[heads * width])?;
    expect_shape(NAME, "conv_BTD", input.conv_BTD, &[batch, time, heads * width])?;
    expect_shape(NAME, "z_BTD", input.z_BTD, &[batch, time, heads * width])?;
    let normal_BTD = head_norm(input.h_BTHE, input.norm_weight_D, epsilon)?;
    Ok((normal_BTD + input.skip_D * input.conv_BTD) * input.z_BTD.silu())
}

/// `GELU(gate) ⊙ up`, with the error function, both halves of `projected_BTF = (gate, up)` in one tensor whose last
/// dimension is twice the result's.
///
/// # Errors
/// [`KernelError`] when the last dimension is odd.
pub fn gelu_gate(projected_F: &Tensor) -> Result<Tensor, KernelError> {
    const NAME: &str = "gelu_gate";
    let width = projected_F.size().last().copied().unwrap_or(0);
    if width == 0 || width % 2 != 0 {
        let (found, expected) = (projected_F.size(), "an even last dimension".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "projected_F", expected, found });
    }
    let half = |start: i64| projected_F.narrow(-1, start, width / 2);
    Ok(half(0).gelu("none") * half(width / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn block_linear_is_a_block_diagonal_matrix() {
        let x = Tensor::randn([2, 3, 8], (Kind::Double, Device::Cpu));
        let w = Tensor::randn([2, 5, 4], (Kind::Double, Device::Cpu));
        let dense = Tensor::zeros([10, 8], (Kind::Double, Device::Cpu));
        dense.narrow(0, 0, 5).narrow(1, 0, 4).copy_(&w.select(0, 0));
        dense.narrow(0, 5, 5).narrow(1, 4, 4).copy_(&w.select(0, 1));
        let difference = block_linear(&x, &w).unwrap() - x.matmul(&dense.tr());
        assert!(difference.abs().max().double_value(&[]) < 1e-12);
    }
}
