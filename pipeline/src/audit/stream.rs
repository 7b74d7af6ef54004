//! What can only be said of a split as a whole: shards are looked at in parallel, and what they say is put
//! together here in stream order.

use std::collections::{BTreeMap, VecDeque};

use xlstm_manifests::Manifest;
use xlstm_manifests::manifest::MANIFEST_NAME;
use xlstm_manifests::merkle::MerkleTree;

use super::duplicates::DuplicateCounter;
use super::finding::{Check, Findings};
use super::rows::Rows;
use super::spans::{Documents, LENGTH_BUCKETS, Sum};

/// A split's content, put together shard by shard.
#[derive(Debug)]
pub(super) struct SplitContent {
    /// Whether documents are packed end to end into rows.
    tiled: bool,
    append_end_of_text: bool,
    tokens_tree: MerkleTree,
    documents_tree: MerkleTree,
    /// Where the next document must start; unknown after a shard that could not be read.
    position: Option<u64>,
    /// Ends of documents whose separator was not seen yet (a document may go on in the next shard).
    open_ends: VecDeque<u64>,
    separators_agree: bool,
    last: Option<(u32, u64)>,
    by_input: BTreeMap<u32, Sum>,
    by_set: BTreeMap<String, Sum>,
    by_license: BTreeMap<u16, Sum>,
    by_source: BTreeMap<u16, Sum>,
    pub(super) lengths: [u64; LENGTH_BUCKETS],
    pub(super) duplicates: DuplicateCounter,
    pub(super) findings: Findings,
}

/// The names of a shard's two files.
pub(super) struct Names<'a> {
    pub(super) shard: &'a str,
    pub(super) companion: &'a str,
}

impl SplitContent {
    pub(super) fn new(manifest: &Manifest) -> Self {
        Self {
            tiled: manifest.layout.has_rows(),
            append_end_of_text: manifest.packing.append_end_of_text,
            tokens_tree: MerkleTree::new(),
            documents_tree: MerkleTree::new(),
            position: Some(0),
            open_ends: VecDeque::new(),
            separators_agree: true,
            last: None,
            by_input: BTreeMap::new(),
            by_set: BTreeMap::new(),
            by_license: BTreeMap::new(),
            by_source: BTreeMap::new(),
            lengths: [0; LENGTH_BUCKETS],
            duplicates: DuplicateCounter::default(),
            findings: Findings::default(),
        }
    }

    /// The next shard's rows and documents.
    pub(super) fn absorb(&mut self, names: &Names<'_>, rows: Rows, documents: Documents) {
        rows.leaves.iter().for_each(|&leaf| self.tokens_tree.push(leaf));
        documents.leaves.iter().for_each(|&leaf| self.documents_tree.push(leaf));
        documents.prefixes.iter().for_each(|&prefix| self.duplicates.see(prefix));
        for (total, here) in self.lengths.iter_mut().zip(&documents.lengths) {
            *total += here;
        }
        if let (Some(before), Some(first)) = (self.last, documents.first)
            && before >= first
        {
            let expected = format!("documents in the order of their inputs and records, after {before:?}");
            self.findings.differ(names.companion, Check::Spans, expected, format!("{first:?} first"));
        }
        self.last = documents.last.or(self.last);
        if self.tiled {
            // After a gap, what precedes the first document that starts here belongs to an unknown one.
            let known_from = self.position.map_or(documents.start, |_| Some(0));
            self.check_tiling(names, &documents);
            if self.append_end_of_text {
                self.open_ends.extend(&documents.ends);
            }
            let known = rows.separators.partition_point(|&at| known_from.is_none_or(|from| at < from));
            self.check_separators(names, &rows.separators[known..]);
        }
        for (input, sum) in documents.by_input {
            self.by_input.entry(input).or_default().absorb(sum);
        }
        for (set, sum) in documents.by_set {
            self.by_set.entry(set).or_default().absorb(sum);
        }
        for (license, sum) in documents.by_license {
            self.by_license.entry(license).or_default().absorb(sum);
        }
        for (source, sum) in documents.by_source {
            self.by_source.entry(source).or_default().absorb(sum);
        }
        self.findings.absorb(rows.findings);
        self.findings.absorb(documents.findings);
    }

    /// The next shard could not be read: nothing is known of where its documents end.
    pub(super) fn skip(&mut self) {
        self.position = None;
        self.open_ends.clear();
    }

    fn check_tiling(&mut self, names: &Names<'_>, documents: &Documents) {
        if let (Some(start), Some(expected)) = (documents.start, self.position)
            && start != expected
        {
            let expected =
                format!("the first document to start where the last one ends, at token {expected}");
            self.findings.differ(names.companion, Check::Spans, expected, start);
        }
        self.position = documents.ends.last().copied().or(self.position);
    }

    fn check_separators(&mut self, names: &Names<'_>, separators: &[u64]) {
        for &position in separators {
            if !self.separators_agree {
                return;
            }
            let end = if self.append_end_of_text { self.open_ends.pop_front() } else { None };
            if end != Some(position + 1) {
                let expected = match end {
                    Some(end) => format!("a separator as the last token of the document that ends at {end}"),
                    None => "no separator outside the ends of documents".into(),
                };
                self.findings.differ(
                    names.shard,
                    Check::Separators,
                    expected,
                    format!("one at token {position}"),
                );
                self.separators_agree = false;
            }
        }
    }

    /// Compares the whole with what the manifest says.
    pub(super) fn finish(&mut self, manifest: &Manifest) {
        let findings = &mut self.findings;
        if self.tiled {
            let last = manifest.shards.last().map_or(MANIFEST_NAME, |shard| shard.companion.path.as_str());
            if self.position != Some(manifest.totals.tokens) {
                let expected = format!("the last document to end at token {}", manifest.totals.tokens);
                let found = self.position.map_or("an unknown end".to_owned(), |end| end.to_string());
                findings.differ(last, Check::Spans, expected, found);
            }
            if self.append_end_of_text
                && self.separators_agree
                && let Some(end) = self.open_ends.front()
            {
                let expected = format!("a separator as the last token of the document that ends at {end}");
                findings.differ(last, Check::Separators, expected, "none");
            }
        }
        let roots = [
            (Check::TokensRoot, "tokens_root", self.tokens_tree.root(), manifest.tokens_root),
            (Check::DocumentsRoot, "documents_root", self.documents_tree.root(), manifest.documents_root),
        ];
        for (check, name, computed, stated) in roots {
            if computed != stated {
                let expected = format!("{name} {computed} (recomputed from the shards' content)");
                findings.differ(MANIFEST_NAME, check, expected, stated);
            }
        }
        self.check_counts(manifest);
    }

    fn check_counts(&mut self, manifest: &Manifest) {
        let mut compare = |what: String, recounted: Sum, stated: Sum| {
            if recounted != stated {
                let text = |sum: &Sum| {
                    format!(
                        "{} documents, {} bytes of text, {} tokens",
                        sum.documents, sum.text_bytes, sum.tokens
                    )
                };
                let expected = format!("{what}: {} (recounted)", text(&recounted));
                self.findings.differ(MANIFEST_NAME, Check::Counts, expected, text(&stated));
            }
        };
        for (input, index) in manifest.inputs.iter().zip(0u32..) {
            let counts = &input.counts;
            let stated =
                Sum { documents: counts.documents, text_bytes: counts.text_bytes, tokens: counts.tokens };
            let recounted = self.by_input.get(&index).copied().unwrap_or_default();
            compare(format!("input `{}`", input.path), recounted, stated);
        }
        for set in &manifest.sets {
            let stated = Sum { documents: set.documents, text_bytes: set.text_bytes, tokens: set.tokens };
            let recounted = self.by_set.remove(&set.name).unwrap_or_default();
            compare(format!("set `{}`", set.name), recounted, stated);
        }
        for (set, sum) in std::mem::take(&mut self.by_set) {
            compare(format!("set `{set}`, which the manifest lacks"), sum, Sum::default());
        }
        for (what, stated, recounted) in [
            ("license", &manifest.record_licenses, &self.by_license),
            ("source", &manifest.record_sources, &self.by_source),
        ] {
            for (index, total) in (0u16..).zip(stated) {
                let stated =
                    Sum { documents: total.documents, text_bytes: total.text_bytes, tokens: total.tokens };
                let recounted = recounted.get(&index).copied().unwrap_or_default();
                compare(format!("{what} `{}` of documents", total.name), recounted, stated);
            }
        }
        let totals = &manifest.totals;
        let stated =
            Sum { documents: totals.documents, text_bytes: totals.text_bytes, tokens: totals.tokens };
        let mut recounted = Sum::default();
        self.by_input.values().for_each(|&sum| recounted.absorb(sum));
        compare("totals".into(), recounted, stated);
    }
}
