//! What is checked of the recurrences of table 1's other methods: gated linear attention and the scans, against their loops
//! of libtorch calls in float64, with and without document boundaries and states.

use tch::{Device, Kind, Tensor};
use xlstm_cuda::linear_attention::LinearAttentionSizes;
use xlstm_cuda::linear_attention_chunks::LinearAttentionChunkSizes;
use xlstm_cuda::scan::Scan;
use xlstm_cuda::selective_scan::SelectiveScanForm;
use xlstm_cuda::{Architecture, Specialization};

use super::inputs::normal;
use super::{Check, PRECISE, ROUNDING, Subject};
use crate::KernelError;
use crate::linear_attention::{
    LinearAttentionInput, LinearAttentionKernel, LinearAttentionOptions, LogDecay, linear_attention,
};
use crate::scan::{
    GatedScanInput, LinearScanInput, ScanKernel, SelectiveScanInput, WkvInput, WkvState,
    gated_selective_scan, linear_scan, selective_scan, wkv,
};

/// Batch, tokens, heads, keys and values of a head, method, and what stands at the borders.
const ATTENTION: [(i64, i64, i64, i64, i64, Method, Borders); 21] = [
    (3, 65, 2, 64, 64, Method::Rwkv6, Borders::None),
    (3, 65, 2, 64, 64, Method::Rwkv6, Borders::Resets),
    (3, 65, 2, 64, 64, Method::Rwkv6, Borders::State),
    (3, 65, 2, 64, 64, Method::Rwkv6, Borders::Both),
    (2, 33, 3, 64, 64, Method::Rwkv5, Borders::Both),
    (2, 130, 2, 128, 256, Method::Gla, Borders::None),
    (2, 33, 2, 128, 256, Method::Gla, Borders::Resets),
    (2, 33, 2, 128, 256, Method::Gla, Borders::State),
    (2, 33, 2, 128, 256, Method::Gla, Borders::Both),
    (2, 33, 2, 128, 256, Method::Retnet, Borders::Both),
    (3, 40, 2, 128, 128, Method::Fast, Borders::Both),
    (1, 1, 2, 128, 128, Method::Gla, Borders::State),
    (5, 17, 1, 16, 32, Method::Gla, Borders::Both),
    (1, 9, 1, 512, 512, Method::Gla, Borders::Both),
    (2, 20, 2, 32, 16, Method::Rwkv6, Borders::Both),
    // Long enough to be cut into segments, whose last is shorter.
    (2, 333, 2, 64, 64, Method::Rwkv6, Borders::None),
    (2, 333, 2, 64, 64, Method::Rwkv6, Borders::Both),
    (1, 200, 2, 64, 64, Method::Rwkv5, Borders::State),
    (2, 333, 2, 128, 256, Method::Gla, Borders::Both),
    (1, 200, 4, 128, 256, Method::Retnet, Borders::Resets),
    (2, 333, 2, 32, 32, Method::Rwkv6, Borders::Both),
];

/// The same in chunks, queries, keys and values of bf16.
const IN_CHUNKS: [(i64, i64, i64, i64, i64, Method, Borders); 16] = [
    (2, 64, 2, 64, 64, Method::Gla, Borders::None),
    (2, 130, 2, 128, 256, Method::Gla, Borders::None),
    (2, 130, 2, 128, 256, Method::Gla, Borders::Both),
    (2, 333, 3, 128, 128, Method::Gla, Borders::Resets),
    (2, 333, 3, 128, 128, Method::Gla, Borders::State),
    (1, 200, 4, 128, 256, Method::Retnet, Borders::None),
    (1, 200, 4, 128, 256, Method::Retnet, Borders::Both),
    (3, 65, 2, 64, 64, Method::Rwkv6, Borders::None),
    (3, 150, 2, 64, 64, Method::Rwkv6, Borders::Both),
    (2, 333, 2, 64, 64, Method::Rwkv6, Borders::Resets),
    (2, 200, 3, 64, 64, Method::Rwkv5, Borders::None),
    (2, 200, 3, 64, 64, Method::Rwkv5, Borders::Both),
    (3, 140, 2, 128, 128, Method::Fast, Borders::None),
    (3, 140, 2, 128, 128, Method::Fast, Borders::Both),
    (3, 140, 2, 64, 64, Method::FastBonus, Borders::None),
    (3, 140, 2, 64, 64, Method::FastBonus, Borders::Both),
];

/// Those that are also checked with queries, keys, values and outputs of bf16.
const IN_BF16: [usize; 6] = [4, 8, 9, 12, 14, 20];

/// Batch, tokens, channels, and what stands at the borders.
const SCANS: [(i64, i64, i64, Borders); 6] = [
    (3, 65, 130, Borders::None),
    (3, 65, 130, Borders::Resets),
    (3, 65, 130, Borders::State),
    (3, 65, 130, Borders::Both),
    (2, 17, 40, Borders::Both),
    (2, 1, 33, Borders::State),
];

/// States of a channel of the selective scan.
const STATES: [i64; 2] = [8, 16];

/// What stands before a sequence and within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Borders {
    /// Nothing, and nobody goes on from the last state: training on whole rows.
    None,
    /// Documents that begin within: training with resets.
    Resets,
    /// A state, and the last one has a gradient: carried states.
    State,
    /// Both; the first step of the first sequence forgets the state.
    Both,
}

impl Borders {
    pub(super) fn has_state(self) -> bool {
        matches!(self, Self::State | Self::Both)
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Resets => ", resets",
            Self::State => ", a state",
            Self::Both => ", resets and a state",
        }
    }

    /// About every tenth step begins a document.
    pub(super) fn resets(self, batch: i64, tokens: i64, device: Device) -> Option<Tensor> {
        if matches!(self, Self::None | Self::State) {
            return None;
        }
        let resets_BT = Tensor::rand([batch, tokens], (Kind::Float, device)).lt(0.1);
        let _ = resets_BT.narrow(0, 0, 1).narrow(1, 0, 1).fill_(1);
        Some(resets_BT)
    }

    /// Outputs that are compared: without a state, the last one has no gradient.
    fn outputs(self, mut all: Vec<Tensor>) -> Vec<Tensor> {
        if !self.has_state() {
            all.truncate(1);
        }
        all
    }

    fn names<'a>(self, all: &'a [&'a str]) -> &'a [&'a str] {
        if self.has_state() { all } else { &all[..1] }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Method {
    /// A decay for each token and key, near 1.
    Gla,
    /// One for each head.
    Retnet,
    /// One for each key, with a bonus.
    Rwkv5,
    /// One for each token and key, with a bonus.
    Rwkv6,
    /// Decays by token, some so fast that nothing is left.
    Fast,
    /// The same with a bonus.
    FastBonus,
}

impl Method {
    fn has_bonus(self) -> bool {
        matches!(self, Self::Rwkv5 | Self::Rwkv6 | Self::FastBonus)
    }

    fn log_decay(self, tensor: &Tensor) -> LogDecay<'_> {
        match self {
            Self::Retnet => LogDecay::Head(tensor),
            Self::Rwkv5 => LogDecay::Key(tensor),
            Self::Gla | Self::Rwkv6 | Self::Fast | Self::FastBonus => LogDecay::Token(tensor),
        }
    }

    /// Logarithms of decays, below 0.
    fn draw(self, [batch, tokens, heads, keys]: [i64; 4], device: Device) -> Tensor {
        match self {
            Self::Gla => normal(&[batch, tokens, heads, keys], device).log_sigmoid() / 16.0,
            Self::Retnet => -(normal(&[heads], device) - 4.0).exp(),
            Self::Rwkv5 => -(normal(&[heads, keys], device) - 2.0).exp(),
            Self::Rwkv6 => -(normal(&[batch, tokens, heads, keys], device) - 2.0).exp(),
            Self::Fast | Self::FastBonus => -(normal(&[batch, tokens, heads, keys], device) * 3.0).exp(),
        }
    }
}

/// What the checks use of these sources.
pub(super) fn specializations(architecture: Architecture) -> Vec<Specialization> {
    let mut wanted = vec![Scan::Linear.specialization(architecture)];
    for states in STATES {
        let states = states as u32;
        let forms = [
            SelectiveScanForm::plain(states),
            SelectiveScanForm::gated(states, false),
            SelectiveScanForm::gated(states, true),
        ];
        wanted.extend(forms.into_iter().flatten().map(|form| form.specialization(architecture)));
    }
    for (_, _, _, key, value, method, _) in ATTENTION {
        let sizes = LinearAttentionSizes::new(key as u32, value as u32, method.has_bonus());
        let types = sizes.into_iter().flat_map(|sizes| [sizes, sizes.in_bf16()]);
        wanted.extend(types.map(|sizes| sizes.specialization(architecture)));
    }
    for (_, _, _, key, value, method, _) in IN_CHUNKS {
        let sizes = LinearAttentionChunkSizes::new(key as u32, value as u32, method.has_bonus());
        wanted.extend(sizes.into_iter().flat_map(|sizes| sizes.specializations(architecture)));
    }
    wanted
}

/// Gated linear attention.
pub(super) fn attention(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for (index, &case) in ATTENTION.iter().enumerate() {
        take(check_attention(case, Kind::Float, LinearAttentionKernel::Reference, device)?);
        if IN_BF16.contains(&index) {
            take(check_attention(case, Kind::BFloat16, LinearAttentionKernel::Reference, device)?);
        }
    }
    for case in IN_CHUNKS {
        take(check_attention(case, Kind::BFloat16, LinearAttentionKernel::Composed, device)?);
    }
    Ok(())
}

/// Queries, keys and values are numbers that `kind` holds. `beside`: what libtorch computes with beside; `Composed`, chunks whose products
/// are in bf16 as the kernel's.
fn check_attention(
    (batch, tokens, heads, keys, values, method, borders): (i64, i64, i64, i64, i64, Method, Borders),
    kind: Kind,
    beside: LinearAttentionKernel,
    device: Device,
) -> Result<Check, KernelError> {
    let rounded = |size: &[i64]| normal(size, device).to_kind(kind).to_kind(Kind::Float);
    let mut inputs = vec![
        ("q", rounded(&[batch, tokens, heads, keys])),
        ("k", rounded(&[batch, tokens, heads, keys])),
        ("v", rounded(&[batch, tokens, heads, values])),
        ("log decay", method.draw([batch, tokens, heads, keys], device)),
    ];
    if method.has_bonus() {
        inputs.push(("bonus", normal(&[heads, keys], device)));
    }
    if borders.has_state() {
        inputs.push(("state", normal(&[batch, heads, keys, values], device)));
    }
    let resets_BT = borders.resets(batch, tokens, device);
    let compute = |x: &[Tensor], kernel, kind: Kind| {
        let [q_BTHK, k_BTHK, v_BTHV] = [&x[0], &x[1], &x[2]].map(|tensor| tensor.to_kind(kind));
        let input = LinearAttentionInput {
            q_BTHK: &q_BTHK,
            k_BTHK: &k_BTHK,
            v_BTHV: &v_BTHV,
            log_decay: method.log_decay(&x[3]),
            bonus_HK: method.has_bonus().then(|| &x[4]),
            scale: (keys as f64).powf(-0.5),
            state_BHKV: if borders.has_state() { x.last() } else { None },
            resets_BT: resets_BT.as_ref(),
        };
        let output = linear_attention(&input, &LinearAttentionOptions { kernel, chunk: None })?;
        Ok(borders.outputs(vec![output.o_BTHV.to_kind(x[0].kind()), output.state_BHKV]))
    };
    let of_type = if kind == Kind::Float { "" } else { ", bf16" };
    Subject {
        kernel: "linear_attention",
        case: format!("{method:?} {batch}x{tokens}x{heads}x{keys}x{values}{}{of_type}", borders.words()),
        inputs,
        outputs: borders.names(&["o", "state"]),
        ours: &|x| compute(x, LinearAttentionKernel::Fused, kind),
        libtorch: &|x| match (x[0].kind(), beside) {
            (Kind::Float, LinearAttentionKernel::Composed) => compute(x, beside, kind),
            (exact, _) => compute(x, LinearAttentionKernel::Reference, exact),
        },
        rounding: if kind == Kind::Float { PRECISE } else { ROUNDING },
        mask: None,
    }
    .check()
}

/// The scans of HGRN, RWKV-4 and Mamba.
pub(super) fn scans(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for (batch, tokens, width, borders) in SCANS {
        let size = [batch, tokens, width];
        let drawn = (borders, borders.resets(batch, tokens, device));
        let case = |name: &str| format!("{name} {batch}x{tokens}x{width}{}", borders.words());
        take(check_linear(&size, &drawn, case("linear"), device)?);
        take(check_wkv(&size, &drawn, case("wkv"), device)?);
        for states in STATES {
            take(check_selective(
                &size,
                states,
                &drawn,
                case(&format!("selective, {states} states,")),
                device,
            )?);
            for kind in [Kind::Float, Kind::BFloat16] {
                let name = format!("gated, {states} states, {kind:?},");
                take(check_gated(&size, states, kind, &drawn, case(&name), device)?);
            }
        }
    }
    Ok(())
}

fn check_linear(
    size: &[i64; 3],
    (borders, resets_BT): &(Borders, Option<Tensor>),
    case: String,
    device: Device,
) -> Result<Check, KernelError> {
    let has_state = borders.has_state();
    let mut inputs = vec![("decay", normal(size, device).sigmoid()), ("x", normal(size, device))];
    if has_state {
        inputs.push(("state", normal(&[size[0], size[2]], device)));
    }
    let compute = |x: &[Tensor], kernel| {
        let input = LinearScanInput {
            decay_BTD: &x[0],
            x_BTD: &x[1],
            state_BD: if has_state { x.last() } else { None },
            resets_BT: resets_BT.as_ref(),
        };
        Ok(vec![linear_scan(&input, kernel)?.h_BTD])
    };
    Subject {
        kernel: "scan",
        case,
        inputs,
        outputs: &["h"],
        ours: &|x| compute(x, ScanKernel::Fused),
        libtorch: &|x| compute(x, ScanKernel::Reference),
        rounding: PRECISE,
        mask: None,
    }
    .check()
}

fn check_wkv(
    size: &[i64; 3],
    (borders, resets_BT): &(Borders, Option<Tensor>),
    case: String,
    device: Device,
) -> Result<Check, KernelError> {
    let has_state = borders.has_state();
    let of_channels = [size[2]];
    let mut inputs = vec![
        ("decay", normal(&of_channels, device) - 1.0),
        ("bonus", normal(&of_channels, device)),
        ("k", normal(size, device) * 3.0),
        ("v", normal(size, device)),
    ];
    let before = [size[0], size[2]];
    if has_state {
        inputs.push(("numerator", normal(&before, device)));
        inputs.push(("denominator", normal(&before, device).abs() + 1.0));
    }
    let maximum = normal(&before, device);
    let compute = |x: &[Tensor], kernel| {
        let state = has_state.then(|| WkvState {
            numerator: x[4].shallow_clone(),
            denominator: x[5].shallow_clone(),
            maximum: maximum.to_kind(x[4].kind()),
        });
        let input = WkvInput {
            decay_D: &x[0],
            bonus_D: &x[1],
            k_BTD: &x[2],
            v_BTD: &x[3],
            state: state.as_ref(),
            resets_BT: resets_BT.as_ref(),
        };
        let output = wkv(&input, kernel)?;
        Ok(borders.outputs(vec![output.y_BTD, output.state.numerator, output.state.denominator]))
    };
    Subject {
        kernel: "scan",
        case,
        inputs,
        outputs: borders.names(&["y", "numerator", "denominator"]),
        ours: &|x| compute(x, ScanKernel::Fused),
        libtorch: &|x| compute(x, ScanKernel::Reference),
        rounding: PRECISE,
        mask: None,
    }
    .check()
}

fn check_selective(
    size: &[i64; 3],
    states: i64,
    (borders, resets_BT): &(Borders, Option<Tensor>),
    case: String,
    device: Device,
) -> Result<Check, KernelError> {
    let has_state = borders.has_state();
    let [batch, tokens, width] = *size;
    let mut inputs = vec![
        ("u", normal(size, device)),
        ("step", (normal(size, device) - 2.0).exp()),
        ("A", -(normal(&[width, states], device) + 1.0).exp()),
        ("B", normal(&[batch, tokens, states], device)),
        ("C", normal(&[batch, tokens, states], device)),
    ];
    if has_state {
        inputs.push(("state", normal(&[batch, width, states], device)));
    }
    let compute = |x: &[Tensor], kernel| {
        let input = SelectiveScanInput {
            u_BTD: &x[0],
            step_BTD: &x[1],
            a_DN: &x[2],
            write_BTN: &x[3],
            read_BTN: &x[4],
            state_BDN: if has_state { x.last() } else { None },
            resets_BT: resets_BT.as_ref(),
        };
        let output = selective_scan(&input, kernel)?;
        Ok(borders.outputs(vec![output.y_BTD, output.state_BDN]))
    };
    Subject {
        kernel: "scan",
        case,
        inputs,
        outputs: borders.names(&["y", "state"]),
        ours: &|x| compute(x, ScanKernel::Fused),
        libtorch: &|x| compute(x, ScanKernel::Reference),
        rounding: PRECISE,
        mask: None,
    }
    .check()
}

/// Inputs that the kernel reads as bf16 are numbers of bf16 here too; their gradients are rounded to it.
fn check_gated(
    size: &[i64; 3],
    states: i64,
    kind: Kind,
    (borders, resets_BT): &(Borders, Option<Tensor>),
    case: String,
    device: Device,
) -> Result<Check, KernelError> {
    let has_state = borders.has_state();
    let [batch, tokens, width] = *size;
    let rounded = |tensor: Tensor| tensor.to_kind(kind).to_kind(Kind::Float);
    // Gates are the second half of a wider tensor, as they are in the model.
    let mut inputs = vec![
        ("u", rounded(normal(size, device))),
        ("raw step", rounded(normal(size, device) * 2.0)),
        ("step bias", normal(&[width], device) - 2.0),
        ("A", -(normal(&[width, states], device) + 1.0).exp()),
        ("B", normal(&[batch, tokens, states], device)),
        ("C", normal(&[batch, tokens, states], device)),
        ("skip", normal(&[width], device)),
        ("both halves", rounded(normal(&[batch, tokens, 2 * width], device))),
    ];
    if has_state {
        inputs.push(("state", normal(&[batch, width, states], device)));
    }
    let compute = |x: &[Tensor], kernel: ScanKernel, kind: Kind| {
        let [u_BTD, raw_step_BTD, both] = [&x[0], &x[1], &x[7]].map(|tensor| tensor.to_kind(kind));
        let input = GatedScanInput {
            u_BTD: &u_BTD,
            raw_step_BTD: &raw_step_BTD,
            step_bias_D: &x[2],
            a_DN: &x[3],
            write_BTN: &x[4],
            read_BTN: &x[5],
            skip_D: &x[6],
            gate_BTD: &both.narrow(2, width, width),
            state_BDN: if has_state { x.last() } else { None },
            resets_BT: resets_BT.as_ref(),
        };
        let output = gated_selective_scan(&input, kernel)?;
        Ok(borders.outputs(vec![output.y_BTD.to_kind(x[2].kind()), output.state_BDN]))
    };
    Subject {
        kernel: "selective_scan",
        case,
        inputs,
        outputs: borders.names(&["y", "state"]),
        ours: &|x| compute(x, ScanKernel::Fused, kind),
        libtorch: &|x| compute(x, ScanKernel::Reference, x[2].kind()),
        rounding: if kind == Kind::Float { PRECISE } else { ROUNDING },
        mask: None,
    }
    .check()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checks themselves, with the CPU's kernels in place of the GPU's.
    #[test]
    fn the_fused_kernels_of_a_cpu_pass_the_same_checks() {
        let mut count = 0;
        let mut take = |check: Check| {
            assert!(check.passed(), "{check:?}");
            count += 1;
        };
        attention(Device::Cpu, &mut take).unwrap();
        scans(Device::Cpu, &mut take).unwrap();
        let of_attention = ATTENTION.len() + IN_BF16.len() + IN_CHUNKS.len();
        assert_eq!(count, of_attention + SCANS.len() * (2 + 3 * STATES.len()));
    }
}
