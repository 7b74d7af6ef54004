//! A part before it is used: its files against their digests, and what they hold against the roots and counts that the
//! part's own root covers. A file's digest can be written anew by whoever alters the file; those cannot.

use std::path::PathBuf;

use xlstm_manifests::documents::DocumentShard;
use xlstm_manifests::manifest::{FileRecord, InputCounts, MANIFEST_NAME, Manifest};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::tokens_leaf;
use xlstm_manifests::spans::{Span, document_leaf};
use xlstm_manifests::{Dataset, Error as ContractError, Sha256Digest, digest};

use super::{LoadedPart, MergeError};

const ALTERED: &str = "the part was altered: run its task again with --restart";

/// The part's rows, after everything was checked.
pub(super) fn rows(part: &LoadedPart) -> Result<Dataset, MergeError> {
    let dataset = Dataset::open_part(&part.folder)?;
    let mut first = 0;
    let mut whole = MerkleTree::new();
    let mut found = Documents::new(&part.manifest);
    for (number, shard) in part.manifest.shards.iter().enumerate() {
        digests(part, &shard.file)?;
        digests(part, &shard.companion)?;
        let mut tree = MerkleTree::new();
        let rows = first..first + shard.file.records;
        for row in rows.clone() {
            let leaf = dataset.leaf(row)?;
            tree.push(leaf);
            whole.push(leaf);
        }
        first = rows.end;
        same_root(part, shard.file.path.as_str(), "tokens_root", shard.tokens_root, &tree)?;
        for span in dataset.spans(number)?.iter() {
            found
                .span(&span, &rows)
                .map_err(|complaint| complaint.of(part, shard.companion.path.as_str()))?;
        }
    }
    same_root(part, MANIFEST_NAME, "tokens_root", part.manifest.tokens_root, &whole)?;
    found.compare(part)?;
    Ok(dataset)
}

/// Checks a part whose rows are documents.
pub(super) fn documents(part: &LoadedPart) -> Result<(), MergeError> {
    let mut whole = MerkleTree::new();
    let mut found = Documents::new(&part.manifest);
    for shard in &part.manifest.shards {
        let path = digests(part, &shard.file)?;
        let mut tree = MerkleTree::new();
        for document in DocumentShard::open(&path, shard.file.records)?.iter() {
            let leaf = tokens_leaf(&document.ids);
            tree.push(leaf);
            whole.push(leaf);
            let (input, record, length) = (document.input, document.record, document.ids.len() as u64);
            found
                .names([None, document.license, document.record_source])
                .map_err(|complaint| complaint.of(part, shard.file.path.as_str()))?;
            let seen = found.document((input, record), length, document.bytes, &document.digest);
            seen.map_err(|complaint| complaint.of(part, shard.file.path.as_str()))?;
        }
        same_root(part, shard.file.path.as_str(), "tokens_root", shard.tokens_root, &tree)?;
    }
    same_root(part, MANIFEST_NAME, "tokens_root", part.manifest.tokens_root, &whole)?;
    found.compare(part)
}

/// Compares a file with its digest; where it is.
fn digests(part: &LoadedPart, file: &FileRecord) -> Result<PathBuf, MergeError> {
    let path = file.path.resolve(&part.folder)?;
    let (size, sha256) = digest::digest_file(&path)?;
    if (size, sha256) == (file.size, file.sha256) {
        return Ok(path);
    }
    let hint = "the part was damaged: run its task again with --restart";
    let (expected, found) = (format!("SHA-256 {}", file.sha256), sha256.to_string());
    Err(ContractError::mismatch(&path, expected, found, hint).into())
}

fn same_root(
    part: &LoadedPart,
    file: &str,
    what: &str,
    root: Sha256Digest,
    tree: &MerkleTree,
) -> Result<(), MergeError> {
    if tree.root() == root {
        return Ok(());
    }
    let complaint = Complaint(format!("{what} {root} (says the manifest)"), tree.root().to_string());
    Err(complaint.of(part, file))
}

/// What was expected, and what was found.
struct Complaint(String, String);

impl Complaint {
    fn of(self, part: &LoadedPart, file: &str) -> MergeError {
        ContractError::mismatch(&part.folder.join(file), self.0, self.1, ALTERED).into()
    }
}

/// What the documents of a part come to.
struct Documents<'a> {
    manifest: &'a Manifest,
    tree: MerkleTree,
    /// Documents, bytes and tokens of each input.
    inputs: Vec<InputCounts>,
    last: Option<(u32, u64)>,
    /// Where the next one must begin in the stream of tokens.
    next: u64,
}

impl<'a> Documents<'a> {
    fn new(manifest: &'a Manifest) -> Self {
        let inputs = vec![InputCounts::default(); manifest.inputs.len()];
        Self { manifest, tree: MerkleTree::new(), inputs, last: None, next: 0 }
    }

    /// A document of a shard that has `rows`: where it lies, and what it refers to.
    fn span(&mut self, span: &Span, rows: &std::ops::Range<u64>) -> Result<(), Complaint> {
        let row_length = u64::from(self.manifest.packing.row_length);
        let start = span.row.saturating_mul(row_length).saturating_add(u64::from(span.offset));
        let placed = rows.contains(&span.row) && u64::from(span.offset) < row_length;
        if !placed || start != self.next {
            let expected =
                format!("a document at token {} of the part, where the one before ends", self.next);
            return Err(Complaint(expected, format!("one at row {}, token {}", span.row, span.offset)));
        }
        let separator = u64::from(self.manifest.packing.append_end_of_text);
        if span.length < separator {
            return Err(Complaint("a document with its separator".into(), "one of no token".into()));
        }
        self.next = start.saturating_add(span.length);
        self.names([span.set, span.license, span.source])?;
        self.document((span.input, span.record), span.length, span.bytes, &span.digest)
    }

    /// Whether a document's set, license and source are in the manifest's lists.
    fn names(&self, [set, license, source]: [Option<u16>; 3]) -> Result<(), Complaint> {
        for (what, index, list) in [
            ("sets", set, &self.manifest.sets),
            ("record_licenses", license, &self.manifest.record_licenses),
            ("record_sources", source, &self.manifest.record_sources),
        ] {
            if let Some(index) = index.filter(|&index| usize::from(index) >= list.len()) {
                return Err(Complaint(
                    format!("an entry of the {} in `{what}`", list.len()),
                    index.to_string(),
                ));
            }
        }
        Ok(())
    }

    /// A document by its input and record.
    fn document(
        &mut self,
        key: (u32, u64),
        tokens: u64,
        bytes: u64,
        digest: &Sha256Digest,
    ) -> Result<(), Complaint> {
        let (input, record) = key;
        let count = self.inputs.len();
        let Some(counts) = self.inputs.get_mut(input as usize) else {
            let expected = format!("a document of one of the part's {count} inputs");
            return Err(Complaint(expected, format!("one of input {input}")));
        };
        if let Some(before) = self.last.filter(|&before| before >= key) {
            let expected = format!("documents in the order of their inputs and records, after {before:?}");
            return Err(Complaint(expected, format!("{key:?}")));
        }
        self.last = Some(key);
        counts.documents += 1;
        counts.tokens = counts.tokens.saturating_add(tokens);
        counts.text_bytes = counts.text_bytes.saturating_add(bytes);
        self.tree.push(document_leaf(input, record, tokens, digest));
        Ok(())
    }

    /// Compares the sums with the manifest's.
    fn compare(self, part: &LoadedPart) -> Result<(), MergeError> {
        for (input, found) in part.manifest.inputs.iter().zip(&self.inputs) {
            let sums = |counts: &InputCounts| {
                format!(
                    "{} documents, {} bytes and {} tokens of `{}`",
                    counts.documents, counts.text_bytes, counts.tokens, input.path
                )
            };
            if sums(&input.counts) != sums(found) {
                return Err(Complaint(sums(&input.counts), sums(found)).of(part, MANIFEST_NAME));
            }
        }
        same_root(part, MANIFEST_NAME, "documents_root", part.manifest.documents_root, &self.tree)
    }
}
