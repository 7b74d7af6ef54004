//! mLSTM blocks: pre up-projection (figure 11) and, for table 8, post up-projection.
//!
//! ```text
//! y = LN(x);  (a, z) = W_up y;  c = SiLU(conv(a));  q, k = blocks(c);  v = blocks(a);  gates from [q; k; v]
//! x + W_down((GroupNorm(mLSTM(q, k, v)) + skip ⊙ c) ⊙ SiLU(z))
//! ```
//! Legend: B batch, T time, D inner width, H heads, E head width. Output gate as released: SiLU, not the paper's
//! sigmoid. Without a convolution, c = SiLU(a).

use tch::{Kind, Tensor};
use xlstm_kernels::{conv, cuda, gates, mlstm, norm, projections};
use xlstm_manifests::recipe::{BlockKind, InputBias, ModelConfig};

use super::parameters::{Builder, Init, linspace, small_init, wang_init};
use super::state::{BlockState, CellState};
use super::{Call, NORM_EPSILON, product, signed};
use crate::error::Result;

/// An mLSTM block of either kind.
#[derive(Debug)]
pub(super) struct MlstmBlock {
    norm: Tensor,
    heads: i64,
    gates: Gates,
    outnorm: Tensor,
    down: Tensor,
    kind: Kindred,
}

#[derive(Debug)]
struct Gates {
    input_weight: Tensor,
    input_bias: Tensor,
    forget_weight: Tensor,
    forget_bias: Tensor,
}

/// What the two kinds of block do not share.
#[derive(Debug)]
enum Kindred {
    Pre {
        up: Tensor,
        convolution: Option<(Tensor, Tensor)>,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        skip: Tensor,
    },
    Post {
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output_gate: Tensor,
        feed_norm: Tensor,
        feed_up: Tensor,
        feed_down: Tensor,
    },
}

impl MlstmBlock {
    pub(super) fn new(builder: &mut Builder, model: &ModelConfig, prefix: &str) -> Result<Self> {
        let (config, d, blocks) = (&model.mlstm, model.embedding_dim, model.blocks);
        let (width, inner, heads) = (signed(d), signed(model.inner_dim()), signed(config.heads));
        let small = small_init(d);
        let norm = builder.add(format!("{prefix}.xlstm_norm.weight"), &[width], &Init::Constant(0.0))?;
        let name = |part: &str| format!("{prefix}.xlstm.{part}");
        let kind = match config.block {
            BlockKind::PreUpProjection => {
                let skip = builder.add(name("learnable_skip"), &[inner], &Init::Constant(1.0))?;
                let up = builder.add(name("proj_up.weight"), &[2 * inner, width], &small)?;
                let size = signed(config.qkv_block_size);
                let shape = [inner / size, size, size];
                let query = builder.add(name("q_proj.weight"), &shape, &small)?;
                let key = builder.add(name("k_proj.weight"), &shape, &small)?;
                let value = builder.add(name("v_proj.weight"), &shape, &small)?;
                let convolution = super::convolution(builder, &name("conv1d"), inner, config.convolution)?;
                Kindred::Pre { up, convolution, query, key, value, skip }
            }
            BlockKind::PostUpProjection => {
                let square = [width, width];
                let query = builder.add(name("q_proj.weight"), &square, &small)?;
                let key = builder.add(name("k_proj.weight"), &square, &small)?;
                let value = builder.add(name("v_proj.weight"), &square, &small)?;
                let output_gate = builder.add(name("ogate.weight"), &square, &small)?;
                let feed = signed(model.mlstm_feed_forward_dim());
                let feed_norm =
                    builder.add(format!("{prefix}.ffn_norm.weight"), &[width], &Init::Constant(0.0))?;
                let feed_up = builder.add(format!("{prefix}.ffn.proj_up.weight"), &[feed, width], &small)?;
                let down = wang_init(d, blocks);
                let feed_down =
                    builder.add(format!("{prefix}.ffn.proj_down.weight"), &[width, feed], &down)?;
                Kindred::Post { query, key, value, output_gate, feed_norm, feed_up, feed_down }
            }
        };
        let gates = Gates::new(builder, model, &name("mlstm_cell"))?;
        let outnorm = builder.add(name("mlstm_cell.outnorm.weight"), &[inner], &Init::Constant(0.0))?;
        let down = builder.add(name("proj_down.weight"), &[width, inner], &wang_init(d, blocks))?;
        Ok(Self { norm, heads, gates, outnorm, down, kind })
    }

    pub(super) fn forward(&self, x_BTC: &Tensor, call: &Call<'_>) -> Result<(Tensor, BlockState)> {
        match &self.kind {
            Kindred::Pre { up, convolution, query, key, value, skip } => {
                let y_BTC = norm::layer_norm(x_BTC, &self.norm, NORM_EPSILON)?;
                let up_BTF = product(&y_BTC, up, call.precision)?;
                // One cut into two: its backward pass writes both halves once.
                let mut halves = up_BTF.f_chunk(2, -1)?;
                let (z_BTD, a_BTD) = (halves.swap_remove(1), halves.swap_remove(0));
                let (c_BTD, window) = convolve(&a_BTD, convolution.as_ref(), call)?;
                let projections = projections::mlstm_projections(&projections::ProjectionsInput {
                    c_BTD: &c_BTD,
                    a_BTD: &a_BTD,
                    blocks_NOI: [query, key, value],
                    gates: self.gates.weights(),
                })?;
                let projections::Projections { qkv_BTD: [q_BTD, k_BTD, v_BTD], i_BTH, f_BTH } = projections;
                let (h_BTHE, cell) = self.cell(&q_BTD, &k_BTD, &v_BTD, &i_BTH, &f_BTH, call)?;
                let input = gates::MlstmOutputInput {
                    h_BTHE: &h_BTHE,
                    norm_weight_D: &self.outnorm,
                    skip_D: skip,
                    conv_BTD: &c_BTD,
                    z_BTD: &z_BTD,
                };
                let h_BTD = gates::mlstm_output(&input, NORM_EPSILON)?;
                let x_BTC = x_BTC + product(&h_BTD, &self.down, call.precision)?;
                Ok((x_BTC, BlockState { convolution: window, cell }))
            }
            Kindred::Post { .. } => self.forward_post(x_BTC, call),
        }
    }

    /// Whether the card's kernels know this block's sizes.
    pub(super) fn fits_card(&self) -> bool {
        let Kindred::Pre { up, convolution: Some((taps, _)), query, .. } = &self.kind else { return false };
        cuda::inner_fits(up.size()[0] / 2, self.heads, taps.size()[2], query.size()[1])
    }

    /// By the card's kernels, in bf16: what the block before gave is added to the stream first, what this one gives is
    /// left to the next (`cuda::add_layer_norm`).
    pub(super) fn forward_card(
        &self,
        x_BTC: &Tensor,
        delta_BTC: Option<&Tensor>,
        resets_BT: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let Kindred::Pre { up, convolution: Some((conv_weight, conv_bias)), query, key, value, skip } =
            &self.kind
        else {
            unreachable!("called for blocks that fit only")
        };
        let (x_BTC, y_BTC) = cuda::add_layer_norm(x_BTC, delta_BTC, &self.norm, NORM_EPSILON)?;
        let up_BTF = product(&y_BTC, up, Some(Kind::BFloat16))?;
        let (gate_weight, gate_bias) = cuda::gate_weights(&self.gates.weights(), [query, key, value])?;
        let input = cuda::InnerInput {
            up_BTF: &up_BTF,
            conv_weight_D1W: conv_weight,
            conv_bias_D: conv_bias,
            query_NOI: query,
            key_NOI: key,
            value_NOI: value,
            gate_weight_2GD: &gate_weight,
            gate_bias_G: &gate_bias,
            norm_weight_D: &self.outnorm,
            skip_D: skip,
            keep: true,
            resets_BT,
            state: None,
            with_state: false,
        };
        let h_BTD = cuda::mlstm_inner(&input, NORM_EPSILON)?.y_BTD;
        Ok((x_BTC, product(&h_BTD, &self.down, Some(Kind::BFloat16))?))
    }

    /// `x + W_o(GroupNorm(mLSTM) ⊙ σ(W_g y))`, then `x + W_down relu(W_up LN(x))²`.
    fn forward_post(&self, x_BTC: &Tensor, call: &Call<'_>) -> Result<(Tensor, BlockState)> {
        let Kindred::Post { query, key, value, output_gate, feed_norm, feed_up, feed_down } = &self.kind
        else {
            unreachable!("called for post up-projection blocks only")
        };
        let y_BTC = norm::layer_norm(x_BTC, &self.norm, NORM_EPSILON)?;
        let q_BTD = product(&y_BTC, query, call.precision)?;
        let k_BTD = product(&y_BTC, key, call.precision)?;
        let v_BTD = product(&y_BTC, value, call.precision)?;
        let (i_BTH, f_BTH) = self.gates.of_stream(&y_BTC)?;
        let (h_BTHE, cell) = self.cell(&q_BTD, &k_BTD, &v_BTD, &i_BTH, &f_BTH, call)?;
        let gate_BTD = product(&y_BTC, output_gate, call.precision)?.sigmoid();
        let h_BTD = norm::head_norm(&h_BTHE, &self.outnorm, NORM_EPSILON)? * gate_BTD;
        let x_BTC = x_BTC + product(&h_BTD, &self.down, call.precision)?;
        let y_BTC = norm::layer_norm(&x_BTC, feed_norm, NORM_EPSILON)?;
        let up_BTF = product(&y_BTC, feed_up, call.precision)?.relu().square();
        let x_BTC = x_BTC + product(&up_BTF, feed_down, call.precision)?;
        Ok((x_BTC, BlockState { convolution: None, cell }))
    }

    fn cell(
        &self,
        q_BTD: &Tensor,
        k_BTD: &Tensor,
        v_BTD: &Tensor,
        i_BTH: &Tensor,
        f_BTH: &Tensor,
        call: &Call<'_>,
    ) -> Result<(Tensor, CellState)> {
        let by_head = |tensor: &Tensor| -> Result<Tensor> {
            let size = tensor.size();
            Ok(tensor.f_view([size[0], size[1], self.heads, size[2] / self.heads])?)
        };
        let state = call.state.and_then(|state| match &state.cell {
            CellState::Mlstm(state) => Some(state),
            CellState::Slstm(_) => None,
        });
        let input = mlstm::MlstmInput {
            q_BTHK: &by_head(q_BTD)?,
            k_BTHK: &by_head(k_BTD)?,
            v_BTHV: &by_head(v_BTD)?,
            i_BTH,
            f_BTH,
            state,
            resets_BT: call.resets,
        };
        let output = mlstm::mlstm(&input, &mlstm::MlstmOptions::default())?;
        Ok((output.h_BTHV, CellState::Mlstm(output.state)))
    }
}

/// `SiLU(conv(a))` with the window to carry on with; `SiLU(a)` where there is no convolution.
fn convolve(
    a_BTD: &Tensor,
    convolution: Option<&(Tensor, Tensor)>,
    call: &Call<'_>,
) -> Result<(Tensor, Option<Tensor>)> {
    let Some((weight, bias)) = convolution else { return Ok((a_BTD.f_silu()?, None)) };
    let output = conv::causal_conv_silu(&conv::ConvInput {
        x_BTD: a_BTD,
        weight_D1W: weight,
        bias_D: Some(bias),
        state: call.state.and_then(|state| state.convolution.as_ref()),
        resets_BT: call.resets,
    })?;
    Ok((output.y_BTD, Some(output.state)))
}

impl Gates {
    fn new(builder: &mut Builder, model: &ModelConfig, prefix: &str) -> Result<Self> {
        let config = &model.mlstm;
        let heads = signed(config.heads);
        let width = match config.block {
            BlockKind::PreUpProjection => 3 * signed(model.inner_dim()),
            BlockKind::PostUpProjection => signed(model.embedding_dim),
        };
        let zero = Init::Constant(0.0);
        let input_bias = match config.input_gate_bias {
            InputBias::Normal => Init::Normal(0.1),
            InputBias::Zero => zero.clone(),
        };
        let [first, last] = config.forget_gate_bias;
        let forget_bias = Init::Values(linspace(first, last, config.heads));
        let mut add = |name: &str, shape: &[i64], init: &Init, trainable: bool| {
            builder.add_with(format!("{prefix}.{name}"), shape, init, trainable)
        };
        Ok(Self {
            input_weight: add("igate.weight", &[heads, width], &zero, config.input_gate_input_dependent)?,
            input_bias: add("igate.bias", &[heads], &input_bias, config.input_gate_bias_learnable)?,
            forget_weight: add("fgate.weight", &[heads, width], &zero, config.forget_gate_input_dependent)?,
            forget_bias: add("fgate.bias", &[heads], &forget_bias, config.forget_gate_bias_learnable)?,
        })
    }

    fn weights(&self) -> gates::GateWeights<'_> {
        gates::GateWeights {
            input_weight: &self.input_weight,
            input_bias: &self.input_bias,
            forget_weight: &self.forget_weight,
            forget_bias: &self.forget_bias,
        }
    }

    fn of_stream(&self, y_BTC: &Tensor) -> Result<(Tensor, Tensor)> {
        let y_BTC = if y_BTC.kind() == Kind::Double {
            y_BTC.shallow_clone()
        } else {
            y_BTC.f_to_kind(Kind::Float)?
        };
        Ok((
            y_BTC.f_linear(&self.input_weight, Some(&self.input_bias))?,
            y_BTC.f_linear(&self.forget_weight, Some(&self.forget_bias))?,
        ))
    }
}
