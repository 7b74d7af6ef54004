//! Counts: by input, by set, over the split. The manifest's sums come from here.

use std::collections::HashMap;

use xlstm_manifests::Sha256Digest;
use xlstm_manifests::manifest::{Declared, Input, InputCounts, Met, SetTotals, Totals};
use xlstm_manifests::safe_path::SafePath;

use super::journal::Snapshot;
use super::ledger::Moment;
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
    /// Its own license.
    pub licence: Option<String>,
}

/// Counts of a split in progress.
#[derive(Debug)]
pub struct Tally {
    inputs: Vec<Input>,
    /// Inputs that journal lines already hold.
    journalled: usize,
    open: Option<Input>,
    sets: Names,
    licenses: Names,
    sources: Names,
    totals: Totals,
    /// What records had of what is asked for.
    met: Option<Met>,
}

/// Totals by name, in order of first appearance.
#[derive(Debug, Default)]
struct Names {
    totals: Vec<SetTotals>,
    index: HashMap<String, u16>,
}

impl Names {
    fn restore(&mut self, totals: &[SetTotals]) {
        self.totals = totals.to_vec();
        self.index = (0..).zip(totals).map(|(index, set)| (set.name.clone(), index)).collect();
    }

    /// Counts a document under `name`; the name's index. `what` and `option` are for the error.
    fn count(
        &mut self,
        name: Option<&str>,
        bytes: u64,
        tokens: u64,
        (what, option): (&str, &str),
    ) -> Result<Option<u16>, SplitError> {
        let Some(name) = name else { return Ok(None) };
        let index = match self.index.get(name) {
            Some(&index) => index,
            None => {
                let index = u16::try_from(self.totals.len()).map_err(|_| {
                    SplitError::Limit(format!(
                        "more than 65,536 {what}: name a field with fewer values in {option}"
                    ))
                })?;
                self.totals.push(SetTotals { name: name.into(), documents: 0, text_bytes: 0, tokens: 0 });
                self.index.insert(name.into(), index);
                index
            }
        };
        let set = &mut self.totals[usize::from(index)];
        set.documents += 1;
        set.text_bytes += bytes;
        set.tokens += tokens;
        Ok(Some(index))
    }
}

/// Where a document was counted: indexes into the manifest's lists.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) input: u32,
    pub(super) set: Option<u16>,
    pub(super) license: Option<u16>,
    pub(super) source: Option<u16>,
}

/// What a tally comes to.
pub(super) struct Counts {
    pub(super) inputs: Vec<Input>,
    pub(super) sets: Vec<SetTotals>,
    pub(super) record_licenses: Vec<SetTotals>,
    pub(super) record_sources: Vec<SetTotals>,
    pub(super) totals: Totals,
    pub(super) met: Option<Met>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            inputs: Vec::new(),
            journalled: 0,
            open: None,
            sets: Names::default(),
            licenses: Names::default(),
            sources: Names::default(),
            totals: Totals::default(),
            met: None,
        }
    }

    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        self.inputs.extend(snapshot.closed_inputs.iter().cloned());
        self.journalled = self.inputs.len();
        self.open.clone_from(&snapshot.open_input);
        self.sets.restore(&snapshot.sets);
        self.licenses.restore(&snapshot.record_licenses);
        self.sources.restore(&snapshot.record_sources);
        self.totals = snapshot.totals.clone();
        self.met.clone_from(&snapshot.met);
    }

    pub(super) fn meet(&mut self, met: &Met) {
        if self.met.as_ref() != Some(met) {
            self.met = Some(met.clone());
        }
    }

    /// What the records so far have of what is asked for, where it is noted.
    pub(crate) fn met(&self) -> Option<&Met> {
        self.met.as_ref()
    }

    /// The counts at this moment, for the journal.
    pub(super) fn moment(&mut self, cursor: Cursor) -> Moment {
        let closed_inputs = self.inputs[self.journalled..].to_vec();
        self.journalled = self.inputs.len();
        let open_input = self.open.clone();
        let (sets, totals) = (self.sets.totals.clone(), self.totals.clone());
        let (record_licenses, record_sources) = (self.licenses.totals.clone(), self.sources.totals.clone());
        let met = self.met.clone();
        Box::new(move |shard, trees| Snapshot {
            shard,
            cursor,
            closed_inputs,
            open_input,
            sets,
            record_licenses,
            record_sources,
            totals,
            met,
            trees,
        })
    }

    /// Totals so far (rows are counted at the end).
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Totals by set so far.
    #[must_use]
    pub fn sets(&self) -> &[SetTotals] {
        &self.sets.totals
    }

    /// Inputs that were read to their ends.
    #[must_use]
    pub fn ended_inputs(&self) -> &[Input] {
        &self.inputs
    }

    pub(super) fn current_input(&self) -> Result<u32, SplitError> {
        u32::try_from(self.inputs.len()).map_err(|_| too_many_inputs())
    }

    /// The input that begins after the current one (if one is open) has ended.
    pub(super) fn next_input(&self) -> Result<u32, SplitError> {
        self.current_input()?.checked_add(u32::from(self.open.is_some())).ok_or_else(too_many_inputs)
    }

    pub(super) fn begin_input(&mut self, meta: InputMeta) -> Result<(), SplitError> {
        if let Some(open) = &self.open {
            // Only a resumed run begins an input that is already open.
            if open.path == meta.path && open.sha256 == meta.sha256 {
                return Ok(());
            }
            let found = format!("`{}` with SHA-256 {}", meta.path, meta.sha256);
            return Err(SplitError::Resume { input: self.current_input()?, record: 0, found });
        }
        if self.inputs.len() >= u32::MAX as usize {
            return Err(too_many_inputs());
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

    /// Counts examples without text, sets, licenses and sources.
    pub(super) fn count_examples(&mut self, examples: u64, tokens: u64) -> Result<(), SplitError> {
        self.current_input()?;
        if let Some(open) = &mut self.open {
            open.counts.documents += examples;
            open.counts.tokens += tokens;
        }
        self.totals.documents += examples;
        self.totals.tokens += tokens;
        Ok(())
    }

    /// Counts a document; returns the indexes of its input, set, license and source.
    pub(super) fn count(
        &mut self,
        document: &TokenizedDocument<'_>,
        tokens: u64,
    ) -> Result<Counted, SplitError> {
        let input = self.current_input()?;
        let meta = document.meta;
        if let Some(open) = &mut self.open {
            open.counts.documents += 1;
            open.counts.text_bytes += meta.bytes;
            open.counts.tokens += tokens;
        }
        self.totals.documents += 1;
        self.totals.text_bytes += meta.bytes;
        self.totals.tokens += tokens;
        let (bytes, licenses, sources) = (meta.bytes, &mut self.licenses, &mut self.sources);
        Ok(Counted {
            input,
            set: self.sets.count(meta.set.as_deref(), bytes, tokens, ("sets", "--set-field"))?,
            license: licenses.count(
                meta.license.as_deref(),
                bytes,
                tokens,
                ("licenses", "--license-field"),
            )?,
            source: sources.count(meta.source.as_deref(), bytes, tokens, ("sources", "--source-field"))?,
        })
    }

    pub(super) fn finish(mut self) -> Counts {
        self.end_input();
        Counts {
            inputs: self.inputs,
            sets: self.sets.totals,
            record_licenses: self.licenses.totals,
            record_sources: self.sources.totals,
            totals: self.totals,
            met: self.met,
        }
    }
}

fn too_many_inputs() -> SplitError {
    SplitError::Limit("more than 4,294,967,295 inputs: prepare them as several datasets".into())
}
