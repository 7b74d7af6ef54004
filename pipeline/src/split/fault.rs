//! Why the threads behind a builder have stopped, for everybody who asks.

use std::io;
use std::sync::{Arc, OnceLock};

use xlstm_manifests::Error as ContractError;

use super::SplitError;

/// The error that has ended the writing: the first one, since others follow from it. Everybody who asks is told the same. Were
/// it handed out once, whoever asks next (the builder after a shard's closing, or the other way round) would find none and go on.
#[derive(Clone, Default)]
pub(super) struct Fault(Arc<OnceLock<SplitError>>);

impl Fault {
    pub(super) fn set(&self, error: SplitError) {
        // A later error says less.
        let _ = self.0.set(error);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.get().is_some()
    }

    /// The error in its own words, or that the writing ended without one.
    pub(super) fn error(&self) -> SplitError {
        match self.0.get() {
            // Its kind decides what a user is advised to do.
            Some(SplitError::Contract(ContractError::Io(error))) => {
                io::Error::new(error.kind(), error.to_string()).into()
            }
            Some(SplitError::Contract(ContractError::Internal(text))) => ContractError::internal(text).into(),
            Some(other) => SplitError::Limit(other.to_string()),
            None => ContractError::internal("a thread that writes or digests rows ended early").into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_told_the_first_error() {
        let fault = Fault::default();
        assert!(!fault.is_set());
        assert!(fault.error().is_internal(), "a thread that panicked has set none");
        fault.set(io::Error::new(io::ErrorKind::StorageFull, "no room for `a`").into());
        fault.set(ContractError::internal("what follows from it").into());
        let others = fault.clone();
        for reader in [&fault, &others, &fault] {
            assert!(reader.is_set());
            let SplitError::Contract(ContractError::Io(error)) = reader.error() else {
                panic!("expected the error of the disk")
            };
            assert_eq!(
                (error.kind(), error.to_string()),
                (io::ErrorKind::StorageFull, "no room for `a`".into())
            );
        }
    }
}
