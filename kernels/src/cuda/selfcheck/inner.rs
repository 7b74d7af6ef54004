//! The block of an mLSTM between its two big products: what goes into the cell, and all of it.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::{Forward, custom_function};

use super::inputs::{EPSILON, drawn_resets, half, normal};
use super::{Check, ROUNDING, Subject, plain};
use crate::conv::{self, ConvInput};
use crate::cuda::launch::{self, Boundaries, InnerTarget, InnerUpstream, InnerWeights};
use crate::{KernelError, cuda, gates, norm};

/// Convolution, queries, keys, values and gates, a being half of a wider tensor.
pub(super) fn inner(
    device: Device,
    batch: i64,
    time: i64,
    width: i64,
    gates: i64,
) -> Result<Check, KernelError> {
    fn weights(x: &[Tensor]) -> InnerWeights<'_> {
        let blocks = [&x[3], &x[4], &x[5]];
        InnerWeights { conv: &x[1], conv_bias: &x[2], blocks, gates: &x[6], gate_bias: &x[7] }
    }
    let half_of = move |up: &Tensor| up.f_narrow(1, 0, width);
    let ours = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let inputs: Vec<Option<&Tensor>> = x.iter().map(Some).collect();
        let made = custom_function(
            "conv_projections",
            &inputs,
            |_| {
                let none = Boundaries::default();
                let made = launch::inner_forward(&half_of(&x[0])?, weights(x), batch, none)?;
                let outputs = vec![made.conv, made.query, made.key, made.value, made.gates];
                Ok(Forward { outputs, saved: x.iter().map(Tensor::shallow_clone).collect() })
            },
            move |context| {
                let saved = &context.saved;
                let gradient = |index: usize| -> Result<Tensor, xlstm_bridge::BoxError> {
                    Ok(context.gradients[index].as_ref().ok_or("no gradient")?.contiguous())
                };
                let (c, q, k, v, g) = (gradient(0)?, gradient(1)?, gradient(2)?, gradient(3)?, gradient(4)?);
                let upstream = InnerUpstream { projected: [&q, &k, &v], gates: &g, added: &c };
                let up = saved[0].f_zeros_like()?;
                let (a, target) = (half_of(&saved[0])?, half_of(&up)?);
                let target = InnerTarget { input: &target, window: None };
                let none = Boundaries::default();
                let made = launch::inner_backward(&a, weights(saved), batch, none, upstream, target)?;
                let bias = g.f_sum_dim_intlist(0, false, None::<Kind>)?;
                let blocks = made.blocks.f_unbind(0)?;
                let all = [up, made.conv, made.conv_bias].into_iter().chain(blocks);
                Ok(all.chain([made.gates, bias]).map(Some).collect())
            },
        )?;
        Ok(made)
    };
    let libtorch = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let a = half_of(&x[0])?;
        let (weight_D1W, bias_D) = (&x[1], Some(&x[2]));
        let x_BTD = &a.f_reshape([batch, time, width])?;
        let input = ConvInput { x_BTD, weight_D1W, bias_D, state: None, resets_BT: None };
        let c = conv::composed(&input)?.f_view([batch * time, width])?;
        let project = |x_ND: &Tensor, weight: &Tensor| -> Result<Tensor, KernelError> {
            Ok(gates::block_linear(&x_ND.unsqueeze(0), weight)?.squeeze_dim(0))
        };
        let wide =
            |x: &Tensor| if x.kind() == Kind::Double { x.shallow_clone() } else { x.to_kind(Kind::Float) };
        let m = &x[6];
        let gate = wide(&c).matmul(&m.select(0, 0).tr()) + wide(&a).matmul(&m.select(0, 1).tr()) + &x[7];
        let (q, k, v) = (project(&c, &x[3])?, project(&c, &x[4])?, project(&a, &x[5])?);
        Ok(vec![c, q, k, v, gate])
    };
    let block = || normal(&[width / 4, 4, 4], device) * 0.5;
    let subject = Subject {
        kernel: "conv_projections",
        case: format!("{batch}x{time}x{width}, {gates} gates"),
        inputs: vec![
            ("up", half(&[batch * time, 2 * width], device)),
            ("taps", normal(&[width, 1, 4], device) * 0.5),
            ("bias", normal(&[width], device) * 0.5),
            ("query blocks", block()),
            ("key blocks", block()),
            ("value blocks", block()),
            ("gate weight", normal(&[2, gates, width], device) * 0.05),
            ("gate bias", normal(&[gates], device)),
        ],
        outputs: &["c", "q", "k", "v", "gates"],
        ours: &ours,
        libtorch: &libtorch,
        rounding: ROUNDING,
        mask: None,
    };
    subject.check()
}

/// A whole block between its two big products. Every other call computes states and scores again instead of keeping
/// them, so that "both runs agree" says that both ways give the same bits.
pub(super) fn mlstm_inner(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for sizes in [(2, 300, 4, 64), (3, 129, 2, 192), (1, 530, 4, 384)] {
        take(Check::over_draws(|| inner_case(device, sizes, "nowhere", false))?);
    }
    take(Check::over_draws(|| inner_case(device, (2, 300, 2, 64), "anywhere", false))?);
    take(Check::over_draws(|| inner_case(device, (2, 300, 4, 64), "nowhere", true))?);
    Ok(())
}

fn inner_case(
    device: Device,
    (batch, time, heads, head): (i64, i64, i64, i64),
    kind: &str,
    passing: bool,
) -> Result<Check, KernelError> {
    let width = heads * head;
    let flags = drawn_resets(batch, time, kind);
    let resets = (kind != "nowhere").then(|| plain::resets_tensor(&flags, device));
    let zeros = Tensor::zeros([batch, 3, width], (Kind::BFloat16, device));
    let split = |x: &Tensor| x.f_chunk(2, -1);
    let by_head = |x: &Tensor| x.f_view([batch, time, heads, head]);
    // c, then what goes into the cell, with products in the type of `up`.
    let cell = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let a = &split(&x[0])?[0];
        let window = zeros.to_kind(a.kind());
        let c = match passing {
            true => a.silu(),
            false => plain::conv_silu_by_documents([a, &x[1], &x[2], &window], &flags),
        };
        let wide = |x: &Tensor| {
            if x.kind() == Kind::Double { x.shallow_clone() } else { x.to_kind(Kind::Float) }
        };
        let m = &x[6];
        let gate = wide(&c).matmul(&m.select(0, 0).tr()) + wide(a).matmul(&m.select(0, 1).tr()) + &x[7];
        let mut gate = gate.f_chunk(2, -1)?;
        let (f, i) = (gate.swap_remove(1), gate.swap_remove(0));
        let q = by_head(&gates::block_linear(&c, &x[3])?)?;
        let k = by_head(&gates::block_linear(&c, &x[4])?)?;
        let v = by_head(&gates::block_linear(a, &x[5])?)?;
        Ok(vec![c, q, k, v, i, f])
    };
    let libtorch = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let (z, made) = (split(&x[0])?.swap_remove(1), cell(x)?);
        let [h, ..] =
            plain::mlstm_by_documents([&made[1], &made[2], &made[3], &made[4], &made[5]], None, &flags);
        let normal = norm::head_norm(&h, &x[8], EPSILON)?;
        Ok(vec![((normal + &x[9] * &made[0]) * z.silu()).to_kind(z.kind())])
    };
    let calls = std::cell::Cell::new(0);
    let ours = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        calls.set(calls.get() + 1);
        // Taps that pass on what they meet are no parameters.
        let taps = [&x[1], &x[2]].map(|x| if passing { x.detach() } else { x.shallow_clone() });
        let input = cuda::InnerInput {
            up_BTF: &x[0],
            conv_weight_D1W: &taps[0],
            conv_bias_D: &taps[1],
            query_NOI: &x[3],
            key_NOI: &x[4],
            value_NOI: &x[5],
            gate_weight_2GD: &x[6],
            gate_bias_G: &x[7],
            norm_weight_D: &x[8],
            skip_D: &x[9],
            keep: calls.get() % 2 == 0,
            resets_BT: resets.as_ref(),
            state: None,
            with_state: false,
        };
        Ok(vec![cuda::mlstm_inner(&input, EPSILON)?.y_BTD])
    };
    let gates = 2 * heads;
    let block = || normal(&[width / 4, 4, 4], device) * 0.5;
    let gate_bias = normal(&[gates], device);
    let _ = gate_bias.narrow(0, heads, heads).g_add_scalar_(3.0);
    let (taps, bias) = if passing {
        let taps = Tensor::zeros([width, 1, 4], (Kind::Float, device));
        let _ = taps.narrow(2, 3, 1).fill_(1.0);
        (taps, Tensor::zeros([width], (Kind::Float, device)))
    } else {
        (normal(&[width, 1, 4], device) * 0.5, normal(&[width], device) * 0.5)
    };
    let inputs = vec![
        ("up", half(&[batch, time, 2 * width], device)),
        ("taps", taps),
        ("bias", bias),
        ("query blocks", block()),
        ("key blocks", block()),
        ("value blocks", block()),
        ("gate weight", normal(&[2, gates, width], device) * (0.5 / (width as f64).sqrt())),
        ("gate bias", gate_bias),
        ("norm weight", normal(&[width], device) * 0.3),
        ("skip", normal(&[width], device)),
    ];
    let exact: Vec<Tensor> = inputs.iter().map(|(_, tensor)| tensor.to_kind(Kind::Double)).collect();
    let made = cell(&exact)?;
    let fine = plain::well_conditioned_by_documents([&made[1], &made[2], &made[4], &made[5]], &flags);
    let mask = fine.f_expand([batch, time, heads, head], false)?.f_reshape([batch, time, width])?;
    let subject = Subject {
        kernel: "mlstm_inner",
        case: format!(
            "{batch}x{time}x{heads}x{head}, anew {kind}{}",
            if passing { ", no convolution" } else { "" }
        ),
        inputs,
        outputs: &["y"],
        ours: &ours,
        libtorch: &libtorch,
        rounding: ROUNDING,
        mask: Some(mask),
    };
    subject.check()
}
