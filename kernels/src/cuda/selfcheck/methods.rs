//! What is checked of the recurrences of table 1's other methods: gated linear attention and the scans, against their loops
//! of libtorch calls in float64, with and without document boundaries and states.

use tch::{Device, Kind, Tensor};
use xlstm_cuda::linear_attention::LinearAttentionSizes;
use xlstm_cuda::scan::Scan;
use xlstm_cuda::{Architecture, Specialization};

use super::{Check, PRECISE, Subject};
use crate::KernelError;
use crate::linear_attention::{
    LinearAttentionInput, LinearAttentionKernel, LinearAttentionOptions, LogDecay, linear_attention,
};
use crate::scan::{
    LinearScanInput, ScanKernel, SelectiveScanInput, WkvInput, WkvState, linear_scan, selective_scan, wkv,
};

/// Batch, tokens, heads, keys and values of a head, method, and whether there are document boundaries and a state.
const ATTENTION: [(i64, i64, i64, i64, i64, Method, bool); 11] = [
    (3, 65, 2, 64, 64, Method::Rwkv6, false),
    (3, 65, 2, 64, 64, Method::Rwkv6, true),
    (2, 33, 3, 64, 64, Method::Rwkv5, true),
    (2, 130, 2, 128, 256, Method::Gla, false),
    (2, 33, 2, 128, 256, Method::Gla, true),
    (2, 33, 2, 128, 256, Method::Retnet, true),
    (3, 40, 2, 128, 128, Method::Fast, true),
    (1, 1, 2, 128, 128, Method::Gla, true),
    (5, 17, 1, 16, 32, Method::Gla, true),
    (1, 9, 1, 512, 512, Method::Gla, true),
    (2, 20, 2, 32, 16, Method::Rwkv6, true),
];

/// Batch, tokens, channels, and whether there are document boundaries and a state.
const SCANS: [(i64, i64, i64, bool); 4] =
    [(3, 65, 130, false), (3, 65, 130, true), (2, 17, 40, true), (2, 1, 33, true)];

/// States of a channel of the selective scan.
const STATES: [i64; 2] = [8, 16];

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
}

impl Method {
    fn has_bonus(self) -> bool {
        matches!(self, Self::Rwkv5 | Self::Rwkv6)
    }

    fn log_decay(self, tensor: &Tensor) -> LogDecay<'_> {
        match self {
            Self::Retnet => LogDecay::Head(tensor),
            Self::Rwkv5 => LogDecay::Key(tensor),
            Self::Gla | Self::Rwkv6 | Self::Fast => LogDecay::Token(tensor),
        }
    }

    /// Logarithms of decays, below 0.
    fn draw(self, [batch, tokens, heads, keys]: [i64; 4], device: Device) -> Tensor {
        match self {
            Self::Gla => normal(&[batch, tokens, heads, keys], device).log_sigmoid() / 16.0,
            Self::Retnet => -(normal(&[heads], device) - 4.0).exp(),
            Self::Rwkv5 => -(normal(&[heads, keys], device) - 2.0).exp(),
            Self::Rwkv6 => -(normal(&[batch, tokens, heads, keys], device) - 2.0).exp(),
            Self::Fast => -(normal(&[batch, tokens, heads, keys], device) * 3.0).exp(),
        }
    }
}

fn normal(shape: &[i64], device: Device) -> Tensor {
    Tensor::randn(shape, (Kind::Float, device))
}

/// Every tenth step begins a document.
fn boundaries(batch: i64, tokens: i64, device: Device) -> Tensor {
    Tensor::rand([batch, tokens], (Kind::Float, device)).lt(0.1)
}

/// What the checks use of these sources.
pub(super) fn specializations(architecture: Architecture) -> Vec<Specialization> {
    let mut wanted: Vec<Specialization> =
        STATES.map(|states| Scan::Selective(states as u32).specialization(architecture)).into();
    for (_, _, _, key, value, method, _) in ATTENTION {
        let sizes = LinearAttentionSizes::new(key as u32, value as u32, method.has_bonus());
        wanted.extend(sizes.map(|sizes| sizes.specialization(architecture)));
    }
    wanted
}

fn words(bounded: bool) -> &'static str {
    if bounded { ", resets and a state" } else { "" }
}

/// Gated linear attention.
pub(super) fn attention(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for (batch, tokens, heads, keys, values, method, bounded) in ATTENTION {
        let mut inputs = vec![
            ("q", normal(&[batch, tokens, heads, keys], device)),
            ("k", normal(&[batch, tokens, heads, keys], device)),
            ("v", normal(&[batch, tokens, heads, values], device)),
            ("log decay", method.draw([batch, tokens, heads, keys], device)),
        ];
        if method.has_bonus() {
            inputs.push(("bonus", normal(&[heads, keys], device)));
        }
        if bounded {
            inputs.push(("state", normal(&[batch, heads, keys, values], device)));
        }
        let resets_BT = bounded.then(|| boundaries(batch, tokens, device));
        let compute = |x: &[Tensor], kernel| {
            let input = LinearAttentionInput {
                q_BTHK: &x[0],
                k_BTHK: &x[1],
                v_BTHV: &x[2],
                log_decay: method.log_decay(&x[3]),
                bonus_HK: method.has_bonus().then(|| &x[4]),
                scale: (keys as f64).powf(-0.5),
                state_BHKV: if bounded { x.last() } else { None },
                resets_BT: resets_BT.as_ref(),
            };
            let output = linear_attention(&input, &LinearAttentionOptions { kernel, chunk: None })?;
            Ok(vec![output.o_BTHV, output.state_BHKV])
        };
        let subject = Subject {
            kernel: "linear_attention",
            case: format!("{method:?} {batch}x{tokens}x{heads}x{keys}x{values}{}", words(bounded)),
            inputs,
            outputs: &["o", "state"],
            ours: &|x| compute(x, LinearAttentionKernel::Fused),
            libtorch: &|x| compute(x, LinearAttentionKernel::Reference),
            rounding: PRECISE,
            mask: None,
        };
        take(subject.check()?);
    }
    Ok(())
}

/// The scans of HGRN, RWKV-4 and Mamba.
pub(super) fn scans(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for (batch, tokens, width, bounded) in SCANS {
        let size = [batch, tokens, width];
        let resets_BT = bounded.then(|| boundaries(batch, tokens, device));
        let resets_BT = resets_BT.as_ref();
        let case = |name: &str| format!("{name} {batch}x{tokens}x{width}{}", words(bounded));
        take(check_linear(&size, resets_BT, case("linear"), device)?);
        take(check_wkv(&size, resets_BT, case("wkv"), device)?);
        for states in STATES {
            take(check_selective(
                &size,
                states,
                resets_BT,
                case(&format!("selective, {states} states,")),
                device,
            )?);
        }
    }
    Ok(())
}

fn check_linear(
    size: &[i64; 3],
    resets_BT: Option<&Tensor>,
    case: String,
    device: Device,
) -> Result<Check, KernelError> {
    let bounded = resets_BT.is_some();
    let mut inputs = vec![("decay", normal(size, device).sigmoid()), ("x", normal(size, device))];
    if bounded {
        inputs.push(("state", normal(&[size[0], size[2]], device)));
    }
    let compute = |x: &[Tensor], kernel| {
        let input = LinearScanInput {
            decay_BTD: &x[0],
            x_BTD: &x[1],
            state_BD: if bounded { x.last() } else { None },
            resets_BT,
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
    resets_BT: Option<&Tensor>,
    case: String,
    device: Device,
) -> Result<Check, KernelError> {
    let bounded = resets_BT.is_some();
    let of_channels = [size[2]];
    let mut inputs = vec![
        ("decay", normal(&of_channels, device) - 1.0),
        ("bonus", normal(&of_channels, device)),
        ("k", normal(size, device) * 3.0),
        ("v", normal(size, device)),
    ];
    let before = [size[0], size[2]];
    if bounded {
        inputs.push(("numerator", normal(&before, device)));
        inputs.push(("denominator", normal(&before, device).abs() + 1.0));
    }
    let maximum = normal(&before, device);
    let compute = |x: &[Tensor], kernel| {
        let state = bounded.then(|| WkvState {
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
            resets_BT,
        };
        let output = wkv(&input, kernel)?;
        Ok(vec![output.y_BTD, output.state.numerator, output.state.denominator])
    };
    Subject {
        kernel: "scan",
        case,
        inputs,
        outputs: &["y", "numerator", "denominator"],
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
    resets_BT: Option<&Tensor>,
    case: String,
    device: Device,
) -> Result<Check, KernelError> {
    let bounded = resets_BT.is_some();
    let [batch, tokens, width] = *size;
    let mut inputs = vec![
        ("u", normal(size, device)),
        ("step", (normal(size, device) - 2.0).exp()),
        ("A", -(normal(&[width, states], device) + 1.0).exp()),
        ("B", normal(&[batch, tokens, states], device)),
        ("C", normal(&[batch, tokens, states], device)),
    ];
    if bounded {
        inputs.push(("state", normal(&[batch, width, states], device)));
    }
    let compute = |x: &[Tensor], kernel| {
        let input = SelectiveScanInput {
            u_BTD: &x[0],
            step_BTD: &x[1],
            a_DN: &x[2],
            write_BTN: &x[3],
            read_BTN: &x[4],
            state_BDN: if bounded { x.last() } else { None },
            resets_BT,
        };
        let output = selective_scan(&input, kernel)?;
        Ok(vec![output.y_BTD, output.state_BDN])
    };
    Subject {
        kernel: "scan",
        case,
        inputs,
        outputs: &["y", "state"],
        ours: &|x| compute(x, ScanKernel::Fused),
        libtorch: &|x| compute(x, ScanKernel::Reference),
        rounding: PRECISE,
        mask: None,
    }
    .check()
}
