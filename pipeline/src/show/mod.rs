//! `xlstm-data show`: what is in a split, to look at: some of its documents or rows as text, the longest, by set, and how
//! long documents are.
//!
//! Texts come from the stored tokens, so no source file is needed; where ids spell nothing (examples, another tokenizer), ids
//! and targets are shown. Which documents are shown follows from the split alone: they are spread evenly over it.

mod choose;
mod text;

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use xlstm_manifests::manifest::{Layout, SetTotals};
use xlstm_manifests::{Error, Manifest, Sha256Digest, identity, printable};

use crate::audit::corpus::Corpus;
use crate::report::{CommandError, Outcome, write_json};
use crate::tokenizer::Gpt2Tokenizer;

/// Show some documents or rows of a split as text, the longest, by set, and how long documents are
#[derive(Debug, Clone, clap::Args)]
pub struct ShowArgs {
    /// Folder of a split, or its manifest
    #[arg(value_name = "SPLIT")]
    pub path: PathBuf,
    /// How many to show, spread evenly over the split
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub count: usize,
    /// The longest documents instead
    #[arg(long)]
    pub longest: bool,
    /// The first documents instead, without going over the whole split: no lengths are counted
    #[arg(long, conflicts_with = "longest")]
    pub first: bool,
    /// Only documents of this set, lengths too
    #[arg(long, value_name = "SET")]
    pub set: Option<String>,
    /// Packed rows in place of documents, as a model gets them
    #[arg(long, conflicts_with_all = ["longest", "set"])]
    pub rows: bool,
    /// Bytes of text to show of each; 0: all
    #[arg(long, value_name = "BYTES", default_value_t = 500)]
    pub bytes: usize,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// What is shown of a split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShowReport {
    /// `train`, `validation`, …
    pub split: String,
    /// The dataset's identity.
    pub root: Sha256Digest,
    /// How it is stored.
    pub layout: String,
    /// Documents of the split.
    pub documents: u64,
    /// Its valid tokens.
    pub tokens: u64,
    /// Its rows; 0 where it is stored by document.
    pub rows: u64,
    /// Its sets.
    pub sets: Vec<SetTotals>,
    /// How long documents are; none where they were not gone over.
    pub lengths: Option<Lengths>,
    /// The documents that are shown.
    pub shown: Vec<ShownDocument>,
    /// The rows that are shown.
    pub shown_rows: Vec<ShownRow>,
}

/// How long documents are, in tokens without separator.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Lengths {
    /// Documents counted.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
    /// The longest.
    pub longest: u64,
    /// Documents by length, in powers of two, up to the longest.
    pub bins: Vec<LengthBin>,
}

/// Documents of a range of lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LengthBin {
    /// Shortest length of the range, tokens.
    pub first: u64,
    /// Longest length of the range.
    pub last: u64,
    /// Documents.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
}

/// A document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownDocument {
    /// Number in the split's stream, as `trace --document` takes it.
    pub document: u64,
    /// Its set.
    pub set: Option<String>,
    /// The source's own name for it.
    pub id: Option<String>,
    /// The license that it carries itself.
    pub license: Option<String>,
    /// Its source file.
    pub input: String,
    /// Its record there.
    pub record: u64,
    /// Its tokens, without separator.
    pub tokens: u64,
    /// UTF-8 bytes of its text.
    pub bytes: u64,
    /// SHA-256 of its text.
    pub sha256: Sha256Digest,
    /// Its text or ids, cut where `cut` says so.
    pub text: String,
    /// Whether there is more of it.
    pub cut: bool,
    /// Stored targets with their positions, of an example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<String>,
}

/// A packed row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownRow {
    /// Number in the split.
    pub row: u64,
    /// Valid tokens.
    pub tokens: u64,
    /// Documents with tokens in it.
    pub documents: u64,
    /// Its text or ids, separators as `<|endoftext|>`; cut where `cut` says so.
    pub text: String,
    /// Whether there is more of it.
    pub cut: bool,
}

/// Ids for people.
enum Spelling {
    Text(Box<Gpt2Tokenizer>),
    Ids,
}

impl Spelling {
    /// Text where the split's ids are those of the tokenizer at hand.
    fn of(manifest: &Manifest) -> Result<Self, CommandError> {
        let tokenizer = Gpt2Tokenizer::new()?;
        let same = identity::tokenizer(&tokenizer.identity()?) == identity::tokenizer(&manifest.tokenizer);
        Ok(if same { Self::Text(Box::new(tokenizer)) } else { Self::Ids })
    }

    /// The first `bytes` bytes (0: all) of what ids spell, and whether there is more. Bytes that are half of a character are
    /// shown as U+FFFD.
    fn of_ids(&self, ids: &[u16], bytes: usize) -> (String, bool) {
        let text = match self {
            Self::Text(tokenizer) => tokenizer.decode_lossy(ids),
            Self::Ids => ids.iter().map(u16::to_string).collect::<Vec<_>>().join(" "),
        };
        if bytes == 0 || text.len() <= bytes {
            return (text, false);
        }
        (text[..text.floor_char_boundary(bytes)].to_owned(), true)
    }
}

/// Looks at the split that `args` name.
///
/// # Errors
/// When it cannot be opened or read, or has nothing of what is asked for.
pub fn show(args: &ShowArgs) -> Result<ShowReport, CommandError> {
    let corpus = Corpus::open(&args.path)?;
    let manifest = corpus.manifest();
    if manifest.layout == Layout::Vectors {
        let hint = "rows of numbers spell nothing: look at one with `xlstm-data trace --row R --token T`";
        let file = Manifest::locate(&args.path);
        return Err(Error::mismatch(&file, "a split of tokens", "layout `vectors`", hint).into());
    }
    let spelling = Spelling::of(manifest)?;
    let mut report = ShowReport {
        split: manifest.split.clone(),
        root: manifest.root,
        layout: manifest.layout.to_string(),
        documents: manifest.totals.documents,
        tokens: manifest.totals.tokens,
        rows: manifest.totals.rows,
        sets: manifest.sets.clone(),
        lengths: None,
        shown: Vec::new(),
        shown_rows: Vec::new(),
    };
    if args.rows {
        report.shown_rows = rows(args, &corpus, &spelling)?;
        return Ok(report);
    }
    let (numbers, lengths) = choose::choose(&corpus, args)?;
    report.lengths = lengths;
    for number in numbers {
        report.shown.extend(document(args, &corpus, &spelling, number)?);
    }
    Ok(report)
}

fn document(
    args: &ShowArgs,
    corpus: &Corpus,
    spelling: &Spelling,
    number: u64,
) -> Result<Option<ShownDocument>, CommandError> {
    let Some((shard, index)) = corpus.place_of(number) else { return Ok(None) };
    let mut ids = Vec::new();
    let Some(meta) = corpus.shard(shard)?.read(index, &mut ids)? else { return Ok(None) };
    let manifest = corpus.manifest();
    let example = match (corpus.rows(), meta.place) {
        (Some(dataset), Some((row, _))) if manifest.layout == Layout::Examples => dataset.example(row)?,
        _ => None,
    };
    if let Some(example) = &example {
        // What follows is padding.
        ids.truncate(usize::from(example.length));
    }
    let targets = example.map(|example| {
        let scored = example.targets().zip(0..).filter_map(|(target, at)| Some((target?, at)));
        scored.map(|(id, at): (u16, u32)| format!("{id} at {at}")).collect::<Vec<_>>().join(", ")
    });
    let spelling = if targets.is_some() { &Spelling::Ids } else { spelling };
    let (text, cut) = spelling.of_ids(&ids, args.bytes);
    Ok(Some(ShownDocument {
        document: number,
        set: meta.set,
        id: meta.id,
        license: meta.license,
        input: manifest
            .inputs
            .get(meta.input as usize)
            .map_or_else(String::new, |input| input.path.to_string()),
        record: meta.record,
        tokens: meta.tokens,
        bytes: meta.bytes,
        sha256: meta.digest,
        text,
        cut,
        targets,
    }))
}

fn rows(args: &ShowArgs, corpus: &Corpus, spelling: &Spelling) -> Result<Vec<ShownRow>, CommandError> {
    let dataset = corpus.rows().filter(|dataset| dataset.manifest().layout == Layout::Packed);
    let dataset = dataset.ok_or_else(|| {
        let found = format!("layout `{}`", corpus.manifest().layout);
        let hint = "its documents are its rows: leave --rows out";
        Error::mismatch(&Manifest::locate(&args.path), "packed rows", found, hint)
    })?;
    let rows = choose::spread(args.count, dataset.rows(), args.first);
    let shown = rows.into_iter().map(|number| {
        let row = dataset.row(number)?;
        let (text, cut) = spelling.of_ids(row.tokens(), args.bytes);
        let documents = dataset.documents_in_row(number)?.len() as u64;
        Ok(ShownRow { row: number, tokens: row.length as u64, documents, text, cut })
    });
    shown.collect()
}

/// Runs the command: what is shown goes to `out`.
///
/// # Errors
/// As [`show`], and when the report cannot be written.
pub fn run(args: &ShowArgs, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let report = show(args)?;
    if args.json {
        write_json(out, &report)?;
    } else {
        text::write(out, &report)?;
    }
    Ok(Outcome::Clean)
}

/// A set by its name, or which there are.
fn set_named<'a>(manifest: &'a Manifest, name: &str) -> Result<&'a SetTotals, CommandError> {
    manifest.sets.iter().find(|set| set.name == name).ok_or_else(|| {
        let names: Vec<_> =
            manifest.sets.iter().map(|set| format!("`{}`", printable::text(&set.name))).collect();
        let there =
            if names.is_empty() { "none: this split has no sets".to_owned() } else { names.join(", ") };
        CommandError::Usage(format!(
            "--set `{}`: expected a set of the split, {there}",
            printable::text(name)
        ))
    })
}
