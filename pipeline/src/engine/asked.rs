//! Whether what was asked for was there: fields that no record has, and excluded sets that match none, are reported.
//!
//! An option that is misspelled must not pass in silence: `--exclude-set bookz` would leave the books in, and
//! `--id-field uid` the documents without names. What a split's records have is seen only in reading them, so it is
//! noted on the way, before any filter, and looked at when the last record was read: by `prepare`, or by `merge` over
//! what all parts have met ([`Met`]).

use xlstm_manifests::manifest::{DUPLICATE, Met, Selection, Totals};

use super::filter::{BEYOND_MAX_TOKENS, EMPTY, EXCLUDED_SET, HELD_OUT, NOT_HELD_OUT};
use crate::record::{Entry, Record};

/// What the options ask of a split. A prefix (`--max-tokens`) is asked nothing: it may not have met what the rest has.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Sets that are left out (`--exclude-set`).
    pub exclude_sets: Vec<String>,
    /// Option and path of each field that was asked for.
    pub fields: Vec<(Field, String)>,
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

impl Field {
    const ALL: [Self; 4] = [Self::Set, Self::Id, Self::License, Self::Source];

    /// The option that names it.
    fn option(self) -> &'static str {
        match self {
            Self::Set => "--set-field",
            Self::Id => "--id-field",
            Self::License => "--license-field",
            Self::Source => "--source-field",
        }
    }

    fn of(self, record: &Record) -> Option<&String> {
        match self {
            Self::Set => record.set.as_ref(),
            Self::Id => record.id.as_ref(),
            Self::License => record.license.as_ref(),
            Self::Source => record.source.as_ref(),
        }
    }

    fn path(self, selection: &Selection) -> Option<&String> {
        match self {
            Self::Set => selection.set_field.as_ref(),
            Self::Id => selection.id_field.as_ref(),
            Self::License => selection.license_field.as_ref(),
            Self::Source => selection.source_field.as_ref(),
        }
    }
}

/// Names that are remembered for a message.
const NAMES: usize = 20;

/// Adds what `entries` have.
pub(super) fn see(entries: &[Entry], exclude_sets: &[String]) -> Met {
    let mut met = Met::default();
    let mut with = [false; Field::ALL.len()];
    for step in entries {
        let Entry::Record(record) = step else { continue };
        for field in Field::ALL {
            with[field as usize] |= field.of(record).is_some();
        }
        if let Some(set) = &record.set
            && !exclude_sets.is_empty()
            && !met.sets.contains(set)
            && (met.sets.len() < NAMES || exclude_sets.contains(set))
        {
            met.sets.insert(set.clone());
        }
    }
    met.fields
        .extend(Field::ALL.into_iter().filter(|field| with[*field as usize]).map(|f| f.option().to_owned()));
    met
}

/// Adds what others had; some of their sets where there are many.
pub(crate) fn absorb(met: &mut Met, other: &Met, exclude_sets: &[String]) {
    if !other.fields.is_subset(&met.fields) {
        met.fields.extend(other.fields.iter().cloned());
    }
    for set in &other.sets {
        if !met.sets.contains(set) && (met.sets.len() < NAMES || exclude_sets.contains(set)) {
            met.sets.insert(set.clone());
        }
    }
}

/// Records that were read and could be used, whether they were wanted or not.
fn usable(totals: &Totals) -> u64 {
    let reasons = [EXCLUDED_SET, EMPTY, HELD_OUT, NOT_HELD_OUT, DUPLICATE, BEYOND_MAX_TOKENS];
    totals.documents + reasons.iter().filter_map(|reason| totals.left_out.get(*reason)).sum::<u64>()
}

impl Asked {
    /// What `selection` asks of a split of this profile.
    #[must_use]
    pub fn of(profile: &str, selection: &Selection) -> Self {
        if selection.max_tokens.is_some() {
            return Self::default();
        }
        // The fields of PALOMA and SlimPajama are the profile's, not the caller's: records may lack them.
        let named = profile == "local";
        let fields = Field::ALL.into_iter().filter(|_| named);
        Self {
            // Those of SlimPajama were compared with the catalog's list before anything was read.
            exclude_sets: if profile.starts_with("slimpajama") {
                Vec::new()
            } else {
                selection.exclude_sets.clone()
            },
            fields: fields.filter_map(|field| Some((field, field.path(selection)?.clone()))).collect(),
        }
    }

    /// What was asked for and met in no record. A split without records has nothing to be asked of.
    pub(crate) fn missing(&self, met: &Met, totals: &Totals) -> Option<String> {
        let records = usable(totals);
        if records == 0 {
            return None;
        }
        let quoted = |name: &String| format!("`{name}`");
        if let Some(set) = self.exclude_sets.iter().find(|set| !met.sets.contains(*set)) {
            let there: Vec<_> = met.sets.iter().take(NAMES).map(quoted).collect();
            let there = if there.is_empty() { "no set at all".to_owned() } else { there.join(", ") };
            return Some(format!(
                "--exclude-set {set}: expected a set of the records, found {there} in {records} records; mend the name{}",
                if met.sets.is_empty() { ", or name the sets' field with --set-field" } else { "" }
            ));
        }
        let (field, path) = self.fields.iter().find(|(field, _)| !met.fields.contains(field.option()))?;
        Some(format!(
            "{} {path}: expected a field of the records, found it in none of {records}; mend the name (dots lead into \
             nested fields), or leave the option out",
            field.option()
        ))
    }
}
