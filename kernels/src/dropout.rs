//! Dropout whose masks are arithmetic: which numbers are dropped follows from a key for each sequence, a site in the network,
//! and the number's own place. No generator has a state.
//!
//! ```text
//! bits(t, c)  = mix(mix(key ^ site · G) + (t · C + c) · G)          mix: the finalizer of SplitMix64, G the golden ratio
//! kept        where the upper 32 of the bits are at least ⌈p · 2³²⌉; kept numbers are divided by 1 - p
//! ```
//! A CPU computes a mask in one pass; on a GPU one kernel drops the numbers of float32 and bf16 tensors (`cuda/dropout.cu`);
//! elsewhere libtorch's integer operations make a mask of the same bits.

use std::sync::Arc;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Output;
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::Specialization;
use xlstm_cuda::dropout::DropoutParameters;

use crate::KernelError;
use crate::cuda::{self, address, layout};
use crate::shape::{expect_device, expect_shape};

const NAME: &str = "dropout";
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
const FIRST: u64 = 0xBF58_476D_1CE4_E5B9;
const SECOND: u64 = 0x94D0_49BB_1331_11EB;

/// A key for each sequence of a batch.
#[derive(Debug)]
pub enum DropoutKeys {
    /// For tensors of the CPU.
    Host(Arc<[u64]>),
    /// `(B)`, Int64 with the keys' bits, for tensors of its device.
    Device(Tensor),
}

impl Clone for DropoutKeys {
    fn clone(&self) -> Self {
        match self {
            Self::Host(keys) => Self::Host(Arc::clone(keys)),
            Self::Device(keys_B) => Self::Device(keys_B.shallow_clone()),
        }
    }
}

impl DropoutKeys {
    /// Keys for tensors of this device.
    ///
    /// # Errors
    /// When the device has no memory.
    pub fn new(keys: &[u64], device: Device) -> Result<Self, KernelError> {
        Ok(match device {
            Device::Cpu => Self::Host(keys.into()),
            _ => Self::Device(bits(keys)?.f_to_device(device)?),
        })
    }
}

/// `(B)`, Int64, on the CPU.
pub(crate) fn bits(keys: &[u64]) -> Result<Tensor, KernelError> {
    let bits: Vec<i64> = keys.iter().map(|key| key.cast_signed()).collect();
    Ok(Tensor::f_from_slice(&bits)?)
}

named_tensors! {
    struct Saved { keys_B: Tensor }
}

/// What is dropped at one place of the network.
#[derive(Debug, Clone, Copy)]
struct Rule {
    site: u64,
    /// From 0 to 1.
    probability: f64,
}

impl Rule {
    /// Bits below this are dropped.
    fn threshold(self) -> u64 {
        (self.probability * f64::from(2.0_f32.powi(32))).ceil() as u64
    }

    fn scale(self) -> f64 {
        1.0 / (1.0 - self.probability)
    }

    /// What `mix` makes of a key.
    fn start(self, key: u64) -> u64 {
        mix(key ^ self.site.wrapping_mul(GOLDEN))
    }
}

/// `x_BTC` (or any shape with the sequences first) with numbers dropped with this probability, below 1, and the others multiplied by
/// 1 / (1 − probability).
///
/// # Errors
/// [`KernelError`] when there is not a key for each sequence, or libtorch or the GPU fails.
pub fn dropout(
    x_BTC: &Tensor,
    keys: &DropoutKeys,
    site: u64,
    probability: f64,
) -> Result<Tensor, KernelError> {
    if probability <= 0.0 {
        return Ok(x_BTC.shallow_clone());
    }
    let rule = Rule { site, probability };
    let size = x_BTC.size();
    let sequences = size.first().copied().unwrap_or(1);
    let numbers = size.iter().skip(1).product::<i64>();
    // The mask and the product are float32 (or float64) everywhere, and the result is rounded once.
    let masked = |mask: Tensor| -> Result<Tensor, KernelError> {
        let wide = if x_BTC.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let mask = mask.f_to_kind(wide)?.f_view(size.as_slice())?;
        Ok(x_BTC.f_to_kind(wide)?.f_mul(&mask)?.f_to_kind(x_BTC.kind())?)
    };
    let keys_B = match keys {
        DropoutKeys::Host(keys) => {
            let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
            if count != sequences {
                let (expected, found) = (format!("({sequences})"), vec![count]);
                return Err(KernelError::Shape { function: NAME, argument: "keys", expected, found });
            }
            if x_BTC.device() != Device::Cpu {
                let (expected, found) = (format!("{:?}", x_BTC.device()), Device::Cpu);
                return Err(KernelError::Device { function: NAME, argument: "keys", expected, found });
            }
            return masked(mask_on_cpu(keys, rule, numbers)?);
        }
        DropoutKeys::Device(keys_B) => keys_B,
    };
    expect_shape(NAME, "keys", keys_B, &[sequences])?;
    expect_device(NAME, "keys", keys_B, x_BTC)?;
    // A threshold of 2³² would not fit.
    let fits = matches!(x_BTC.kind(), Kind::Float | Kind::BFloat16)
        && numbers % 4 == 0
        && x_BTC.numel() > 0
        && rule.threshold() <= u64::from(u32::MAX)
        && cuda::enabled(x_BTC.device());
    if !fits {
        return masked(mask_by_operations(keys_B, rule, numbers)?);
    }
    let kind = x_BTC.kind();
    let Output { y } = node(
        NAME,
        Output { y: Some(x_BTC) },
        |_| {
            let y = launch(x_BTC, keys_B, rule)?;
            Ok((Output { y }, Saved { keys_B: keys_B.shallow_clone() }))
        },
        move |saved: Saved, upstream: Output<Option<Tensor>>, _| {
            let upstream = upstream.gradient()?.f_to_kind(kind)?;
            Ok(Output { y: Some(launch(&upstream, &saved.keys_B, rule)?) })
        },
    )?;
    Ok(y)
}

/// Forward of numbers, or backward of their gradients.
fn launch(x_BTC: &Tensor, keys_B: &Tensor, rule: Rule) -> Result<Tensor, BoxError> {
    let x_BTC = layout::dense(x_BTC)?;
    let keys_B = layout::dense(keys_B)?;
    let output = x_BTC.f_empty_like()?;
    let sequences = keys_B.size1()?;
    let count = i64::try_from(x_BTC.numel())?;
    let parameters = DropoutParameters {
        sequences,
        numbers: count / sequences.max(1),
        site: rule.site,
        threshold: u32::try_from(rule.threshold())?,
        scale: rule.scale() as f32,
        keys: address(&keys_B),
        input: address(&x_BTC),
        output: address(&output),
    };
    let float32 = x_BTC.kind() == Kind::Float;
    let specialization = move |gpu| Specialization::dropout(gpu, float32);
    let shape = DropoutParameters::launch(u64::try_from(count)?);
    // SAFETY: dense tensors of the sizes that the structure states, input and output of one type.
    unsafe { cuda::launch_on(&x_BTC, specialization, shape, &parameters)? };
    Ok(output)
}

/// The mask of these keys, on the CPU, for checks.
pub(crate) fn mask(keys: &[u64], site: u64, probability: f64, numbers: i64) -> Result<Tensor, KernelError> {
    mask_on_cpu(keys, Rule { site, probability }, numbers)
}

/// `(B, numbers)`, float32: zero, or what kept numbers are multiplied by.
fn mask_on_cpu(keys: &[u64], rule: Rule, numbers: i64) -> Result<Tensor, KernelError> {
    const PIECE: usize = 1 << 14;
    let (threshold, scale) = (rule.threshold(), rule.scale() as f32);
    let count = usize::try_from(numbers).unwrap_or(0);
    let mut mask = vec![0.0_f32; keys.len() * count];
    for (key, own) in keys.iter().zip(mask.chunks_mut(count.max(1))) {
        let start = rule.start(*key);
        own.par_chunks_mut(PIECE).enumerate().for_each(|(piece, values)| {
            for (index, value) in (piece * PIECE..).zip(values) {
                let bits = mix(start.wrapping_add((index as u64).wrapping_mul(GOLDEN)));
                *value = if bits >> 32 >= threshold { scale } else { 0.0 };
            }
        });
    }
    Ok(Tensor::f_from_slice(&mask)?)
}

/// As [`mask_on_cpu`], by operations on 64-bit integers, which wrap.
fn mask_by_operations(keys_B: &Tensor, rule: Rule, numbers: i64) -> Result<Tensor, KernelError> {
    // An arithmetic shift, and the bits that it fills in cleared, is a logical one.
    let shifted = |bits: &Tensor, places: i64| -> Result<Tensor, KernelError> {
        let kept = (u64::MAX >> places).cast_signed();
        Ok(bits.f_bitwise_right_shift_tensor_scalar(places)?.f_bitwise_and(kept)?)
    };
    let scrambled = |bits: &Tensor, places: i64, factor: u64| -> Result<Tensor, KernelError> {
        Ok(bits.f_bitwise_xor_tensor(&shifted(bits, places)?)?.f_mul_scalar(factor.cast_signed())?)
    };
    let mixed = |bits: &Tensor| -> Result<Tensor, KernelError> {
        let bits = scrambled(&scrambled(bits, 30, FIRST)?, 27, SECOND)?;
        Ok(bits.f_bitwise_xor_tensor(&shifted(&bits, 31)?)?)
    };
    let start_B1 =
        mixed(&keys_B.f_bitwise_xor(rule.site.wrapping_mul(GOLDEN).cast_signed())?)?.f_unsqueeze(1)?;
    let index_N = Tensor::f_arange(numbers, (Kind::Int64, keys_B.device()))?;
    let bits_BN = mixed(&start_B1.f_add(&index_N.f_mul_scalar(GOLDEN.cast_signed())?)?)?;
    let kept_BN = shifted(&bits_BN, 32)?.f_ge(rule.threshold().cast_signed())?;
    Ok(kept_BN.f_to_kind(Kind::Float)?.f_mul_scalar(rule.scale())?)
}

/// The finalizer of SplitMix64, behind its increment.
#[must_use]
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(FIRST);
    let value = (value ^ (value >> 27)).wrapping_mul(SECOND);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_compute_a_mask_agree() {
        for (probability, site) in [(0.1, 0), (0.5, 9), (0.999, 1 << 40)] {
            let keys = [0, 1, u64::MAX, 0x8000_0000_0000_0000];
            let rule = Rule { site, probability };
            let once = mask_on_cpu(&keys, rule, 70_000).unwrap();
            let other = mask_by_operations(&bits(&keys).unwrap(), rule, 70_000).unwrap();
            assert!(once.view([4, -1]).equal(&other), "{probability}");
        }
    }

    #[test]
    fn a_key_for_each_sequence_is_needed() {
        let x = Tensor::ones([3, 4], (Kind::Float, Device::Cpu));
        let keys = DropoutKeys::new(&[1, 2], Device::Cpu).unwrap();
        let error = dropout(&x, &keys, 0, 0.5).unwrap_err().to_string();
        assert!(error.contains("keys") && error.contains('3') && error.contains('2'), "{error}");
    }
}
