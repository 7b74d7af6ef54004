//! Perplexity of a split: over everything, by set, by position in the context.

use super::corpus::Corpus;
use super::results::{Named, Perplexity, Statistics};
use super::score::Scores;
use super::statistics::{DocumentScore, documents, positions, statistics};

/// The figures of a scored corpus.
#[must_use]
pub fn results(corpus: &Corpus, scores: &Scores) -> Perplexity {
    let documents = documents(corpus, scores);
    Perplexity {
        total: statistics(documents.iter()).unwrap_or(NOTHING),
        sets: named(&corpus.sets, &documents),
        positions: positions(scores),
    }
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
pub(super) const NOTHING: Statistics = Statistics {
    documents: 0,
    tokens: 0,
    bytes: 0,
    nll: 0.0,
    loss: 0.0,
    loss_interval: None,
    perplexity: 1.0,
    perplexity_interval: None,
    bits_per_byte: None,
    bits_per_byte_interval: None,
};
