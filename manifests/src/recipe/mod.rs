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
pub mod keys;
mod memory;
mod parse;
mod schedule;
mod validate;

pub use architecture::{
    BlockKind, ForgetGate, GateWeights, InputBias, MlstmConfig, ModelConfig, ModelSize, RecurrentInit,
    SlstmBias, SlstmConfig, SlstmFunction, WeightInit, XlstmConfig,
};
pub use auto::{Accelerator, choose};
pub use builtin::{Builtin, builtins};
pub use compute_path::ComputePath;
pub use memory::MemoryEstimate;
pub use parse::{Loaded, in_short, load, load_described, nearest, resolve};
pub use schedule::{Schedule, ScheduleShape};
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
    #[error("recipe `{name}`: unknown key `{key}`{hint}; `xlstm-train recipes --keys` says what all keys mean", name = printable::text(name))]
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
    /// The seed of everything that is drawn and has none of its own.
    pub seed: u64,
    /// Seed of the parameters' first values; -1: `seed`.
    pub initialization_seed: i64,
    /// Seed of the order of rows; -1: `seed`.
    pub order_seed: i64,
    /// Seed of dropout; -1: `seed`.
    pub dropout_seed: i64,
    /// Type of the matrix products; parameters, optimizer and reductions stay in float32.
    pub precision: Precision,
    /// Keep only each block's input, and compute the block again in the backward pass.
    pub activation_checkpointing: bool,
    /// Clear all states at the start of each document (the paper does not).
    pub reset_at_document_boundaries: bool,
    /// Share of what a block adds to the residual that is set to 0 in a training step, the rest scaled up by as much; 0: none.
    pub dropout: f64,
    /// Share of the embedded tokens' numbers that are set to zero in training; 0: no dropout.
    pub embedding_dropout: f64,
    /// Weight of the squared logarithm of the softmax's sum in what is minimized; 0: no z-loss.
    pub z_loss: f64,
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

/// The value of a seed that is `training.seed`.
pub const SHARED_SEED: i64 = -1;

impl Training {
    /// Seed of the parameters' first values.
    #[must_use]
    pub fn initialization_seed(&self) -> u64 {
        self.own_or_shared(self.initialization_seed)
    }

    /// Seed of the order of rows.
    #[must_use]
    pub fn order_seed(&self) -> u64 {
        self.own_or_shared(self.order_seed)
    }

    /// Seed of dropout.
    #[must_use]
    pub fn dropout_seed(&self) -> u64 {
        self.own_or_shared(self.dropout_seed)
    }

    /// Whether anything is dropped.
    #[must_use]
    pub fn has_dropout(&self) -> bool {
        self.embedding_dropout > 0.0 || self.dropout > 0.0
    }

    fn own_or_shared(&self, seed: i64) -> u64 {
        u64::try_from(seed).unwrap_or(self.seed)
    }
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
    /// Minutes between two checkpoints, beside those by steps; 0: none by time.
    pub every_minutes: f64,
    /// The newest ones that are kept.
    pub keep_last: u64,
    /// Checkpoints at multiples of this step are kept for good; 0: none.
    pub keep_every_steps: u64,
    /// Whether to save after each validation with the lowest loss so far, and to keep that checkpoint.
    pub keep_best: bool,
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
            initialization_seed: SHARED_SEED,
            order_seed: SHARED_SEED,
            dropout_seed: SHARED_SEED,
            precision: Precision::Bfloat16,
            activation_checkpointing: false,
            reset_at_document_boundaries: false,
            dropout: 0.0,
            embedding_dropout: 0.0,
            z_loss: 0.0,
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

impl Default for Validation {
    fn default() -> Self {
        Self { every_steps: 1000, rows: 0, stop_at_accuracy: 0.0, patience: 0 }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_steps: 1000, every_minutes: 0.0, keep_last: 2, keep_every_steps: 0, keep_best: false }
    }
}

impl Default for Logging {
    fn default() -> Self {
        Self { every_steps: 1, tensorboard: true, rows: false }
    }
}

impl Recipe {
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
