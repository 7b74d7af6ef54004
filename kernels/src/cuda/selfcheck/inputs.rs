//! Drawn inputs.

use tch::{Device, Kind, Tensor};

/// Of all norms.
pub(super) const EPSILON: f64 = 1e-5;

pub(super) fn normal(shape: &[i64], device: Device) -> Tensor {
    Tensor::randn(shape, (Kind::Float, device))
}

pub(super) fn half(shape: &[i64], device: Device) -> Tensor {
    normal(shape, device).to_kind(Kind::BFloat16)
}

/// Flags for sequences that begin anew `kind`.
pub(super) fn drawn_resets(batch: i64, time: i64, kind: &str) -> Vec<Vec<bool>> {
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
