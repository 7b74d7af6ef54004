//! Perplexity of a split: over everything, by set, by position in the context.

use super::corpus::Corpus;
use super::results::{Named, Perplexity};
use super::score::Scores;
use super::statistics::{DocumentScore, documents, positions, statistics};
use crate::error::{Result, TrainError};

/// The figures of a scored corpus.
///
/// # Errors
/// When nothing was scored.
pub fn results(corpus: &Corpus, scores: &Scores) -> Result<Perplexity> {
    let documents = documents(corpus, scores);
    Ok(Perplexity {
        total: statistics(documents.iter()).ok_or_else(nothing)?,
        sets: named(&corpus.sets, &documents),
        positions: positions(scores),
    })
}

/// Statistics by set, in the order of the names; sets without a scored token are left out.
pub(super) fn named(names: &[String], documents: &[DocumentScore]) -> Vec<Named> {
    let mut by_set: Vec<Vec<DocumentScore>> = vec![Vec::new(); names.len()];
    for document in documents {
        if let Some(set) = document.set.and_then(|set| by_set.get_mut(set as usize)) {
            set.push(*document);
        }
    }
    let sets = names.iter().zip(&by_set);
    sets.filter_map(|(name, documents)| {
        Some(Named { name: name.clone(), statistics: statistics(documents.iter())? })
    })
    .collect()
}

/// A corpus without a token is refused before it is scored.
pub(super) fn nothing() -> TrainError {
    TrainError::Internal("no token was scored".into())
}
