//! Where a figure comes from: the one walk from an evaluation or a run to source files, as typed links.
//!
//! ```text
//! EvaluationLinks ─► files of the checkpoint, DatasetLink of the evaluated split
//!        └─► RunLinks ─► figure, checkpoints, recipe, program and session of a step
//!                 ├─► InitialLink (parameters that the run began with) ─► RunLinks of the run that made them
//!                 ├─► DatasetLink (training, validation) ─► origin: what was compared, what was only claimed ─► SourceLink
//!                 └─► RowLink (rows of a step) ─► DocumentLink
//! ```
//! Three presenters show the same links: the command `chain` as text, a run's page as HTML, and `verify`, which compares
//! each link's bytes with the digest that the link before it recorded. Nothing here prints or compares contents, and no
//! presenter looks for a file by itself.

mod dataset;
mod evaluation;
mod initial;
mod rows;
mod run;

use std::path::{Path, PathBuf};

use xlstm_manifests::Sha256Digest;

pub use dataset::{DatasetLink, Evidence, Found, Recorded, Role, SourceLink};
pub use evaluation::{EvaluationLinks, ParentRun};
pub use initial::InitialLink;
pub use rows::{DocumentLink, RowLink, rows, rows_of_step};
pub use run::{CheckpointLink, RunLinks, newest_figure};
pub(crate) use run::{is_trained_on, made_by};

/// A file with the digest that another file recorded for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLink {
    /// Its name in its folder.
    pub name: String,
    /// Where it is looked for.
    pub path: PathBuf,
    /// The recorded digest.
    pub sha256: Sha256Digest,
    /// The recorded size in bytes, where it was recorded.
    pub size: Option<u64>,
}

impl FileLink {
    /// The file `name` in `folder`.
    fn new(folder: &Path, name: &str, sha256: Sha256Digest, size: Option<u64>) -> Self {
        Self { name: name.to_owned(), path: folder.join(name), sha256, size }
    }
}
