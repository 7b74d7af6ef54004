//! From a number to a chain of origin.

use rayon::prelude::*;
use xlstm_manifests::manifest::{Input, Layout, Manifest};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::origin;
use xlstm_manifests::{Dataset, Sha256Digest, printable};

use super::generated::vector;
use super::{DocumentTrace, Excerpt, InputTrace, RowTrace, SourceTrace, TokenTrace, TraceArgs, TraceReport};
use crate::audit::corpus::{Corpus, Meta};
use crate::audit::locate::Locator;
use crate::audit::{fields_of, format_of, with_mark};
use crate::report::CommandError;
use crate::sources;
use crate::sources::examples::Examples;
use crate::tokenizer::Gpt2Tokenizer;

pub(super) fn trace(args: &TraceArgs) -> Result<TraceReport, CommandError> {
    let path =
        args.path.as_deref().ok_or_else(|| CommandError::Usage("name the folder of a split".into()))?;
    let corpus = Corpus::open(path)?;
    let manifest = corpus.manifest();
    let mut report = TraceReport {
        split: manifest.split.clone(),
        root: manifest.root,
        row: None,
        documents: Vec::new(),
        token: None,
        sample: None,
        problems: Vec::new(),
    };
    match (args.row, args.document) {
        (Some(row), _) => trace_row(args, &corpus, row, &mut report)?,
        (None, Some(document)) => trace_document(args, &corpus, document, &mut report)?,
        (None, None) => return Err(CommandError::Usage("expected --row R or --document N".into())),
    }
    report.sample = super::generated::sample(&corpus, &report)?;
    if report.sample.as_ref().is_some_and(|sample| !sample.agrees) {
        report.problems.push("the stored row is not the sample that the generator makes".into());
    }
    if let Some(TokenTrace { source: SourceTrace::Differs { problem }, .. }) = &report.token {
        report.problems.push(problem.clone());
    }
    Ok(report)
}

fn trace_row(
    args: &TraceArgs,
    corpus: &Corpus,
    row: u64,
    report: &mut TraceReport,
) -> Result<(), CommandError> {
    let dataset = corpus.rows().ok_or_else(|| {
        let manifest = Manifest::locate(args.path.as_deref().unwrap_or(std::path::Path::new(".")));
        CommandError::Usage(format!(
            "`{}` is stored by document and has no packed rows: ask with --document N",
            manifest.display()
        ))
    })?;
    let row_trace = prove_row(dataset, row)?;
    if !row_trace.proved {
        let problem = format!(
            "`{}`: expected tokens_root {}, found another one over its rows; run `xlstm-data audit`",
            row_trace.shard, row_trace.tokens_root
        );
        report.problems.push(problem);
    }
    let (start, end) = (row_trace.first_position, row_trace.first_position + row_trace.tokens);
    let row_length = u64::from(dataset.manifest().packing.row_length);
    // Documents of the row are next to each other in the stream.
    let first = first_document(corpus, start, row_length)?;
    let mut found = Vec::new();
    for number in first..corpus.documents() {
        let (meta, from, to) = stream_place(corpus, number, row_length)?;
        if from >= end {
            break;
        }
        found.push((number, meta, from, to));
    }
    report.documents = found
        .iter()
        .map(|(number, meta, from, to)| {
            let of_row = (from.max(&start) - start, to.min(&end) - 1 - start);
            describe(dataset.manifest(), *number, meta, Some(of_row))
        })
        .collect();
    if let Some(token) = args.token {
        let wrong = || {
            let tokens = row_trace.tokens;
            CommandError::Usage(format!(
                "expected a token below {tokens}, the valid tokens of row {row}, found {token}"
            ))
        };
        let position = start + token;
        let place = found.iter().find(|(_, _, from, to)| (*from..*to).contains(&position));
        let (number, meta, from, _) = place.filter(|_| position < end).ok_or_else(wrong)?;
        report.token = Some(trace_token(args, corpus, *number, meta, token, position - from)?);
    }
    report.row = Some(row_trace);
    Ok(())
}

/// The row with its leaf, and whether the shard's rows give the root that the manifest has.
fn prove_row(dataset: &Dataset, row: u64) -> Result<RowTrace, CommandError> {
    let tokens = dataset.positions(row)?;
    let manifest = dataset.manifest();
    let (first_row, shard) = dataset
        .shards()
        .filter(|(first, _)| *first <= row)
        .last()
        .ok_or_else(|| CommandError::Usage(format!("row {row} is in no shard")))?;
    let leaves: Vec<Sha256Digest> = (first_row..first_row + shard.file.records)
        .into_par_iter()
        .map(|row| dataset.leaf(row))
        .collect::<Result<_, xlstm_manifests::Error>>()?;
    let mut tree = MerkleTree::new();
    leaves.iter().for_each(|&leaf| tree.push(leaf));
    Ok(RowTrace {
        row,
        shard: shard.file.path.to_string(),
        shard_sha256: shard.file.sha256,
        row_in_shard: row - first_row,
        tokens,
        first_position: row * u64::from(manifest.packing.row_length),
        leaf: dataset.leaf(row)?,
        tokens_root: shard.tokens_root,
        proved: tree.root() == shard.tokens_root,
    })
}

/// The document that holds stream position `position`.
fn first_document(corpus: &Corpus, position: u64, row_length: u64) -> Result<u64, CommandError> {
    let (mut low, mut high) = (0, corpus.documents());
    while low < high {
        let middle = low + (high - low) / 2;
        let (_, _, to) = stream_place(corpus, middle, row_length)?;
        if to <= position { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

/// A document with the stream positions of its first token and after its last, separator included.
fn stream_place(corpus: &Corpus, number: u64, row_length: u64) -> Result<(Meta, u64, u64), CommandError> {
    let meta = meta(corpus, number)?;
    let (row, offset) =
        meta.place.ok_or_else(|| CommandError::Internal(format!("document {number} has no row")))?;
    let from = row * row_length + u64::from(offset);
    let to = from + meta.tokens + u64::from(corpus.manifest().packing.append_end_of_text);
    Ok((meta, from, to))
}

fn meta(corpus: &Corpus, number: u64) -> Result<Meta, CommandError> {
    let missing = || {
        let documents = corpus.documents();
        CommandError::Usage(format!("expected a document below {documents}, found {number}"))
    };
    let (shard, place) = corpus.place_of(number).ok_or_else(missing)?;
    corpus.shard(shard)?.meta(place).ok_or_else(missing)
}

fn trace_document(
    args: &TraceArgs,
    corpus: &Corpus,
    number: u64,
    report: &mut TraceReport,
) -> Result<(), CommandError> {
    let meta = meta(corpus, number)?;
    report.documents = vec![describe(corpus.manifest(), number, &meta, None)];
    if let Some(token) = args.token {
        let separator = u64::from(corpus.manifest().packing.append_end_of_text);
        if token >= meta.tokens + separator {
            let tokens = meta.tokens;
            return Err(CommandError::Usage(format!(
                "expected a token below {tokens}, the tokens of document {number}, found {token}"
            )));
        }
        report.token = Some(trace_token(args, corpus, number, &meta, token, token)?);
    }
    Ok(())
}

fn describe(
    manifest: &Manifest,
    document: u64,
    meta: &Meta,
    tokens_of_row: Option<(u64, u64)>,
) -> DocumentTrace {
    let input = manifest.inputs.get(meta.input as usize);
    DocumentTrace {
        document,
        tokens_of_row,
        tokens: meta.tokens,
        bytes: meta.bytes,
        set: meta.set.clone(),
        id: meta.id.clone(),
        license: meta.license.clone(),
        source: meta.source.clone(),
        digest: meta.digest,
        record: meta.record,
        input: input_trace(manifest, input),
    }
}

fn input_trace(manifest: &Manifest, input: Option<&Input>) -> InputTrace {
    let own =
        input.and_then(|input| input.licence.as_ref()).map(|licence| format!("{licence} (the file's own)"));
    let source = origin::normalized(&manifest.source);
    let said = source.licences.iter().map(|l| format!("{} ({})", l.statement, l.claimed_by));
    InputTrace {
        path: input.map_or("?".into(), |input| input.path.to_string()),
        sha256: input.map_or(Sha256Digest([0; 32]), |input| input.sha256),
        declared: input.and_then(|input| input.declared.clone()),
        licences: own.into_iter().chain(said).collect(),
        claimed: source.claimed,
        repository: source.repository,
        revision: source.resolved_revision,
    }
}

fn trace_token(
    args: &TraceArgs,
    corpus: &Corpus,
    number: u64,
    meta: &Meta,
    token: u64,
    of_document: u64,
) -> Result<TokenTrace, CommandError> {
    match corpus.manifest().layout {
        Layout::Packed | Layout::Documents => {}
        Layout::Examples => return trace_position(args, corpus, number, meta, of_document),
        Layout::Vectors => return trace_vector(args, corpus, number, meta, of_document),
    }
    let tokenizer = Gpt2Tokenizer::new()?;
    let gone = || CommandError::Usage(format!("document {number} is not in the split"));
    let (shard, place) = corpus.place_of(number).ok_or_else(gone)?;
    let mut ids = Vec::new();
    corpus.shard(shard)?.read(place, &mut ids)?;
    let index = usize::try_from(of_document).map_err(|_| gone())?;
    let separator = index >= ids.len();
    let end_of_text = corpus.manifest().tokenizer.end_of_text;
    let id = ids.get(index).copied().unwrap_or(end_of_text);
    let before: usize =
        ids.iter().take(index).map(|&id| tokenizer.token_bytes(id).map_or(0, <[u8]>::len)).sum();
    let length = if separator { 0 } else { tokenizer.token_bytes(id).map_or(0, <[u8]>::len) };
    let text = tokenizer.decode(&ids);
    let range = before..before + length;
    let source = read_source(args, corpus, meta, &text, &range);
    let mut excerpt = excerpt(&text, &range, args.around);
    if separator {
        excerpt.token = "<|endoftext|>".into();
    }
    Ok(TokenTrace {
        token,
        document: number,
        id: Some(id),
        separator,
        target: None,
        token_of_document: of_document,
        byte_of_document: before as u64,
        text: excerpt,
        source,
    })
}

/// Ids that are shown on either side of a position.
const IDS_AROUND: usize = 8;

/// A position of an example: there is no text, so ids stand around it.
fn trace_position(
    args: &TraceArgs,
    corpus: &Corpus,
    number: u64,
    meta: &Meta,
    position: u64,
) -> Result<TokenTrace, CommandError> {
    let gone = || CommandError::Usage(format!("example {number} has no position {position}"));
    let (row, _) = meta.place.ok_or_else(gone)?;
    let example = corpus.rows().map(|rows| rows.example(row)).transpose()?.flatten().ok_or_else(gone)?;
    let index = usize::try_from(position).map_err(|_| gone())?;
    let id = *example.input_ids.get(index).ok_or_else(gone)?;
    let target = example.targets().nth(index).flatten();
    let ids = |range: std::ops::Range<usize>| {
        let ids = example.input_ids.get(range).unwrap_or_default();
        ids.iter().map(u16::to_string).collect::<Vec<_>>().join(" ")
    };
    let text = Excerpt {
        before: format!("{} ", ids(index.saturating_sub(IDS_AROUND)..index)),
        token: id.to_string(),
        after: format!(" {}", ids(index + 1..(index + 1 + IDS_AROUND).min(example.input_ids.len()))),
    };
    let source = read_example(args, corpus, meta, &text);
    Ok(TokenTrace {
        token: position,
        document: number,
        id: Some(id),
        separator: false,
        target: Some(target.map_or_else(|| "not scored".into(), |target| target.to_string())),
        token_of_document: position,
        byte_of_document: 0,
        text,
        source,
    })
}

/// A position of an example of numbers, with those around it.
fn trace_vector(
    args: &TraceArgs,
    corpus: &Corpus,
    number: u64,
    meta: &Meta,
    position: u64,
) -> Result<TokenTrace, CommandError> {
    let gone = || CommandError::Usage(format!("example {number} has no position {position}"));
    let (row, _) = meta.place.ok_or_else(gone)?;
    let example = corpus.rows().map(|rows| rows.vectors(row)).transpose()?.flatten().ok_or_else(gone)?;
    let width = corpus.manifest().packing.input_width.unwrap_or(1).max(1) as usize;
    let vectors: Vec<&[f32]> = example.inputs.chunks(width).collect();
    let index = usize::try_from(position).map_err(|_| gone())?;
    let here = vectors.get(index).ok_or_else(gone)?;
    let target = example.targets().nth(index).flatten();
    let shown = |range: std::ops::Range<usize>| {
        vectors[range].iter().map(|numbers| vector(numbers)).collect::<Vec<_>>().join(" ")
    };
    let text = Excerpt {
        before: format!("{} ", shown(index.saturating_sub(IDS_AROUND)..index)),
        token: vector(here),
        after: format!(" {}", shown(index + 1..(index + 1 + IDS_AROUND).min(vectors.len()))),
    };
    let source = match corpus.manifest().source.generator {
        // The sample is made again beside this.
        Some(_) => {
            SourceTrace::NotAtHand { reason: "made by the generator that the manifest names".to_owned() }
        }
        None => read_example(args, corpus, meta, &text),
    };
    Ok(TokenTrace {
        token: position,
        document: number,
        id: None,
        separator: false,
        target: Some(target.map_or_else(|| "not scored".into(), |target| target.to_string())),
        token_of_document: position,
        byte_of_document: 0,
        text,
        source,
    })
}

/// The example read again from its source file; `text` is what is shown of it.
fn read_example(args: &TraceArgs, corpus: &Corpus, meta: &Meta, text: &Excerpt) -> SourceTrace {
    let manifest = corpus.manifest();
    let Some(input) = manifest.inputs.get(meta.input as usize) else {
        return SourceTrace::Differs { problem: format!("the manifest has no input {}", meta.input) };
    };
    let locator = Locator::new(corpus.folder(), &manifest.source, args.inputs.as_deref());
    let file = match locator.verified(input) {
        Ok(file) => file,
        Err(reason) => return SourceTrace::NotAtHand { reason },
    };
    match Examples::open(&file).and_then(|mut examples| examples.seek(meta.record)) {
        Ok(mut example) => {
            example.pad(manifest.packing.row_length as usize);
            let found = example.stored().digest();
            if found == meta.digest {
                return SourceTrace::Agrees { file, text: text.clone() };
            }
            let (record, place) = (meta.record, file.display());
            let problem = format!(
                "record {record} of `{place}`: expected inputs and targets of sha256 {}, found {found}",
                meta.digest
            );
            SourceTrace::Differs { problem }
        }
        Err(error) => SourceTrace::Differs { problem: error.to_string() },
    }
}

/// `around` bytes on either side of `range`, whole characters where the text has them.
fn excerpt(text: &[u8], range: &std::ops::Range<usize>, around: usize) -> Excerpt {
    let continues = |at: usize| text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let (mut from, mut to) =
        (range.start.saturating_sub(around), range.end.saturating_add(around).min(text.len()));
    while continues(from) && from < range.start {
        from += 1;
    }
    while continues(to) && to > range.end {
        to -= 1;
    }
    let lossy = |range: std::ops::Range<usize>| {
        String::from_utf8_lossy(text.get(range).unwrap_or_default()).into_owned()
    };
    Excerpt {
        before: lossy(from..range.start),
        token: lossy(range.clone()),
        after: lossy(range.end..to.max(range.end)),
    }
}

fn read_source(
    args: &TraceArgs,
    corpus: &Corpus,
    meta: &Meta,
    stored: &[u8],
    range: &std::ops::Range<usize>,
) -> SourceTrace {
    let manifest = corpus.manifest();
    let Some(input) = manifest.inputs.get(meta.input as usize) else {
        return SourceTrace::Differs { problem: format!("the manifest has no input {}", meta.input) };
    };
    let locator = Locator::new(corpus.folder(), &manifest.source, args.inputs.as_deref());
    let file = match locator.verified(input) {
        Ok(file) => file,
        Err(reason) => return SourceTrace::NotAtHand { reason },
    };
    let read = format_of(input)
        .and_then(|format| sources::read_one(&file, format, &fields_of(manifest), meta.record));
    match read.map(|record| with_mark(&record.text, meta).into_owned()) {
        Ok(record) if record.as_bytes() == stored => {
            let text = excerpt(record.as_bytes(), range, args.around);
            SourceTrace::Agrees { file, text }
        }
        Ok(record) => {
            let digest = Sha256Digest::of(record.as_bytes());
            if digest == meta.digest {
                let (name, spelled) = (printable::path(&file), Sha256Digest::of(stored));
                return SourceTrace::Differs {
                    problem: format!(
                        "document's tokens: expected the text of record {} of `{name}`, which is the recorded one \
                         (sha256 {digest}), found tokens that spell another (sha256 {spelled}): the split's shards \
                         were altered; run `xlstm-data audit`, then restore them or prepare the split again",
                        meta.record
                    ),
                };
            }
            SourceTrace::Differs {
                problem: format!(
                    "record {} of `{}`: expected text of sha256 {}, found {digest}, {} bytes",
                    meta.record,
                    printable::path(&file),
                    meta.digest,
                    record.len()
                ),
            }
        }
        Err(error) => SourceTrace::Differs { problem: error.to_string() },
    }
}
