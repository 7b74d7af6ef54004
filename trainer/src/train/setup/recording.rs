//! Whether a run's steps are recorded on its GPU.

use xlstm_manifests::rows::Readable as _;

use super::super::options::RecordSteps;
use super::super::plan::{USABLE, memory_estimate};
use super::super::recorded::{Recording, Terms};
use super::{Agreed, Opened};
use crate::device::DeviceInfo;
use crate::error::{Result, TrainError};

/// A recorded step has memory of its own. Where a step needs less than this share of the GPU's memory, that of launched steps and
/// validations is kept beside it: twice the share is what is planned with. Where it needs more, a recording is alone.
const SHARE_BESIDE_OTHERS: f64 = USABLE / 2.0;

/// Fewest steps between two validations for which a recording that is alone pays: it is made again after each, which takes as long as
/// three steps, and a step that is launched is some 5 % slower where the host is quiet.
const FEWEST_STEPS_ALONE: u64 = 100;

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
        tch::Device::Cuda(_) => None,
        _ => Some("no GPU"),
    };
    let required = asked == RecordSteps::On;
    match obstacle {
        Some(obstacle) if required => {
            Err(TrainError::Usage(format!("--cuda-graph on: steps cannot be recorded here: {obstacle}")))
        }
        Some(obstacle) => Ok(Recording::Never(obstacle.into())),
        None => {
            let tokens = opened.rows * u64::from(opened.train.packing().row_length);
            let needed = memory_estimate(&opened.recipe, tokens, device)?.total() as f64;
            let is_below = |share: f64| device.memory.is_some_and(|memory| needed < memory as f64 * share);
            let alone = !is_below(SHARE_BESIDE_OTHERS);
            let between = opened.validation.as_ref().map_or(0, |_| opened.recipe.validation.every_steps);
            let obstacle = match alone && !required {
                true if !is_below(USABLE) => Some(format!(
                    "a step needs {:.1} GiB by estimate, more than {:.0} % of the GPU's memory; --cuda-graph on tries it",
                    needed / f64::from(1 << 30),
                    100.0 * USABLE
                )),
                true if between > 0 && between < FEWEST_STEPS_ALONE => Some(format!(
                    "validations every {between} steps are too frequent: a recording that leaves no memory for them would have to be freed and made again for each"
                )),
                _ => None,
            };
            Ok(obstacle.map_or_else(|| Recording::planned(Terms { required, alone }), Recording::Never))
        }
    }
}
