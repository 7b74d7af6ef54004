//! A plan for GPUs that are not here: `--dry-run --for "A100 40GB" x8`.
//!
//! Memory and rows follow from the recipe and the GPU's size. A time is a measured one where this model was measured on that
//! GPU (docs/benchmarks/gpu/training.md), and else only a lower bound, by the maker's peak; the plan says which.

use tch::Device;
use xlstm_manifests::mixed_rows::Mixture;
use xlstm_manifests::recipe::{self, ComputePath, Precision, Recipe};
use xlstm_manifests::rows::Readable as _;

use super::plan::{Plan, Time, compute_path, rows_that_fit, written};
use crate::device::DeviceInfo;
use crate::error::{Result, TrainError};
use crate::metrics::peak_operations;
use crate::model::Decision;

/// GPUs by their maker's names, with the sizes of memory that they are sold with, GB. The first that is found in a name counts.
const GPUS: &[(&str, &[u64])] = &[
    ("H200", &[141]),
    ("H100 PCIe", &[80]),
    ("H100 NVL", &[94]),
    ("H100", &[80]),
    ("A100", &[40, 80]),
    ("L40S", &[48]),
    ("RTX 4090", &[24]),
    ("RTX 3090", &[24]),
];

/// Training steps that were measured: GPU, recipe, whether activations were checkpointed, rows of 2048 tokens, tokens a second.
/// From docs/benchmarks/gpu/training.md.
const MEASURED: &[(&str, &str, bool, u64, f64)] = &[
    ("H200", "figure6-scaling-15b/125m-1to0", false, 32, 351.2e3),
    ("H200", "figure6-scaling-15b/125m-7to1", false, 32, 323.5e3),
    ("H200", "figure6-scaling-15b/350m-1to0", false, 24, 127.5e3),
    ("H200", "figure6-scaling-15b/350m-7to1", false, 24, 115.5e3),
    ("H200", "figure6-scaling-15b/1300m-1to0", false, 11, 41.8e3),
    ("H100", "figure6-scaling-15b/125m-1to0", false, 22, 312.9e3),
    ("H100", "figure6-scaling-15b/350m-1to0", false, 11, 110.0e3),
    ("H100", "figure6-scaling-15b/2700m-1to0", true, 4, 14.4e3),
];
/// Tokens of the rows that were measured.
const MEASURED_CONTEXT: u64 = 2048;

/// GPUs of one kind that a run is planned for.
#[derive(Debug, Clone, PartialEq)]
pub struct Elsewhere {
    /// One of them, as if it were here.
    device: DeviceInfo,
    /// Its name in the lists above; none where it is in none.
    known: Option<&'static str>,
    /// How many.
    gpus: u64,
}

impl Elsewhere {
    /// The GPUs that these words name: `A100 40GB`, or `A100 40GB` and `x8`.
    ///
    /// # Errors
    /// When the size of the GPU's memory does not follow, or the number is none.
    pub fn parse(words: &[String]) -> Result<Self> {
        let (name, gpus) = match words {
            [name] => (name, 1),
            [name, number] => (name, number_of(number)?),
            _ => return Err(TrainError::Usage("--for: expected a GPU and a number of them".into())),
        };
        let holds = |part: &str| name.to_uppercase().contains(&part.to_uppercase());
        let known = GPUS.iter().find(|(part, _)| holds(part));
        let sizes = known.map_or([].as_slice(), |(_, sizes)| sizes);
        let gigabytes = match (size_in(name), sizes) {
            (Some(size), _) => size,
            (None, [only]) => *only,
            (None, sizes) => {
                let found = printable(name);
                let names: Vec<_> = GPUS.iter().map(|(name, _)| *name).collect();
                let hint = match (known, sizes) {
                    (Some((part, _)), [first, ..]) => format!("`{part} {first}GB`"),
                    _ => format!("`NAME 40GB`, or one of {}", names.join(", ")),
                };
                return Err(TrainError::Usage(format!(
                    "--for `{found}`: expected the size of its memory too, such as {hint}"
                )));
            }
        };
        // At least so much: what the driver leaves of it differs by a few percent.
        let memory = Some(gigabytes * 1_000_000_000);
        let device = DeviceInfo { device: Device::Cuda(0), name: name.clone(), memory };
        Ok(Self { device, known: known.map(|(part, _)| *part), gpus })
    }

    /// One of the GPUs, for the choice of a recipe.
    #[must_use]
    pub fn device(&self) -> &DeviceInfo {
        &self.device
    }

    /// The plan as text.
    ///
    /// # Errors
    /// When the recipe does not fit the dataset or the GPU, or a step has fewer rows than there are GPUs.
    pub fn describe(&self, recipe: &Recipe, train: &Mixture) -> Result<String> {
        let row_length = u64::from(train.packing().row_length);
        let rows = recipe.rows_per_step(row_length)?;
        if rows < self.gpus {
            return Err(TrainError::Usage(format!(
                "expected at least one row for each of {} GPUs, found {rows} rows in a step: raise \
                 training.tokens_per_step",
                self.gpus
            )));
        }
        // What cannot be decided without the GPU is decided when it is there.
        let found = compute_path(recipe, &self.device);
        let unasked = found.is_err();
        let decision = found.unwrap_or(Decision {
            path: ComputePath::FusedGpu,
            obstacle: None,
            recurrence: None,
            loss_obstacle: None,
        });
        let micro = rows_that_fit(recipe, rows.div_ceil(self.gpus), row_length, &self.device, decision.path)?;
        let mut notes = vec![format!(
            "planned for      {} of these GPUs, none of which was asked; its memory is taken as {:.1} GiB",
            self.gpus,
            self.device.memory.unwrap_or(0) as f64 / f64::from(1 << 30)
        )];
        if unasked {
            notes.push(
                "                 that the sizes have fused kernels there is assumed: only the GPU tells"
                    .into(),
            );
        }
        let plan = Plan {
            device: self.device.name.clone(),
            decision,
            micro,
            ranks: self.gpus,
            time: self.time(recipe),
        };
        Ok(format!("{}\n{}", written(recipe, train, &plan)?, notes.join("\n")))
    }

    /// A measured time, or a bound.
    fn time(&self, recipe: &Recipe) -> Time {
        let gpus = self.gpus as f64;
        if let Some((rows, rate)) = self.measured(recipe) {
            let source = format!(
                "{:.1} thousand tokens/s a GPU, as measured on an {} ({rows} rows a step; docs/benchmarks/gpu/training.md), \
                 times {} without loss",
                rate / 1e3,
                self.known.unwrap_or_default(),
                self.gpus
            );
            return Time::Of { tokens_per_second: rate * gpus, source };
        }
        match self.known.and_then(peak_operations) {
            Some(peak) => Time::AtLeast {
                operations_per_second: peak * gpus,
                source: format!(
                    "the bf16 peak, {:.0} TFLOP/s a GPU: no step of this model was measured on this GPU",
                    peak / 1e12
                ),
            },
            None => Time::Unknown("no peak of this GPU is known here, and nothing was measured on it".into()),
        }
    }

    /// Rows and tokens a second, where this very model was measured on this GPU.
    fn measured(&self, recipe: &Recipe) -> Option<(u64, f64)> {
        let training = &recipe.training;
        let as_measured = training.precision == Precision::Bfloat16
            && training.context_length == MEASURED_CONTEXT
            && !training.has_dropout()
            && training.z_loss == 0.0;
        let of_this = |(gpu, name, checkpointed, ..): &&(&str, &str, bool, u64, f64)| {
            Some(*gpu) == self.known
                && *checkpointed == training.activation_checkpointing
                && recipe::load(name, &[]).is_ok_and(|measured| measured.model == recipe.model)
        };
        let found = MEASURED.iter().filter(|_| as_measured).find(of_this);
        found.map(|&(_, _, _, rows, rate)| (rows, rate))
    }
}

fn printable(text: &str) -> String {
    xlstm_manifests::printable::text(text).into_owned()
}

/// `x8` or `8`.
fn number_of(text: &str) -> Result<u64> {
    let number = text.strip_prefix(['x', 'X', '×']).unwrap_or(text).parse().ok();
    number.filter(|number| (1..=1 << 20).contains(number)).ok_or_else(|| {
        let found = printable(text);
        TrainError::Usage(format!("--for: expected a number of GPUs such as x8, found `{found}`"))
    })
}

/// The gigabytes that a name says: `A100 40GB`, `A100-SXM4-80GB`.
fn size_in(name: &str) -> Option<u64> {
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric());
    let size = |word: &str| {
        let word = word.to_uppercase();
        let digits = word.strip_suffix("GIB").or(word.strip_suffix("GB"))?;
        digits.parse().ok().filter(|size| (1..=4096).contains(size))
    };
    words.into_iter().find_map(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Elsewhere> {
        Elsewhere::parse(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn gpus_are_named_as_people_and_drivers_name_them() {
        for (words, known, gigabytes, gpus) in [
            (vec!["A100 40GB", "x8"], Some("A100"), 40, 8),
            (vec!["NVIDIA A100-SXM4-80GB"], Some("A100"), 80, 1),
            (vec!["h100", "4"], Some("H100"), 80, 4),
            (vec!["NVIDIA H100 PCIe"], Some("H100 PCIe"), 80, 1),
            (vec!["H200", "X2"], Some("H200"), 141, 2),
            (vec!["B300 288GB"], None, 288, 1),
        ] {
            let found = parse(&words).unwrap();
            assert_eq!((found.known, found.gpus), (known, gpus), "{words:?}");
            assert_eq!(found.device.memory, Some(gigabytes * 1_000_000_000), "{words:?}");
        }
        for (words, expected) in [
            (vec!["A100"], "`A100 40GB`"),
            (vec!["V100"], "one of H200, H100 PCIe"),
            (vec!["H100", "x0"], "a number of GPUs such as x8, found `x0`"),
            (vec!["H100", "many"], "found `many`"),
        ] {
            let error = parse(&words).unwrap_err().to_string();
            assert!(error.contains(expected), "{words:?}: {error}");
        }
    }

    /// A figure in the table is the one that docs/benchmarks prints.
    #[test]
    fn measured_rates_are_those_of_the_benchmarks() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks/gpu/training.md");
        let page = fs_err::read_to_string(page).unwrap();
        for (gpu, name, _, rows, rate) in MEASURED {
            let (rows, rate) = (rows.to_string(), format!("{:.1}", rate / 1e3));
            let cells = |line: &str| {
                line.split('|').map(|cell| cell.replace('*', "").trim().to_owned()).collect::<Vec<_>>()
            };
            let stands = page.lines().map(cells).any(|cells| {
                cells.contains(&rows) && cells.iter().any(|cell| cell.starts_with(&format!("{rate} (")))
            });
            assert!(stands, "{gpu}, {name}: {rate} thousand tokens/s at {rows} rows");
            assert!(recipe::load(name, &[]).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_measured_model_has_its_rate_and_another_one_a_bound() {
        let recipe = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
            recipe::load("figure6-scaling-15b/125m-1to0", &set).unwrap()
        };
        let h100 = parse(&["H100", "x8"]).unwrap();
        assert_eq!(h100.measured(&recipe(&[])), Some((22, 312.9e3)));
        let Time::Of { tokens_per_second, source } = h100.time(&recipe(&[])) else { panic!("not measured") };
        assert!(tokens_per_second == 8.0 * 312.9e3 && source.contains("measured on an H100"), "{source}");
        for (gpu, set) in [
            ("A100 40GB", vec![]),
            ("H100", vec!["model.blocks=8"]),
            ("H100", vec!["training.precision=float32"]),
            ("H100", vec!["training.dropout=0.1"]),
            ("H100", vec!["training.context_length=1024"]),
        ] {
            let time = parse(&[gpu]).unwrap().time(&recipe(&set));
            assert!(matches!(time, Time::AtLeast { .. }), "{gpu}, {set:?}: {time:?}");
        }
        assert!(matches!(parse(&["B300 288GB"]).unwrap().time(&recipe(&[])), Time::Unknown(_)));
    }
}
