//! Why a split could not be built.

use std::path::PathBuf;

use xlstm_manifests::{Error as ContractError, printable};

/// Why a split could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// A file of the dataset could not be written, or is not what it should be.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// The folder holds another dataset, or an unfinished run with other settings.
    #[error("`{folder}` holds {found}, which differs in {differs}; use another --out, or --restart to discard it", folder = printable::path(folder))]
    OtherRun {
        /// The split's folder.
        folder: PathBuf,
        /// What was found there.
        found: &'static str,
        /// Which settings differ.
        differs: String,
    },
    /// A limit of the format.
    #[error("{0}")]
    Limit(String),
    /// An example that its split cannot hold.
    #[error(
        "record {record} of input {input}: expected {expected}, found {found}; correct the example and prepare again"
    )]
    Example {
        /// Index of its input.
        input: u32,
        /// Record number in that input.
        record: u64,
        /// What an example of this split has.
        expected: String,
        /// What this one has.
        found: String,
    },
    /// The feeder broke its promise on resumption: a source changed, or a fault of ours.
    #[error(
        "the run cannot go on from its journal: expected record {record} of input {input}, found {found}; \
         an input changed since the run began: use --restart"
    )]
    Resume {
        /// Input index of the journal's cursor.
        input: u32,
        /// Record number of the journal's cursor.
        record: u64,
        /// What came instead.
        found: String,
    },
}

impl SplitError {
    /// Whether this is a fault of the program.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Contract(error) if error.is_internal())
    }
}

impl From<std::io::Error> for SplitError {
    fn from(error: std::io::Error) -> Self {
        Self::Contract(error.into())
    }
}
