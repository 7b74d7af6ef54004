//! Counts: by input, by set, over the split. The manifest's sums come from here.

use std::collections::HashMap;

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::manifest::{Declared, Input, InputCounts, SetTotals, Shard, Totals};
use xlstm_manifests::safe_path::SafePath;

use super::journal::{Snapshot, Trees};
use super::{Cursor, SplitError, TokenizedDocument};

/// What is known of an input before its first record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputMeta {
    /// Path in the repository, or below the folder that was given.
    pub path: SafePath,
    /// How it is read.
    pub format: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 computed before use.
    pub sha256: Sha256Digest,
    /// The digest that was published for it.
    pub declared: Option<Declared>,
    /// Its own licence.
    pub licence: Option<String>,
}

/// Counts of a split in progress.
#[derive(Debug)]
pub struct Tally {
    inputs: Vec<Input>,
    /// Inputs that journal lines already hold.
    journalled: usize,
    open: Option<Input>,
    sets: Vec<SetTotals>,
    set_index: HashMap<String, u16>,
    totals: Totals,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            inputs: Vec::new(),
            journalled: 0,
            open: None,
            sets: Vec::new(),
            set_index: HashMap::new(),
            totals: Totals::default(),
        }
    }

    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        self.inputs.extend(snapshot.closed_inputs.iter().cloned());
        self.journalled = self.inputs.len();
        self.open.clone_from(&snapshot.open_input);
        self.sets.clone_from(&snapshot.sets);
        self.set_index = (0..).zip(&self.sets).map(|(index, set)| (set.name.clone(), index)).collect();
        self.totals = snapshot.totals.clone();
    }

    pub(super) fn snapshot(&mut self, shard: Shard, cursor: Cursor, trees: Trees) -> Snapshot {
        let closed_inputs = self.inputs[self.journalled..].to_vec();
        self.journalled = self.inputs.len();
        Snapshot {
            shard,
            cursor,
            closed_inputs,
            open_input: self.open.clone(),
            sets: self.sets.clone(),
            totals: self.totals.clone(),
            trees,
        }
    }

    /// Totals so far (rows are counted at the end).
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Totals by set so far.
    #[must_use]
    pub fn sets(&self) -> &[SetTotals] {
        &self.sets
    }

    pub(super) fn current_input(&self) -> u32 {
        u32::try_from(self.inputs.len()).unwrap_or(u32::MAX)
    }

    /// The input that begins after the current one (if one is open) has ended.
    pub(super) fn next_input(&self) -> u32 {
        self.current_input() + u32::from(self.open.is_some())
    }

    pub(super) fn begin_input(&mut self, meta: InputMeta) -> Result<(), SplitError> {
        if let Some(open) = &self.open {
            // Only a resumed run begins an input that is already open.
            if open.path == meta.path && open.sha256 == meta.sha256 {
                return Ok(());
            }
            let found = format!("`{}` with SHA-256 {}", meta.path, meta.sha256);
            return Err(SplitError::Resume { input: self.current_input(), record: 0, found });
        }
        if self.inputs.len() >= u32::MAX as usize {
            return Err(SplitError::Limit(
                "more than 4,294,967,295 inputs: prepare them as several datasets".into(),
            ));
        }
        self.open = Some(Input {
            path: meta.path,
            format: meta.format,
            size: meta.size,
            sha256: meta.sha256,
            declared: meta.declared,
            licence: meta.licence,
            counts: InputCounts::default(),
        });
        Ok(())
    }

    pub(super) fn end_input(&mut self) {
        self.inputs.extend(self.open.take());
    }

    pub(super) fn left_out(&mut self, reason: &str, count: u64) {
        let Some(open) = &mut self.open else { return };
        for left_out in [&mut open.counts.left_out, &mut self.totals.left_out] {
            *left_out.entry(reason.to_owned()).or_default() += count;
        }
    }

    /// Counts a document; returns its input's index and its set's.
    pub(super) fn count(
        &mut self,
        document: &TokenizedDocument<'_>,
        tokens: u64,
    ) -> Result<(u32, Option<u16>), SplitError> {
        let input = self.current_input();
        if let Some(open) = &mut self.open {
            open.counts.documents += 1;
            open.counts.text_bytes += document.bytes;
            open.counts.tokens += tokens;
        }
        self.totals.documents += 1;
        self.totals.text_bytes += document.bytes;
        self.totals.tokens += tokens;
        let Some(name) = document.set else { return Ok((input, None)) };
        let index = match self.set_index.get(name) {
            Some(&index) => index,
            None => self.add_set(name)?,
        };
        let set = &mut self.sets[usize::from(index)];
        set.documents += 1;
        set.text_bytes += document.bytes;
        set.tokens += tokens;
        Ok((input, Some(index)))
    }

    fn add_set(&mut self, name: &str) -> Result<u16, SplitError> {
        let index = u16::try_from(self.sets.len()).map_err(|_| {
            SplitError::Limit("more than 65,536 sets: name a field with fewer values in --set-field".into())
        })?;
        self.sets.push(SetTotals { name: name.into(), documents: 0, text_bytes: 0, tokens: 0 });
        self.set_index.insert(name.into(), index);
        Ok(index)
    }

    pub(super) fn finish(mut self) -> (Vec<Input>, Vec<SetTotals>, Totals) {
        self.end_input();
        (self.inputs, self.sets, self.totals)
    }
}
