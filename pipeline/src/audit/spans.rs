//! What the documents of one shard say: their places, sources and digests, summed up for the whole split.

use std::collections::BTreeMap;

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::documents::DocumentShard;
use xlstm_manifests::spans::{SpansFile, document_leaf};

use super::finding::{Check, Findings};
use super::selection::Selected;

/// Documents, bytes and tokens of an input or a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) documents: u64,
    pub(super) text_bytes: u64,
    pub(super) tokens: u64,
}

impl Sum {
    fn add(&mut self, bytes: u64, tokens: u64) {
        self.documents += 1;
        self.text_bytes += bytes;
        self.tokens += tokens;
    }

    pub(super) fn absorb(&mut self, other: Self) {
        self.documents += other.documents;
        self.text_bytes += other.text_bytes;
        self.tokens += other.tokens;
    }
}

/// Buckets of the length histogram: `[2^k, 2^(k+1))` tokens, bucket 0 also counts empty documents.
pub(super) const LENGTH_BUCKETS: usize = 40;

/// The documents of one shard.
#[derive(Debug)]
pub(super) struct Documents {
    /// Merkle leaf of each document.
    pub(super) leaves: Vec<Sha256Digest>,
    /// Text digest of each document, first eight bytes.
    pub(super) prefixes: Vec<u64>,
    /// Position after each document's last token in the split's stream (packed layout).
    pub(super) ends: Vec<u64>,
    /// Position of the first document's first token (packed layout).
    pub(super) start: Option<u64>,
    /// (input, record) of the first and the last document.
    pub(super) first: Option<(u32, u64)>,
    pub(super) last: Option<(u32, u64)>,
    pub(super) by_input: BTreeMap<u32, Sum>,
    pub(super) by_set: BTreeMap<String, Sum>,
    pub(super) by_license: BTreeMap<u16, Sum>,
    pub(super) by_source: BTreeMap<u16, Sum>,
    pub(super) lengths: [u64; LENGTH_BUCKETS],
    pub(super) findings: Findings,
}

impl Default for Documents {
    fn default() -> Self {
        Self {
            leaves: Vec::new(),
            prefixes: Vec::new(),
            ends: Vec::new(),
            start: None,
            first: None,
            last: None,
            by_input: BTreeMap::new(),
            by_set: BTreeMap::new(),
            by_license: BTreeMap::new(),
            by_source: BTreeMap::new(),
            lengths: [0; LENGTH_BUCKETS],
            findings: Findings::default(),
        }
    }
}

/// One document as both layouts have it.
struct Seen<'a> {
    input: u32,
    record: u64,
    tokens: u64,
    bytes: u64,
    set: Option<&'a str>,
    digest: Sha256Digest,
}

impl Documents {
    fn see(&mut self, file: &str, index: usize, document: &Seen<'_>, inputs: u64, selected: &Selected) {
        let Seen { input, record, tokens, bytes, set, digest } = *document;
        if u64::from(input) >= inputs {
            let expected = format!("an input below {inputs} for document {index}");
            self.findings.differ(file, Check::Spans, expected, input);
        }
        let key = (input, record);
        if let Some(before) = self.last.filter(|&before| before >= key) {
            let expected = format!("documents in the order of their inputs and records, after {before:?}");
            self.findings.differ(file, Check::Spans, expected, format!("{key:?} at document {index}"));
        }
        self.first = self.first.or(Some(key));
        self.last = Some(key);
        if let Some(complaint) = selected.complaint(set, &digest) {
            self.findings.add(file, Check::Selection, format!("document {index}: {complaint}"));
        }
        self.leaves.push(document_leaf(input, record, tokens, &digest));
        self.prefixes.push(digest_prefix(&digest));
        self.by_input.entry(input).or_default().add(bytes, tokens);
        if let Some(set) = set {
            match self.by_set.get_mut(set) {
                Some(sum) => sum.add(bytes, tokens),
                None => self.by_set.entry(set.to_owned()).or_default().add(bytes, tokens),
            }
        }
        self.lengths[(tokens.max(1).ilog2() as usize).min(LENGTH_BUCKETS - 1)] += 1;
    }

    /// Counts the next document's own license and source, and looks whether the manifest has them.
    fn see_provenance(
        &mut self,
        place: &ExpectedSpans<'_>,
        (license, source): (Option<u16>, Option<u16>),
        bytes: u64,
        tokens: u64,
    ) {
        for (what, index, length, sums) in [
            ("license", license, place.licenses, &mut self.by_license),
            ("source", source, place.sources, &mut self.by_source),
        ] {
            let Some(index) = index else { continue };
            sums.entry(index).or_default().add(bytes, tokens);
            if usize::from(index) >= length {
                let expected = format!("a {what} below {length} for document {}", self.leaves.len());
                self.findings.differ(place.file, Check::Spans, expected, index);
            }
        }
    }
}

/// The first eight bytes of a digest, as the hold-out rule reads them.
pub(super) fn digest_prefix(digest: &Sha256Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = digest.0;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// What a spans file is checked against.
pub(super) struct ExpectedSpans<'a> {
    pub(super) file: &'a str,
    /// Rows of the split that are this shard's.
    pub(super) rows: std::ops::Range<u64>,
    pub(super) row_length: u64,
    pub(super) inputs: u64,
    pub(super) sets: &'a [String],
    /// How many licenses and sources of documents the manifest lists.
    pub(super) licenses: usize,
    pub(super) sources: usize,
    pub(super) append_end_of_text: bool,
    pub(super) selected: &'a Selected,
}

/// Looks at every span of a packed shard.
pub(super) fn scan_spans(spans: &SpansFile, place: &ExpectedSpans<'_>) -> Documents {
    let mut found = Documents::default();
    let mut expected_start = None;
    for (index, span) in spans.iter().enumerate() {
        let start = span.row.saturating_mul(place.row_length).saturating_add(u64::from(span.offset));
        let complain = |findings: &mut Findings, expected: String, got: String| {
            findings.differ(place.file, Check::Spans, expected, got);
        };
        if u64::from(span.offset) >= place.row_length || !place.rows.contains(&span.row) {
            let expected = format!("document {index} to start in rows {:?} of this shard", place.rows);
            complain(&mut found.findings, expected, format!("row {}, token {}", span.row, span.offset));
        }
        if let Some(expected) = expected_start.filter(|&expected| expected != start) {
            let expected =
                format!("document {index} to start where the one before ends, at token {expected}");
            complain(&mut found.findings, expected, format!("{start}"));
        }
        if span.length < u64::from(place.append_end_of_text) {
            complain(&mut found.findings, format!("a separator in document {index}"), "no token".into());
        }
        let set = span.set.and_then(|set| place.sets.get(usize::from(set))).map(String::as_str);
        if span.set.is_some() && set.is_none() {
            let expected = format!("a set below {} for document {index}", place.sets.len());
            complain(&mut found.findings, expected, format!("{:?}", span.set));
        }
        found.see_provenance(place, (span.license, span.source), span.bytes, span.length);
        let end = start.saturating_add(span.length);
        expected_start = Some(end);
        found.start = found.start.or(Some(start));
        found.ends.push(end);
        let (input, record, tokens, bytes) = (span.input, span.record, span.length, span.bytes);
        let seen = Seen { input, record, tokens, bytes, set, digest: span.digest };
        found.see(place.file, index, &seen, place.inputs, place.selected);
    }
    found
}

/// Looks at every document of a document shard. `leaves` gets the Merkle leaf of each one's tokens.
pub(super) fn scan_documents(
    shard: &DocumentShard,
    place: &ExpectedSpans<'_>,
    limits: (u32, u16),
    tokens_leaves: &mut Vec<Sha256Digest>,
) -> Documents {
    let (vocabulary_size, end_of_text) = limits;
    let mut found = Documents::default();
    for (index, document) in shard.iter().enumerate() {
        tokens_leaves.push(xlstm_manifests::packed::tokens_leaf(&document.ids));
        let highest = document.ids.iter().copied().max().unwrap_or(0);
        if u32::from(highest) >= vocabulary_size {
            let expected = format!("ids below {vocabulary_size} in document {index}");
            found.findings.differ(place.file, Check::Ids, expected, highest);
        }
        if !place.append_end_of_text && document.ids.contains(&end_of_text) {
            let expected = format!("no separator inside document {index}");
            found.findings.differ(place.file, Check::Separators, expected, end_of_text);
        }
        let set = set_name(&document.source, &document.domain, place.sets);
        let tokens = document.ids.len() as u64;
        found.see_provenance(place, (document.license, document.record_source), document.bytes, tokens);
        let seen = Seen {
            input: document.input,
            record: document.record,
            tokens,
            bytes: document.bytes,
            set: set.as_deref(),
            digest: document.digest,
        };
        found.see(place.file, index, &seen, place.inputs, place.selected);
    }
    found
}

/// The manifest's set for a source and domain: `source/domain`, or the source alone where it is a set by
/// that name; none for a document that only its source names and that counts towards no set.
pub(crate) fn set_name(source: &str, domain: &str, sets: &[String]) -> Option<String> {
    let joined = format!("{source}/{domain}");
    if sets.contains(&joined) || source != domain {
        return Some(joined);
    }
    sets.iter().find(|&set| set == source).cloned()
}
