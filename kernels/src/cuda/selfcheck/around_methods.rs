//! What is checked of what stands around the recurrences and attention of table 1's other methods: RWKV's mixes of tokens, norms of heads
//! with their gates, rotary positions, SwiGLU, dropout; against libtorch's operations in float64.

use tch::{Device, Kind, Tensor};
use xlstm_cuda::gated_norm::GatedNormForm;
use xlstm_cuda::token_shift::TokenShiftForm;
use xlstm_cuda::{Architecture, Specialization};

use super::inputs::normal;
use super::methods::Borders;
use super::{Check, PRECISE, ROUNDING, Subject};
use crate::KernelError;
use crate::conv::{ConvInput, causal_conv};
use crate::dropout::{self, DropoutKeys};
use crate::gated_norm::{GatedNormInput, HeadNorm, gated_norm};
use crate::token_shift::{TokenShiftInput, token_shift};
use crate::transformer::{rotary, swiglu, swiglu_of_halves};

/// Batch, tokens, channels, and what stands at the borders, of mixes with the token before.
const SHIFTS: [(i64, i64, i64, Borders); 4] = [
    (3, 65, 132, Borders::None),
    (3, 65, 132, Borders::Resets),
    (2, 33, 520, Borders::Both),
    (2, 1, 32, Borders::State),
];

/// Tokens, heads, width of a head, norm, and whether all heads have the same weights.
const NORMS: [(i64, i64, i64, HeadNorm, bool); 6] = [
    (65, 5, 64, HeadNorm::Layer, false),
    (333, 4, 256, HeadNorm::Rms, true),
    (33, 1, 1024, HeadNorm::Rms, false),
    (1, 3, 16, HeadNorm::Layer, true),
    (700, 3, 128, HeadNorm::Layer, false),
    (7, 9, 32, HeadNorm::Rms, false),
];

/// Batch, tokens, channels, and what stands at the borders, of the convolution of three taps.
const CONVOLUTIONS: [(i64, i64, i64, Borders); 5] = [
    (2, 130, 384, Borders::None),
    (3, 33, 64, Borders::Resets),
    (2, 65, 1032, Borders::Both),
    (3, 1, 64, Borders::State),
    (1, 2, 8, Borders::Both),
];

/// What the checks use of these sources.
pub(super) fn specializations(architecture: Architecture) -> Vec<Specialization> {
    let mut wanted = Vec::new();
    wanted.extend([false, true].map(|float32| Specialization::transformer(architecture, float32)));
    wanted.extend([false, true].map(|float32| Specialization::dropout(architecture, float32)));
    for (mixes, own) in [(2, false), (5, true)] {
        let forms = [false, true].map(|float32| TokenShiftForm { mixes, own, float32 });
        wanted.extend(forms.map(|form| form.specialization(architecture)));
    }
    for (_, _, width, norm, _) in NORMS {
        let forms = [[true, true], [false, false], [false, true]];
        let forms = forms.map(|types| GatedNormForm::new(width as u32, norm == HeadNorm::Rms, types));
        wanted.extend(forms.into_iter().flatten().map(|form| form.specialization(architecture)));
    }
    wanted
}

/// Dropout: the very numbers that the CPU's mask drops.
pub(super) fn dropouts(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (size, probability) in [([3, 65, 132], 0.1), ([1, 1, 8], 0.5), ([33, 64, 128], 0.999)] {
            take(check_dropout(size, probability, kind, device)?);
        }
    }
    Ok(())
}

fn check_dropout(size: [i64; 3], probability: f64, kind: Kind, device: Device) -> Result<Check, KernelError> {
    const SITE: u64 = 11;
    let keys: Vec<u64> = (1..=size[0].unsigned_abs()).map(|key| dropout::mix(key << 40)).collect();
    let mask = dropout::mask(&keys, SITE, probability, size[1] * size[2])?.to_device(device).view(size);
    // A tensor on a CPU too, where libtorch's operations then stand for the kernel.
    let keys = DropoutKeys::Device(dropout::bits(&keys)?.to_device(device));
    let ours = |x: &[Tensor]| {
        let y = dropout::dropout(&x[0].to_kind(kind), &keys, SITE, probability)?;
        Ok(vec![y.to_kind(x[0].kind())])
    };
    let libtorch = |x: &[Tensor]| Ok(vec![&x[0] * mask.to_kind(x[0].kind())]);
    let [batch, time, width] = size;
    Subject {
        kernel: "dropout",
        case: format!("{batch}x{time}x{width} {kind:?}, {probability}"),
        inputs: vec![("x", normal(&size, device).to_kind(kind).to_kind(Kind::Float))],
        outputs: &["y"],
        ours: &ours,
        libtorch: &libtorch,
        rounding: if kind == Kind::Float { PRECISE } else { ROUNDING },
        mask: None,
    }
    .check()
}

/// RWKV's mixes of each token with the one before.
pub(super) fn shifts(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for (batch, tokens, width, borders) in SHIFTS {
        let size = [batch, tokens, width];
        let resets_BT = borders.resets(batch, tokens, device);
        for kind in [Kind::Float, Kind::BFloat16] {
            let case = |own| format!("{own}{batch}x{tokens}x{width} {kind:?}{}", borders.words());
            let drawn = (borders, &resets_BT);
            take(check_shift::<2>(&size, drawn, (kind, false), case("2 shares, "), device)?);
            take(check_shift::<5>(&size, drawn, (kind, true), case("5 shares by token, "), device)?);
        }
    }
    Ok(())
}

/// What tokens add is rounded as the kernel reads it; mixes are rounded once.
fn check_shift<const M: usize>(
    size: &[i64; 3],
    (borders, resets_BT): (Borders, &Option<Tensor>),
    (kind, by_token): (Kind, bool),
    case: String,
    device: Device,
) -> Result<Check, KernelError> {
    const NAMES: [&str; 5] = ["share 1", "share 2", "share 3", "share 4", "share 5"];
    const MIXES: [&str; 5] = ["mix 1", "mix 2", "mix 3", "mix 4", "mix 5"];
    let [batch, tokens, width] = *size;
    let mut inputs = vec![("y", normal(size, device))];
    inputs.extend(NAMES.iter().take(M).map(|name| (*name, normal(&[width], device).sigmoid())));
    if by_token {
        let own = normal(&[M as i64, batch, tokens, width], device) * 0.3;
        inputs.push(("own", own.to_kind(kind).to_kind(Kind::Float)));
    }
    if borders.has_state() {
        inputs.push(("first", normal(&[batch, width], device)));
    }
    let ours = |x: &[Tensor]| {
        let own_MBTC = by_token.then(|| x[1 + M].to_kind(kind));
        let input = TokenShiftInput {
            y_BTC: &x[0],
            first_BC: if borders.has_state() { x.last() } else { None },
            own_MBTC: own_MBTC.as_ref(),
            resets_BT: resets_BT.as_ref(),
            kind,
        };
        let shares: [&Tensor; M] = std::array::from_fn(|share| &x[1 + share]);
        Ok(token_shift(&input, shares)?.map(|mix| mix.to_kind(x[0].kind())).into())
    };
    // A weighted mean of both tokens.
    let libtorch = |x: &[Tensor]| {
        let shifted = x[0].f_constant_pad_nd([0, 0, 1, -1])?;
        let mut before = match x.last().filter(|_| borders.has_state()) {
            Some(first) => shifted + first.f_unsqueeze(1)?.f_constant_pad_nd([0, 0, 0, tokens - 1])?,
            None => shifted,
        };
        if let Some(resets_BT) = resets_BT {
            before = before.f_masked_fill(&resets_BT.unsqueeze(-1), 0.0)?;
        }
        let mix = |index: usize| {
            let own = by_token.then(|| x[1 + M].select(0, index as i64));
            let share = own.map_or_else(|| x[1 + index].shallow_clone(), |own| own + &x[1 + index]);
            &before * &share + &x[0] * (1.0 - share)
        };
        Ok((0..M).map(mix).collect())
    };
    Subject {
        kernel: "token_shift",
        case,
        inputs,
        outputs: &MIXES[..M],
        ours: &ours,
        libtorch: &libtorch,
        rounding: if kind == Kind::Float { PRECISE } else { ROUNDING },
        mask: None,
    }
    .check()
}

/// Norms of heads with the gate behind them: all types that a model has.
pub(super) fn norms(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    let half = Kind::BFloat16;
    for case in NORMS {
        for types in [[Kind::Float, Kind::Float], [half, half], [half, Kind::Float]] {
            take(check_norm(case, types, device)?);
        }
    }
    Ok(())
}

/// Hyena's convolution of three taps, without a SiLU.
pub(super) fn convolutions(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (batch, tokens, width, borders) in CONVOLUTIONS {
            take(check_convolution([batch, tokens, width], borders, kind, device)?);
        }
    }
    Ok(())
}

fn check_convolution(
    size: [i64; 3],
    borders: Borders,
    kind: Kind,
    device: Device,
) -> Result<Check, KernelError> {
    let [batch, tokens, width] = size;
    let rounded = |size: &[i64]| normal(size, device).to_kind(kind).to_kind(Kind::Float);
    let resets_BT = borders.resets(batch, tokens, device);
    let mut inputs = vec![
        ("x", rounded(&size)),
        ("weight", normal(&[width, 1, 3], device)),
        ("bias", normal(&[width], device)),
    ];
    if borders.has_state() {
        inputs.push(("state", rounded(&[batch, 2, width])));
    }
    let ours = |x: &[Tensor]| {
        let x_BTD = x[0].to_kind(kind);
        let state = x.get(3).map(|state| state.to_kind(kind));
        let input = ConvInput {
            x_BTD: &x_BTD,
            weight_D1W: &x[1],
            bias_D: Some(&x[2]),
            state: state.as_ref(),
            resets_BT: resets_BT.as_ref(),
        };
        Ok(vec![causal_conv(&input)?.to_kind(x[1].kind())])
    };
    // Token by token.
    let libtorch = |x: &[Tensor]| {
        let weight = |tap: i64| x[1].select(2, tap).squeeze_dim(1);
        let state = |at: i64| match x.get(3) {
            Some(state) => state.select(1, at),
            None => x[0].select(1, 0).zeros_like(),
        };
        let (mut older, mut newer) = (state(0), state(1));
        let mut outputs = Vec::new();
        for time in 0..tokens {
            if let Some(resets_BT) = &resets_BT {
                let left = resets_BT.select(1, time).logical_not().unsqueeze(-1);
                (older, newer) = (older * &left, newer * left);
            }
            let now = x[0].select(1, time);
            outputs.push(&older * weight(0) + &newer * weight(1) + &now * weight(2) + &x[2]);
            (older, newer) = (newer, now);
        }
        Ok(vec![Tensor::f_stack(&outputs, 1)?])
    };
    Subject {
        kernel: "conv",
        case: format!("{batch}x{tokens}x{width} {kind:?}{}", borders.words()),
        inputs,
        outputs: &["y"],
        ours: &ours,
        libtorch: &libtorch,
        rounding: if kind == Kind::Float { PRECISE } else { ROUNDING },
        mask: None,
    }
    .check()
}

/// Rotary positions and SwiGLU.
pub(super) fn transformer(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for kind in [Kind::Float, Kind::BFloat16] {
        for size in [[3, 65, 5, 64], [1, 1, 2, 8], [2, 33, 3, 120]] {
            take(check_rotary(size, kind, device)?);
        }
        for (rows, width) in [(65, 132), (1, 4), (33, 1000)] {
            take(check_swiglu([rows, width], kind, device)?);
        }
    }
    Ok(())
}

fn check_rotary(
    [batch, tokens, heads, width]: [i64; 4],
    kind: Kind,
    device: Device,
) -> Result<Check, KernelError> {
    // All sequences have the same angles where there are many.
    let angles = normal(&[if batch > 2 { 1 } else { batch }, tokens, width / 2], device) * 3.0;
    let x = normal(&[batch, tokens, heads, width], device).to_kind(kind).to_kind(Kind::Float);
    let wide = |x: &Tensor| if x.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let ours = |x: &[Tensor]| {
        let kept = [angles.cos(), angles.sin()].map(|tensor| tensor.to_kind(wide(&x[0])));
        Ok(vec![rotary(&x[0].to_kind(kind), &kept[0], &kept[1])?.to_kind(x[0].kind())])
    };
    // As products of complex numbers.
    let libtorch = |x: &[Tensor]| {
        let halves = x[0].f_chunk(2, -1)?;
        let angles = angles.to_kind(wide(&x[0])).unsqueeze(2);
        // The cosines and sines that the kernel is given are those of float32.
        let (cosine, sine) = (angles.to_kind(Kind::Float).cos(), angles.to_kind(Kind::Float).sin());
        let turn = Tensor::f_complex(&cosine.to_kind(wide(&x[0])), &sine.to_kind(wide(&x[0])))?;
        let turned = Tensor::f_complex(&halves[0], &halves[1])? * turn;
        Ok(vec![Tensor::f_cat(&[turned.f_real()?, turned.f_imag()?], -1)?])
    };
    Subject {
        kernel: "rotary",
        case: format!("{batch}x{tokens}x{heads}x{width} {kind:?}"),
        inputs: vec![("x", x)],
        outputs: &["y"],
        ours: &ours,
        libtorch: &libtorch,
        rounding: if kind == Kind::Float { PRECISE } else { ROUNDING },
        mask: None,
    }
    .check()
}

/// Both branches apart, and as halves of one tensor.
fn check_swiglu([rows, width]: [i64; 2], kind: Kind, device: Device) -> Result<Check, KernelError> {
    let rounded = |size: &[i64]| normal(size, device).to_kind(kind).to_kind(Kind::Float);
    let inputs = vec![
        ("gate", rounded(&[rows, width])),
        ("up", rounded(&[rows, width])),
        ("both", rounded(&[rows, 2 * width])),
    ];
    let ours = |x: &[Tensor]| {
        let [gate, up, both] = [&x[0], &x[1], &x[2]].map(|tensor| tensor.to_kind(kind));
        let outputs = [swiglu(&gate, &up)?, swiglu_of_halves(&both)?];
        Ok(outputs.map(|output| output.to_kind(x[0].kind())).into())
    };
    let libtorch = |x: &[Tensor]| {
        let halves = x[2].f_chunk(2, -1)?;
        Ok(vec![x[0].f_silu()? * &x[1], halves[0].f_silu()? * &halves[1]])
    };
    Subject {
        kernel: "swiglu",
        case: format!("{rows}x{width} {kind:?}"),
        inputs,
        outputs: &["of two", "of halves"],
        ours: &ours,
        libtorch: &libtorch,
        rounding: if kind == Kind::Float { PRECISE } else { ROUNDING },
        mask: None,
    }
    .check()
}

/// Gates are the second half of a wider tensor, and in the type `gated`, what is normed in `normed`.
fn check_norm(
    (tokens, heads, width, norm, shared): (i64, i64, i64, HeadNorm, bool),
    [gated, normed]: [Kind; 2],
    device: Device,
) -> Result<Check, KernelError> {
    let whole = heads * width;
    let rounded = |size: &[i64], kind| normal(size, device).to_kind(kind).to_kind(Kind::Float);
    let mut inputs = vec![
        ("o", rounded(&[1, tokens, heads, width], normed) * 2.0),
        ("both halves", rounded(&[1, tokens, 2 * whole], gated)),
        ("weight", normal(&[if shared { width } else { whole }], device) * 0.3 + 1.0),
    ];
    if norm == HeadNorm::Layer {
        inputs.push(("bias", normal(&[whole], device)));
    }
    let ours = |x: &[Tensor]| {
        let input = GatedNormInput {
            o_BTHE: &x[0].to_kind(normed),
            weight: &x[2],
            bias_D: x.get(3),
            gate_BTD: &x[1].to_kind(gated).narrow(2, whole, whole),
            norm,
            epsilon: 1e-5,
        };
        Ok(vec![gated_norm(&input)?.to_kind(x[2].kind())])
    };
    // By the definition of the norms.
    let libtorch = |x: &[Tensor]| {
        let mean = |tensor: &Tensor| tensor.mean_dim([-1_i64].as_slice(), true, None::<Kind>);
        let centered = if norm == HeadNorm::Layer { &x[0] - mean(&x[0]) } else { x[0].shallow_clone() };
        let normal = &centered / (mean(&centered.square()) + 1e-5).sqrt();
        let weight = if shared { x[2].shallow_clone() } else { x[2].view([heads, width]) };
        let scaled = (normal * weight).flatten(2, 3);
        let y = x.get(3).map_or_else(|| scaled.shallow_clone(), |bias| &scaled + bias);
        let gate = x[1].narrow(2, whole, whole);
        Ok(vec![y * &gate * gate.sigmoid()])
    };
    Subject {
        kernel: "gated_norm",
        case: format!("{norm:?} {tokens}x{heads}x{width}, {gated:?} of {normed:?}"),
        inputs,
        outputs: &["y"],
        ours: &ours,
        libtorch: &libtorch,
        rounding: if gated == Kind::Float { PRECISE } else { ROUNDING },
        mask: None,
    }
    .check()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checks themselves, with the CPU's operations in place of the GPU's kernels.
    #[test]
    fn a_cpu_passes_the_same_checks() {
        let mut count = 0;
        let mut take = |check: Check| {
            assert!(check.passed(), "{check:?}");
            count += 1;
        };
        dropouts(Device::Cpu, &mut take).unwrap();
        shifts(Device::Cpu, &mut take).unwrap();
        norms(Device::Cpu, &mut take).unwrap();
        transformer(Device::Cpu, &mut take).unwrap();
        convolutions(Device::Cpu, &mut take).unwrap();
        assert_eq!(count, 6 + SHIFTS.len() * 4 + NORMS.len() * 3 + 12 + CONVOLUTIONS.len() * 2);
    }
}
