//! sLSTM blocks, post up-projection (figure 10).
//!
//! ```text
//! y = LN(x);  c = SiLU(conv(y));  i, f from c;  z, o from y;  x + GroupNorm(sLSTM(i, f, z, o))
//! x + W_down(GELU(g) ⊙ u),  (g, u) = W_up LN(x)
//! ```
//! With `function = "lstm"` the cell is an LSTM, as in the official package's block of that name.
//! Two names of the official package are swapped for compatibility with old weights: `fgate.weight` feeds the input
//! gate and `igate.weight` the forget gate. Without a convolution, c = y. Recurrent weights and biases are kept in
//! the `vanilla` layout; see `xlstm_kernels::slstm` for both. Files may have the `cuda` layout: it is recognized by the
//! shape of `_recurrent_kernel_`, `(H, E, 4·E)` where `vanilla` has `(H, 4·E, E)`, and the bias of the same cell is then
//! taken to be in that layout too.

use tch::{Kind, Tensor};
use xlstm_kernels::lstm::{LstmInput, LstmKernel, LstmState, lstm};
use xlstm_kernels::slstm::{self, SlstmInput, SlstmLayout, SlstmOptions, SlstmState};
use xlstm_kernels::{conv, cuda, gates, norm};
use xlstm_manifests::recipe::{
    ForgetGate, GateWeights, RecurrentInit, SlstmBias, SlstmFunction, WeightInit, XlstmConfig,
};

use super::{BlockState, CONVOLUTION, NORM_EPSILON, norm_weight, product, signed};
use crate::error::Result;
use crate::model::block::{Block, BlockCall, FusedBlock, Residual};
use crate::model::parameters::{Builder, Decay, Init, linspace, small_init, wang_init};
use crate::tensor_file::TensorFile;

/// Names of the cell's state.
const HIDDEN: &str = "slstm.hidden";
const CELL: &str = "slstm.cell";
const NORMALIZER: &str = "slstm.normalizer";
const MAXIMUM: &str = "slstm.maximum";
/// The four as one tensor, which they are parts of while the state is moved on in place.
const TOGETHER: &str = "slstm.together";

/// An sLSTM block with its feed-forward.
#[derive(Debug)]
pub(super) struct SlstmBlock {
    norm: Tensor,
    convolution: Option<(Tensor, Tensor)>,
    /// Input weights by what they feed: input gate, forget gate, cell input, output gate.
    weights: [Tensor; 4],
    recurrent: Tensor,
    bias: Tensor,
    group_norm: Tensor,
    feed_norm: Tensor,
    feed_up: Tensor,
    feed_down: Tensor,
    heads: i64,
    gradient_clip: Option<f64>,
    exponential_forget: bool,
    /// An LSTM in place of the sLSTM.
    is_lstm: bool,
    /// Where the parameters change no more.
    frozen: Option<Frozen>,
}

/// What fused calls derive from the parameters.
#[derive(Debug)]
struct Frozen {
    /// `(G, H, E)`.
    bias_GHE: Tensor,
    /// `(H, E in, G, E out)`.
    recurrent_HEGE: Tensor,
    /// Of the products block by block, those of both gates of an input, `(H, E in, 2 E out)`, bf16; `None` for dense weights.
    pairs: Option<[Tensor; 2]>,
    /// Of the joined products, in their type.
    joined: Vec<Tensor>,
}

impl SlstmBlock {
    pub(super) fn new(builder: &mut Builder, model: &XlstmConfig, prefix: &str, index: u64) -> Result<Self> {
        let (config, d) = (&model.slstm, model.embedding_dim);
        let (width, heads) = (signed(d), signed(config.heads));
        let name = |part: &str| format!("{prefix}.xlstm.{part}");
        let norm = norm_weight(builder, format!("{prefix}.xlstm_norm.weight"), width)?;
        let convolution = super::convolution(builder, &name("conv1d"), width, config.convolution)?;
        let (shape, fan_in) = match config.gate_weights {
            GateWeights::Headwise => (vec![heads, width / heads, width / heads], d / config.heads),
            GateWeights::Dense => (vec![width, width], d),
        };
        let init = match config.weight_init {
            WeightInit::Small => small_init(d),
            WeightInit::Standard => Init::Uniform((fan_in as f64).powf(-0.5)),
        };
        let mut gate = |part: &str| builder.add(name(part), &shape, &init, Decay::Yes);
        let weights = [
            gate("fgate.weight")?, // the input gate: see above
            gate("igate.weight")?, // the forget gate
            gate("zgate.weight")?,
            gate("ogate.weight")?,
        ];
        let recurrent_init = match config.recurrent_init {
            RecurrentInit::Zeros => Init::Constant(0.0),
            RecurrentInit::Standard => Init::Uniform((d as f64).powf(-0.5)),
        };
        let recurrent_shape = [heads, 4 * (width / heads), width / heads];
        let recurrent_name = name("slstm_cell._recurrent_kernel_");
        let recurrent = builder.add(recurrent_name, &recurrent_shape, &recurrent_init, Decay::No)?;
        let bias_init = bias_init(builder, model, index)?;
        let bias = builder.add(name("slstm_cell._bias_"), &[4 * width], &bias_init, Decay::No)?;
        let group_norm = norm_weight(builder, name("group_norm.weight"), width)?;
        let feed = signed(model.feed_forward_dim());
        let feed_norm = norm_weight(builder, format!("{prefix}.ffn_norm.weight"), width)?;
        let up_name = format!("{prefix}.ffn.proj_up.weight");
        let feed_up = builder.add(up_name, &[2 * feed, width], &small_init(d), Decay::Yes)?;
        let (down_name, down) = (format!("{prefix}.ffn.proj_down.weight"), wang_init(d, model.blocks));
        let feed_down = builder.add(down_name, &[width, feed], &down, Decay::Yes)?;
        let clip = config.recurrent_gradient_clip;
        let gradient_clip = (clip > 0.0).then_some(clip);
        Ok(Self {
            norm,
            convolution,
            weights,
            recurrent,
            bias,
            group_norm,
            feed_norm,
            feed_up,
            feed_down,
            heads,
            gradient_clip,
            exponential_forget: config.forget_gate == ForgetGate::Exponential,
            is_lstm: config.function == SlstmFunction::Lstm,
            frozen: None,
        })
    }

    fn convolve(&self, y_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, Option<Tensor>)> {
        let Some((weight, bias)) = &self.convolution else { return Ok((y_BTC.shallow_clone(), None)) };
        let output = conv::causal_conv_silu(&conv::ConvInput {
            x_BTD: y_BTC,
            weight_D1W: weight,
            bias_D: Some(bias),
            state: call.state.and_then(|state| state.get(CONVOLUTION)),
            resets_BT: call.resets_BT,
        })?;
        Ok((output.y_BTD, Some(output.state)))
    }

    /// W x of all gates, `(B, T, G·C)`: input and forget gate from `c`, cell input and output gate from `y`.
    fn gate_inputs(&self, c_BTC: &Tensor, y_BTC: &Tensor, precision: Option<Kind>) -> Result<Tensor> {
        if let Some(joined) = self.joined_gates(c_BTC, y_BTC, precision)? {
            return Ok(joined);
        }
        if self.heads > 1 && self.weights[0].dim() == 3 {
            let inputs = [c_BTC, c_BTC, y_BTC, y_BTC].into_iter().zip(&self.weights);
            let raw = inputs.map(|(input, weight)| gates::block_linear(input, weight));
            let raw = raw.collect::<std::result::Result<Vec<_>, _>>()?;
            return Ok(Tensor::f_cat(&raw, -1)?);
        }
        // Full matrices: one product for all gates of an input, which writes them where the cell reads them.
        let width = y_BTC.size()[2];
        let together = |weights: &[Tensor]| -> Result<Tensor> {
            let flat = weights.iter().map(|weight| weight.f_view([width, width]));
            Ok(Tensor::f_cat(&flat.collect::<std::result::Result<Vec<_>, _>>()?, 0)?)
        };
        if self.convolution.is_none() {
            return product(y_BTC, &together(&self.weights)?, precision);
        }
        let (from_c, from_y) = self.weights.split_at(2);
        let first = product(c_BTC, &together(from_c)?, precision)?;
        Ok(Tensor::f_cat(&[first, product(y_BTC, &together(from_y)?, precision)?], -1)?)
    }

    /// W x of all gates in bf16, `(B·T, G, H, E)`, a batched product for each gate.
    fn gates_by_block(&self, c_BTC: &Tensor, y_BTC: &Tensor) -> Result<Tensor> {
        let precision = Some(Kind::BFloat16);
        let size = y_BTC.size();
        let (rows, unit) = (size[0] * size[1], size[2] / self.heads);
        // Whole sequences go through the same products as in training, so that validation and evaluation agree to the last bit.
        let pairs = self.frozen.as_ref().and_then(|frozen| frozen.pairs.as_ref());
        if let Some(pairs) = pairs.filter(|_| size[1] == 1) {
            return self.gates_by_pair([c_BTC, y_BTC], pairs);
        }
        let mut raw = Vec::with_capacity(4);
        for (input, weight) in [c_BTC, c_BTC, y_BTC, y_BTC].into_iter().zip(&self.weights) {
            raw.push(match weight.dim() {
                2 => product(input, weight, precision)?.f_view([rows, self.heads, unit])?,
                _ => {
                    let input_HNE = input.f_view([rows, self.heads, unit])?.f_transpose(0, 1)?;
                    let weight_HEF = weight.f_to_kind(Kind::BFloat16)?.f_transpose(1, 2)?;
                    input_HNE.f_bmm(&weight_HEF)?.f_transpose(0, 1)?
                }
            });
        }
        Ok(Tensor::f_stack(&raw, 1)?)
    }

    /// As [`gates_by_block`](Self::gates_by_block), by a batched product for both gates of an input.
    fn gates_by_pair(&self, inputs_BTC: [&Tensor; 2], pairs_HEF: &[Tensor; 2]) -> Result<Tensor> {
        let size = inputs_BTC[0].size();
        let (rows, unit) = (size[0] * size[1], size[2] / self.heads);
        let mut raw = Vec::with_capacity(4);
        for (input, weight_HEF) in inputs_BTC.into_iter().zip(pairs_HEF) {
            let input_HNE = input.f_view([rows, self.heads, unit])?.f_transpose(0, 1)?;
            let both_NHF = input_HNE.f_bmm(weight_HEF)?.f_transpose(0, 1)?;
            raw.extend([both_NHF.f_narrow(2, 0, unit)?, both_NHF.f_narrow(2, unit, unit)?]);
        }
        Ok(Tensor::f_stack(&raw, 1)?)
    }

    /// As [`gate_inputs`](Self::gate_inputs), by one dense product for all gates of an input, where that is faster.
    fn joined_gates(
        &self,
        c_BTC: &Tensor,
        y_BTC: &Tensor,
        precision: Option<Kind>,
    ) -> Result<Option<Tensor>> {
        let joined = match &self.frozen {
            Some(frozen) => frozen.joined.iter().map(Tensor::shallow_clone).collect(),
            None => self.joined_weights()?,
        };
        match joined.as_slice() {
            [] => Ok(None),
            [all] => Ok(Some(product(y_BTC, all, precision)?)),
            [from_c, from_y, ..] => {
                let (first, second) =
                    (product(c_BTC, from_c, precision)?, product(y_BTC, from_y, precision)?);
                Ok(Some(Tensor::f_cat(&[first, second], -1)?))
            }
        }
    }

    /// Dense weights of [`joined_gates`](Self::joined_gates): one for each input that gates have; none where blocks are
    /// faster.
    fn joined_weights(&self) -> Result<Vec<Tensor>> {
        if self.weights[0].dim() != 3 {
            return Ok(Vec::new());
        }
        let [input, forget, cell, output] = self.weights.each_ref();
        if self.convolution.is_none() {
            return Ok(gates::joined_blocks(&[input, forget, cell, output])?.into_iter().collect());
        }
        let both = [gates::joined_blocks(&[input, forget])?, gates::joined_blocks(&[cell, output])?];
        Ok(both.into_iter().collect::<Option<Vec<_>>>().unwrap_or_default())
    }

    /// The cell over the whole sequence: its outputs, `(B, T, H, E)`, and the state after them.
    fn mix(&self, x_BTGHE: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, Vec<(&'static str, Tensor)>)> {
        let recurrent_HEGE = slstm::canonical_recurrent(&self.recurrent, SlstmLayout::Vanilla)?;
        let bias_GHE = slstm::canonical_bias(&self.bias, self.heads, SlstmLayout::Vanilla)?;
        if self.is_lstm {
            let before = |state: &BlockState| -> Result<LstmState> {
                Ok(LstmState { hidden: state.need(HIDDEN)?, cell: state.need(CELL)? })
            };
            let state = call.state.map(before).transpose()?;
            let input = LstmInput {
                x_BTGHE,
                recurrent_HEGE: &recurrent_HEGE,
                bias_GHE: &bias_GHE,
                state: state.as_ref(),
                resets_BT: call.resets_BT,
            };
            let output = lstm(&input, LstmKernel::Auto)?;
            let LstmState { hidden, cell } = output.state;
            return Ok((output.h_BTHE, vec![(HIDDEN, hidden), (CELL, cell)]));
        }
        let state = call.state.map(cell_state).transpose()?;
        let input = SlstmInput {
            x_BTGHE,
            recurrent_HEGE: &recurrent_HEGE,
            bias_GHE: &bias_GHE,
            state: state.as_ref(),
            resets_BT: call.resets_BT,
        };
        let options = SlstmOptions {
            gradient_clip: self.gradient_clip,
            exponential_forget: self.exponential_forget,
            ..SlstmOptions::default()
        };
        let output = slstm::slstm(&input, &options)?;
        let SlstmState { hidden, cell, normalizer, maximum } = output.state;
        let state = vec![(HIDDEN, hidden), (CELL, cell), (NORMALIZER, normalizer), (MAXIMUM, maximum)];
        Ok((output.y_BTHE, state))
    }
}

impl Block for SlstmBlock {
    fn freeze(&mut self, products: Option<Kind>) -> Result<()> {
        let Some(kind) = products else { return Ok(()) };
        for weight in [&mut self.feed_up, &mut self.feed_down] {
            *weight = weight.detach().f_to_kind(kind)?;
        }
        let (bias_GHE, recurrent_HEGE) = self.canonical()?;
        let [input, forget, cell, output] = self.weights.each_ref();
        let pair = |first: &Tensor, second: &Tensor| -> Result<Tensor> {
            let both_HFE = Tensor::f_cat(&[first, second], 1)?.detach().f_to_kind(Kind::BFloat16)?;
            Ok(both_HFE.f_transpose(1, 2)?)
        };
        let pairs = match input.dim() {
            3 => Some([pair(input, forget)?, pair(cell, output)?]),
            _ => None,
        };
        let joined = self.joined_weights()?;
        self.frozen = Some(Frozen {
            bias_GHE: bias_GHE.detach(),
            recurrent_HEGE: self.rounded_recurrent(&recurrent_HEGE.detach())?,
            pairs,
            joined: joined
                .iter()
                .map(|weight| weight.detach().f_to_kind(kind))
                .collect::<std::result::Result<_, _>>()?,
        });
        Ok(())
    }

    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        let y_BTC = norm::layer_norm(x_BTC, &self.norm, NORM_EPSILON)?;
        let (c_BTC, window) = self.convolve(&y_BTC, call)?;
        let size = y_BTC.size();
        let (batch, time, width) = (size[0], size[1], size[2]);
        let raw_BTF = self.gate_inputs(&c_BTC, &y_BTC, call.precision)?;
        let x_BTGHE = raw_BTF.f_view([batch, time, 4, self.heads, width / self.heads])?;
        let (y_BTHE, cell) = self.mix(&x_BTGHE, call)?;
        let mixed_BTC = norm::head_norm(&y_BTHE, &self.group_norm, NORM_EPSILON)?;
        let x_BTC = x_BTC + call.dropped(mixed_BTC, 0)?;
        let y_BTC = norm::layer_norm(&x_BTC, &self.feed_norm, NORM_EPSILON)?;
        let gated_BTF = gates::gelu_gate(&product(&y_BTC, &self.feed_up, call.precision)?)?;
        let x_BTC = x_BTC + call.dropped(product(&gated_BTF, &self.feed_down, call.precision)?, 1)?;
        let window = window.map(|window| (CONVOLUTION, window));
        Ok((x_BTC, BlockState::new(window.into_iter().chain(cell))))
    }

    fn fused(&self) -> Option<&dyn FusedBlock> {
        Some(self)
    }
}

impl SlstmBlock {
    /// Biases `(G, H, E)` and recurrent weights `(H, E in, G, E out)`.
    fn canonical(&self) -> Result<(Tensor, Tensor)> {
        if let Some(Frozen { bias_GHE, recurrent_HEGE, .. }) = &self.frozen {
            return Ok((bias_GHE.shallow_clone(), recurrent_HEGE.shallow_clone()));
        }
        Ok((
            slstm::canonical_bias(&self.bias, self.heads, SlstmLayout::Vanilla)?,
            slstm::canonical_recurrent(&self.recurrent, SlstmLayout::Vanilla)?,
        ))
    }

    /// R as the kernel takes it: where that is rounded and in another order, once and for all.
    fn rounded_recurrent(&self, recurrent_HEGE: &Tensor) -> Result<Tensor> {
        let unit = self.bias.size()[0] / (4 * self.heads);
        if !cuda::slstm_rounds_weights(unit, recurrent_HEGE)? {
            return Ok(recurrent_HEGE.shallow_clone());
        }
        let recurrent_HGEE =
            recurrent_HEGE.f_permute([0, 2, 3, 1])?.f_to_kind(Kind::BFloat16)?.f_contiguous()?;
        Ok(recurrent_HGEE.f_permute([0, 3, 1, 2])?)
    }

    /// Fused, from and to the cell's state `(4, B, H, E)` and the convolution's window.
    fn fused_forward(
        &self,
        residual: &Residual,
        before: Option<(Option<&Tensor>, &Tensor)>,
        call: &BlockCall<'_>,
    ) -> Result<FusedOutput> {
        let delta = residual.delta_BTC.as_ref();
        let precision = Some(Kind::BFloat16);
        let (x_BTC, y_BTC) = cuda::add_layer_norm(&residual.x_BTC, delta, &self.norm, NORM_EPSILON)?;
        let convolution = self.convolution.as_ref().map(|(weight, bias)| conv::ConvInput {
            x_BTD: &y_BTC,
            weight_D1W: weight,
            bias_D: Some(bias),
            state: before.and_then(|(window, _)| window),
            resets_BT: call.resets_BT,
        });
        let c_BTC = match &convolution {
            Some(input) => cuda::conv_silu(input)?,
            None => y_BTC.shallow_clone(),
        };
        let size = y_BTC.size();
        let (batch, time, width) = (size[0], size[1], size[2]);
        let unit = width / self.heads;
        let x_NGF = match self.joined_gates(&c_BTC, &y_BTC, precision)? {
            Some(joined) => joined,
            None => self.gates_by_block(&c_BTC, &y_BTC)?,
        };
        let (bias_GHE, recurrent_HEGE) = self.canonical()?;
        let (y_BTHE, last_SBHE) = cuda::slstm_from(&cuda::SlstmSequence {
            x_BTGHE: &x_NGF.f_view([batch, time, 4, self.heads, unit])?,
            bias_GHE: Some(&bias_GHE),
            recurrent_HEGE: &recurrent_HEGE,
            state_SBHE: before.map(|(_, state)| state),
            resets_BT: call.resets_BT,
        })?;
        let s_BTC = call.dropped(cuda::head_norm(&y_BTHE, &self.group_norm, NORM_EPSILON)?, 0)?;
        let (x_BTC, up_BTF) = if time == 1 && cuda::step_up_fits(batch, &self.feed_up) {
            cuda::step_up(&x_BTC, Some(&s_BTC), &self.feed_norm, &self.feed_up, NORM_EPSILON)?
        } else {
            let delta = Some(&s_BTC);
            let (x_BTC, feed_BTC) = cuda::add_layer_norm(&x_BTC, delta, &self.feed_norm, NORM_EPSILON)?;
            (x_BTC, product(&feed_BTC, &self.feed_up, precision)?)
        };
        let gated_BTF = cuda::gelu_gate(&up_BTF)?;
        let delta_BTC = Some(call.dropped(product(&gated_BTF, &self.feed_down, precision)?, 1)?);
        let window = convolution.as_ref().filter(|_| call.keeps_state).map(conv::last_inputs).transpose()?;
        Ok(FusedOutput { window, last_SBHE, residual: Residual { x_BTC, delta_BTC } })
    }
}

/// Of a fused pass.
struct FusedOutput {
    residual: Residual,
    window: Option<Tensor>,
    /// h, c, n, m, `(4, B, H, E)`, float32.
    last_SBHE: Tensor,
}

/// The parts of `(4, B, H, E)` by name.
fn parts_of(state_SBHE: &Tensor) -> Result<Vec<(&'static str, Tensor)>> {
    let names = [HIDDEN, CELL, NORMALIZER, MAXIMUM].into_iter().zip(0..);
    names.map(|(name, index)| Ok((name, state_SBHE.f_select(0, index)?))).collect()
}

fn together(state: &BlockState) -> Result<Tensor> {
    let SlstmState { hidden, cell, normalizer, maximum } = cell_state(state)?;
    Ok(Tensor::f_stack(&[hidden, cell, normalizer, maximum], 0)?.f_to_kind(Kind::Float)?)
}

impl FusedBlock for SlstmBlock {
    /// bf16 throughout, but for the residual.
    fn forward(&self, residual: &Residual, call: &BlockCall<'_>) -> Result<(Residual, BlockState)> {
        let state_SBHE = call.state.map(together).transpose()?;
        let window = call.state.and_then(|state| state.get(CONVOLUTION));
        let before = state_SBHE.as_ref().map(|state_SBHE| (window, state_SBHE));
        let output = self.fused_forward(residual, before, call)?;
        if !call.keeps_state {
            return Ok((output.residual, BlockState::default()));
        }
        let window = output.window.map(|window| (CONVOLUTION, window));
        let cell = parts_of(&output.last_SBHE)?;
        Ok((output.residual, BlockState::new(window.into_iter().chain(cell))))
    }

    fn step_state(&self, state: BlockState) -> Result<BlockState> {
        let state_SBHE = together(&state)?;
        let window = state.get(CONVOLUTION);
        let window = window.map(|window| window.f_to_kind(Kind::BFloat16)?.f_contiguous()).transpose()?;
        let window = window.map(|window| (CONVOLUTION, window));
        let cell = parts_of(&state_SBHE)?;
        Ok(BlockState::new(window.into_iter().chain(cell)).with(TOGETHER, state_SBHE))
    }

    fn step(&self, residual: &Residual, state: &BlockState) -> Result<Residual> {
        let mut state_SBHE = state.need(TOGETHER)?;
        let window = state.get(CONVOLUTION);
        let call = BlockCall {
            precision: Some(Kind::BFloat16),
            state: None,
            keeps_state: true,
            resets_BT: None,
            positions_BT: None,
            dropout: None,
        };
        let output = self.fused_forward(residual, Some((window, &state_SBHE)), &call)?;
        state_SBHE.f_copy_(&output.last_SBHE)?;
        if let (Some(window), Some(next)) = (window, output.window) {
            window.shallow_clone().f_copy_(&next)?;
        }
        Ok(output.residual)
    }
}

/// A tensor of an sLSTM cell in the vanilla layout; others as they are.
pub(super) fn to_vanilla(
    file: &TensorFile,
    prefix: &str,
    name: &str,
    tensor: Tensor,
    heads: i64,
) -> Result<Tensor> {
    let Some(cell) = name.strip_suffix("_recurrent_kernel_").or_else(|| name.strip_suffix("_bias_")) else {
        return Ok(tensor);
    };
    let kernel = match file.tensor(&format!("{prefix}{cell}_recurrent_kernel_"))? {
        Some(kernel) if kernel.dim() == 3 && kernel.size()[2] == 4 * kernel.size()[1] => kernel,
        _ => return Ok(tensor),
    };
    if name.ends_with("_bias_") {
        if tensor.dim() != 1 {
            return Ok(tensor);
        }
        let bias = slstm::canonical_bias(&tensor, heads, SlstmLayout::Cuda)?;
        return Ok(bias.f_contiguous()?.f_view([-1])?);
    }
    let size = kernel.size();
    let canonical = slstm::canonical_recurrent(&kernel, SlstmLayout::Cuda)?;
    Ok(canonical.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_view([size[0], size[2], size[1]])?)
}

fn cell_state(state: &BlockState) -> Result<SlstmState> {
    Ok(SlstmState {
        hidden: state.need(HIDDEN)?,
        cell: state.need(CELL)?,
        normalizer: state.need(NORMALIZER)?,
        maximum: state.need(MAXIMUM)?,
    })
}

/// First values of the biases in the vanilla layout, `[gate][head][unit]`, gates in the order i, f, z, o.
fn bias_init(builder: &Builder, model: &XlstmConfig, index: u64) -> Result<Init> {
    match model.slstm.bias_init {
        SlstmBias::Zeros => Ok(Init::Constant(0.0)),
        SlstmBias::Standard => Ok(Init::Uniform((model.embedding_dim as f64).powf(-0.5))),
        SlstmBias::SmallInit | SlstmBias::PowerlawBlockdependent => {
            builder.values(|| Ok(forget_biases(model, index)))
        }
    }
}

/// As [`bias_init`], where only the forget gates have one.
fn forget_biases(model: &XlstmConfig, index: u64) -> Vec<f32> {
    let (heads, d) = (model.slstm.heads, model.embedding_dim);
    let unit = d / heads;
    let forget = if model.slstm.bias_init == SlstmBias::SmallInit {
        linspace(3.0, 6.0, unit)
    } else {
        let depth = if model.blocks > 1 { index as f64 / (model.blocks - 1) as f64 } else { 0.0 };
        let last = unit.saturating_sub(1).max(1) as f64;
        let value = |j: u64| -(-5.0 + 12.0 * (j as f64 / last).powf(0.3 + 1.3 * depth));
        (0..unit).map(|j| value(j) as f32).collect()
    };
    let mut values = vec![0.0; 4 * d as usize];
    for (slot, value) in values[d as usize..2 * d as usize].iter_mut().zip(forget.iter().cycle()) {
        *slot = *value;
    }
    values
}
