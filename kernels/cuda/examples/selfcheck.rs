//! Compiles the mLSTM kernels for the GPU at hand, runs them, and compares every result with float64.
//!
//! ```text
//! cargo run --release -p xlstm-cuda --example selfcheck
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is a report")]

use std::process::ExitCode;

use xlstm_cuda::driver::Driver;
use xlstm_cuda::selfcheck::{MlstmCase, check_mlstm};
use xlstm_cuda::{Cache, CudaError, MlstmSizes, Nvrtc};

/// Largest relative error that passes: bf16 rounds to 2^-9 = 0.002, and a gradient is a product of several roundings.
const LIMIT: f64 = 0.02;

fn main() -> ExitCode {
    match check() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("selfcheck: {error}");
            ExitCode::from(1)
        }
    }
}

/// Whether every tensor of every case is within the limit.
fn check() -> Result<bool, CudaError> {
    let (driver, nvrtc, cache) = (Driver::open(0, None)?, Nvrtc::open()?, Cache::of_user());
    let mut failures = 0;
    for (number, (key, value, chunk, shape, gate_scale)) in [
        (64, 64, 128, [1, 1, 5], 1.0),
        (64, 128, 128, [2, 3, 300], 1.0),
        (128, 128, 256, [1, 2, 700], 1.0),
        (192, 192, 256, [1, 2, 391], 15.0),
        (384, 384, 256, [1, 2, 513], 1.0),
    ]
    .into_iter()
    .enumerate()
    {
        let case =
            MlstmCase { sizes: MlstmSizes { key, value, chunk }, shape, gate_scale, seed: number as u64 + 1 };
        let errors = check_mlstm(&driver, &nvrtc, &cache, &case)?;
        let failed: Vec<_> = errors
            .iter()
            .filter(|error| error.relative.is_nan() || error.relative > LIMIT)
            .map(|e| e.tensor)
            .collect();
        failures += failed.len();
        let list: Vec<_> =
            errors.iter().map(|error| format!("{} {:.2e}", error.tensor, error.relative)).collect();
        println!(
            "{key}x{value} chunk {chunk} {shape:?} gates {gate_scale}: {} failed: {failed:?}",
            list.join(", ")
        );
    }
    println!("{} on {}", if failures == 0 { "passed" } else { "FAILED" }, driver.architecture());
    Ok(failures == 0)
}
