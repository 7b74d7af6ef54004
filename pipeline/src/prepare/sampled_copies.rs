//! Which documents of a sample a list of copies leaves out.

use std::collections::HashMap;

use xlstm_manifests::Sha256Digest;

use crate::duplicates::Copies;

/// The copies that a list names in one file.
pub(super) enum SampledCopies<'a> {
    /// There is no list.
    None,
    /// By the record's number and its text, for whichever bytes the list names the file.
    Records { list: &'a Copies, input: &'a str },
    /// By the text alone, where records have other numbers than their own. Which of the documents with a text is the first is not
    /// known then: as large a share of them goes as the list names.
    Texts {
        /// What share of the documents with a text goes.
        shares: HashMap<Sha256Digest, f64>,
        /// Documents that are still to go, of those so far: below one.
        owed: f64,
    },
}

impl<'a> SampledCopies<'a> {
    /// `numbers`: whether records have their own.
    pub(super) fn new(list: Option<&'a Copies>, input: &'a str, numbers: bool) -> Self {
        match list {
            None => Self::None,
            Some(list) if numbers => Self::Records { list, input },
            Some(list) => Self::Texts { shares: list.shares_of_texts(input), owed: 0.0 },
        }
    }

    /// Whether a document does not count.
    pub(super) fn leave_out(&mut self, record: u64, text: &str) -> bool {
        let digest = || Sha256Digest::of(text.as_bytes());
        match self {
            Self::None => false,
            Self::Records { list, input } => {
                let named = list.named(input, record);
                !named.is_empty() && named.contains(&digest())
            }
            Self::Texts { shares, owed } => {
                *owed += shares.get(&digest()).copied().unwrap_or(0.0);
                // Shares such as a third do not add up to one exactly.
                let goes = *owed > 1.0 - 1e-9;
                if goes {
                    *owed -= 1.0;
                }
                goes
            }
        }
    }
}
