//! `--deep`: documents are read again from their source files, tokenized again and compared with what is stored.
//!
//! Documents are stored in the order of their inputs, so each input's documents are one run of numbers and each
//! source file is read once. Files are read in parallel, and inside a file batches of documents are
//! tokenized in parallel, so that one large file keeps all cores at work too.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;
use xlstm_manifests::manifest::{Input, Layout, MANIFEST_NAME};
use xlstm_manifests::{Manifest, Sha256Digest};

use super::copies;
use super::corpus::{Corpus, Meta, ShardDocuments};
use super::deep_examples;
use super::finding::{Check, Findings};
use super::locate::Locator;
use super::progress::ByteProgress;
use super::sample::{Amount, Chosen};
use crate::duplicates::Copies;
use crate::record::{Entry, Record};
use crate::report::CommandError;
use crate::sources::{self, Fields, Format, SourceError};
use crate::tokenizer::{EncodeScratch, Gpt2Tokenizer};

/// What a deep audit did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DeepReport {
    /// Documents read again and compared.
    pub documents: u64,
    /// Documents of the split.
    pub of: u64,
    /// Source files read.
    pub inputs: u64,
    /// Bytes of text tokenized again.
    pub text_bytes: u64,
    /// Copies that a list left out, read again; absent where no list was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<u64>,
}

/// What a deep audit is to look at, and where.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) amount: Amount,
    pub(super) seed: u64,
    /// Folder of the source files.
    pub(super) inputs: Option<&'a Path>,
    /// The list of copies that the split was prepared with.
    pub(super) copies: Option<&'a Copies>,
}

/// Bytes of text that are tokenized together.
const BATCH_BYTES: usize = 8 << 20;

/// What one thread keeps from document to document.
#[derive(Default)]
struct Workplace<'a> {
    scratch: EncodeScratch,
    open: Option<(usize, ShardDocuments<'a>)>,
    stored: Vec<u16>,
    encoded: Vec<u16>,
}

/// Documents of one input that are to be compared.
struct InputDocuments<'a> {
    index: u32,
    input: &'a Input,
    /// Their numbers in the split, ascending.
    numbers: Vec<u64>,
}

struct Deep<'a> {
    corpus: &'a Corpus,
    tokenizer: &'a Gpt2Tokenizer,
    fields: Fields,
    progress: &'a ByteProgress,
}

/// Reads documents of the split in `folder` again.
///
/// # Errors
/// When the split cannot be opened; what differs is a finding.
pub(super) fn check(
    folder: &Path,
    Asked { amount, seed, inputs, copies }: Asked<'_>,
    findings: &mut Findings,
) -> Result<DeepReport, CommandError> {
    let corpus = Corpus::open(folder)?;
    let manifest = corpus.manifest();
    if manifest.source.generator.is_some() {
        return Ok(super::generated::check(&corpus, amount, seed, findings));
    }
    let locator = Locator::new(folder, &manifest.source, inputs);
    let chosen = Chosen::new(amount, corpus.documents(), seed);
    match manifest.layout {
        Layout::Packed | Layout::Documents => {}
        Layout::Examples | Layout::Vectors => {
            return Ok(deep_examples::check(&corpus, &chosen, &locator, findings));
        }
    }
    let tokenizer = Gpt2Tokenizer::new()?;
    if !same_tokenizer(manifest, &tokenizer, findings)? {
        return Ok(DeepReport { of: corpus.documents(), ..DeepReport::default() });
    }
    // Exact for all documents; for some, as if they were of average length.
    let share = chosen.len() as f64 / corpus.documents().max(1) as f64;
    let progress =
        ByteProgress::over_bytes("audit --deep", (manifest.totals.text_bytes as f64 * share) as u64);
    let deep =
        Deep { corpus: &corpus, tokenizer: &tokenizer, fields: fields_of(manifest), progress: &progress };
    let mut next = 0;
    let work: Vec<(u32, &Input, Range<u64>)> = (0u32..)
        .zip(&manifest.inputs)
        .map(|(index, input)| {
            let start = next;
            next += input.counts.documents;
            (index, input, start..next)
        })
        .collect();
    let results: Vec<(Findings, DeepReport)> = work
        .into_par_iter()
        .filter_map(|(index, input, range)| {
            let documents = InputDocuments { index, input, numbers: chosen.within(range) };
            (!documents.numbers.is_empty()).then(|| {
                let mut found = Findings::default();
                let report = deep.input(&documents, &locator, &mut found);
                (found, report)
            })
        })
        .collect();
    let mut total = DeepReport { of: corpus.documents(), ..DeepReport::default() };
    for (found, report) in results {
        findings.absorb(found);
        total.documents += report.documents;
        total.inputs += report.inputs;
        total.text_bytes += report.text_bytes;
    }
    total.copies = copies.map(|list| copies::check(&corpus, list, (amount, seed), &locator, findings));
    Ok(total)
}

/// The fields that the text was read from.
pub(crate) fn fields_of(manifest: &Manifest) -> Fields {
    let profile = manifest.source.profile.as_str();
    let mut fields = match profile {
        _ if profile.starts_with("paloma") => Fields::paloma(),
        _ if profile.starts_with("slimpajama") => Fields::slimpajama(),
        _ => Fields::default(),
    };
    let selection = &manifest.selection;
    for (field, named) in [
        (&mut fields.id, &selection.id_field),
        (&mut fields.license, &selection.license_field),
        (&mut fields.source, &selection.source_field),
    ] {
        if named.is_some() {
            field.clone_from(named);
        }
    }
    if let Some(text) = &manifest.selection.text_field {
        fields.text.clone_from(text);
    }
    if manifest.selection.set_field.is_some() {
        fields.set.clone_from(&manifest.selection.set_field);
    }
    fields
}

/// How an input was read. Its name says it, whatever a cache calls the file.
pub(crate) fn format_of(input: &Input) -> Result<Format, SourceError> {
    match crate::plan::format_of_name(&input.format) {
        Some(format) => Ok(format),
        None => Format::of(Path::new(input.path.as_str())),
    }
}

/// The text as it was read: earlier versions took a byte order mark at a file's head for a part of it.
pub(crate) fn with_mark<'a>(text: &'a str, meta: &Meta) -> Cow<'a, str> {
    if meta.bytes != text.len() as u64 + 3 {
        return Cow::Borrowed(text);
    }
    let marked = format!("\u{feff}{text}");
    if Sha256Digest::of(marked.as_bytes()) == meta.digest { Cow::Owned(marked) } else { Cow::Borrowed(text) }
}

fn same_tokenizer(
    manifest: &Manifest,
    tokenizer: &Gpt2Tokenizer,
    findings: &mut Findings,
) -> Result<bool, CommandError> {
    let identity = tokenizer.identity()?;
    let probe = manifest.tokenizer.probe_sha256;
    if identity.files == manifest.tokenizer.files && identity.probe_sha256 == probe {
        return Ok(true);
    }
    let expected = format!("the tokenizer of this program (probe {})", identity.probe_sha256);
    let found =
        format!("`{}` (probe {probe}): nothing can be re-derived with another one", manifest.tokenizer.name);
    findings.differ(MANIFEST_NAME, Check::Deep, expected, found);
    Ok(false)
}

impl Deep<'_> {
    /// The chosen documents of one input.
    fn input(
        &self,
        documents: &InputDocuments<'_>,
        locator: &Locator,
        findings: &mut Findings,
    ) -> DeepReport {
        let input = documents.input;
        let name = input.path.as_str();
        let mut report = DeepReport::default();
        let path = match locator.verified(input) {
            Ok(path) => path,
            Err(problem) => {
                findings.add(name, Check::Deep, problem);
                return report;
            }
        };
        if let Err(problem) = self.compare(documents, &path, &mut report, findings) {
            findings.add(name, Check::Deep, problem);
        }
        report.inputs = 1;
        report
    }

    fn compare(
        &self,
        documents: &InputDocuments<'_>,
        path: &Path,
        report: &mut DeepReport,
        findings: &mut Findings,
    ) -> Result<(), String> {
        let InputDocuments { index, input, ref numbers } = *documents;
        let say = |error: &dyn std::error::Error| error.to_string();
        // A cache may keep the file under another name: the format is that of the input's own.
        let format = format_of(input).map_err(|error| say(&error))?;
        let mut wanted = numbers.iter().copied().peekable();
        let mut shard: Option<(usize, ShardDocuments<'_>)> = None;
        let first = match wanted.peek() {
            Some(&number) => self.meta_of(number, index, &mut shard)?,
            None => return Ok(()),
        };
        let mut reader = sources::open(path, format, &self.fields, first).map_err(|error| say(&error))?;
        let mut batch: Vec<(u64, Record)> = Vec::new();
        let mut batch_bytes = 0;
        let mut next = wanted.next().map(|number| (number, first));
        while let Some((number, record)) = next {
            let found = read_record(reader.as_mut(), record)?;
            batch_bytes += found.text.len();
            batch.push((number, found));
            if batch_bytes >= BATCH_BYTES {
                self.compare_batch(std::mem::take(&mut batch), input, report, findings)?;
                batch_bytes = 0;
            }
            next = match wanted.next() {
                Some(number) => Some((number, self.meta_of(number, index, &mut shard)?)),
                None => None,
            };
        }
        self.compare_batch(batch, input, report, findings)
    }

    /// The record number of document `number`, which must be one of input `index`.
    fn meta_of<'c>(
        &'c self,
        number: u64,
        index: u32,
        open: &mut Option<(usize, ShardDocuments<'c>)>,
    ) -> Result<u64, String> {
        let missing = || format!("document {number} is not in the split");
        let (shard, place) = self.corpus.place_of(number).ok_or_else(missing)?;
        let meta = self.open(shard, open)?.meta(place).ok_or_else(missing)?;
        if meta.input == index {
            Ok(meta.record)
        } else {
            Err(format!("document {number} should be of input {index}, but is of input {}", meta.input))
        }
    }

    /// The documents of `shard`, which stay open until another shard is asked for.
    fn open<'c, 'o>(
        &'c self,
        shard: usize,
        open: &'o mut Option<(usize, ShardDocuments<'c>)>,
    ) -> Result<&'o ShardDocuments<'c>, String> {
        let at_hand = open.take().filter(|(number, _)| *number == shard);
        let documents = match at_hand {
            Some((_, documents)) => documents,
            None => self.corpus.shard(shard).map_err(|error| error.to_string())?,
        };
        Ok(&open.insert((shard, documents)).1)
    }

    fn compare_batch(
        &self,
        batch: Vec<(u64, Record)>,
        input: &Input,
        report: &mut DeepReport,
        findings: &mut Findings,
    ) -> Result<(), String> {
        report.documents += batch.len() as u64;
        let text_bytes = batch.iter().map(|(_, record)| record.text.len() as u64).sum::<u64>();
        report.text_bytes += text_bytes;
        self.progress.advance(text_bytes);
        let problems: Vec<String> = batch
            .par_chunks(64)
            .map_init(Workplace::default, |workplace, documents| {
                let problem =
                    |(number, record): &(u64, Record)| self.problem(*number, record, workplace).err();
                documents.iter().filter_map(problem).collect::<Vec<_>>()
            })
            .flatten()
            .collect();
        for problem in problems {
            findings.add(input.path.as_str(), Check::Deep, problem);
        }
        Ok(())
    }

    /// What is wrong with document `number`, given its record in the source.
    fn problem<'c>(
        &'c self,
        number: u64,
        source: &Record,
        workplace: &mut Workplace<'c>,
    ) -> Result<(), String> {
        let missing = || format!("document {number} is not in the split");
        let (shard, place) = self.corpus.place_of(number).ok_or_else(missing)?;
        let Workplace { scratch, open, stored, encoded } = workplace;
        let documents = self.open(shard, open)?;
        let meta = documents.read(place, stored).map_err(|error| error.to_string())?.ok_or_else(missing)?;
        let text = with_mark(&source.text, &meta);
        let text = text.as_ref();
        let differ = |what: &str, expected: String, found: String| {
            let record = meta.record;
            Err(format!(
                "document {number} (record {record}), {what}: expected {expected} from the source, found {found}"
            ))
        };
        if meta.bytes != text.len() as u64 {
            return differ("bytes of text", text.len().to_string(), meta.bytes.to_string());
        }
        let digest = Sha256Digest::of(text.as_bytes());
        if meta.digest != digest {
            return differ("digest of the text", digest.to_string(), meta.digest.to_string());
        }
        if let (Some(expected), Some(found)) = (&source.set, &meta.set)
            && !names_set(found, expected)
        {
            return differ("set", format!("`{expected}`"), format!("`{found}`"));
        }
        let manifest = self.corpus.manifest();
        // Older manifests do not record which field was read.
        for (what, recorded, expected, found) in [
            ("id", manifest.selection.id_field.is_some(), &source.id, &meta.id),
            ("license", !manifest.record_licenses.is_empty(), &source.license, &meta.license),
            ("source", !manifest.record_sources.is_empty(), &source.source, &meta.source),
        ] {
            if recorded && expected != found {
                return differ(what, format!("{expected:?}"), format!("{found:?}"));
            }
        }
        if let Some(found) = meta.chars_and_words {
            let expected = (text.chars().count() as u64, xlstm_manifests::documents::count_words(text));
            if expected != found {
                return differ("characters and words", format!("{expected:?}"), format!("{found:?}"));
            }
        }
        encoded.clear();
        self.tokenizer.encode_into(scratch, text, encoded).map_err(|error| error.to_string())?;
        if encoded != stored {
            let at = encoded.iter().zip(stored.iter()).take_while(|(a, b)| a == b).count();
            let id = |ids: &[u16]| ids.get(at).map_or("no token".to_owned(), |id| format!("token {id}"));
            return differ(&format!("token {at}"), id(encoded), id(stored));
        }
        Ok(())
    }
}

/// Whether a manifest's set is the one that a record names: itself, or below the name of its source.
fn names_set(stored: &str, source: &str) -> bool {
    stored == source || stored.strip_suffix(source).is_some_and(|prefix| prefix.ends_with('/'))
}

/// Reads on until the record numbered `number`.
pub(super) fn read_record(reader: &mut dyn sources::RecordReader, number: u64) -> Result<Record, String> {
    loop {
        let found = match reader.next_entry() {
            Some(Ok(Entry::Record(record))) if record.number == number => return Ok(record),
            Some(Ok(Entry::Record(Record { number: at, .. }) | Entry::Bad { number: at, .. }))
                if at < number =>
            {
                continue;
            }
            Some(Ok(Entry::Record(record))) => format!("record {}", record.number),
            Some(Ok(Entry::Bad { number: at, reason, found })) => {
                format!("record {at}, which cannot be used ({}: {found})", reason.reason())
            }
            Some(Err(error)) => return Err(error.to_string()),
            None => "the end of the file".into(),
        };
        return Err(format!("expected record {number}, found {found}"));
    }
}
