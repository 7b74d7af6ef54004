//! Recipes: everything that decides a training run except the data, as TOML.
//!
//! A recipe file sets what differs from the defaults below, which are the paper's (350M parameters, 15B tokens).
//! `--set key=value` changes single values by their dotted names. The resolved recipe, every key spelled out, is
//! what `--print-config` prints and a run keeps as `recipe.toml`; it is again a recipe.
//!
//! ```text
//! file or built-in ─► base table ─► [variant.NAME] on top ─► --set on top ─► unknown keys refused ─► validated
//! ```
//! A file may hold variants, `[variant."7to1"]` with any of the keys: an experiment of the paper is one file, and
//! each of its rows is a variant, named `experiment/variant` on the command line.
//!
//! Which keys `[model]` has depends on `model.architecture` (module [`architecture`]). A layer that names another
//! architecture than the layers below it starts from that architecture's defaults.

pub mod architecture;
mod auto;
mod builtin;
mod compute_path;
mod memory;
mod parse;
mod validate;

pub use architecture::{
    BlockKind, ForgetGate, GateWeights, InputBias, MlstmConfig, ModelConfig, ModelSize, RecurrentInit,
    SlstmBias, SlstmConfig, SlstmFunction, WeightInit, XlstmConfig,
};
pub use auto::{Accelerator, choose};
pub use builtin::{Builtin, builtins};
pub use compute_path::ComputePath;
pub use memory::MemoryEstimate;
pub use parse::{in_short, load, nearest, resolve};
pub use validate::check_model;

use serde::{Deserialize, Serialize};

use crate::printable;

/// `Result` with [`RecipeError`].
pub type Result<T> = std::result::Result<T, RecipeError>;

/// What can be wrong with a recipe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// A file could not be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// No such recipe.
    #[error(
        "recipe `{name}`: no built-in recipe and no file of this name{hint}; `xlstm-train recipes` lists them",
        name = printable::text(name)
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The nearest name, as text.
        hint: String,
    },
    /// The text is no TOML.
    #[error("recipe `{name}`: not readable as TOML: {reason}", name = printable::text(name))]
    Syntax {
        /// The recipe or override.
        name: String,
        /// What the parser says.
        reason: String,
    },
    /// A key that does not exist.
    #[error("recipe `{name}`: unknown key `{key}`{hint}; `--print-config` lists all keys", name = printable::text(name))]
    UnknownKey {
        /// The recipe or override.
        name: String,
        /// The dotted key.
        key: String,
        /// The nearest known key, as text.
        hint: String,
    },
    /// A value that its key cannot take, or that contradicts another.
    #[error("recipe `{name}`: `{key}` expected {expected}, found {found}", name = printable::text(name))]
    Value {
        /// The recipe.
        name: String,
        /// The dotted key.
        key: String,
        /// What it can be.
        expected: String,
        /// What it is.
        found: String,
    },
}

/// A resolved recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// `file` or `file/variant`.
    pub name: String,
    /// One sentence.
    pub description: String,
    /// The place in the paper, and the published result where there is one.
    pub paper: String,
    /// Architecture and initial values.
    pub model: ModelConfig,
    /// Length, batch, precision.
    pub training: Training,
    /// AdamW.
    pub optimizer: Optimizer,
    /// Learning rate over steps.
    pub schedule: Schedule,
    /// When and on what to validate.
    pub validation: Validation,
    /// When to save and what to keep.
    pub checkpoint: Checkpoint,
    /// What to write about it.
    pub logging: Logging,
}

/// Length, batch, precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// Tokens of a sequence; divides the dataset's row length.
    pub context_length: u64,
    /// Tokens of an optimizer step over all ranks; a multiple of the dataset's row length.
    pub tokens_per_step: u64,
    /// Rows that one rank computes at a time; 0: as many as fit on the device.
    pub micro_batch_rows: u64,
    /// Optimizer steps of the run.
    pub steps: u64,
    /// Seed of the order of rows and of the initial values.
    pub seed: u64,
    /// Type of the matrix products; parameters, optimizer and reductions stay in float32.
    pub precision: Precision,
    /// Keep only each block's input, and compute the block again in the backward pass.
    pub activation_checkpointing: bool,
    /// Clear all states at the start of each document (the paper does not).
    pub reset_at_document_boundaries: bool,
    /// Share of what a block adds to the residual that is set to 0 in a training step, the rest scaled up by as much; 0: none.
    pub dropout: f64,
}

/// Type of the matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// IEEE single precision throughout.
    Float32,
    /// As `float32`, but on a GPU the operands of matrix products are rounded to ten bits of mantissa (TF32).
    Tf32,
    /// Products in bfloat16; the residual, norms, states and parameters in float32.
    Bfloat16,
}

impl Precision {
    /// Its name in run manifests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Tf32 => "tf32",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

/// AdamW (paper, B.2): weight decay on matrices of the model but the token embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay on the decay group.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; 0: no clipping.
    pub clip_norm: f64,
}

/// Linear warm-up, then a cosine to a fraction of the peak.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// The step at which the cosine ends; 0: `training.steps`. The paper's 15B runs stop before it.
    pub decay_steps: u64,
    /// Learning rate at the end, as a fraction of the peak.
    pub final_fraction: f64,
}

/// When and on what to validate. Step 0 and the end are always measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Validation {
    /// Steps between two validations; 0: only at step 0 and at the end.
    pub every_steps: u64,
    /// The prefix of the split, in rows; 0: all of it.
    pub rows: u64,
    /// End the run after a validation with at least this accuracy (where targets are stored); 0: never.
    pub stop_at_accuracy: f64,
    /// End the run after so many validations in a row without a lower loss than the lowest before; 0: never.
    pub patience: u64,
}

/// When to save and what to keep. A run saves at its end in any case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Steps between two checkpoints; 0: only at the end and when told to stop.
    pub every_steps: u64,
    /// The newest ones that are kept.
    pub keep_last: u64,
    /// Checkpoints at multiples of this step are kept for good; 0: none.
    pub keep_every_steps: u64,
}

/// What to write about the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logging {
    /// Steps between two lines in `metrics.jsonl`.
    pub every_steps: u64,
    /// Whether to write TensorBoard event files beside them.
    pub tensorboard: bool,
    /// Whether each rank writes which rows it took, step by step, into `rows/`: what `xlstm-data trace --run` computes
    /// can be compared with it.
    pub rows: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            name: "default".into(),
            description: String::new(),
            paper: String::new(),
            model: ModelConfig::default(),
            training: Training::default(),
            optimizer: Optimizer::default(),
            schedule: Schedule::default(),
            validation: Validation::default(),
            checkpoint: Checkpoint::default(),
            logging: Logging::default(),
        }
    }
}

impl Default for Training {
    fn default() -> Self {
        Self {
            context_length: 2048,
            tokens_per_step: 256 * 2048,
            micro_batch_rows: 0,
            steps: 28170,
            seed: 42,
            precision: Precision::Bfloat16,
            activation_checkpointing: false,
            reset_at_document_boundaries: false,
            dropout: 0.0,
        }
    }
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-5,
            weight_decay: 0.1,
            clip_norm: 1.0,
        }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self { warmup_steps: 750, decay_steps: 0, final_fraction: 0.1 }
    }
}

impl Default for Validation {
    fn default() -> Self {
        Self { every_steps: 1000, rows: 0, stop_at_accuracy: 0.0, patience: 0 }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_steps: 1000, keep_last: 2, keep_every_steps: 0 }
    }
}

impl Default for Logging {
    fn default() -> Self {
        Self { every_steps: 1, tensorboard: true, rows: false }
    }
}

impl Recipe {
    /// The step at which the cosine ends.
    #[must_use]
    pub fn decay_steps(&self) -> u64 {
        if self.schedule.decay_steps == 0 { self.training.steps } else { self.schedule.decay_steps }
    }

    /// The learning rate of `step` (from 1): `peak · step / warm-up` while warming up, then
    /// `end + (peak - end) · (1 + cos(π · progress)) / 2`, then `end`.
    #[must_use]
    pub fn learning_rate(&self, step: u64) -> f64 {
        let (peak, warmup, decay) =
            (self.optimizer.learning_rate, self.schedule.warmup_steps, self.decay_steps());
        if step < warmup {
            return peak * step as f64 / warmup as f64;
        }
        let end = peak * self.schedule.final_fraction;
        if step >= decay {
            return end;
        }
        let progress = (step - warmup) as f64 / (decay - warmup) as f64;
        end + (peak - end) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }

    /// Rows of an optimizer step for a dataset of this row length.
    ///
    /// # Errors
    /// When the context does not divide a row, or a step is not a whole number of rows.
    pub fn rows_per_step(&self, row_length: u64) -> Result<u64> {
        let (context, tokens) = (self.training.context_length, self.training.tokens_per_step);
        let fail = |key: &str, expected: String, found: u64| {
            Err(RecipeError::Value {
                name: self.name.clone(),
                key: key.into(),
                expected,
                found: found.to_string(),
            })
        };
        if context > row_length {
            let expected = format!("at most {row_length}, the length of the dataset's rows");
            return fail("training.context_length", expected, context);
        }
        if !row_length.is_multiple_of(context) {
            return fail(
                "training.context_length",
                format!("a divisor of the row length {row_length}"),
                context,
            );
        }
        if !tokens.is_multiple_of(row_length) || tokens == 0 {
            return fail(
                "training.tokens_per_step",
                format!("a multiple of the row length {row_length}"),
                tokens,
            );
        }
        Ok(tokens / row_length)
    }

    /// Operations of forward and backward pass for one token in this recipe's contexts.
    #[must_use]
    pub fn operations_per_token(&self) -> u64 {
        self.model.operations_per_token(self.training.context_length)
    }

    /// The recipe as TOML, every key spelled out.
    ///
    /// # Errors
    /// Never in practice: every recipe has a TOML form.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|error| RecipeError::Syntax { name: self.name.clone(), reason: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_warms_up_decays_and_stays() {
        let mut recipe = Recipe::default();
        recipe.schedule.decay_steps = 30_000;
        let rate = |step| recipe.learning_rate(step);
        assert!((rate(1) - 1e-3 / 750.0).abs() < 1e-12);
        assert!((rate(750) - 1e-3).abs() < 1e-12);
        assert!((rate((750 + 30_000) / 2) - 0.55e-3).abs() < 1e-9);
        assert!(
            (rate(28_170) - 1.08664e-4).abs() < 1e-7,
            "not fully decayed where the paper stops: {}",
            rate(28_170)
        );
        assert!((rate(30_000) - 1e-4).abs() < 1e-12 && (rate(40_000) - 1e-4).abs() < 1e-12);
    }

    #[test]
    fn context_and_step_fit_the_rows() {
        let mut recipe = Recipe::default();
        assert_eq!(recipe.rows_per_step(2048).unwrap(), 256);
        let error = recipe.rows_per_step(512).unwrap_err().to_string();
        assert!(error.contains("`training.context_length` expected at most 512"), "{error}");
        recipe.training.context_length = 300;
        assert!(recipe.rows_per_step(2048).unwrap_err().to_string().contains("a divisor"));
        recipe.training.context_length = 512;
        recipe.training.tokens_per_step = 3000;
        assert!(recipe.rows_per_step(2048).unwrap_err().to_string().contains("a multiple"));
    }
}
