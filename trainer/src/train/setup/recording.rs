//! Whether a run's steps are recorded on its GPU.

use xlstm_manifests::rows::Readable as _;

use super::super::options::RecordSteps;
use super::super::plan::memory_estimate;
use super::super::recorded::Recording;
use super::{Agreed, Opened};
use crate::device::DeviceInfo;
use crate::error::{Result, TrainError};

/// A recorded step has memory of its own, and what the steps before it used is kept too. So a step is recorded where it needs less than this
/// share of the GPU's memory: twice that is the four fifths that are planned with.
const RECORDED_SHARE: f64 = 0.4;

/// Whether steps are recorded, or why not.
pub(super) fn recording(
    opened: &Opened,
    agreed: &Agreed,
    asked: RecordSteps,
    device: &DeviceInfo,
    world: u64,
) -> Result<Recording> {
    let obstacle = match device.device {
        tch::Device::Cuda(_) if asked == RecordSteps::Off => Some("asked for by --cuda-graph off"),
        tch::Device::Cuda(_) if world > 1 => Some("several ranks"),
        tch::Device::Cuda(_) if agreed.micro_batch_rows < opened.rows => {
            Some("a step is several micro-batches")
        }
        tch::Device::Cuda(_) if opened.recipe.training.activation_checkpointing => {
            Some("activations are checkpointed")
        }
        tch::Device::Cuda(_) if opened.recipe.model.input_width() > 0 => Some("inputs are numbers"),
        tch::Device::Cuda(_) if opened.recipe.training.has_dropout() => {
            Some("dropout follows from each step's rows")
        }
        tch::Device::Cuda(_) => None,
        _ => Some("no GPU"),
    };
    match (obstacle, asked) {
        (None, RecordSteps::On) => Ok(Recording::planned(true)),
        (Some(obstacle), RecordSteps::On) => {
            Err(TrainError::Usage(format!("--cuda-graph on: steps cannot be recorded here: {obstacle}")))
        }
        (Some(obstacle), _) => Ok(Recording::Never(obstacle.into())),
        (None, _) => {
            let tokens = opened.rows * u64::from(opened.train.packing().row_length);
            let needed = memory_estimate(&opened.recipe, tokens, device)?.total();
            let little = device.memory.is_some_and(|memory| (needed as f64) < memory as f64 * RECORDED_SHARE);
            Ok(if little {
                Recording::planned(false)
            } else {
                Recording::Never("a recording's memory would not fit beside theirs".into())
            })
        }
    }
}
