//! A task's samples as a dataset: `prepare task`.
//!
//! ```text
//! split = shares of 65,536 samples │ one share: an input of the manifest; its digest is over spec, split and numbers
//! threads ─► shards (module `shards`) ─► in order ─► SplitBuilder ─► journal, manifest
//! ```
//! No file is read: what stands for the source file is the canonical JSON of everything that decides the samples, so
//! datasets of other parameters or seeds never have the same root. Shards are taken in order, so the number of threads
//! decides no byte; parts are runs of whole shares, so that `merge` puts the same inputs together.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};
use xlstm_manifests::manifest::{
    Layout, MANIFEST_NAME, Manifest, Packing, Part, Selection, Source, Tokenizer,
};
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::stored::StoredShape;
use xlstm_manifests::{Sha256Digest, canonical, printable};

pub use super::shards::Share;
use super::shards::{SHARE, Shards, place};
use super::streamed::has_no_shards;
use super::{Sample, Split, Task, check_examples};
use crate::prepare::{Prepared, packing_of_examples, refuse};
use crate::split::{InputMeta, Opened, SplitBuilder, SplitError, SplitSpec};

/// How inputs of such datasets are read.
pub const FORMAT: &str = "generated";

/// One split to be written.
pub struct TaskPlan<'a> {
    task: &'a dyn Task,
    split: Split,
    spec: SplitSpec,
    shares: Vec<Share>,
    /// Whether shards are only digested (module `streamed`).
    stream: bool,
}

impl<'a> TaskPlan<'a> {
    /// `examples` samples of `task` as `split`.
    ///
    /// # Errors
    /// When the split has fewer different samples than that, none is asked for, or a row is longer than the format stores.
    pub fn new(task: &'a dyn Task, split: Split, examples: u64, rows_per_shard: u64) -> anyhow::Result<Self> {
        check_examples(task, split, examples)?;
        let shares: Vec<Share> = (0..examples.div_ceil(SHARE))
            .map(|share| share * SHARE)
            .map(|first| Share { first, examples: SHARE.min(examples - first) })
            .collect();
        let mut spec = spec(task, split, rows_per_shard);
        let described: Vec<Value> = shares.iter().map(|share| described(task, split, *share)).collect();
        spec.plan = spec.plan_digest(&described)?;
        Ok(Self { task, split, spec, shares, stream: false })
    }

    /// The part `index` (from 1) of `count`: whole shares, in order.
    #[must_use]
    pub fn part(mut self, index: u32, count: u32) -> Self {
        let all = self.shares.len() as u64;
        let cut = |part: u32| (all * u64::from(part) / u64::from(count)) as usize;
        self.shares = self.shares[cut(index - 1)..cut(index)].to_vec();
        self.spec.part = Some(Part { index, count, plan: self.spec.plan, not_planned: 0, met: None });
        self
    }

    /// The same with no shards kept: rows are made when they are wanted (module [`streamed`](super::streamed)).
    #[must_use]
    pub fn streamed(self) -> Self {
        Self { stream: true, ..self }
    }

    /// The folder of the split, or of its part, below `out`.
    #[must_use]
    pub fn folder(&self, out: &Path) -> PathBuf {
        crate::prepare::folder_of(out, &self.spec)
    }

    /// What would be written: samples, positions, tokens that count, bytes.
    #[must_use]
    pub fn preview(&self, out: &Path) -> Value {
        let examples: u64 = self.shares.iter().map(|share| share.examples).sum();
        let row_length = u64::from(self.spec.packing.row_length);
        let tokens = (examples as f64 * self.task.mean_length(self.split)).round() as u64;
        // Two bytes an id and a target, or four a number; a bit whether there is a target, two bytes a length; spans have
        // some 130 a sample.
        let position = self.task.input_width().map_or(4, |width| 4 * u64::from(width) + 4);
        let bytes = examples * (position * row_length + row_length.div_ceil(8) + 2 + 130);
        json!({
            "split": self.split.name(), "folder": self.folder(out).display().to_string(), "examples": examples,
            "row_length": row_length, "positions": examples * row_length, "tokens": tokens, "bytes": bytes,
            "inputs": self.shares.len(), "vocabulary_size": self.task.vocabulary_size(), "generator": self.task.spec(),
        })
    }

    /// Makes and writes the split, going on from what an earlier run left.
    ///
    /// # Errors
    /// When the folder holds something else, or cannot be written.
    pub fn execute(&self, out: &Path, threads: usize, restart: bool) -> anyhow::Result<Prepared> {
        let folder = self.folder(out);
        // A killed run of this kind is not resumed: whatever shards it finds are not its own.
        let restart = restart || (self.stream && !folder.join(MANIFEST_NAME).exists());
        let builder = match SplitBuilder::open(&folder, self.spec.clone(), restart)? {
            Opened::Finished(manifest) => {
                self.check_finished(&folder, &manifest)?;
                return Ok(Prepared { folder, manifest: *manifest, was_finished: true });
            }
            Opened::Building(builder) => *builder,
        };
        let manifest = self.write(builder, &folder, threads)?;
        Ok(Prepared { folder, manifest, was_finished: false })
    }

    /// Makes the shards that the builder lacks.
    fn write(&self, mut builder: SplitBuilder, folder: &Path, threads: usize) -> anyhow::Result<Manifest> {
        let Self { task, split, spec, shares, stream } = self;
        let shape = StoredShape::new(spec.layout, &spec.packing, task.vocabulary_size())?;
        let shape = shape.context("a generated split without stored targets")?;
        let (task, split, packing, kept) = (*task, *split, &spec.packing, !stream);
        let shards = Shards { task, split, packing, shape, shares, folder, kept };
        let first = builder.shards().len();
        if shards.rows_of(first).start.is_multiple_of(SHARE) {
            // A run that was cut short ended with the last sample of an input.
            builder.end_input();
        }
        let mut index = first;
        shards.each(first, threads, |made| {
            let Range { mut start, end } = shards.rows_of(index);
            index += 1;
            let mut made = Some(made);
            while start < end {
                let (number, record) = place(start);
                let share = *shares.get(number as usize).context("a row lies behind the last sample")?;
                builder.begin_input(input(task, split, share)?)?;
                let examples = (end - start).min(share.examples - record);
                builder.count_examples(examples)?;
                start += examples;
                if start == end {
                    made.take().into_iter().try_for_each(|made| builder.shard(made))?;
                }
                if record + examples == share.examples {
                    builder.end_input();
                }
            }
            Ok(())
        })?;
        Ok(builder.finish()?)
    }

    /// Whether a finished split holds the samples of this plan, in the form that is asked for.
    fn check_finished(&self, folder: &Path, manifest: &Manifest) -> anyhow::Result<()> {
        let planned = self.shares.iter().map(|share| input(self.task, self.split, *share));
        let planned: Vec<InputMeta> = planned.collect::<anyhow::Result<_>>()?;
        let then = manifest.inputs.iter().map(|input| (&input.path, input.sha256));
        if !then.eq(planned.iter().map(|input| (&input.path, input.sha256))) {
            let asked: u64 = self.shares.iter().map(|share| share.examples).sum();
            let differs =
                format!("its examples: it has {}, asked for are {asked}", manifest.totals.documents);
            let found = "a finished dataset";
            return Err(SplitError::OtherRun { folder: folder.into(), found, differs }.into());
        }
        let shown = printable::path(folder);
        match (self.stream, has_no_shards(folder, manifest)) {
            (false, true) => Err(refuse(format!(
                "`{shown}` was prepared with --stream and has no shards: add --restart to write them, or --stream to keep \
                 it so"
            ))),
            (true, false) => Err(refuse(format!(
                "`{shown}` was prepared with its shards: add --restart to keep only the manifest, or leave --stream out"
            ))),
            _ => Ok(()),
        }
    }
}

/// All that decides the samples of a share.
fn described(task: &dyn Task, split: Split, share: Share) -> Value {
    json!({
        "generator": task.spec(), "split": split.name(), "first": share.first, "examples": share.examples,
    })
}

/// A share as an input of the manifest.
fn input(task: &dyn Task, split: Split, share: Share) -> anyhow::Result<InputMeta> {
    let bytes = canonical::to_canonical_bytes(&described(task, split, share))?;
    Ok(InputMeta {
        path: SafePath::new(format!("{}/{split}/{:012}", name(task), share.first))?,
        format: FORMAT.into(),
        size: bytes.len() as u64,
        sha256: Sha256Digest::of(&bytes),
        declared: None,
        licence: None,
    })
}

fn name(task: &dyn Task) -> String {
    task.spec()["task"].as_str().unwrap_or_default().to_owned()
}

/// What the split will say of itself.
fn spec(task: &dyn Task, split: Split, rows_per_shard: u64) -> SplitSpec {
    let generator = task.spec();
    let probe = Sha256Digest::of(generator.to_string().as_bytes());
    SplitSpec {
        split: split.name().into(),
        layout: if task.input_width().is_some() { Layout::Vectors } else { Layout::Examples },
        source: Source {
            profile: format!("task/{}", name(task)),
            repository: None,
            requested_revision: None,
            resolved_revision: None,
            licences: Vec::new(),
            generator: Some(generator),
            claimed: None,
        },
        selection: Selection {
            text_field: None,
            set_field: None,
            id_field: None,
            license_field: None,
            source_field: None,
            exclude_sets: Vec::new(),
            max_tokens: None,
            holdout: None,
            drop_duplicates: None,
            on_bad_record: "fail".into(),
        },
        tokenizer: Tokenizer {
            name: "none".into(),
            engine: "xlstm-data".into(),
            engine_version: env!("CARGO_PKG_VERSION").into(),
            files: std::collections::BTreeMap::new(),
            vocabulary_size: task.vocabulary_size(),
            end_of_text: super::PAD,
            special_tokens: "none".into(),
            probe_sha256: probe,
        },
        packing: Packing {
            input_width: task.input_width(),
            ..packing_of_examples(task.row_length(), rows_per_shard)
        },
        part: None,
        plan: Sha256Digest::of(b""),
        plan_without_skip: None,
    }
}

/// The samples of `manifest`, to be made again: the task, its split, and the first sample of each input.
///
/// # Errors
/// When the manifest names no generator, or one that this program does not have; and when an input is not the one that
/// the generator's spec stands for.
pub fn generated(manifest: &Manifest) -> anyhow::Result<Generated> {
    let spec = manifest.source.generator.as_ref();
    let spec = spec.context("expected `source.generator` in the manifest: its rows are not generated")?;
    let task = super::from_spec(spec)?;
    let split: Split = manifest.split.parse()?;
    let mut firsts = Vec::with_capacity(manifest.inputs.len());
    for found in &manifest.inputs {
        let first = found.path.as_str().rsplit('/').next().and_then(|number| number.parse().ok());
        let first =
            first.with_context(|| format!("input `{}` does not end in a sample's number", found.path))?;
        let expected = input(&*task, split, Share { first, examples: found.counts.documents })?;
        anyhow::ensure!(
            expected.path == found.path && expected.sha256 == found.sha256,
            "input `{}`: expected SHA-256 {} for samples {first} to {} of the generator, found {}",
            found.path,
            expected.sha256,
            first + found.counts.documents,
            found.sha256
        );
        firsts.push(first);
    }
    Ok(Generated { task, split, firsts })
}

/// What makes the rows of a generated split again.
pub struct Generated {
    /// The task.
    pub task: Box<dyn Task>,
    /// Its split.
    pub split: Split,
    firsts: Vec<u64>,
}

impl Generated {
    /// Makes record `record` of input `input` again.
    ///
    /// # Errors
    /// When there is no such input, or no such sample.
    pub fn sample(&self, input: u32, record: u64) -> anyhow::Result<Sample> {
        let first = self.firsts.get(input as usize).context("the manifest has no such input")?;
        Ok(Sample::make(&*self.task, self.split, first + record)?)
    }
}
