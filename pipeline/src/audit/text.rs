//! The audit as text.

use std::io::{self, Write};

use super::{AuditReport, SourcesReport, SplitReport, Summary};
use crate::report::{bytes, count, percent};

pub(super) fn write(out: &mut dyn Write, report: &AuditReport) -> io::Result<()> {
    for (index, split) in report.splits.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        write_split(out, split)?;
    }
    Ok(())
}

fn write_split(out: &mut dyn Write, split: &SplitReport) -> io::Result<()> {
    let verdict = match split.findings.len() {
        0 => "ok".to_owned(),
        1 => "1 finding".to_owned(),
        n => format!("{n} findings"),
    };
    let checked = &split.checked;
    writeln!(
        out,
        "{}: {verdict} ({} files, {}; content of {} shards)",
        split.folder.display(),
        count(checked.files),
        bytes(checked.bytes),
        count(checked.shards)
    )?;
    for finding in &split.findings {
        writeln!(out, "  ✗ {} [{}]: {}", finding.file, finding.check.name(), finding.message)?;
    }
    for not_done in &split.not_done {
        writeln!(out, "  – {not_done}")?;
    }
    if let Some(documents) = split.text_documents {
        writeln!(out, "  text        tokens of {} documents decoded and hashed", count(documents))?;
    }
    if let Some(deep) = &split.deep {
        writeln!(
            out,
            "  deep        {} of {} documents read again from {} source files and tokenized anew ({})",
            count(deep.documents),
            count(deep.of),
            count(deep.inputs),
            bytes(deep.text_bytes)
        )?;
    }
    if let Some(sources) = &split.sources {
        write_sources(out, sources)?;
    }
    if let Some(summary) = &split.summary {
        write_summary(out, summary)?;
    }
    Ok(())
}

fn write_sources(out: &mut dyn Write, sources: &SourcesReport) -> io::Result<()> {
    let Some(repository) = &sources.repository else {
        return writeln!(out, "  Hub         the sources are no repository of the Hub: nothing to ask");
    };
    writeln!(
        out,
        "  Hub         {repository}: {} inputs match, {} changed, {} missing",
        count(sources.matches),
        count(sources.changed.len() as u64),
        count(sources.missing.len() as u64)
    )?;
    match (&sources.revision, &sources.revision_now) {
        (Some(then), Some(now)) if then != now => {
            writeln!(out, "  Hub         the revision that was asked for is now {now}")
        }
        _ => Ok(()),
    }
}

/// Licences of inputs shown before the rest is counted.
const LICENCES_SHOWN: usize = 8;

fn write_summary(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let totals = &summary.totals;
    writeln!(out, "  root        {}", summary.root)?;
    writeln!(out, "  profile     {}, split {}", summary.profile, summary.split)?;
    if let Some(repository) = &summary.repository {
        writeln!(
            out,
            "  source      {repository} @ {}",
            summary.revision.as_deref().unwrap_or("a revision not recorded")
        )?;
    }
    for licence in &summary.licences {
        let spdx = licence.spdx.as_ref().map_or(String::new(), |spdx| format!(" [{spdx}]"));
        writeln!(out, "  licence     {}: “{}”{spdx}", licence.claimed_by, licence.statement)?;
    }
    let licences = summary.licences_by_inputs();
    for (licence, inputs) in licences.iter().take(LICENCES_SHOWN) {
        writeln!(out, "  licence     {:>6} inputs  {licence}", count(*inputs))?;
    }
    if let Some(more @ 1..) = licences.len().checked_sub(LICENCES_SHOWN) {
        writeln!(out, "  licence     and {more} more (--json or --html list them)")?;
    }
    writeln!(
        out,
        "  totals      {} documents, {} of text, {} tokens, {} rows, from {} inputs",
        count(totals.documents),
        bytes(totals.text_bytes),
        count(totals.tokens),
        count(totals.rows),
        count(summary.inputs)
    )?;
    for (reason, records) in &totals.left_out {
        writeln!(out, "  left out    {} {reason}", count(*records))?;
    }
    if let Some(duplicates) = &summary.duplicate_documents {
        let about = match duplicates.sampled_one_in {
            1 => String::new(),
            n => format!(" (estimated: one text in {} was looked at)", count(n)),
        };
        let documents = count(duplicates.documents);
        writeln!(out, "  duplicates  {documents} documents repeat an earlier one{about}")?;
    }
    for (earlier, later) in &summary.duplicate_inputs {
        writeln!(out, "  duplicates  input `{later}` has the same bytes as `{earlier}`")?;
    }
    write_sets(out, summary)
}

/// Sets shown before the rest is summed up.
const SETS_SHOWN: usize = 40;

fn write_sets(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let width = summary.sets.iter().take(SETS_SHOWN).map(|set| set.name.chars().count()).max().unwrap_or(0);
    for set in summary.sets.iter().take(SETS_SHOWN) {
        let card = set.card_percent.map_or(String::new(), |card| format!(" (card: {})", percent(card)));
        writeln!(
            out,
            "  set         {:width$}  {:>15} tokens {:>8}{card}",
            set.name,
            count(set.tokens),
            percent(set.token_percent)
        )?;
    }
    if let Some(more @ 1..) = summary.sets.len().checked_sub(SETS_SHOWN) {
        writeln!(out, "  set         and {more} more (--json or --html list them)")?;
    }
    Ok(())
}
