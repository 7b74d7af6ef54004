//! Causal convolutions as long as the text (H3, Hyena), through libtorch's FFT.
//!
//! ```text
//! y_t = Σ_{s ≤ t} f_{t-s} u_s + d ⊙ u_t        each channel with its own filter f and skip d
//! ```
//!
//! In fp32 (fp64 for fp64), whatever the input's type: a spectrum in bf16 would be useless. The transform is at least
//! twice as long as the text, so that its end does not wrap around to its beginning.

use crate::KernelError;
use crate::shape::{computing_kind, dimensions, expect_device, expect_resets, expect_shape};
use tch::{Kind, Tensor};

/// Arguments of [`long_convolution`].
#[derive(Debug, Clone, Copy)]
pub struct LongConvolutionInput<'a> {
    /// Input, `(B, T, D)`.
    pub u_BTD: &'a Tensor,
    /// Filters, `(D, L)`: tap l meets the input l steps before. Taps beyond L are zero.
    pub filter_DL: &'a Tensor,
    /// d, `(D)`.
    pub skip_D: Option<&'a Tensor>,
    /// Inputs before the first step, oldest first, `(B, P, D)`.
    pub past_BPD: Option<&'a Tensor>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
}

/// The convolution, `(B, T, D)` in the computing type. Gradients flow to every floating-point argument.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn long_convolution(input: &LongConvolutionInput<'_>) -> Result<Tensor, KernelError> {
    const NAME: &str = "long_convolution";
    let [batch, time, width] = dimensions(NAME, "u_BTD", input.u_BTD)?;
    let [_, taps] = dimensions(NAME, "filter_DL", input.filter_DL)?;
    expect_shape(NAME, "filter_DL", input.filter_DL, &[width, taps])?;
    expect_device(NAME, "filter_DL", input.filter_DL, input.u_BTD)?;
    if let Some(skip_D) = input.skip_D {
        expect_shape(NAME, "skip_D", skip_D, &[width])?;
    }
    if let Some(past_BPD) = input.past_BPD {
        let [_, past, _] = dimensions(NAME, "past_BPD", past_BPD)?;
        expect_shape(NAME, "past_BPD", past_BPD, &[batch, past, width])?;
    }
    expect_resets(NAME, input.resets_BT, input.u_BTD, [batch, time])?;
    if batch * time * width * taps == 0 {
        let (found, expected) = (input.u_BTD.size(), "sizes of at least 1".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "u_BTD", expected, found });
    }
    let mut kind = computing_kind(NAME, "u_BTD", input.u_BTD)?;
    if computing_kind(NAME, "filter_DL", input.filter_DL)? == Kind::Double {
        kind = Kind::Double;
    }
    let u_BTD = input.u_BTD.to_kind(kind);
    let (u_BSD, past) = match input.past_BPD {
        Some(past_BPD) => (Tensor::f_cat(&[&past_BPD.to_kind(kind), &u_BTD], 1)?, past_BPD.size()[1]),
        None => (u_BTD.shallow_clone(), 0),
    };
    let filter_DL = input.filter_DL.to_kind(kind);
    let y_BSD = match input.resets_BT {
        Some(resets_BT) => by_document(&u_BSD, &filter_DL, resets_BT, past)?,
        None => convolve(&u_BSD, &filter_DL)?,
    };
    let y_BTD = y_BSD.f_narrow(1, past, time)?;
    Ok(match input.skip_D {
        Some(skip_D) => y_BTD + u_BTD * skip_D.to_kind(kind),
        None => y_BTD,
    })
}

/// All of time at once.
fn convolve(u_BTD: &Tensor, filter_DL: &Tensor) -> Result<Tensor, KernelError> {
    let time = u_BTD.size()[1];
    let taps = filter_DL.size()[1].min(time);
    let mut length = 1;
    while length < time + taps - 1 {
        length *= 2;
    }
    let filter_DF = filter_DL.f_narrow(1, 0, taps)?.f_fft_rfft(length, -1, "backward")?;
    let u_BDF = u_BTD.f_transpose(1, 2)?.f_fft_rfft(length, -1, "backward")?;
    let y_BDS = (u_BDF * filter_DF).f_fft_irfft(length, -1, "backward")?;
    Ok(y_BDS.f_narrow(2, 0, time)?.f_transpose(1, 2)?)
}

/// Each document of each sequence alone: a transform knows no borders inside. Inputs before the first step belong to the
/// first document, unless that begins with a reset.
fn by_document(
    u_BSD: &Tensor,
    filter_DL: &Tensor,
    resets_BT: &Tensor,
    past: i64,
) -> Result<Tensor, KernelError> {
    let size = u_BSD.size();
    let flags = Vec::<bool>::try_from(resets_BT.f_reshape([-1])?)?;
    let time = usize::try_from(size[1] - past).unwrap_or(0);
    let mut rows = Vec::new();
    for (batch, flags) in (0_i64..).zip(flags.chunks(time.max(1))) {
        let row_1SD = u_BSD.f_narrow(0, batch, 1)?;
        let mut borders = vec![0];
        borders.extend((past..).zip(flags).filter(|(at, flag)| **flag && *at > 0).map(|(at, _)| at));
        borders.push(size[1]);
        let parts: Result<Vec<Tensor>, KernelError> = borders
            .windows(2)
            .map(|pair| convolve(&row_1SD.f_narrow(1, pair[0], pair[1] - pair[0])?, filter_DL))
            .collect();
        rows.push(Tensor::f_cat(&parts?, 1)?);
    }
    Ok(Tensor::f_cat(&rows, 0)?)
}
