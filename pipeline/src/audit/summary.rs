//! What a split is, in figures that a person compares with what they expected.

use std::collections::BTreeMap;

use serde::Serialize;
use xlstm_manifests::manifest::{Layout, Licence, SetTotals, Totals};
use xlstm_manifests::origin::{self, Origin};
use xlstm_manifests::{Manifest, Sha256Digest};

use super::duplicates::Duplicates;
use super::stream::SplitContent;
use crate::report::share;

/// Shares of SlimPajama's sets in percent, as its dataset card states them.
const SLIMPAJAMA_CARD: [(&str, f64); 7] = [
    ("RedPajamaCommonCrawl", 52.2),
    ("RedPajamaC4", 26.7),
    ("RedPajamaGithub", 5.2),
    ("RedPajamaBook", 4.2),
    ("RedPajamaArXiv", 4.6),
    ("RedPajamaWikipedia", 3.8),
    ("RedPajamaStackExchange", 3.3),
];

/// A split in figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Dataset profile.
    pub profile: String,
    /// What was compared, and what was only claimed.
    pub origin: Origin,
    /// Repository on the Hub that the inputs were compared with.
    pub repository: Option<String>,
    /// The commit.
    pub revision: Option<String>,
    /// `train`, `validation`, …
    pub split: String,
    /// Packed rows or documents.
    pub layout: Layout,
    /// The dataset's identity.
    pub root: Sha256Digest,
    /// Statements about the license, with who makes them.
    pub licences: Vec<Licence>,
    /// Inputs by the license that each carries itself.
    pub input_licences: BTreeMap<String, u64>,
    /// Totals by the license that documents carry themselves.
    pub record_licenses: Vec<SetTotals>,
    /// Totals by the source that documents name themselves.
    pub record_sources: Vec<SetTotals>,
    /// Files that were read.
    pub inputs: u64,
    /// Documents, bytes, tokens, rows, and what was left out by reason.
    pub totals: Totals,
    /// Sets, in order of first appearance.
    pub sets: Vec<SetShare>,
    /// Inputs that are byte for byte the same file as an earlier one: (the earlier, the later).
    pub duplicate_inputs: Vec<(String, String)>,
    /// Documents that repeat an earlier one; known when all shards could be read.
    pub duplicate_documents: Option<Duplicates>,
    /// Documents with `[2^k, 2^(k+1))` tokens, by k; known when all shards could be read.
    pub lengths: Option<Vec<u64>>,
}

/// One set's part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetShare {
    /// The set.
    pub name: String,
    /// Documents.
    pub documents: u64,
    /// UTF-8 bytes of text.
    pub text_bytes: u64,
    /// Tokens.
    pub tokens: u64,
    /// Percent of the split's tokens; none where the split has no token.
    pub token_percent: Option<f64>,
    /// Percent that the dataset's card states.
    pub card_percent: Option<f64>,
}

impl Summary {
    /// The figures of `manifest` alone: no shard is opened.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        Self::new(manifest, None)
    }

    /// The figures of `manifest`, and of its content where that could be read.
    pub(super) fn new(manifest: &Manifest, stream: Option<&SplitContent>) -> Self {
        let slimpajama = manifest.source.profile.starts_with("slimpajama");
        let card = |name: &str| SLIMPAJAMA_CARD.iter().find(|(set, _)| *set == name).map(|&(_, share)| share);
        let sets = manifest
            .sets
            .iter()
            .map(|set| SetShare {
                name: set.name.clone(),
                documents: set.documents,
                text_bytes: set.text_bytes,
                tokens: set.tokens,
                token_percent: share(set.tokens, manifest.totals.tokens),
                card_percent: if slimpajama { card(&set.name) } else { None },
            })
            .collect();
        let mut input_licences = BTreeMap::new();
        for licence in manifest.inputs.iter().filter_map(|input| input.licence.as_ref()) {
            *input_licences.entry(licence.clone()).or_default() += 1;
        }
        let origin = Origin::of(manifest);
        let lengths = stream.map(|stream| {
            let used = stream.lengths.iter().rposition(|&documents| documents > 0).map_or(0, |last| last + 1);
            stream.lengths[..used].to_vec()
        });
        Self {
            profile: manifest.source.profile.clone(),
            repository: origin.repository.clone(),
            revision: origin.revision.clone(),
            origin,
            split: manifest.split.clone(),
            layout: manifest.layout,
            root: manifest.root,
            licences: origin::normalized(&manifest.source).licences,
            input_licences,
            record_licenses: manifest.record_licenses.clone(),
            record_sources: manifest.record_sources.clone(),
            inputs: manifest.inputs.len() as u64,
            totals: manifest.totals.clone(),
            sets,
            duplicate_inputs: manifest
                .duplicate_inputs()
                .into_iter()
                .map(|(earlier, later)| (earlier.to_string(), later.to_string()))
                .collect(),
            duplicate_documents: stream.map(|stream| stream.duplicates.finish()),
            lengths,
        }
    }
}

impl Summary {
    /// Licenses that inputs carry themselves, the most frequent first.
    pub(super) fn licences_by_inputs(&self) -> Vec<(&str, u64)> {
        let mut licences: Vec<_> =
            self.input_licences.iter().map(|(licence, &inputs)| (licence.as_str(), inputs)).collect();
        licences.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        licences
    }
}
