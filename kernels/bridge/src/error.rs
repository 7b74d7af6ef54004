//! Errors of the bridge. A message of libtorch is kept as it is: it names shapes and types better than we could.

/// What a closure handed to the bridge may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A failure in libtorch or in a function that runs inside it.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// libtorch threw, reached directly.
    #[error("libtorch: {0}")]
    Libtorch(String),
    /// libtorch threw, reached through `tch`.
    #[error(transparent)]
    Tch(#[from] tch::TchError),
    /// The forward pass of a custom function failed.
    #[error("{name} (forward): {source}")]
    Forward {
        /// The function's name.
        name: &'static str,
        /// Why.
        source: BoxError,
    },
    /// A custom function was called in a way that cannot work.
    #[error("{name}: expected {expected}, found {found}")]
    Contract {
        /// The function's name.
        name: &'static str,
        /// What the bridge expected of it.
        expected: String,
        /// What it got.
        found: String,
    },
}
