//! The content of a shard with rows: ids, separators, digest of the tokens; of examples their targets and spans too.

use rayon::prelude::*;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::{PackedShard, tokens_leaves};
use xlstm_manifests::spans::SpansFile;
use xlstm_manifests::stored::{StoredShape, StoredShard};

use super::finding::{Check, Findings};

/// What is expected of a shard's rows.
pub(super) struct Expected<'a> {
    /// The shard's name.
    pub(super) file: &'a str,
    /// The split's row that its first one is.
    pub(super) first_row: u64,
    /// Rows of the split: only the last may be short.
    pub(super) rows_of_split: u64,
    pub(super) row_length: u64,
    pub(super) vocabulary_size: u32,
    pub(super) end_of_text: u16,
    pub(super) tokens: u64,
    pub(super) tokens_root: Sha256Digest,
}

/// What is in a shard's rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Merkle leaf of each row.
    pub(super) leaves: Vec<Sha256Digest>,
    /// Positions of separators in the split's token stream, ascending.
    pub(super) separators: Vec<u64>,
    pub(super) findings: Findings,
}

/// Rows that one task looks at: 1 MiB at 2048 tokens.
const CHUNK: usize = 256;

/// Looks at every row.
pub(super) fn scan(shard: &PackedShard, expected: &Expected<'_>) -> Rows {
    let chunks: Vec<(Rows, u64)> = (0..shard.rows().div_ceil(CHUNK))
        .into_par_iter()
        .map(|chunk| scan_chunk(shard, expected, chunk * CHUNK..shard.rows().min((chunk + 1) * CHUNK)))
        .collect();
    let mut all = Rows::default();
    let mut tokens = 0;
    for (chunk, chunk_tokens) in chunks {
        all.leaves.extend(chunk.leaves);
        all.separators.extend(chunk.separators);
        all.findings.absorb(chunk.findings);
        tokens += chunk_tokens;
    }
    if tokens != expected.tokens {
        let wanted = format!("{} valid tokens", expected.tokens);
        all.findings.differ(expected.file, Check::Counts, wanted, tokens);
    }
    check_root(&all.leaves, expected.file, expected.tokens_root, &mut all.findings);
    all
}

/// Compares the Merkle root over `leaves` with the one the manifest has for `file`.
pub(super) fn check_root(leaves: &[Sha256Digest], file: &str, root: Sha256Digest, findings: &mut Findings) {
    let mut tree = MerkleTree::new();
    leaves.iter().for_each(|&leaf| tree.push(leaf));
    if tree.root() != root {
        let expected = format!("tokens_root {root} (says the manifest)");
        findings.differ(file, Check::TokensRoot, expected, tree.root());
    }
}

/// Rows whose digests are taken together.
const ROWS_AT_ONCE: usize = 16;

fn scan_chunk(shard: &PackedShard, expected: &Expected<'_>, rows: std::ops::Range<usize>) -> (Rows, u64) {
    let mut found = Rows { leaves: Vec::with_capacity(rows.len()), ..Rows::default() };
    let mut tokens = 0;
    for start in rows.clone().step_by(ROWS_AT_ONCE) {
        let together = (start..rows.end).take(ROWS_AT_ONCE).filter_map(|index| shard.row(index));
        found.leaves.extend(tokens_leaves(together.map(|row| row.tokens())));
    }
    for index in rows {
        let Some(row) = shard.row(index) else { continue };
        let number = expected.first_row + index as u64;
        tokens += row.length as u64;
        check_row(row, number, expected, &mut found.findings);
        let start = number * expected.row_length;
        let separator =
            |(offset, &id): (usize, &u16)| (id == expected.end_of_text).then_some(start + offset as u64);
        found.separators.extend(row.tokens().iter().enumerate().filter_map(separator));
    }
    (found, tokens)
}

fn check_row(
    row: xlstm_manifests::packed::Row<'_>,
    number: u64,
    expected: &Expected<'_>,
    findings: &mut Findings,
) {
    let last = number + 1 == expected.rows_of_split;
    if !last && row.length != row.ids.len() {
        let wanted =
            format!("{} tokens in row {number} (only the split's last row may be short)", row.ids.len());
        findings.differ(expected.file, Check::Rows, wanted, row.length);
    }
    if let Some(id) = row.ids[row.length..].iter().find(|&&id| id != expected.end_of_text) {
        let wanted = format!("filling of {} after the last token of row {number}", expected.end_of_text);
        findings.differ(expected.file, Check::Rows, wanted, id);
    }
    let highest = row.ids.iter().copied().max().unwrap_or(0);
    if u32::from(highest) >= expected.vocabulary_size {
        let wanted = format!("ids below {} in row {number}", expected.vocabulary_size);
        findings.differ(expected.file, Check::Ids, wanted, highest);
    }
}

/// What is expected of a shard of examples.
pub(super) struct ExpectedExamples<'a> {
    /// The shard's name.
    pub(super) file: &'a str,
    /// The split's row that its first one is.
    pub(super) first_row: u64,
    pub(super) shape: StoredShape,
    pub(super) tokens: u64,
    pub(super) tokens_root: Sha256Digest,
}

/// Looks at every example, beside its span.
pub(super) fn scan_examples(shard: &StoredShard, spans: &SpansFile, expected: &ExpectedExamples<'_>) -> Rows {
    let looked: Vec<(Sha256Digest, Vec<(String, String)>)> = (0..shard.rows())
        .into_par_iter()
        .filter_map(|index| {
            let example = shard.row(index)?;
            let row = expected.first_row + index as u64;
            let mut complaints = Vec::new();
            if let Some((wanted, found)) = example.complaint(expected.shape) {
                complaints.push((format!("{wanted} in row {row}"), found));
            }
            let digest = example.digest();
            match spans.get(index) {
                Some(span) if (span.row, span.offset) != (row, 0) => {
                    let found = format!("row {}, position {}", span.row, span.offset);
                    complaints.push((format!("span {index} at row {row}, position 0"), found));
                }
                Some(span) if span.digest != digest => {
                    complaints.push((
                        format!("an example of sha256 {} in row {row}", span.digest),
                        digest.to_string(),
                    ));
                }
                Some(_) => {}
                None => complaints.push((format!("a span for row {row}"), "none".into())),
            }
            Some((example.leaf(), complaints))
        })
        .collect();
    let mut rows = Rows::default();
    for (leaf, complaints) in looked {
        rows.leaves.push(leaf);
        for (wanted, found) in complaints {
            rows.findings.differ(expected.file, Check::Rows, wanted, found);
        }
    }
    let tokens = rows.leaves.len() as u64 * u64::from(expected.shape.row_length());
    if tokens != expected.tokens {
        rows.findings.differ(expected.file, Check::Counts, format!("{} positions", expected.tokens), tokens);
    }
    if spans.len() != shard.rows() {
        rows.findings.differ(
            expected.file,
            Check::Spans,
            format!("{} spans, one a row", shard.rows()),
            spans.len(),
        );
    }
    check_root(&rows.leaves, expected.file, expected.tokens_root, &mut rows.findings);
    rows
}
