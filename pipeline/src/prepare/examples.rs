//! Examples from files of this machine: JSON lines with inputs and targets, checked, padded and stored a row each.
//!
//! Files are read twice. The first pass takes their digests, checks every record, and finds the longest example and the
//! highest id, which are the row length and the vocabulary where the caller names none. The second pass writes. Examples are
//! of tokens or of numbers: the first one says which, and numbers are as many at every position of all of them.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::manifest::{Layout, Packing, Selection, Source, Tokenizer};
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::stored::{OfKind, StoredShape};
use xlstm_manifests::vectors::VectorShape;
use xlstm_manifests::{Manifest, Sha256Digest};

use super::{Prepared, local, packing_of_examples, refuse, walk, write_inputs_folder};
use crate::engine::{Filter, HoldoutCut, holdout_threshold};
use crate::plan::format_name;
use crate::sources::Format;
use crate::sources::examples::{ExampleEntry, Examples, SourceExample};
use crate::split::{DocumentMeta, InputMeta, Opened, SplitBuilder, SplitError, SplitSpec, TokenizedDocument};

/// What is wanted.
#[derive(Debug, Clone)]
pub struct ExamplesRequest {
    /// Files, in the order in which they are stored.
    pub files: Vec<PathBuf>,
    /// Output folder: one folder a split is made in it.
    pub out: PathBuf,
    /// Name of the split when nothing is held out.
    pub split: String,
    /// Share of examples held out for validation.
    pub holdout: Option<String>,
    /// License of all files, as whoever prepares them states it.
    pub license: Option<String>,
    /// Positions in a row; none: those of the longest example.
    pub row_length: Option<u16>,
    /// Ids are below this number; none: one more than the highest.
    pub vocabulary_size: Option<u32>,
    /// Rows in a shard.
    pub rows_per_shard: u64,
    /// Skip records that cannot be used instead of failing.
    pub skip_bad_records: bool,
    /// Discard what an earlier run left.
    pub restart: bool,
}

/// One file after the first pass.
#[derive(Debug, Clone)]
struct File {
    path: PathBuf,
    meta: InputMeta,
}

/// What will be written.
#[derive(Debug, Clone)]
pub struct ExamplesPlan {
    /// What each split will say of itself.
    pub splits: Vec<SplitSpec>,
    /// Records that can be used, over all files.
    pub examples: u64,
    /// Records that cannot.
    pub unusable: u64,
    files: Vec<File>,
    base: PathBuf,
}

/// The tokenizer of a split whose ids nobody made from text. Splits that belong together have the same
/// `vocabulary_size`, by which a model is compared with the data it is evaluated on.
#[must_use]
pub fn no_tokenizer(vocabulary_size: u32) -> Tokenizer {
    Tokenizer {
        name: "none".into(),
        engine: "none".into(),
        engine_version: "0".into(),
        files: std::collections::BTreeMap::new(),
        vocabulary_size,
        end_of_text: 0,
        special_tokens: "none".into(),
        probe_sha256: Sha256Digest::of(b""),
    }
}

/// What examples are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tokens,
    Numbers { width: u32 },
}

impl Kind {
    fn of(example: &SourceExample) -> Self {
        match &example.content {
            OfKind::Tokens(_) => Self::Tokens,
            OfKind::Numbers(numbers) => Self::Numbers { width: numbers.width },
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tokens => formatter.write_str("tokens"),
            Self::Numbers { width } => write!(formatter, "numbers, {width} a position"),
        }
    }
}

/// Kind, longest example and highest id of what was seen.
#[derive(Debug, Default)]
struct Survey {
    examples: u64,
    unusable: u64,
    longest: usize,
    highest: u16,
    /// Of the first example.
    kind: Option<Kind>,
}

impl Survey {
    /// The kind of the first example where this one is of another.
    fn see(&mut self, example: &SourceExample) -> Result<(), Kind> {
        let kind = Kind::of(example);
        let first = *self.kind.get_or_insert(kind);
        if first != kind {
            return Err(first);
        }
        self.examples += 1;
        self.longest = self.longest.max(example.positions());
        if let OfKind::Tokens(tokens) = &example.content {
            let ids = tokens.input_ids.iter().chain(tokens.targets.iter().flatten());
            self.highest = ids.copied().fold(self.highest, u16::max);
        }
        Ok(())
    }
}

/// Reads all files once and decides everything.
///
/// # Errors
/// When a file cannot be read, a record cannot be used, or an option does not fit the examples.
pub fn plan_examples(request: &ExamplesRequest) -> anyhow::Result<ExamplesPlan> {
    local::check_split(&request.split)?;
    let licence = local::stated_license(request.license.as_deref())?.unwrap_or_else(local::no_license);
    let base = walk::base_of(&request.files)?;
    let mut survey = Survey::default();
    let mut files: Vec<File> = Vec::new();
    for path in &request.files {
        let format = Format::of(path)?;
        let name = walk::name_below(&base, path)?;
        if files.iter().any(|file| file.meta.path == name) {
            return Err(refuse(format!("`{}` is given twice: name each file once", path.display())));
        }
        let (size, sha256) = digest_file(path)?;
        let format = format_name(format).to_owned();
        let meta = InputMeta { path: name, format, size, sha256, declared: None, licence: None };
        let file = File { path: path.clone(), meta };
        look(&file, request, &mut survey)?;
        files.push(file);
    }
    let Some(kind) = survey.kind else {
        return Err(refuse("expected at least one example in the files given, found none"));
    };
    let row_length = row_length(request, &survey)?;
    let (layout, input_width, vocabulary_size) = match kind {
        Kind::Tokens => (Layout::Examples, None, vocabulary_size(request, &survey)?),
        Kind::Numbers { .. } if request.vocabulary_size.is_some() => {
            return Err(refuse(
                "--vocabulary-size is about ids, and these are examples of numbers: leave it out",
            ));
        }
        // One number is predicted at a position.
        Kind::Numbers { width } => (Layout::Vectors, Some(width), 1),
    };
    let splits = local::sides(&request.split, request.holdout.as_deref())?
        .into_iter()
        .map(|(split, holdout)| {
            let mut spec = SplitSpec {
                split,
                layout,
                source: Source {
                    profile: "examples".into(),
                    repository: None,
                    requested_revision: None,
                    resolved_revision: None,
                    generator: None,
                    claimed: None,
                    licences: vec![licence.clone()],
                },
                selection: Selection {
                    text_field: None,
                    set_field: None,
                    id_field: None,
                    license_field: None,
                    source_field: None,
                    exclude_sets: Vec::new(),
                    max_tokens: None,
                    holdout,
                    drop_duplicates: None,
                    on_bad_record: if request.skip_bad_records { "skip" } else { "fail" }.into(),
                },
                tokenizer: no_tokenizer(vocabulary_size),
                packing: Packing {
                    input_width,
                    ..packing_of_examples(u32::from(row_length), request.rows_per_shard)
                },
                part: None,
                plan: Sha256Digest::of(b""),
                plan_without_skip: None,
            };
            let inputs: Vec<(&SafePath, u64, Sha256Digest)> =
                files.iter().map(|file| (&file.meta.path, file.meta.size, file.meta.sha256)).collect();
            spec.plan = spec.plan_digest(&inputs)?;
            Ok(spec)
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(ExamplesPlan { splits, examples: survey.examples, unusable: survey.unusable, files, base })
}

/// Checks every record of `file`.
fn look(file: &File, request: &ExamplesRequest, survey: &mut Survey) -> anyhow::Result<()> {
    let mut reader = Examples::open(&file.path)?;
    while let Some(ExampleEntry { number, example }) = reader.next_entry()? {
        match usable(example) {
            Ok(example) => survey.see(&example).map_err(|first| {
                refuse(format!(
                    "`{}`: record {number} (from 0) is of {}, expected {first} as in the first record: prepare each kind apart",
                    file.path.display(),
                    Kind::of(&example)
                ))
            })?,
            Err(_) if request.skip_bad_records => survey.unusable += 1,
            Err((reason, found)) => {
                return Err(refuse(format!(
                    "`{}`: record {number} (from 0) cannot be used ({reason}): {found}; correct it, or use --on-bad-record skip",
                    file.path.display()
                )));
            }
        }
    }
    Ok(())
}

/// The example, if it is one whatever the row length and the vocabulary are.
fn usable(
    example: Result<SourceExample, (&'static str, String)>,
) -> Result<SourceExample, (&'static str, String)> {
    let example = example?;
    let Ok(row_length) = u16::try_from(example.positions()) else {
        let found = format!("{} positions, expected at most {}", example.positions(), u16::MAX);
        return Err(("invalid-example", found));
    };
    let shape = match Kind::of(&example) {
        Kind::Tokens => StoredShape::Tokens { row_length, vocabulary_size: u32::from(u16::MAX) + 1 },
        Kind::Numbers { width } => StoredShape::Numbers(VectorShape { row_length, width }),
    };
    match example.stored().complaint(shape) {
        None => Ok(example),
        Some((expected, found)) => Err(("invalid-example", format!("expected {expected}, found {found}"))),
    }
}

fn row_length(request: &ExamplesRequest, survey: &Survey) -> anyhow::Result<u16> {
    let longest = u16::try_from(survey.longest)?;
    match request.row_length {
        Some(length) if length < longest => Err(refuse(format!(
            "--row-length {length}: expected at least {longest}, the positions of the longest example; examples are \
             never cut"
        ))),
        Some(length) => Ok(length),
        None => Ok(longest),
    }
}

fn vocabulary_size(request: &ExamplesRequest, survey: &Survey) -> anyhow::Result<u32> {
    let needed = u32::from(survey.highest) + 1;
    match request.vocabulary_size {
        Some(size) if size < needed => Err(refuse(format!(
            "--vocabulary-size {size}: expected at least {needed}, one more than the highest id"
        ))),
        Some(size) if size > u32::from(u16::MAX) + 1 => {
            Err(refuse(format!("--vocabulary-size {size}: expected at most 65536, since ids have 16 bits")))
        }
        Some(size) => Ok(size),
        None => Ok(needed),
    }
}

/// Writes the splits of a plan.
///
/// # Errors
/// When a file changed since it was planned, or a split cannot be written.
pub fn execute_examples(plan: &ExamplesPlan, request: &ExamplesRequest) -> anyhow::Result<Vec<Prepared>> {
    let mut prepared = Vec::new();
    for spec in &plan.splits {
        let folder = request.out.join(&spec.split);
        let opened = SplitBuilder::open(&folder, spec.clone(), request.restart)?;
        prepared.push(match opened {
            Opened::Finished(manifest) => {
                check_finished(plan, &folder, &manifest)?;
                Prepared { folder, manifest: *manifest, was_finished: true }
            }
            Opened::Building(builder) => {
                write_inputs_folder(&request.out, &plan.base)?;
                let manifest = write(plan, spec, *builder)?;
                Prepared { folder, manifest, was_finished: false }
            }
        });
    }
    Ok(prepared)
}

/// Whether a finished split was made from the plan's files.
fn check_finished(plan: &ExamplesPlan, folder: &Path, manifest: &Manifest) -> anyhow::Result<()> {
    let then = manifest.inputs.iter().map(|input| (&input.path, input.size, input.sha256));
    let now = plan.files.iter().map(|file| (&file.meta.path, file.meta.size, file.meta.sha256));
    if then.eq(now) {
        return Ok(());
    }
    let (found, differs) = ("a finished dataset", "its inputs: it was made from other files".to_owned());
    Err(SplitError::OtherRun { folder: folder.into(), found, differs }.into())
}

fn write(plan: &ExamplesPlan, spec: &SplitSpec, mut builder: SplitBuilder) -> anyhow::Result<Manifest> {
    let cursor = builder.cursor();
    let filter = filter(spec)?;
    let row_length = spec.packing.row_length as usize;
    for (index, file) in (0u32..).zip(&plan.files).skip(cursor.input as usize) {
        let (size, sha256) = digest_file(&file.path)?;
        if (size, sha256) != (file.meta.size, file.meta.sha256) {
            return Err(refuse(format!(
                "`{}` changed while it was prepared: prepare again",
                file.path.display()
            )));
        }
        builder.begin_input(file.meta.clone())?;
        let from = if index == cursor.input { cursor.record } else { 0 };
        write_file(&mut builder, file, from, row_length, &filter)
            .with_context(|| format!("`{}`", file.path.display()))?;
        builder.end_input();
    }
    Ok(builder.finish()?)
}

fn write_file(
    builder: &mut SplitBuilder,
    file: &File,
    from: u64,
    row_length: usize,
    filter: &Filter,
) -> anyhow::Result<()> {
    let mut reader = Examples::open(&file.path)?;
    while let Some(ExampleEntry { number, example }) = reader.next_entry()? {
        // Already counted by the run that this one resumes.
        if number < from {
            continue;
        }
        let mut example = match usable(example) {
            Ok(example) => example,
            // The first pass has stopped at these unless they are to be skipped.
            Err((reason, _)) => {
                builder.left_out(reason, 1);
                continue;
            }
        };
        example.pad(row_length);
        let digest = example.stored().digest();
        let (set, id) = (example.set.take(), example.id.take());
        let meta = DocumentMeta { set, id, ..DocumentMeta::of_example(number, digest) };
        match filter.by_digest(&digest) {
            Some(reason) => builder.left_out(reason, 1),
            None => builder.document(&TokenizedDocument::of_example(&meta, example.stored()))?,
        }
    }
    Ok(())
}

fn filter(spec: &SplitSpec) -> anyhow::Result<Filter> {
    let holdout = spec.selection.holdout.as_ref();
    let holdout = holdout.map(|holdout| -> anyhow::Result<HoldoutCut> {
        let fraction: f64 = holdout.fraction.parse().context("the holdout's fraction is not a number")?;
        Ok(HoldoutCut { threshold: holdout_threshold(fraction), held_out: holdout.held_out })
    });
    Ok(Filter { holdout: holdout.transpose()?, ..Filter::default() })
}
