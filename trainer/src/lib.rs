//! xLSTM models, training and evaluation on prepared shards.
//!
//! ```text
//! recipe ─► model ─┐
//! dataset ─► order ─► loader ─► loss, gradients ─► AdamW ─► checkpoints, metrics, run manifest
//! ```
//! | module | holds |
//! |---|---|
//! | [`model`] | architectures, initial values, states, generation, import and export |
//! | [`hugging_face`] | models to and from folders of transformers |
//! | [`loader`] | rows to batches, ahead of training |
//! | [`optimizer`] | AdamW, gradient norm |
//! | [`train`] | set-up, the loop, validation, plans |
//! | [`checkpoint`], [`tensor_file`] | what a run saves |
//! | [`metrics`], [`plot`] | what a run tells, and a picture of it |
//! | [`provenance`], [`chain`] | where a figure comes from: the links, and their text |
//! | [`evaluation`] | how good a model is, where, and on which data |
//! | [`report`] | pages about runs and evaluations |
//! | [`verify`] | whether the chain from a figure to its bytes still holds |
//! | [`reproduce`] | every table and figure of the paper, and what came out |
//! | [`serve`] | checkpoints behind the completions protocol |
//! | [`communicator`], [`launch`] | several ranks |
//! | [`device`], [`environment`], [`signals`] | where and what runs, and what stops it |
//! | [`guard`] | panics of libtorch's operations as errors |
//! | [`command_line`] | what the programs' command lines have in common |

pub mod chain;
pub mod checkpoint;
pub mod command_line;
pub mod communicator;
pub mod device;
pub mod environment;
pub mod error;
pub mod evaluation;
pub mod guard;
pub mod hugging_face;
pub mod launch;
pub mod loader;
pub mod metrics;
pub mod model;
pub mod optimizer;
pub mod plot;
pub mod provenance;
pub mod report;
pub mod reproduce;
pub mod run;
pub mod serve;
pub mod signals;
pub mod sweep;
pub mod tensor_file;
pub mod train;
pub mod verify;

pub use error::{Result, TrainError};
