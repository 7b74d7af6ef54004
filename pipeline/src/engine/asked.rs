//! Whether what was asked for was there: fields that no record has, and excluded sets that match none, are reported.
//!
//! An option that is misspelled must not pass in silence: `--exclude-set bookz` would leave the books in, and
//! `--id-field uid` the documents without names. What a split's records have is seen only in reading them, so it is
//! counted on the way, before any filter, and looked at when the last record was read.

use std::collections::BTreeSet;

use crate::record::{Entry, Record};

/// What the options ask of a split. Only a whole one, read from its beginning, can be asked: a part, a prefix or a
/// resumed run may not have met what the rest has.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Sets that are left out (`--exclude-set`).
    pub exclude_sets: Vec<String>,
    /// Option and path of each field that was asked for.
    pub fields: Vec<(Field, &'static str, String)>,
}

/// A field that may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `--set-field`
    Set,
    /// `--id-field`
    Id,
    /// `--license-field`
    License,
    /// `--source-field`
    Source,
}

/// Names that are remembered for a message.
const NAMES: usize = 20;

/// What the records had.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    records: u64,
    with: [u64; 4],
    /// Sets that occur: the excluded ones, and some of the others.
    sets: BTreeSet<String>,
}

impl Seen {
    /// What `entries` have.
    pub(super) fn of(entries: &[Entry], exclude_sets: &[String]) -> Self {
        let mut seen = Self::default();
        for step in entries {
            if let Entry::Record(record) = step {
                seen.see(record, exclude_sets);
            }
        }
        seen
    }

    fn see(&mut self, record: &Record, exclude_sets: &[String]) {
        self.records += 1;
        for field in [Field::Set, Field::Id, Field::License, Field::Source] {
            self.with[field as usize] += u64::from(value(record, field).is_some());
        }
        if let Some(set) = &record.set
            && !exclude_sets.is_empty()
            && !self.sets.contains(set)
            && (self.sets.len() < NAMES || exclude_sets.contains(set))
        {
            self.sets.insert(set.clone());
        }
    }

    /// Adds what others had.
    pub(super) fn absorb(&mut self, other: &Self) {
        self.records += other.records;
        self.with.iter_mut().zip(other.with).for_each(|(here, there)| *here += there);
        if !other.sets.is_subset(&self.sets) {
            self.sets.extend(other.sets.iter().cloned());
        }
    }

    /// What was asked for and met in no record. A split without records has nothing to be asked of.
    pub(super) fn missing(&self, asked: &Asked) -> Option<String> {
        if self.records == 0 {
            return None;
        }
        let quoted = |name: &String| format!("`{name}`");
        if let Some(set) = asked.exclude_sets.iter().find(|set| !self.sets.contains(*set)) {
            let there: Vec<_> = self.sets.iter().take(NAMES).map(quoted).collect();
            let there = if there.is_empty() { "no set at all".to_owned() } else { there.join(", ") };
            return Some(format!(
                "--exclude-set {set}: expected a set of the records, found {there} in {} records; mend the name{}",
                self.records,
                if self.sets.is_empty() { ", or name the sets' field with --set-field" } else { "" }
            ));
        }
        let (_, option, path) = asked.fields.iter().find(|(field, ..)| self.with[*field as usize] == 0)?;
        Some(format!(
            "{option} {path}: expected a field of the records, found it in none of {}; mend the name (dots lead into \
             nested fields), or leave the option out",
            self.records
        ))
    }
}

fn value(record: &Record, field: Field) -> Option<&String> {
    match field {
        Field::Set => record.set.as_ref(),
        Field::Id => record.id.as_ref(),
        Field::License => record.license.as_ref(),
        Field::Source => record.source.as_ref(),
    }
}
