//! `xlstm-train selfcheck`: every kernel of the GPU against float64, recorded steps against launched ones, and
//! generation against whole passes.

use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::json;
use xlstm_kernels::cuda::selfcheck::{self, Check, Group};
use xlstm_trainer::TrainError;
use xlstm_trainer::command_line::{DeviceArguments, print, say};
use xlstm_trainer::model::check_generation;
use xlstm_trainer::train::check_recorded_steps;

/// Every kernel for this GPU against float64.
#[derive(Debug, Args)]
pub(super) struct SelfcheckArguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Check this part alone; may be repeated
    #[arg(long, value_enum)]
    only: Vec<Part>,
    #[command(flatten)]
    device: DeviceArguments,
}

/// What can be checked alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Convolutions, norms, gates, projections
    Pointwise,
    /// The bf16 mLSTM and the block around it
    Mlstm,
    /// States in and out, documents that begin anew, the float32 mLSTM
    Boundaries,
    /// sLSTM and LSTM
    Recurrent,
    /// Gated linear attention and the scans of other methods
    Methods,
    /// The loss
    Loss,
    /// Recorded training steps against launched ones
    Steps,
    /// Token by token against a whole pass, and recorded against launched
    Generation,
}

impl Part {
    fn group(self) -> Option<Group> {
        match self {
            Self::Pointwise => Some(Group::Pointwise),
            Self::Mlstm => Some(Group::Mlstm),
            Self::Boundaries => Some(Group::Boundaries),
            Self::Recurrent => Some(Group::Recurrent),
            Self::Methods => Some(Group::Methods),
            Self::Loss => Some(Group::Loss),
            Self::Steps | Self::Generation => None,
        }
    }
}

/// Checks; returns the exit code, 1 when a kernel failed.
pub(super) fn run(arguments: &SelfcheckArguments) -> anyhow::Result<u8> {
    let device = arguments.device.start()?;
    if !matches!(device.device, tch::Device::Cuda(_)) {
        let text = format!(
            "expected a GPU to check, found {}: `xlstm-train doctor` says what is missing",
            device.name
        );
        return Err(TrainError::Usage(text).into());
    }
    let begin = Instant::now();
    let quiet = arguments.json;
    let mut tell = |check: &Check| {
        if !quiet {
            let _ = print(&line(check));
        }
    };
    let groups: Vec<Group> = match arguments.only.as_slice() {
        [] => Group::ALL.to_vec(),
        some => some.iter().filter_map(|part| part.group()).collect(),
    };
    let mut checks = selfcheck::run(device.device, &groups, &mut tell)?;
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    if wanted(Part::Steps) {
        checks.extend(check_recorded_steps(device.device, &mut tell)?);
    }
    if wanted(Part::Generation) {
        checks.extend(check_generation(device.device, &mut tell)?);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let mut failed: Vec<&str> =
        checks.iter().filter(|check| !check.passed()).map(|check| check.kernel).collect();
    failed.dedup();
    if arguments.json {
        let object = json!({
            "device": device.name,
            "passed": failed.is_empty(),
            "failed": failed,
            "seconds": seconds,
            "checks": checks.iter().map(object).collect::<Vec<_>>(),
        });
        print(&format!("{object}\n"))?;
    } else {
        let count = checks.len();
        print(&format!("{count} checks on {} in {seconds:.0} s\n", device.name))?;
    }
    if failed.is_empty() {
        return Ok(0);
    }
    let names = failed.join(", ");
    say(&format!(
        "failed: {names}. Do not train with these kernels: `--kernels libtorch` computes without them, slowly"
    ));
    Ok(1)
}

fn object(check: &Check) -> serde_json::Value {
    let tensors: Vec<_> = check
        .tensors
        .iter()
        .map(|tensor| {
            json!({
                "name": tensor.name,
                "error": finite(tensor.error),
                "libtorch": finite(tensor.libtorch),
                "passed": tensor.passed(),
            })
        })
        .collect();
    json!({
        "kernel": check.kernel,
        "case": check.case,
        "passed": check.passed(),
        "repeatable": check.repeatable,
        "tensors": tensors,
    })
}

/// JSON has no NaN.
fn finite(value: f64) -> serde_json::Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

/// One line: the worst tensor, and every one that failed.
fn line(check: &Check) -> String {
    let passed = if check.passed() { "passed" } else { "FAILED" };
    let bits = if check.repeatable { "" } else { ", two runs differ" };
    let worst = check.tensors.iter().max_by(|a, b| a.error.total_cmp(&b.error));
    let worst = worst.map_or_else(String::new, |tensor| {
        format!("largest error {:.1e} (libtorch {:.1e}), {}", tensor.error, tensor.libtorch, tensor.name)
    });
    let failed: Vec<String> = check
        .tensors
        .iter()
        .filter(|tensor| !tensor.passed())
        .map(|tensor| format!("; {}: {:.1e}, libtorch {:.1e}", tensor.name, tensor.error, tensor.libtorch))
        .collect();
    format!("{passed}  {:<18} {}: {worst}{bits}{}\n", check.kernel, check.case, failed.concat())
}
