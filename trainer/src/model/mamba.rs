//! Mamba: one selective scan in each block, no feed-forward.
//!
//! ```text
//! (u, z) = W_in RMS(x)      u = SiLU(conv(u))      (δ, B, C) = W_x u      Δ = softplus(W_dt δ + b)
//! S_t = exp(Δ_t A) ⊙ S_{t-1} + Δ_t u_t B_tᵀ        A = −exp(A_log)
//! x + W_out [(S_t C_t + D ⊙ u) ⊙ SiLU(z)]
//! ```
//! Names and initial values are those of the authors' code (mamba_ssm), with the untied output that the paper's counts ask
//! for. Δ, A, D and the scan are fp32 whatever the products are. Weight decay applies to matrices and the convolution, not
//! to A_log.

use tch::{Device, Kind, Tensor};
use xlstm_kernels::conv::{ConvInput, causal_conv_silu};
use xlstm_kernels::cuda::{BetweenProducts, Recurrence};
use xlstm_kernels::scan::{GatedScanInput, ScanKernel, gated_selective_scan};
use xlstm_manifests::recipe::architecture::{MAMBA_TAPS, MambaConfig};

use super::block::{Block, BlockCall, BlockState};
use super::exchange::TransformersForm;
use super::network::{Network, Parts};
use super::normalization::Norm;
use super::parameters::{Builder, Decay, Init};
use super::{product, signed};
use crate::error::Result;

/// Names of the state: the convolution's last inputs, and S.
const CONVOLUTION: &str = "convolution";
const MEMORY: &str = "memory";
/// The first step sizes Δ lie between these, evenly in the logarithm.
const STEPS: [f64; 2] = [1e-3, 0.1];

impl Network for MambaConfig {
    fn between_products(&self) -> Option<BetweenProducts> {
        Some(BetweenProducts { width: self.embedding_dim, head: None })
    }

    fn build(&self, builder: &mut Builder) -> Result<Parts> {
        let (d, vocabulary) = (signed(self.embedding_dim), signed(self.vocabulary_size));
        let embedding = builder.add(
            "backbone.embedding.weight".into(),
            &[vocabulary, d],
            &Init::Normal(0.02),
            Decay::No,
        )?;
        let mut blocks: Vec<Box<dyn Block>> = Vec::new();
        for index in 0..self.blocks {
            blocks.push(Box::new(MambaBlock::new(builder, self, &format!("backbone.layers.{index}"))?));
        }
        let norm = norm(builder, self, "backbone.norm_f.weight".into())?;
        let bound = Init::Uniform((d as f64).powf(-0.5));
        let output = builder.output("lm_head.weight", &embedding, &[vocabulary, d], &bound)?;
        let (position_embedding, embedding_norm) = (None, None);
        Ok(Parts {
            embedding,
            biases: None,
            position_embedding,
            embedding_norm,
            blocks,
            norm,
            output,
            positional: false,
        })
    }

    fn recurrence(&self, _resets: bool) -> Option<Recurrence> {
        Some(Recurrence::SelectiveScan { states: self.state_dim })
    }

    fn transformers(&self) -> Option<&dyn TransformersForm> {
        Some(self)
    }
}

fn norm(builder: &mut Builder, config: &MambaConfig, name: String) -> Result<Norm> {
    let weight = builder.add(name, &[signed(config.embedding_dim)], &Init::Constant(1.0), Decay::No)?;
    Ok(Norm::Rms { weight, epsilon: config.norm_epsilon })
}

#[derive(Debug)]
struct MambaBlock {
    states: i64,
    rank: i64,
    norm: Norm,
    input: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    selection: Tensor,
    step: Tensor,
    step_bias: Tensor,
    a_log: Tensor,
    skip: Tensor,
    output: Tensor,
}

impl MambaBlock {
    fn new(builder: &mut Builder, config: &MambaConfig, prefix: &str) -> Result<Self> {
        let (d, inner) = (signed(config.embedding_dim), signed(config.inner()));
        let (n, rank, taps) = (signed(config.state_dim), signed(config.step_rank()), signed(MAMBA_TAPS));
        let norm = norm(builder, config, format!("{prefix}.norm.weight"))?;
        let name = |part: &str| format!("{prefix}.mixer.{part}");
        let bound = |inputs: i64| (inputs as f64).powf(-0.5);
        let states = || (0..inner).flat_map(|_| (1..=n).map(|state| (state as f64).ln() as f32)).collect();
        let logarithms = builder.values(|| Ok(states()))?;
        let mut add =
            |part: &str, shape: &[i64], init: Init, decay| builder.add(name(part), shape, &init, decay);
        let input = add("in_proj.weight", &[2 * inner, d], Init::Uniform(bound(d)), Decay::Yes)?;
        let conv_weight = add("conv1d.weight", &[inner, 1, taps], Init::Uniform(bound(taps)), Decay::Yes)?;
        let conv_bias = add("conv1d.bias", &[inner], Init::Uniform(bound(taps)), Decay::No)?;
        let selection =
            add("x_proj.weight", &[rank + 2 * n, inner], Init::Uniform(bound(inner)), Decay::Yes)?;
        let step = add("dt_proj.weight", &[inner, rank], Init::Uniform(bound(rank)), Decay::Yes)?;
        let step_bias = add("dt_proj.bias", &[inner], Init::Values(first_steps(inner)?), Decay::No)?;
        let a_log = add("A_log", &[inner, n], logarithms, Decay::No)?;
        let skip = add("D", &[inner], Init::Constant(1.0), Decay::No)?;
        let last = bound(inner) / (config.blocks as f64).sqrt();
        let output = add("out_proj.weight", &[d, inner], Init::Uniform(last), Decay::Yes)?;
        Ok(Self {
            states: n,
            rank,
            norm,
            input,
            conv_weight,
            conv_bias,
            selection,
            step,
            step_bias,
            a_log,
            skip,
            output,
        })
    }
}

/// The inverse of softplus of step sizes that are even in the logarithm.
fn first_steps(count: i64) -> Result<Vec<f32>> {
    let [low, high] = STEPS.map(f64::ln);
    let logarithm = Tensor::f_rand([count], (Kind::Double, Device::Cpu))? * (high - low) + low;
    let step = logarithm.f_exp()?.f_clamp_min(1e-4)?;
    let bias = &step + (-(-&step).f_expm1()?).f_log()?;
    Ok(Vec::try_from(bias.f_to_kind(Kind::Float)?)?)
}

impl Block for MambaBlock {
    fn forward(&self, x_BTC: &Tensor, call: &BlockCall<'_>) -> Result<(Tensor, BlockState)> {
        let both_BTD = product(&self.norm.for_products(x_BTC, call.precision)?, &self.input, call.precision)?;
        let halves = both_BTD.f_chunk(2, -1)?;
        let state = |name: &str| call.state.map(|state| state.need(name)).transpose();
        let (conv_state, memory) = (state(CONVOLUTION)?, state(MEMORY)?);
        let convolved = causal_conv_silu(&ConvInput {
            x_BTD: &halves[0],
            weight_D1W: &self.conv_weight,
            bias_D: Some(&self.conv_bias),
            state: conv_state.as_ref(),
            resets_BT: call.resets_BT,
        })?;
        let selected = product(&convolved.y_BTD, &self.selection, call.precision)?;
        let parts = selected.f_split_with_sizes([self.rank, self.states, self.states], -1)?;
        let raw_step_BTD = product(&parts[0], &self.step, call.precision)?;
        let scanned = gated_selective_scan(
            &GatedScanInput {
                u_BTD: &convolved.y_BTD,
                raw_step_BTD: &raw_step_BTD,
                step_bias_D: &self.step_bias,
                a_DN: &self.a_log.f_exp()?.f_neg()?,
                write_BTN: &parts[1],
                read_BTN: &parts[2],
                skip_D: &self.skip,
                gate_BTD: &halves[1],
                state_BDN: memory.as_ref(),
                resets_BT: call.resets_BT,
            },
            ScanKernel::Auto,
        )?;
        let x_BTC = x_BTC + call.dropped(product(&scanned.y_BTD, &self.output, call.precision)?, 0)?;
        let state = BlockState::new([(CONVOLUTION, convolved.state), (MEMORY, scanned.state_BDN)]);
        Ok((x_BTC, state))
    }
}
