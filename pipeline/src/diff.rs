//! `xlstm-data diff`: what differs between two splits, and which of it makes their roots differ.
//!
//! The manifests are compared, which hold every digest and count; and since a manifest speaks of the files that were
//! written, each split's files are compared with its own manifest (`--manifests-only` leaves that out and says so).
//! Differences are of two kinds: those
//! that decide the tokens and so enter `root` (tokenizer, selection, inputs' bytes, packing, totals, Merkle
//! roots), and those that do not (names, places, licenses, shard size, versions).
//! Exit code 0 when the roots are the same and every file is the one its manifest lists, 1 when not.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::manifest::{FileRecord, Input};
use xlstm_manifests::{Manifest, Sha256Digest};
use xlstm_manifests::{origin, printable};

use crate::audit::progress::ByteProgress;
use crate::report::{CommandError, Outcome, count, write_json};

/// Say what differs between two prepared splits, and why (exit code 0: same root, 1: different)
#[derive(Debug, Clone, clap::Args)]
pub struct DiffArgs {
    /// Folder of a split, or its manifest
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// The split to compare it with
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// Compare the manifests alone and read no other file
    #[arg(long)]
    pub manifests_only: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// How two splits differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiffReport {
    /// Whether both have the same root: the same tokens from the same bytes in the same way.
    pub same_root: bool,
    /// Root of A.
    pub root_a: Sha256Digest,
    /// Root of B.
    pub root_b: Sha256Digest,
    /// Differences that decide the tokens.
    pub deciding: Vec<Difference>,
    /// Differences that do not.
    pub other: Vec<Difference>,
    /// How the input files differ.
    pub inputs: InputDifferences,
    /// Sets whose totals differ: name, tokens in A, tokens in B.
    pub sets: Vec<(String, u64, u64)>,
    /// In words, why the tokens are the same or not.
    pub explanation: String,
    /// What is wrong with the files of A or B: altered or missing.
    pub problems: Vec<String>,
    /// Whether the files were looked at.
    pub files_compared: bool,
}

/// A field of the manifest with its two values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Path of the field in the manifest.
    pub field: String,
    /// Its value in A.
    pub a: Value,
    /// Its value in B.
    pub b: Value,
}

/// How two lists of inputs differ. Files are compared by their bytes first, then by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct InputDifferences {
    /// Only in A.
    pub removed: Vec<String>,
    /// Only in B.
    pub added: Vec<String>,
    /// Same name, other bytes.
    pub changed: Vec<String>,
    /// Same bytes, other name: (A, B).
    pub renamed: Vec<(String, String)>,
    /// Same bytes, other documents or tokens taken from them.
    pub recounted: Vec<String>,
    /// Whether the files that both have come in another order.
    pub reordered: bool,
}

impl InputDifferences {
    fn new(a: &[Input], b: &[Input]) -> Self {
        let mut found = Self::default();
        let index = |inputs: &[Input]| {
            let by = inputs.iter().enumerate();
            let by_digest: BTreeMap<_, _> = by.clone().rev().map(|(i, input)| (input.sha256, i)).collect();
            let by_path: BTreeMap<_, _> = by.map(|(i, input)| (input.path.clone(), i)).collect();
            (by_digest, by_path)
        };
        let ((a_digests, a_paths), (b_digests, b_paths)) = (index(a), index(b));
        let mut common = Vec::new();
        for input in a {
            match (b_paths.get(&input.path), b_digests.get(&input.sha256)) {
                (Some(&at), _) if b[at].sha256 == input.sha256 => {
                    common.push(at);
                    if b[at].counts != input.counts {
                        found.recounted.push(input.path.to_string());
                    }
                }
                (_, Some(&at)) => {
                    common.push(at);
                    found.renamed.push((input.path.to_string(), b[at].path.to_string()));
                }
                (Some(_), None) => found.changed.push(input.path.to_string()),
                (None, None) => found.removed.push(input.path.to_string()),
            }
        }
        let new =
            |input: &&Input| !a_paths.contains_key(&input.path) && !a_digests.contains_key(&input.sha256);
        found.added = b.iter().filter(new).map(|input| input.path.to_string()).collect();
        found.reordered = !common.is_sorted();
        found
    }

    /// Whether both splits read the same bytes in the same order.
    fn same_bytes(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty() && self.changed.is_empty() && !self.reordered
    }
}

/// Compares two splits.
///
/// # Errors
/// When a manifest cannot be read or contradicts itself.
pub fn diff(args: &DiffArgs) -> Result<DiffReport, CommandError> {
    let (a, b) = (Manifest::load(&args.a)?, Manifest::load(&args.b)?);
    let mut report = compare(&a, &b);
    if !args.manifests_only {
        let total = [&a, &b].iter().flat_map(|manifest| manifest.data_files()).map(|file| file.size).sum();
        let progress = ByteProgress::over_bytes("diff", total);
        for (path, manifest) in [(&args.a, &a), (&args.b, &b)] {
            report.problems.extend(problems(path, manifest, &progress));
        }
        report.files_compared = true;
    }
    let by = if report.files_compared { "" } else { "By their manifests alone: " };
    let end = match report.problems.len() {
        0 => "",
        _ => " But files are not the ones that the manifests speak of, see below.",
    };
    report.explanation = format!("{by}{}{end}", report.explanation);
    Ok(report)
}

/// Runs the command: the report goes to `out`.
///
/// # Errors
/// As [`diff`], and when the report cannot be written.
pub fn run(args: &DiffArgs, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let report = diff(args)?;
    if args.json {
        write_json(out, &report)?;
    } else {
        write_text(out, &report)?;
    }
    Ok(Outcome::of(report.same_root && report.problems.is_empty()))
}

/// The files of a split that are not the ones its manifest lists.
fn problems(path: &Path, manifest: &Manifest, progress: &ByteProgress) -> Vec<String> {
    let file = Manifest::locate(path);
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let problem = |record: &FileRecord| {
        let place = record.path.under(folder);
        let shown = printable::path(&place);
        let found = match digest_file(&place) {
            Ok(found) => found,
            Err(error) => return Some(format!("`{shown}`: {}", printable::text(&error.to_string()))),
        };
        progress.advance(found.0);
        (found != (record.size, record.sha256)).then(|| {
            format!(
                "`{shown}`: expected {} bytes, sha256 {} (says the manifest), found {} bytes, sha256 {}; it was \
                 altered: run `xlstm-data audit`",
                record.size, record.sha256, found.0, found.1
            )
        })
    };
    let files: Vec<&FileRecord> = manifest.data_files().collect();
    files.into_par_iter().filter_map(problem).collect()
}

fn compare(a: &Manifest, b: &Manifest) -> DiffReport {
    let inputs = InputDifferences::new(&a.inputs, &b.inputs);
    let differences = |fields: fn(&Manifest) -> Vec<(&'static str, Value)>| {
        let pairs = fields(a).into_iter().zip(fields(b));
        pairs
            .filter(|(a, b)| a.1 != b.1)
            .map(|((field, a), (_, b))| Difference { field: field.into(), a, b })
            .collect::<Vec<_>>()
    };
    let deciding = differences(deciding_fields);
    let sets = |manifest: &Manifest| -> BTreeMap<String, u64> {
        manifest.sets.iter().map(|set| (set.name.clone(), set.tokens)).collect()
    };
    let (sets_a, sets_b) = (sets(a), sets(b));
    let names: std::collections::BTreeSet<_> = sets_a.keys().chain(sets_b.keys()).collect();
    let sets = names
        .into_iter()
        .map(|name| {
            let tokens = |sets: &BTreeMap<String, u64>| sets.get(name).copied().unwrap_or(0);
            (name.clone(), tokens(&sets_a), tokens(&sets_b))
        })
        .filter(|(_, a, b)| a != b)
        .collect();
    let same_root = a.root == b.root;
    DiffReport {
        same_root,
        root_a: a.root,
        root_b: b.root,
        explanation: explain(a, b, same_root, &deciding, &inputs),
        deciding,
        other: differences(other_fields),
        inputs,
        sets,
        problems: Vec::new(),
        files_compared: false,
    }
}

/// The fields that enter `root`, but the list of inputs, which is compared on its own.
fn deciding_fields(m: &Manifest) -> Vec<(&'static str, Value)> {
    let (t, s) = (&m.tokenizer, &m.selection);
    vec![
        ("version", json!(m.version)),
        ("layout", json!(m.layout)),
        ("packing.row_length", json!(m.packing.row_length)),
        ("packing.append_end_of_text", json!(m.packing.append_end_of_text)),
        ("packing.targets", json!(m.packing.targets)),
        ("tokenizer.name", json!(t.name)),
        ("tokenizer.files", json!(t.files)),
        ("tokenizer.vocabulary_size", json!(t.vocabulary_size)),
        ("tokenizer.end_of_text", json!(t.end_of_text)),
        ("tokenizer.special_tokens", json!(t.special_tokens)),
        ("tokenizer.probe_sha256", json!(t.probe_sha256)),
        ("selection.text_field", json!(s.text_field)),
        ("selection.set_field", json!(s.set_field)),
        ("selection.exclude_sets", json!(s.exclude_sets)),
        ("selection.max_tokens", json!(s.max_tokens)),
        ("selection.holdout", json!(s.holdout)),
        ("selection.drop_duplicates", json!(s.drop_duplicates)),
        ("inputs (number)", json!(m.inputs.len())),
        ("totals.documents", json!(m.totals.documents)),
        ("totals.tokens", json!(m.totals.tokens)),
        ("totals.rows", json!(m.totals.rows)),
        ("tokens_root", json!(m.tokens_root)),
        ("documents_root", json!(m.documents_root)),
    ]
}

fn other_fields(m: &Manifest) -> Vec<(&'static str, Value)> {
    let source = origin::normalized(&m.source);
    vec![
        ("split", json!(m.split)),
        ("source.profile", json!(m.source.profile)),
        ("source.repository", json!(source.repository)),
        ("source.requested_revision", json!(source.requested_revision)),
        ("source.resolved_revision", json!(source.resolved_revision)),
        ("source.licences", json!(source.licences)),
        ("source.claimed", json!(source.claimed)),
        ("selection.id_field", json!(m.selection.id_field)),
        ("selection.license_field", json!(m.selection.license_field)),
        ("selection.source_field", json!(m.selection.source_field)),
        ("selection.on_bad_record", json!(m.selection.on_bad_record)),
        ("tokenizer.engine", json!(m.tokenizer.engine)),
        ("tokenizer.engine_version", json!(m.tokenizer.engine_version)),
        ("packing.rows_per_shard", json!(m.packing.rows_per_shard)),
        ("shards (number)", json!(m.shards.len())),
        ("totals.text_bytes", json!(m.totals.text_bytes)),
        ("totals.left_out", json!(m.totals.left_out)),
        ("part", json!(m.part)),
        ("tool", json!(m.tool)),
    ]
}

/// The likely cause, from the outside in: what was read, what was selected, what tokenized it.
fn explain(
    a: &Manifest,
    b: &Manifest,
    same_root: bool,
    deciding: &[Difference],
    inputs: &InputDifferences,
) -> String {
    let differs = |prefix: &str| deciding.iter().any(|difference| difference.field.starts_with(prefix));
    let same_tokens = a.tokens_root == b.tokens_root && a.layout == b.layout;
    if same_root && a.totals.documents == 0 {
        return "Both are empty: there was no token to compare.".into();
    }
    if same_root {
        return if inputs.renamed.is_empty() {
            "The same tokens from the same bytes in the same way.".into()
        } else {
            "The same tokens from the same bytes in the same way; only names differ.".into()
        };
    }
    let mut causes = Vec::new();
    if !inputs.same_bytes() {
        causes.push("other input bytes or another order of them");
    }
    if differs("selection") {
        causes.push("another selection of documents");
    }
    if differs("tokenizer") {
        causes.push("another tokenizer");
    }
    if differs("packing") || differs("layout") {
        causes.push("another layout of rows");
    }
    let causes = match causes.as_slice() {
        [] => "neither inputs, selection, tokenizer nor packing: the files differ although they were made alike; \
               run `xlstm-data audit --deep all` on both"
            .into(),
        causes => causes.join(", "),
    };
    let tokens = if same_tokens { "The same rows of tokens, but" } else { "Different tokens and" };
    format!("{tokens} different roots, through {causes}.")
}

fn write_text(out: &mut dyn Write, report: &DiffReport) -> io::Result<()> {
    writeln!(out, "{}", report.explanation)?;
    for problem in &report.problems {
        writeln!(out, "✗ {problem}")?;
    }
    if report.same_root {
        writeln!(out, "root  {}", report.root_a)?;
    } else {
        writeln!(out, "root  A {}\n      B {}", report.root_a, report.root_b)?;
    }
    write_differences(out, "decides the tokens", &report.deciding)?;
    let inputs = &report.inputs;
    write_names(out, "only in A", &inputs.removed)?;
    write_names(out, "only in B", &inputs.added)?;
    write_names(out, "other bytes", &inputs.changed)?;
    write_names(out, "other counts", &inputs.recounted)?;
    let renamed: Vec<String> = inputs.renamed.iter().map(|(a, b)| format!("{a} → {b}")).collect();
    write_names(out, "other name", &renamed)?;
    if inputs.reordered {
        writeln!(out, "inputs: those that both have come in another order")?;
    }
    for (set, a, b) in &report.sets {
        let set = printable::text(set);
        writeln!(out, "set {set}: A {} tokens, B {} tokens", count(*a), count(*b))?;
    }
    write_differences(out, "decides nothing", &report.other)
}

fn write_differences(out: &mut dyn Write, kind: &str, differences: &[Difference]) -> io::Result<()> {
    for Difference { field, a, b } in differences {
        let (a, b) = (a.to_string(), b.to_string());
        writeln!(out, "{field} ({kind})\n      A {}\n      B {}", printable::json(&a), printable::json(&b))?;
    }
    Ok(())
}

/// Names shown before the rest is counted.
const NAMES_SHOWN: usize = 20;

fn write_names(out: &mut dyn Write, what: &str, names: &[String]) -> io::Result<()> {
    for name in names.iter().take(NAMES_SHOWN) {
        writeln!(out, "input {what}: {}", printable::text(name))?;
    }
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => Ok(()),
        more => writeln!(out, "input {what}: and {more} more (--json lists them)"),
    }
}
