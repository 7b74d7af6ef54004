//! What is checked: inputs of each kernel, small and large, odd and extreme.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::BridgeError;
use xlstm_bridge::autograd::{Forward, custom_function};
use xlstm_cuda::{MlstmSizes, Source, Specialization};

use super::super::launch::{self, Boundaries, Gated, InnerTarget, InnerUpstream, InnerWeights, NormTarget};
use super::super::{self as cuda, Gpu};
use super::{Check, PRECISE, ROUNDING, Subject, plain};
use crate::conv::{ConvInput, causal_conv_silu};
use crate::{KernelError, gates, norm};

const EPSILON: f64 = 1e-5;
/// Vocabulary of the cross-entropy's check: no multiple of a block's 8192 logits.
const VOCABULARY: i64 = 10_000;
/// batch, tokens, heads, key, value, kind of gates. Where gates are extreme a few steps decide the error, in every
/// implementation: many sequences, so that it is not one step's luck.
const MLSTM: [(i64, i64, i64, i64, i64, &str); 9] = [
    (1, 1, 1, 64, 64, "low"),
    (1, 3, 2, 64, 64, "plain"),
    (2, 300, 3, 64, 128, "plain"),
    (1, 700, 2, 128, 256, "plain"),
    (8, 391, 4, 192, 192, "extreme"),
    (1, 513, 4, 384, 384, "plain"),
    (1, 700, 2, 512, 512, "closed"),
    (1, 600, 2, 768, 768, "plain"),
    (1, 520, 2, 1024, 1024, "plain"),
];

fn normal(shape: &[i64], device: Device) -> Tensor {
    Tensor::randn(shape, (Kind::Float, device))
}

fn half(shape: &[i64], device: Device) -> Tensor {
    normal(shape, device).to_kind(Kind::BFloat16)
}

fn failed(kernel: &'static str) -> impl Fn(xlstm_bridge::BoxError) -> KernelError {
    move |source| KernelError::Bridge(BridgeError::Forward { name: kernel, source })
}

/// Compiles what the checks use, on all cores.
pub(super) fn compile(device: Device) -> Result<(), KernelError> {
    let tensor = Tensor::zeros([1], (Kind::Float, device));
    let gpu = Gpu::of(&tensor).map_err(failed("selfcheck"))?;
    let architecture = gpu.architecture();
    let mut wanted = vec![
        Specialization::sums(architecture),
        Specialization::inner(architecture, 4, false),
        Specialization::inner(architecture, 8, false),
        Specialization::inner(architecture, 4, true),
        Specialization::cross_entropy(architecture, VOCABULARY as u32),
    ];
    wanted.extend([64, 96, 192, 384, 1024].map(|head| Specialization::pointwise(architecture, head, false)));
    wanted.extend([136, 768, 2048].map(|width| Specialization::residual(architecture, width)));
    for (_, tokens, _, key, value, _) in MLSTM {
        let chunk = if tokens > 128 && key * value >= 128 * 256 { 256 } else { 128 };
        let sizes = MlstmSizes { key: key as u32, value: value as u32, chunk };
        wanted.extend(Source::MLSTM.map(|source| Specialization::mlstm(source, architecture, sizes)));
    }
    wanted.extend(super::recurrent::specializations(architecture));
    gpu.compile_all(&wanted).map_err(failed("selfcheck"))
}

/// Around the cells.
pub(super) fn pointwise(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for (batch, time, width) in [(2, 130, 384), (3, 1, 64), (1, 67, 2056)] {
        let subject = Subject {
            kernel: "conv_silu",
            case: format!("{batch}x{time}x{width}"),
            inputs: vec![
                ("x", half(&[batch, time, width], device)),
                ("weight", normal(&[width, 1, 4], device)),
                ("bias", normal(&[width], device)),
            ],
            outputs: &["y"],
            ours: &|x| {
                let (weight_D1W, bias_D) = (&x[1], Some(&x[2]));
                let input = ConvInput { x_BTD: &x[0], weight_D1W, bias_D, state: None, resets_BT: None };
                Ok(vec![cuda::conv_silu(&input)?])
            },
            libtorch: &|x| {
                let (weight_D1W, bias_D) = (&x[1], Some(&x[2]));
                let input = ConvInput { x_BTD: &x[0], weight_D1W, bias_D, state: None, resets_BT: None };
                Ok(vec![causal_conv_silu(&input)?.y_BTD])
            },
            rounding: ROUNDING,
            mask: None,
        };
        take(subject.check()?);
    }
    for (time, heads, width) in [(65, 4, 192), (1, 1, 64), (33, 2, 1024)] {
        let subject = Subject {
            kernel: "head_norm",
            case: format!("1x{time}x{heads}x{width}"),
            inputs: vec![
                ("x", half(&[1, time, heads, width], device) * 3.0 + 1.0),
                ("weight", normal(&[heads * width], device) * 0.3),
            ],
            outputs: &["y"],
            ours: &|x| Ok(vec![cuda::head_norm(&x[0], &x[1], EPSILON)?]),
            libtorch: &|x| Ok(vec![norm::head_norm(&x[0], &x[1], EPSILON)?]),
            rounding: ROUNDING,
            mask: None,
        };
        take(subject.check()?);
        take(head_norm_gate(device, time, heads, width)?);
    }
    for (rows, width) in [(33, 256), (5, 1000)] {
        let subject = Subject {
            kernel: "gelu_gate",
            case: format!("{rows}x{width}"),
            inputs: vec![("projected", half(&[1, rows, 2 * width], device) * 2.0)],
            outputs: &["y"],
            ours: &|x| Ok(vec![cuda::gelu_gate(&x[0])?]),
            libtorch: &|x| Ok(vec![gates::gelu_gate(&x[0])?]),
            rounding: ROUNDING,
            mask: None,
        };
        take(subject.check()?);
    }
    for (rows, width) in [(257, 768), (1, 136), (1100, 2048)] {
        let subject = Subject {
            kernel: "add_layer_norm",
            case: format!("{rows}x{width}"),
            inputs: vec![
                ("x", normal(&[rows, width], device) * 2.0 + 1.0),
                ("d", half(&[rows, width], device)),
                ("weight", normal(&[width], device) * 0.3),
            ],
            outputs: &["sum", "norm"],
            ours: &|x| {
                let (sum, norm) = cuda::add_layer_norm(&x[0], Some(&x[1]), &x[2], EPSILON)?;
                Ok(vec![sum, norm])
            },
            libtorch: &|x| {
                let sum = &x[0] + &x[1];
                let output = norm::layer_norm(&sum, &x[2], EPSILON)?.to_kind(x[1].kind());
                Ok(vec![sum, output])
            },
            rounding: ROUNDING,
            mask: None,
        };
        take(subject.check()?);
    }
    for (batch, time, width, gates) in [(2, 131, 384, 8), (3, 1, 8, 8), (1, 70, 2056, 8), (9, 300, 72, 4)] {
        take(inner(device, batch, time, width, gates)?);
    }
    Ok(())
}

/// Norm, skip and gate as in an mLSTM block, the gate half of a wider tensor.
fn head_norm_gate(device: Device, time: i64, heads: i64, width: i64) -> Result<Check, KernelError> {
    let whole = heads * width;
    let ours = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let inputs: Vec<Option<&Tensor>> = x.iter().map(Some).collect();
        let halves = move |up: &Tensor| up.f_narrow(1, whole, whole);
        let made = custom_function(
            "head_norm_gate",
            &inputs,
            |_| {
                let gate = halves(&x[4])?;
                let gated = Gated { skip: &x[2], branch: &x[3], gate: &gate };
                let (y, statistics) = launch::norm_forward(&x[0], &x[1], Some(gated), EPSILON)?;
                let mut saved: Vec<Tensor> = x.iter().map(Tensor::shallow_clone).collect();
                saved.push(statistics);
                Ok(Forward { outputs: vec![y], saved })
            },
            move |context| {
                let saved = &context.saved;
                let (gate, up) = (halves(&saved[4])?, saved[4].f_zeros_like()?);
                let gated = Gated { skip: &saved[2], branch: &saved[3], gate: &gate };
                let gradient = context.gradients[0].as_ref().ok_or("no gradient")?.contiguous();
                let tensors = (&saved[0], &saved[1], &saved[5]);
                let half = halves(&up)?;
                let target = NormTarget { gate: Some(&half), division: None };
                let made = launch::norm_backward(tensors, Some(gated), &gradient, target)?;
                let (skip, branch) = made.skip_and_branch.ok_or("no gradient of the skip")?;
                Ok(vec![Some(made.h), Some(made.weight), Some(skip), Some(branch), Some(up)])
            },
        )?;
        Ok(made)
    };
    let libtorch = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let gate = x[4].narrow(1, whole, whole);
        let normal = norm::head_norm(&x[0].unsqueeze(0), &x[1], EPSILON)?.squeeze_dim(0);
        Ok(vec![((normal + &x[2] * &x[3]) * gate.silu()).to_kind(x[0].kind())])
    };
    let subject = Subject {
        kernel: "head_norm_gate",
        case: format!("{time}x{heads}x{width}"),
        inputs: vec![
            ("h", half(&[time, heads, width], device) * 3.0 + 1.0),
            ("weight", normal(&[whole], device) * 0.3),
            ("skip", normal(&[whole], device)),
            ("branch", half(&[time, whole], device)),
            ("up", half(&[time, 2 * whole], device)),
        ],
        outputs: &["y"],
        ours: &ours,
        libtorch: &libtorch,
        rounding: ROUNDING,
        mask: None,
    };
    subject.check()
}

/// Convolution, queries, keys, values and gates, a being half of a wider tensor.
fn inner(device: Device, batch: i64, time: i64, width: i64, gates: i64) -> Result<Check, KernelError> {
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
        let c = causal_conv_silu(&input)?.y_BTD.f_view([batch * time, width])?;
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
        take(Check::over_draws(|| inner_case(device, sizes, "nowhere"))?);
    }
    take(Check::over_draws(|| inner_case(device, (2, 300, 2, 64), "anywhere"))?);
    Ok(())
}

fn inner_case(
    device: Device,
    (batch, time, heads, head): (i64, i64, i64, i64),
    kind: &str,
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
        let c = plain::conv_silu_by_documents([a, &x[1], &x[2], &window], &flags);
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
        let input = cuda::InnerInput {
            up_BTF: &x[0],
            conv_weight_D1W: &x[1],
            conv_bias_D: &x[2],
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
    let inputs = vec![
        ("up", half(&[batch, time, 2 * width], device)),
        ("taps", normal(&[width, 1, 4], device) * 0.5),
        ("bias", normal(&[width], device) * 0.5),
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
        case: format!("{batch}x{time}x{heads}x{head}, anew {kind}"),
        inputs,
        outputs: &["y"],
        ours: &ours,
        libtorch: &libtorch,
        rounding: ROUNDING,
        mask: Some(mask),
    };
    subject.check()
}

/// The mLSTM cell.
pub(super) fn mlstm(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for case in MLSTM {
        take(Check::over_draws(|| mlstm_case(device, case))?);
    }
    Ok(())
}

fn mlstm_case(
    device: Device,
    (batch, time, heads, key, value, kind): (i64, i64, i64, i64, i64, &str),
) -> Result<Check, KernelError> {
    let (q, k) = (half(&[batch, time, heads, key], device), half(&[batch, time, heads, key], device));
    let (i_scale, f_scale, f_shift) = match kind {
        "extreme" => (20.0, 20.0, 0.0),
        "closed" => (3.0, 1.0, -12.0),
        _ => (1.0, 1.0, 3.0),
    };
    let shift = if kind == "low" { -60.0 } else { 0.0 };
    let i = normal(&[batch, time, heads], device) * i_scale + shift;
    let f = normal(&[batch, time, heads], device) * f_scale + f_shift;
    let mask = plain::well_conditioned(&q, &k, &i, &f);
    let subject = Subject {
        kernel: "mlstm",
        case: format!("{batch}x{time}x{heads}, {key} by {value}, {kind} gates"),
        inputs: vec![
            ("q", q),
            ("k", k),
            ("v", half(&[batch, time, heads, value], device)),
            ("i", i),
            ("f", f),
        ],
        outputs: &["h"],
        ours: &|x| {
            let input = crate::mlstm::MlstmInput {
                q_BTHK: &x[0],
                k_BTHK: &x[1],
                v_BTHV: &x[2],
                i_BTH: &x[3],
                f_BTH: &x[4],
                state: None,
                resets_BT: None,
            };
            Ok(vec![cuda::mlstm(&input)?.h_BTHV])
        },
        libtorch: &|x| Ok(vec![plain::mlstm([&x[0], &x[1], &x[2], &x[3], &x[4]])]),
        rounding: ROUNDING,
        mask: Some(mask),
    };
    subject.check()
}

/// batch, tokens, heads, head, where sequences begin anew. Chunks of these sizes are 128 (64) and 256 tokens.
const BOUNDARIES: [(i64, i64, i64, i64, &str); 6] = [
    (2, 300, 2, 64, "nowhere"),
    (2, 300, 2, 64, "everywhere"),
    (3, 300, 2, 64, "at the edges of chunks"),
    (4, 300, 2, 64, "anywhere"),
    (2, 700, 2, 384, "at the edges of chunks"),
    (2, 700, 2, 384, "anywhere"),
];

/// The same for the cell in float32.
const FLOAT32: [(i64, i64, i64, i64, &str); 7] = [
    (2, 1, 1, 8, "nowhere"),
    (3, 16, 4, 32, "anywhere"),
    (2, 300, 2, 64, "everywhere"),
    (3, 300, 2, 72, "at the edges of chunks"),
    (2, 700, 2, 384, "anywhere"),
    (1, 512, 1, 384, "nowhere"),
    (1, 130, 1, 1280, "anywhere"),
];

/// What stands around the cell in float32: convolution, projections with gates, norm with skip and gate, in one chain.
fn float32_block_case(
    device: Device,
    (batch, time, heads, head): (i64, i64, i64, i64),
) -> Result<Check, KernelError> {
    let width = heads * head;
    let chain = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let halves = x[0].f_chunk(2, -1)?;
        let (a, z) = (&halves[0], &halves[1]);
        let (weight_D1W, bias_D) = (&x[1], Some(&x[2]));
        let input = ConvInput { x_BTD: a, weight_D1W, bias_D, state: None, resets_BT: None };
        let c = causal_conv_silu(&input)?.y_BTD;
        let projections = crate::projections::mlstm_projections(&crate::projections::ProjectionsInput {
            c_BTD: &c,
            a_BTD: a,
            blocks_NOI: [&x[3], &x[4], &x[5]],
            gates: gates::GateWeights {
                input_weight: &x[6],
                input_bias: &x[7],
                forget_weight: &x[8],
                forget_bias: &x[9],
            },
        })?;
        let [q, k, v] = projections.qkv_BTD;
        let h = (q * k + v).f_view([batch, time, heads, head])?;
        let y = gates::mlstm_output(
            &gates::MlstmOutputInput {
                h_BTHE: &h,
                norm_weight_D: &x[10],
                skip_D: &x[11],
                conv_BTD: &c,
                z_BTD: z,
            },
            EPSILON,
        )?;
        Ok(vec![y, projections.i_BTH, projections.f_BTH])
    };
    let block = || normal(&[width / 4, 4, 4], device) * 0.5;
    let gate = || normal(&[heads, 3 * width], device) * 0.05;
    let bias = || normal(&[heads], device);
    let subject = Subject {
        kernel: "around the cell float32",
        case: format!("{batch}x{time}x{heads}x{head}"),
        inputs: vec![
            ("up", normal(&[batch, time, 2 * width], device)),
            ("taps", normal(&[width, 1, 4], device) * 0.5),
            ("bias", normal(&[width], device) * 0.5),
            ("query blocks", block()),
            ("key blocks", block()),
            ("value blocks", block()),
            ("input gate weight", gate()),
            ("input gate bias", bias()),
            ("forget gate weight", gate()),
            ("forget gate bias", bias()),
            ("norm weight", normal(&[width], device) * 0.3),
            ("skip", normal(&[width], device)),
        ],
        outputs: &["y", "i", "f"],
        ours: &chain,
        libtorch: &|x| {
            // The same functions: in float64 there is no kernel, and float32 is asked of libtorch.
            let before = !cuda::enabled(device);
            cuda::use_only_libtorch(true);
            let result = chain(x);
            cuda::use_only_libtorch(before);
            result
        },
        rounding: PRECISE,
        mask: None,
    };
    subject.check()
}

/// Flags for sequences that begin anew `kind`.
fn drawn_resets(batch: i64, time: i64, kind: &str) -> Vec<Vec<bool>> {
    let random = Tensor::rand([batch, time], (Kind::Float, Device::Cpu));
    (0..batch)
        .map(|row| {
            (0..time)
                .map(|token| match kind {
                    "everywhere" => true,
                    "anywhere" => random.double_value(&[row, token]) < 0.02,
                    "at the edges of chunks" => (token + row) % 128 == 0 || token + 1 == time,
                    _ => false,
                })
                .collect()
        })
        .collect()
}

/// The cell and the convolution with resets and states in and out, against every document by itself.
pub(super) fn boundaries(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for case in BOUNDARIES {
        take(Check::over_draws(|| mlstm_boundary_case(device, case, false))?);
    }
    for sizes in [(2, 130, 4, 8), (1, 300, 2, 384), (3, 1, 1, 64), (1, 33, 4, 1280)] {
        take(float32_block_case(device, sizes)?);
    }
    for case in FLOAT32 {
        take(Check::over_draws(|| mlstm_boundary_case(device, case, true))?);
    }
    for case in SHORT {
        take(Check::over_draws(|| mlstm_short_case(device, case))?);
    }
    for (batch, time, width, kind) in
        [(3, 130, 384, "anywhere"), (2, 67, 64, "everywhere"), (2, 2, 8, "nowhere")]
    {
        take(conv_boundary_case(device, (batch, time, width), kind)?);
    }
    Ok(())
}

/// Sequences of a single block of the short kernel, in float32: batch, tokens, heads, widths of keys and values.
const SHORT: [(i64, i64, i64, [i64; 2], &str); 6] = [
    (3, 40, 4, [64, 64], "nowhere"),
    (5, 37, 4, [64, 32], "anywhere"),
    (2, 64, 2, [64, 64], "everywhere"),
    (2, 64, 1, [128, 128], "nowhere"),
    (2, 1, 1, [8, 16], "nowhere"),
    (64, 40, 4, [64, 64], "anywhere"),
];

fn mlstm_short_case(
    device: Device,
    (batch, time, heads, [key, value], kind): (i64, i64, i64, [i64; 2], &str),
) -> Result<Check, KernelError> {
    let flags = drawn_resets(batch, time, kind);
    let resets = plain::resets_tensor(&flags, device);
    let draw = |shape: &[i64]| normal(shape, device);
    let inputs = vec![
        ("q", draw(&[batch, time, heads, key]).abs()),
        ("k", draw(&[batch, time, heads, key]).abs()),
        ("v", draw(&[batch, time, heads, value])),
        ("i", draw(&[batch, time, heads])),
        ("f", draw(&[batch, time, heads]) + 3.0),
    ];
    let subject = Subject {
        kernel: "mlstm short",
        case: format!("{batch}x{time}x{heads}, {key} by {value}, anew {kind}"),
        inputs,
        outputs: &["h"],
        ours: &|x| {
            let input = crate::mlstm::MlstmInput {
                q_BTHK: &x[0],
                k_BTHK: &x[1],
                v_BTHV: &x[2],
                i_BTH: &x[3],
                f_BTH: &x[4],
                state: None,
                resets_BT: (kind != "nowhere").then_some(&resets),
            };
            Ok(vec![crate::mlstm::mlstm_hidden(&input, &crate::mlstm::MlstmOptions::default())?])
        },
        libtorch: &|x| {
            let [h, ..] = plain::mlstm_by_documents([&x[0], &x[1], &x[2], &x[3], &x[4]], None, &flags);
            Ok(vec![h])
        },
        rounding: PRECISE,
        mask: None,
    };
    subject.check()
}

fn mlstm_boundary_case(
    device: Device,
    (batch, time, heads, head, kind): (i64, i64, i64, i64, &str),
    float32: bool,
) -> Result<Check, KernelError> {
    let flags = drawn_resets(batch, time, kind);
    let resets = plain::resets_tensor(&flags, device);
    let half = |shape: &[i64], device| if float32 { normal(shape, device) } else { half(shape, device) };
    // Sums of scores that do not cancel: every row's denominator is one that bf16 determines.
    let positive = || half(&[batch, time, heads, head], device).abs();
    let inputs = vec![
        ("q", positive()),
        ("k", positive()),
        ("v", half(&[batch, time, heads, head], device)),
        ("i", normal(&[batch, time, heads], device)),
        ("f", normal(&[batch, time, heads], device) + 3.0),
        ("matrix", normal(&[batch, heads, head, head], device) * 0.2),
        ("normalizer", normal(&[batch, heads, head], device).abs()),
    ];
    let maximum = normal(&[batch, heads], device);
    let after = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let state = crate::mlstm::MlstmState {
            matrix: x[5].shallow_clone(),
            normalizer: x[6].shallow_clone(),
            maximum: maximum.shallow_clone(),
        };
        let input = crate::mlstm::MlstmInput {
            q_BTHK: &x[0],
            k_BTHK: &x[1],
            v_BTHV: &x[2],
            i_BTH: &x[3],
            f_BTH: &x[4],
            state: Some(&state),
            resets_BT: Some(&resets),
        };
        let output = if float32 {
            crate::mlstm::mlstm(&input, &crate::mlstm::MlstmOptions::default())?
        } else {
            cuda::mlstm(&input)?
        };
        Ok(vec![output.h_BTHV, output.state.matrix, output.state.normalizer])
    };
    let libtorch = |x: &[Tensor]| -> Result<Vec<Tensor>, KernelError> {
        let state = [&x[5], &x[6], &maximum.to_kind(x[5].kind())];
        let [h, matrix, normalizer, _] =
            plain::mlstm_by_documents([&x[0], &x[1], &x[2], &x[3], &x[4]], Some(state), &flags);
        Ok(vec![h, matrix, normalizer])
    };
    let subject = Subject {
        kernel: if float32 { "mlstm float32" } else { "mlstm" },
        case: format!("{batch}x{time}x{heads}, heads of {head} after a state, anew {kind}"),
        inputs,
        outputs: &["h", "matrix", "normalizer"],
        ours: &after,
        libtorch: &libtorch,
        rounding: if float32 { PRECISE } else { ROUNDING },
        mask: None,
    };
    subject.check()
}

fn conv_boundary_case(
    device: Device,
    (batch, time, width): (i64, i64, i64),
    kind: &str,
) -> Result<Check, KernelError> {
    let flags = drawn_resets(batch, time, kind);
    let resets = plain::resets_tensor(&flags, device);
    let subject = Subject {
        kernel: "conv_silu",
        case: format!("{batch}x{time}x{width} after a window, anew {kind}"),
        inputs: vec![
            ("x", half(&[batch, time, width], device)),
            ("weight", normal(&[width, 1, 4], device)),
            ("bias", normal(&[width], device)),
            ("window", half(&[batch, 3, width], device)),
        ],
        outputs: &["y"],
        ours: &|x| {
            let (weight_D1W, bias_D, state) = (&x[1], Some(&x[2]), Some(&x[3]));
            let input = ConvInput { x_BTD: &x[0], weight_D1W, bias_D, state, resets_BT: Some(&resets) };
            Ok(vec![cuda::conv_silu(&input)?])
        },
        libtorch: &|x| Ok(vec![plain::conv_silu_by_documents([&x[0], &x[1], &x[2], &x[3]], &flags)]),
        rounding: ROUNDING,
        mask: None,
    };
    subject.check()
}

/// The loss, with targets that count for nothing.
pub(super) fn cross_entropy(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for (rows, width) in [(300, 136), (1, 64)] {
        let targets = Tensor::randint(VOCABULARY, [rows], (Kind::Int64, device));
        if rows > 1 {
            let _ = targets.narrow(0, 3, 7).fill_(-100);
        }
        let count = targets.ne(-100).sum(Kind::Int64).int64_value(&[]);
        let subject = Subject {
            kernel: "cross_entropy",
            case: format!("{rows}x{width}, vocabulary {VOCABULARY}"),
            inputs: vec![
                ("hidden", half(&[rows, width], device)),
                ("weight", normal(&[VOCABULARY, width], device) * 0.3),
            ],
            outputs: &["loss"],
            ours: &|x| Ok(vec![cuda::projected_cross_entropy(&x[0], &x[1], &targets, -100, count)?.loss]),
            libtorch: &|x| {
                let logits = x[0].matmul(&x[1].to_kind(x[0].kind()).tr());
                let logits = if x[0].kind() == Kind::Double { logits } else { logits.to_kind(Kind::Float) };
                let none = None::<&Tensor>;
                Ok(vec![logits.cross_entropy_loss(&targets, none, tch::Reduction::Mean, -100, 0.0)])
            },
            rounding: ROUNDING,
            mask: None,
        };
        take(subject.check()?);
    }
    Ok(())
}
