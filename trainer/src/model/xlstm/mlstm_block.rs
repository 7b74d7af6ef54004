//! mLSTM blocks: pre up-projection (figure 11) and, for table 8, post up-projection.
//!
//! ```text
//! y = LN(x);  (a, z) = W_up y;  c = SiLU(conv(a));  q, k = blocks(c);  v = blocks(a);  gates from [q; k; v]
//! x + W_down((GroupNorm(mLSTM(q, k, v)) + skip ⊙ c) ⊙ SiLU(z))
//! ```
//! Output gate as released: SiLU, not the paper's
//! sigmoid. Without a convolution, c = SiLU(a); the fused kernels then take taps that pass on what they meet, which is that.

use tch::{Device, Kind, Tensor};
use xlstm_kernels::mlstm::MlstmState;
use xlstm_kernels::{conv, cuda, gates, mlstm, norm, projections};
use xlstm_manifests::recipe::{BlockKind, InputBias, XlstmConfig};

use super::{BlockState, CONVOLUTION, NORM_EPSILON, norm_weight, product, signed};
use crate::error::{Result, TrainError};
use crate::model::block::{Block, BlockCall, FusedBlock, Residual};
use crate::model::parameters::{Builder, Decay, Init, linspace, small_init, wang_init};

/// Names of the cell's state.
const MATRIX: &str = "mlstm.matrix";
const NORMALIZER: &str = "mlstm.normalizer";
const MAXIMUM: &str = "mlstm.maximum";
/// What a step needs besides (`cuda::StepState`).
const ARRIVED: &str = "mlstm.arrived";

/// An mLSTM block of either kind.
#[derive(Debug)]
pub(super) struct MlstmBlock {
    norm: Tensor,
    heads: i64,
    gates: Gates,
    outnorm: Tensor,
    down: Tensor,
    projection: Projection,
    /// M and the gates' biases (`cuda::gate_weights`), where the parameters change no more.
    frozen_gates: Option<(Tensor, Tensor)>,
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
enum Projection {
    Pre(PreUpProjection),
    Post(PostUpProjection),
}

#[derive(Debug)]
struct PreUpProjection {
    up: Tensor,
    convolution: Option<(Tensor, Tensor)>,
    /// Where there is no convolution, what the fused kernels take for it; `None` in a sketch.
    passing: Option<(Tensor, Tensor)>,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    skip: Tensor,
}

#[derive(Debug)]
struct PostUpProjection {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output_gate: Tensor,
    feed_norm: Tensor,
    feed_up: Tensor,
    feed_down: Tensor,
}

impl MlstmBlock {
    pub(super) fn new(builder: &mut Builder, model: &XlstmConfig, prefix: &str) -> Result<Self> {
        let (width, inner) = (signed(model.embedding_dim), signed(model.inner_dim()));
        let norm = norm_weight(builder, format!("{prefix}.xlstm_norm.weight"), width)?;
        let name = |part: &str| format!("{prefix}.xlstm.{part}");
        let projection = match model.mlstm.block {
            BlockKind::PreUpProjection => Projection::Pre(PreUpProjection::new(builder, model, prefix)?),
            BlockKind::PostUpProjection => Projection::Post(PostUpProjection::new(builder, model, prefix)?),
        };
        let gates = Gates::new(builder, model, &name("mlstm_cell"))?;
        let outnorm = norm_weight(builder, name("mlstm_cell.outnorm.weight"), inner)?;
        let init = wang_init(model.embedding_dim, model.blocks);
        let down = builder.add(name("proj_down.weight"), &[width, inner], &init, Decay::Yes)?;
        let heads = signed(model.mlstm.heads);
        Ok(Self { norm, heads, gates, outnorm, down, projection, frozen_gates: None })
    }

    fn forward_pre(
        &self,
        x_BTC: &Tensor,
        parts: &PreUpProjection,
        call: &BlockCall<'_>,
    ) -> Result<(Tensor, BlockState)> {
        let y_BTC = norm::layer_norm(x_BTC, &self.norm, NORM_EPSILON)?;
        let up_BTF = product(&y_BTC, &parts.up, call.precision)?;
        // One cut into two: its backward pass writes both halves once.
        let mut halves = up_BTF.f_chunk(2, -1)?;
        let (z_BTD, a_BTD) = (halves.swap_remove(1), halves.swap_remove(0));
        let (c_BTD, window) = convolve(&a_BTD, parts.convolution.as_ref(), call)?;
        let projections = projections::mlstm_projections(&projections::ProjectionsInput {
            c_BTD: &c_BTD,
            a_BTD: &a_BTD,
            blocks_NOI: [&parts.query, &parts.key, &parts.value],
            gates: self.gates.weights(),
        })?;
        let projections::Projections { qkv_BTD: [q_BTD, k_BTD, v_BTD], i_BTH, f_BTH } = projections;
        let (h_BTHE, cell) = self.cell([&q_BTD, &k_BTD, &v_BTD], &i_BTH, &f_BTH, call)?;
        let input = gates::MlstmOutputInput {
            h_BTHE: &h_BTHE,
            norm_weight_D: &self.outnorm,
            skip_D: &parts.skip,
            conv_BTD: &c_BTD,
            z_BTD: &z_BTD,
        };
        let h_BTD = gates::mlstm_output(&input, NORM_EPSILON)?;
        let x_BTC = x_BTC + call.dropped(product(&h_BTD, &self.down, call.precision)?, 0)?;
        Ok((x_BTC, block_state(window, cell)))
    }

    /// `x + W_o(GroupNorm(mLSTM) ⊙ σ(W_g y))`, then `x + W_down relu(W_up LN(x))²`.
    fn forward_post(
        &self,
        x_BTC: &Tensor,
        parts: &PostUpProjection,
        call: &BlockCall<'_>,
    ) -> Result<(Tensor, BlockState)> {
        let y_BTC = norm::layer_norm(x_BTC, &self.norm, NORM_EPSILON)?;
        let q_BTD = product(&y_BTC, &parts.query, call.precision)?;
        let k_BTD = product(&y_BTC, &parts.key, call.precision)?;
        let v_BTD = product(&y_BTC, &parts.value, call.precision)?;
        let (i_BTH, f_BTH) = self.gates.of_residual(&y_BTC)?;
        let (h_BTHE, cell) = self.cell([&q_BTD, &k_BTD, &v_BTD], &i_BTH, &f_BTH, call)?;
        let gate_BTD = product(&y_BTC, &parts.output_gate, call.precision)?.sigmoid();
        let h_BTD = norm::head_norm(&h_BTHE, &self.outnorm, NORM_EPSILON)? * gate_BTD;
        let x_BTC = x_BTC + call.dropped(product(&h_BTD, &self.down, call.precision)?, 0)?;
        let y_BTC = norm::layer_norm(&x_BTC, &parts.feed_norm, NORM_EPSILON)?;
        let up_BTF = product(&y_BTC, &parts.feed_up, call.precision)?.relu().square();
        let x_BTC = x_BTC + call.dropped(product(&up_BTF, &parts.feed_down, call.precision)?, 1)?;
        Ok((x_BTC, block_state(None, cell)))
    }

    fn cell(
        &self,
        qkv_BTD: [&Tensor; 3],
        i_BTH: &Tensor,
        f_BTH: &Tensor,
        call: &BlockCall<'_>,
    ) -> Result<(Tensor, Option<MlstmState>)> {
        let by_head = |tensor: &Tensor| -> Result<Tensor> {
            let size = tensor.size();
            Ok(tensor.f_view([size[0], size[1], self.heads, size[2] / self.heads])?)
        };
        let [q_BTD, k_BTD, v_BTD] = qkv_BTD;
        let state = call.state.map(cell_state).transpose()?;
        let input = mlstm::MlstmInput {
            q_BTHK: &by_head(q_BTD)?,
            k_BTHK: &by_head(k_BTD)?,
            v_BTHV: &by_head(v_BTD)?,
            i_BTH,
            f_BTH,
            state: state.as_ref(),
            resets_BT: call.resets_BT,
        };
        let options = mlstm::MlstmOptions::default();
        if !call.keeps_state {
            return Ok((mlstm::mlstm_hidden(&input, &options)?, None));
        }
        let output = mlstm::mlstm(&input, &options)?;
        Ok((output.h_BTHV, Some(output.state)))
    }
}

impl Block for MlstmBlock {
    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        match &self.projection {
            Projection::Pre(parts) => self.forward_pre(x_BTC, parts, call),
            Projection::Post(parts) => self.forward_post(x_BTC, parts, call),
        }
    }

    fn fused(&self) -> Option<&dyn FusedBlock> {
        matches!(self.projection, Projection::Pre(_)).then_some(self as &dyn FusedBlock)
    }

    fn freeze(&mut self, products: Option<Kind>) -> Result<()> {
        let Some(kind) = products else { return Ok(()) };
        let frozen = |tensor: &Tensor| tensor.detach().f_to_kind(kind);
        self.down = frozen(&self.down)?;
        let projections = match &mut self.projection {
            Projection::Pre(parts) => vec![&mut parts.up],
            Projection::Post(parts) => vec![
                &mut parts.query,
                &mut parts.key,
                &mut parts.value,
                &mut parts.output_gate,
                &mut parts.feed_up,
                &mut parts.feed_down,
            ],
        };
        for weight in projections {
            *weight = frozen(weight)?;
        }
        let Projection::Pre(parts) = &self.projection else { return Ok(()) };
        if parts.query.size().last() == Some(&4) {
            let (weight, bias) = self.gates_of_inputs(parts)?;
            self.frozen_gates = Some((weight.detach().f_contiguous()?, bias.detach()));
        }
        Ok(())
    }
}

impl MlstmBlock {
    /// The parts of a block with fused kernels.
    fn fused_parts(&self) -> Result<FusedParts<'_>> {
        let Projection::Pre(parts) = &self.projection else {
            return Err(TrainError::internal("expected a pre up-projection block, found another"));
        };
        let Some((conv_weight, conv_bias)) = parts.convolution.as_ref().or(parts.passing.as_ref()) else {
            return Err(TrainError::internal("expected a block with parameters, found a sketch"));
        };
        let (gate_weight, gate_bias) = match &self.frozen_gates {
            Some((weight, bias)) => (weight.shallow_clone(), bias.shallow_clone()),
            None => self.gates_of_inputs(parts)?,
        };
        Ok(FusedParts { parts, conv_weight, conv_bias, gate_weight, gate_bias })
    }

    fn gates_of_inputs(&self, parts: &PreUpProjection) -> Result<(Tensor, Tensor)> {
        Ok(cuda::gate_weights(&self.gates.weights(), [&parts.query, &parts.key, &parts.value])?)
    }

    /// The up-projection's input is what is yet to be added and normalized.
    fn fused_up(&self, residual: &Residual, parts: &PreUpProjection) -> Result<(Tensor, Tensor)> {
        let delta = residual.delta_BTC.as_ref();
        let (x_BTC, y_BTC) = cuda::add_layer_norm(&residual.x_BTC, delta, &self.norm, NORM_EPSILON)?;
        let up_BTF = product(&y_BTC, &parts.up, Some(Kind::BFloat16))?;
        Ok((x_BTC, up_BTF))
    }

    fn fused_input<'a>(&'a self, up_BTF: &'a Tensor, fused: &'a FusedParts<'_>) -> cuda::InnerInput<'a> {
        cuda::InnerInput {
            up_BTF,
            conv_weight_D1W: fused.conv_weight,
            conv_bias_D: fused.conv_bias,
            query_NOI: &fused.parts.query,
            key_NOI: &fused.parts.key,
            value_NOI: &fused.parts.value,
            gate_weight_2GD: &fused.gate_weight,
            gate_bias_G: &fused.gate_bias,
            norm_weight_D: &self.outnorm,
            skip_D: &fused.parts.skip,
            keep: true,
            resets_BT: None,
            state: None,
            with_state: false,
        }
    }
}

/// What the fused kernels read besides the up-projection.
struct FusedParts<'a> {
    parts: &'a PreUpProjection,
    conv_weight: &'a Tensor,
    conv_bias: &'a Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
}

impl FusedBlock for MlstmBlock {
    /// bf16 throughout, but for the residual.
    fn forward(&self, residual: &Residual, call: &BlockCall<'_>) -> Result<(Residual, BlockState)> {
        let fused = self.fused_parts()?;
        let (x_BTC, up_BTF) = self.fused_up(residual, fused.parts)?;
        let state = call.state.map(|state| inner_state(state, fused.parts)).transpose()?;
        let input = cuda::InnerInput {
            resets_BT: call.resets_BT,
            state: state.as_ref(),
            with_state: call.keeps_state,
            ..self.fused_input(&up_BTF, &fused)
        };
        let cuda::InnerOutput { y_BTD, state } = cuda::mlstm_inner(&input, NORM_EPSILON)?;
        let delta_BTC = Some(call.dropped(product(&y_BTD, &self.down, Some(Kind::BFloat16))?, 0)?);
        let state = state.map_or_else(BlockState::default, |cuda::InnerState { window, cell }| {
            block_state(Some(window), Some(cell))
        });
        Ok((Residual { x_BTC, delta_BTC }, state))
    }

    fn step_state(&self, state: BlockState) -> Result<BlockState> {
        let state = inner_state(&state, self.fused_parts()?.parts)?;
        let cuda::StepState { window, cell, arrived } = cuda::StepState::from(state)?;
        Ok(block_state(Some(window), Some(cell)).with(ARRIVED, arrived))
    }

    fn step(&self, residual: &Residual, state: &BlockState) -> Result<Residual> {
        let fused = self.fused_parts()?;
        let up = &fused.parts.up;
        let (x_BTC, up_BTF) = if cuda::step_up_fits(residual.x_BTC.size()[0], up) {
            let delta = residual.delta_BTC.as_ref();
            cuda::step_up(&residual.x_BTC, delta, &self.norm, up, NORM_EPSILON)?
        } else {
            self.fused_up(residual, fused.parts)?
        };
        let cuda::InnerState { window, cell } = inner_state(state, fused.parts)?;
        let state = cuda::StepState { window, cell, arrived: state.need(ARRIVED)? };
        let input = self.fused_input(&up_BTF, &fused);
        let stepped = cuda::mlstm_step(&input, &state)?;
        let delta_BTC = Some(cuda::mlstm_step_down(&input, &stepped, &self.down, NORM_EPSILON)?);
        Ok(Residual { x_BTC, delta_BTC })
    }
}

impl PreUpProjection {
    fn new(builder: &mut Builder, model: &XlstmConfig, prefix: &str) -> Result<Self> {
        let (width, inner) = (signed(model.embedding_dim), signed(model.inner_dim()));
        let small = small_init(model.embedding_dim);
        let name = |part: &str| format!("{prefix}.xlstm.{part}");
        let skip = builder.add(name("learnable_skip"), &[inner], &Init::Constant(1.0), Decay::No)?;
        let up = builder.add(name("proj_up.weight"), &[2 * inner, width], &small, Decay::Yes)?;
        let size = signed(model.mlstm.qkv_block_size);
        let shape = [inner / size, size, size];
        let query = builder.add(name("q_proj.weight"), &shape, &small, Decay::Yes)?;
        let key = builder.add(name("k_proj.weight"), &shape, &small, Decay::Yes)?;
        let value = builder.add(name("v_proj.weight"), &shape, &small, Decay::Yes)?;
        let convolution = super::convolution(builder, &name("conv1d"), inner, model.mlstm.convolution)?;
        let passing =
            if convolution.is_none() { builder.constants(|to| passing_taps(inner, to))? } else { None };
        Ok(Self { up, convolution, passing, query, key, value, skip })
    }
}

/// Weight `(D, 1, 4)` and bias of a convolution that gives what it meets: the last tap is the current step's.
fn passing_taps(width: i64, options: (Kind, Device)) -> Result<(Tensor, Tensor)> {
    let (before, now) = (Tensor::f_zeros([width, 1, 3], options)?, Tensor::f_ones([width, 1, 1], options)?);
    Ok((Tensor::f_cat(&[before, now], 2)?, Tensor::f_zeros([width], options)?))
}

impl PostUpProjection {
    fn new(builder: &mut Builder, model: &XlstmConfig, prefix: &str) -> Result<Self> {
        let width = signed(model.embedding_dim);
        let (small, square) = (small_init(model.embedding_dim), [width, width]);
        let name = |part: &str| format!("{prefix}.xlstm.{part}");
        let query = builder.add(name("q_proj.weight"), &square, &small, Decay::Yes)?;
        let key = builder.add(name("k_proj.weight"), &square, &small, Decay::Yes)?;
        let value = builder.add(name("v_proj.weight"), &square, &small, Decay::Yes)?;
        let output_gate = builder.add(name("ogate.weight"), &square, &small, Decay::Yes)?;
        let feed = signed(model.mlstm_feed_forward_dim());
        let feed_norm = norm_weight(builder, format!("{prefix}.ffn_norm.weight"), width)?;
        let up = format!("{prefix}.ffn.proj_up.weight");
        let feed_up = builder.add(up, &[feed, width], &small, Decay::Yes)?;
        let (down, init) =
            (format!("{prefix}.ffn.proj_down.weight"), wang_init(model.embedding_dim, model.blocks));
        let feed_down = builder.add(down, &[width, feed], &init, Decay::Yes)?;
        Ok(Self { query, key, value, output_gate, feed_norm, feed_up, feed_down })
    }
}

/// Nothing, where the cell's state was not kept.
fn block_state(window: Option<Tensor>, cell: Option<MlstmState>) -> BlockState {
    let Some(MlstmState { matrix, normalizer, maximum }) = cell else { return BlockState::default() };
    let window = window.map(|window| (CONVOLUTION, window));
    let cell = [(MATRIX, matrix), (NORMALIZER, normalizer), (MAXIMUM, maximum)];
    BlockState::new(window.into_iter().chain(cell))
}

/// What the fused kernels go on from. Without a convolution their window may hold anything, and a state may lack it.
fn inner_state(state: &BlockState, parts: &PreUpProjection) -> Result<cuda::InnerState> {
    let cell = cell_state(state)?;
    let window = match state.get(CONVOLUTION) {
        None if parts.convolution.is_none() => {
            let shape = [cell.matrix.size()[0], 3, parts.skip.size()[0]];
            Tensor::f_zeros(shape, (Kind::BFloat16, cell.matrix.device()))?
        }
        _ => state.need(CONVOLUTION)?,
    };
    Ok(cuda::InnerState { window, cell })
}

fn cell_state(state: &BlockState) -> Result<MlstmState> {
    Ok(MlstmState {
        matrix: state.need(MATRIX)?,
        normalizer: state.need(NORMALIZER)?,
        maximum: state.need(MAXIMUM)?,
    })
}

/// `SiLU(conv(a))` with the window to carry on with; `SiLU(a)` where there is no convolution.
fn convolve(
    a_BTD: &Tensor,
    convolution: Option<&(Tensor, Tensor)>,
    call: &BlockCall<'_>,
) -> Result<(Tensor, Option<Tensor>)> {
    let Some((weight, bias)) = convolution else { return Ok((a_BTD.f_silu()?, None)) };
    let output = conv::causal_conv_silu(&conv::ConvInput {
        x_BTD: a_BTD,
        weight_D1W: weight,
        bias_D: Some(bias),
        state: call.state.and_then(|state| state.get(CONVOLUTION)),
        resets_BT: call.resets_BT,
    })?;
    Ok((output.y_BTD, Some(output.state)))
}

impl Gates {
    fn new(builder: &mut Builder, model: &XlstmConfig, prefix: &str) -> Result<Self> {
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
        let forget_bias = builder.values(|| Ok(linspace(first, last, config.heads)))?;
        let mut add = |name: &str, shape: &[i64], init: &Init, trainable: bool| {
            let decay = if name.ends_with("weight") { Decay::Yes } else { Decay::No };
            builder.add_with(format!("{prefix}.{name}"), shape, init, decay, trainable)
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

    fn of_residual(&self, y_BTC: &Tensor) -> Result<(Tensor, Tensor)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fused kernels compute for a block without a convolution is what the block computes, but for SiLU's rounding.
    #[test]
    fn passing_taps_are_no_convolution() {
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
            let options = (Kind::Float, Device::Cpu);
            let a_BTD = Tensor::randn([2, 9, 8], options).to_kind(kind);
            let wide = if kind == Kind::Double { kind } else { Kind::Float };
            let convolution = passing_taps(8, (wide, Device::Cpu)).unwrap();
            let window = Tensor::randn([2, 3, 8], options).to_kind(kind);
            let state = BlockState::new([(CONVOLUTION, window)]);
            let resets_BT = Tensor::rand([2, 9], options).lt(0.3);
            for (state, resets_BT) in [(None, None), (Some(&state), Some(&resets_BT))] {
                let call = BlockCall {
                    precision: None,
                    state,
                    keeps_state: true,
                    resets_BT,
                    positions_BT: None,
                    dropout: None,
                };
                let (found, _) = convolve(&a_BTD, Some(&convolution), &call).unwrap();
                let (expected, none) = convolve(&a_BTD, None, &call).unwrap();
                assert!(none.is_none());
                let difference = (found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max();
                let allowed = match kind {
                    Kind::BFloat16 => 2f64.powi(-8) * 4.0,
                    Kind::Float => 1e-6,
                    _ => 1e-14,
                };
                assert!(difference.double_value(&[]) <= allowed, "{kind:?}: {difference:?}");
            }
        }
    }
}
