//! Going over all documents of a corpus with their texts, on all cores, shard by shard.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;

use crate::audit::corpus::{Corpus, Meta, ShardDocuments};
use crate::audit::progress::ByteProgress;
use crate::audit::splits_at;
use crate::report::CommandError;
use crate::tokenizer::Gpt2Tokenizer;

/// Some splits that are looked at as one.
pub(crate) struct Side {
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) splits: Vec<Corpus>,
}

/// A document with its text.
pub(crate) struct Document<'a> {
    /// Index of its split.
    pub(crate) split: usize,
    /// Its shard's index.
    pub(crate) shard: usize,
    /// Its number in the shard.
    pub(crate) index: usize,
    pub(crate) meta: &'a Meta,
    pub(crate) text: &'a str,
}

/// Documents that one task looks at.
const CHUNK: usize = 128;

impl Side {
    /// Opens the splits that `paths` name.
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Self, CommandError> {
        let mut folders = Vec::new();
        for path in paths {
            folders.extend(splits_at(path)?);
        }
        let splits = folders.iter().map(|folder| Corpus::open(folder)).collect::<Result<_, _>>()?;
        Ok(Self { folders, splits })
    }

    /// UTF-8 bytes of all texts.
    pub(crate) fn text_bytes(&self) -> u64 {
        self.splits.iter().map(|split| split.manifest().totals.text_bytes).sum()
    }

    /// What a document counts under: its set, or its split where it has none.
    pub(crate) fn set_of<'a>(&'a self, document: &'a Document<'_>) -> &'a str {
        document.meta.set.as_deref().unwrap_or(&self.splits[document.split].manifest().split)
    }

    /// Visits every document for which `wanted` (given split, shard and index) is true. `visit` gathers into
    /// a value of its own for each task; `merge` puts the values together.
    pub(crate) fn visit<T: Default + Send>(
        &self,
        tokenizer: &Gpt2Tokenizer,
        progress: &ByteProgress,
        wanted: &(dyn Fn(usize, usize, usize) -> bool + Sync),
        visit: &(dyn Fn(&mut T, &Document<'_>) + Sync),
        merge: &(dyn Fn(T, T) -> T + Sync),
    ) -> Result<T, CommandError> {
        let mut total = T::default();
        for place in self.shards() {
            total = merge(total, self.visit_shard(place, tokenizer, progress, wanted, visit, merge)?);
        }
        Ok(total)
    }

    /// All shards: (split, shard).
    pub(crate) fn shards(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let splits = self.splits.iter().enumerate();
        splits.flat_map(|(split, corpus)| (0..corpus.shards()).map(move |shard| (split, shard)))
    }

    /// As [`Side::visit`], for the documents of one shard.
    pub(crate) fn visit_shard<T: Default + Send>(
        &self,
        (split, shard): (usize, usize),
        tokenizer: &Gpt2Tokenizer,
        progress: &ByteProgress,
        wanted: &(dyn Fn(usize, usize, usize) -> bool + Sync),
        visit: &(dyn Fn(&mut T, &Document<'_>) + Sync),
        merge: &(dyn Fn(T, T) -> T + Sync),
    ) -> Result<T, CommandError> {
        let documents = self.splits[split].shard(shard)?;
        (0..documents.len().div_ceil(CHUNK))
            .into_par_iter()
            .map(|chunk| {
                let range = chunk * CHUNK..documents.len().min((chunk + 1) * CHUNK);
                let wanted = range.filter(|&index| wanted(split, shard, index));
                visit_some((split, shard), &documents, wanted, tokenizer, progress, visit)
            })
            .try_reduce(T::default, |a, b| Ok(merge(a, b)))
    }
}

fn visit_some<T: Default>(
    (split, shard): (usize, usize),
    documents: &ShardDocuments<'_>,
    wanted: impl Iterator<Item = usize>,
    tokenizer: &Gpt2Tokenizer,
    progress: &ByteProgress,
    visit: &(dyn Fn(&mut T, &Document<'_>) + Sync),
) -> Result<T, CommandError> {
    let mut gathered = T::default();
    let mut ids = Vec::new();
    for index in wanted {
        let Some(meta) = documents.read(index, &mut ids)? else { continue };
        let bytes = tokenizer.decode(&ids);
        // Tokens spell whole texts, so this only replaces something in a split that was tampered with.
        let text = String::from_utf8_lossy(&bytes);
        visit(&mut gathered, &Document { split, shard, index, meta: &meta, text: &text });
        progress.advance(meta.bytes);
    }
    Ok(gathered)
}

/// Counts by name, put together.
pub(crate) fn merge_by_name<V: Default>(
    mut a: BTreeMap<String, V>,
    b: BTreeMap<String, V>,
    add: impl Fn(&mut V, V),
) -> BTreeMap<String, V> {
    for (name, value) in b {
        add(a.entry(name).or_default(), value);
    }
    a
}
