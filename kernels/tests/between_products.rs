//! What stands between the products of the other methods: wrong arguments are named, types are kept, steps of one token agree with
//! whole sequences.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]
#![allow(clippy::unwrap_used, reason = "a test")]

use tch::{Device, Kind, Tensor};
use xlstm_kernels::KernelError;
use xlstm_kernels::gated_norm::{GatedNormInput, HeadNorm, gated_norm};
use xlstm_kernels::scan::{GatedScanInput, ScanKernel, SelectiveScanOutput, gated_selective_scan};
use xlstm_kernels::token_shift::{TokenShiftInput, token_shift};
use xlstm_kernels::transformer::{rotary, swiglu, swiglu_of_halves};

fn normal(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// The function and the argument that an error names.
fn named<T: std::fmt::Debug>(result: Result<T, KernelError>) -> (&'static str, &'static str) {
    match result.unwrap_err() {
        KernelError::Shape { function, argument, .. }
        | KernelError::Kind { function, argument, .. }
        | KernelError::Device { function, argument, .. } => (function, argument),
        other => panic!("{other}"),
    }
}

#[test]
fn a_shift_names_what_does_not_fit() {
    let (y, share) = (normal(&[2, 5, 8]), normal(&[8]));
    let input =
        TokenShiftInput { y_BTC: &y, first_BC: None, own_MBTC: None, resets_BT: None, kind: Kind::Float };
    assert!(token_shift(&input, [&share, &share]).is_ok());
    let (short, other) = (normal(&[7]), normal(&[1, 2, 5, 8]));
    assert_eq!(named(token_shift(&input, [&share, &short])), ("token_shift", "shares"));
    let wrong = TokenShiftInput { own_MBTC: Some(&other), ..input };
    assert_eq!(named(token_shift(&wrong, [&share, &share])), ("token_shift", "own_MBTC"));
    let wrong = TokenShiftInput { first_BC: Some(&y), ..input };
    assert_eq!(named(token_shift(&wrong, [&share])), ("token_shift", "first_BC"));
    let empty = normal(&[2, 0, 8]);
    assert_eq!(named(token_shift(&TokenShiftInput { y_BTC: &empty, ..input }, [&share])).1, "y_BTC");
}

#[test]
fn a_shift_in_pieces_is_the_shift() {
    let (y, share) = (normal(&[2, 6, 8]), normal(&[8]));
    let of = |y: &Tensor, first: Option<&Tensor>| {
        let input =
            TokenShiftInput { y_BTC: y, first_BC: first, own_MBTC: None, resets_BT: None, kind: Kind::Float };
        let [mix] = token_shift(&input, [&share]).unwrap();
        mix
    };
    let whole = of(&y, None);
    let mut first = None;
    let pieces: Vec<Tensor> = (0..6)
        .map(|time| {
            let piece = of(&y.narrow(1, time, 1), first.as_ref());
            first = Some(y.select(1, time));
            piece
        })
        .collect();
    assert!(whole.allclose(&Tensor::cat(&pieces, 1), 1e-6, 1e-6, false));
}

#[test]
fn a_gated_norm_names_what_does_not_fit() {
    let (o, gate, weight) = (normal(&[2, 3, 2, 4]), normal(&[2, 3, 8]), normal(&[8]));
    let input = GatedNormInput {
        o_BTHE: &o,
        weight: &weight,
        bias_D: None,
        gate_BTD: &gate,
        norm: HeadNorm::Rms,
        epsilon: 1e-5,
    };
    assert_eq!(gated_norm(&input).unwrap().size(), [2, 3, 8]);
    let wrong = normal(&[5]);
    assert_eq!(named(gated_norm(&GatedNormInput { weight: &wrong, ..input })), ("gated_norm", "weight"));
    assert_eq!(
        named(gated_norm(&GatedNormInput { bias_D: Some(&wrong), ..input })),
        ("gated_norm", "bias_D")
    );
    assert_eq!(named(gated_norm(&GatedNormInput { gate_BTD: &o, ..input })).1, "gate_BTD");
    let half = gate.to_kind(Kind::BFloat16);
    assert_eq!(gated_norm(&GatedNormInput { gate_BTD: &half, ..input }).unwrap().kind(), Kind::BFloat16);
}

#[test]
fn angles_and_branches_that_do_not_fit_are_named() {
    let (x, angle) = (normal(&[2, 3, 2, 8]), normal(&[1, 3, 4]));
    assert_eq!(rotary(&x, &angle, &angle).unwrap().size(), x.size());
    assert_eq!(named(rotary(&x, &normal(&[1, 3, 5]), &angle)), ("rotary", "cosine_BTJ"));
    assert_eq!(named(rotary(&x, &angle, &normal(&[2, 3, 4]))), ("rotary", "sine_BTJ"));
    assert_eq!(named(rotary(&x, &angle, &angle.to_kind(Kind::Double))), ("rotary", "sine_BTJ"));
    let both = normal(&[3, 8]);
    assert_eq!(named(swiglu(&both, &normal(&[3, 7]))), ("swiglu", "up_F"));
    assert_eq!(named(swiglu_of_halves(&normal(&[3, 7]))), ("swiglu_of_halves", "both_F"));
    let apart = swiglu(&both.narrow(1, 0, 4), &both.narrow(1, 4, 4)).unwrap();
    assert!(apart.equal(&swiglu_of_halves(&both).unwrap()));
    assert_eq!(swiglu_of_halves(&both.to_kind(Kind::BFloat16)).unwrap().kind(), Kind::BFloat16);
}

/// Arguments of Mamba's scan, by name.
struct Scan([Tensor; 8]);

impl Scan {
    fn draw(batch: i64, time: i64, width: i64, states: i64) -> Self {
        Self([
            normal(&[batch, time, width]),
            normal(&[batch, time, width]),
            normal(&[width]),
            -normal(&[width, states]).exp(),
            normal(&[batch, time, states]),
            normal(&[batch, time, states]),
            normal(&[width]),
            normal(&[batch, time, width]),
        ])
    }

    fn input(&self) -> GatedScanInput<'_> {
        let [u_BTD, raw_step_BTD, step_bias_D, a_DN, write_BTN, read_BTN, skip_D, gate_BTD] = &self.0;
        GatedScanInput {
            u_BTD,
            raw_step_BTD,
            step_bias_D,
            a_DN,
            write_BTN,
            read_BTN,
            skip_D,
            gate_BTD,
            state_BDN: None,
            resets_BT: None,
        }
    }
}

#[test]
fn a_gated_scan_names_what_does_not_fit() {
    let scan = Scan::draw(2, 5, 3, 4);
    let input = scan.input();
    let wrong = normal(&[2, 5, 9]);
    let name = |input: &GatedScanInput<'_>| named(gated_selective_scan(input, ScanKernel::Auto));
    let function = "gated_selective_scan";
    assert_eq!(name(&GatedScanInput { raw_step_BTD: &wrong, ..input }), (function, "raw_step_BTD"));
    assert_eq!(name(&GatedScanInput { gate_BTD: &wrong, ..input }), (function, "gate_BTD"));
    assert_eq!(name(&GatedScanInput { skip_D: &wrong, ..input }), (function, "skip_D"));
    assert_eq!(name(&GatedScanInput { state_BDN: Some(&wrong), ..input }), (function, "state_BDN"));
    assert_eq!(name(&Scan::draw(2, 0, 3, 4).input()), (function, "u_BTD"));
}

#[test]
fn a_gated_scan_in_pieces_is_the_scan() {
    let scan = Scan::draw(2, 6, 3, 4);
    let whole = gated_selective_scan(&scan.input(), ScanKernel::Auto).unwrap();
    let mut state: Option<Tensor> = None;
    let mut outputs = Vec::new();
    for time in 0..6 {
        let [u, raw, bias, a, write, read, skip, gate] = &scan.0;
        let at = |tensor: &Tensor| tensor.narrow(1, time, 1);
        let (u, raw, write, read, gate) = (at(u), at(raw), at(write), at(read), at(gate));
        let input = GatedScanInput {
            u_BTD: &u,
            raw_step_BTD: &raw,
            step_bias_D: bias,
            a_DN: a,
            write_BTN: &write,
            read_BTN: &read,
            skip_D: skip,
            gate_BTD: &gate,
            state_BDN: state.as_ref(),
            resets_BT: None,
        };
        let SelectiveScanOutput { y_BTD, state_BDN } =
            gated_selective_scan(&input, ScanKernel::Auto).unwrap();
        outputs.push(y_BTD);
        state = Some(state_BDN);
    }
    assert!(whole.y_BTD.allclose(&Tensor::cat(&outputs, 1), 1e-5, 1e-5, false));
    assert!(whole.state_BDN.allclose(&state.unwrap(), 1e-5, 1e-5, false));
}
