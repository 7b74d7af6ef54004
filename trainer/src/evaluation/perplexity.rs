//! Perplexity of a split: over everything, by set, by position in the context.

use xlstm_manifests::token_counts::counts_of_bucket;

use super::corpus::Corpus;
use super::results::{Frequency, Named, Perplexity};
use super::score::Scores;
use super::statistics::{DocumentScore, documents, perplexity as exponential_of, positions, statistics};
use crate::error::{Result, TrainError};

/// The figures of a scored corpus.
///
/// # Errors
/// When nothing was scored.
pub fn results(corpus: &Corpus, scores: &Scores) -> Result<Perplexity> {
    let frequencies = scores.frequencies.iter().enumerate().map(|(bucket, &(nll, tokens))| {
        let (first, last) = counts_of_bucket(bucket);
        let of_bucket = |&&one: &&u8| usize::from(one) == bucket;
        let types = corpus.buckets.iter().flatten().filter(of_bucket).count() as u64;
        let perplexity = (tokens > 0).then(|| exponential_of(nll / tokens as f64));
        Frequency { first, last, types, tokens, nll, perplexity }
    });
    let documents = documents(corpus, scores);
    Ok(Perplexity {
        total: statistics(documents.iter()).ok_or_else(nothing)?,
        sets: named(&corpus.sets, &documents),
        positions: positions(scores),
        frequencies: frequencies.collect(),
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
