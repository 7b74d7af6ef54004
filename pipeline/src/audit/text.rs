//! The audit as text.

use std::io::{self, Write};

use xlstm_manifests::manifest::{SetTotals, Totals};
use xlstm_manifests::origin::Compared;
use xlstm_manifests::printable;

use super::{AuditReport, SourcesReport, SplitReport, Summary};
use crate::report::{bytes, count, percent, percent_of};

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
        printable::path(&split.folder),
        count(checked.files),
        bytes(checked.bytes),
        count(checked.shards)
    )?;
    for finding in &split.findings {
        let (file, message) = (printable::text(&finding.file), printable::text(&finding.message));
        writeln!(out, "  ✗ {file} [{}]: {message}", finding.check.name())?;
    }
    for not_done in &split.not_done {
        writeln!(out, "  – {}", printable::text(not_done))?;
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
        if let Some(copies) = deep.copies {
            writeln!(out, "  deep        {} copies that the list left out read again", count(copies))?;
        }
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

/// Licenses of inputs shown before the rest is counted.
const LICENCES_SHOWN: usize = 8;

fn write_summary(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let totals = &summary.totals;
    writeln!(out, "  root        {}", summary.root)?;
    let (profile, split) = (printable::text(&summary.profile), printable::text(&summary.split));
    let claimed = if summary.origin.claimed.is_some() { " (claimed)" } else { "" };
    writeln!(out, "  profile     {profile}{claimed}, split {split}")?;
    write_origin(out, summary)?;
    for licence in &summary.licences {
        let spdx = licence.spdx.as_ref().map_or(String::new(), |spdx| format!(" [{spdx}]"));
        let (who, statement) = (printable::text(&licence.claimed_by), printable::text(&licence.statement));
        writeln!(out, "  license     {who}: “{statement}”{}", printable::text(&spdx))?;
    }
    let licences = summary.licences_by_inputs();
    for (licence, inputs) in licences.iter().take(LICENCES_SHOWN) {
        writeln!(out, "  license     {:>6} inputs  {}", count(*inputs), printable::text(licence))?;
    }
    if let Some(more @ 1..) = licences.len().checked_sub(LICENCES_SHOWN) {
        writeln!(out, "  license     and {more} more (--json or --html list them)")?;
    }
    write_records(out, "license", &summary.record_licenses, totals)?;
    write_records(out, "from", &summary.record_sources, totals)?;
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
        writeln!(out, "  left out    {} {}", count(*records), printable::text(reason))?;
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
        let (earlier, later) = (printable::text(earlier), printable::text(later));
        writeln!(out, "  duplicates  input `{later}` has the same bytes as `{earlier}`")?;
    }
    write_sets(out, summary)
}

/// What was compared and what was only claimed.
fn write_origin(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let origin = &summary.origin;
    if let Some(repository) = &origin.repository {
        let revision = origin.revision.as_deref().unwrap_or("a revision not recorded");
        writeln!(out, "  source      {} @ {}", printable::text(repository), printable::text(revision))?;
    }
    if let Some(claim) = &origin.claimed {
        writeln!(out, "  source      {}", printable::text(&claim.sentence()))?;
    }
    for Compared { by, algorithm, inputs } in &origin.compared {
        let (by, algorithm) = (printable::text(by), printable::text(algorithm));
        writeln!(out, "  compared    {} inputs with {algorithm} published by {by}", count(*inputs))?;
    }
    match origin.not_compared {
        0 => Ok(()),
        inputs => writeln!(out, "  compared    {} inputs with nothing that anybody published", count(inputs)),
    }
}

/// Totals by what documents carry themselves; documents without it are said too.
fn write_records(out: &mut dyn Write, label: &str, records: &[SetTotals], totals: &Totals) -> io::Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    let mut sorted: Vec<&SetTotals> = records.iter().collect();
    sorted.sort_by(|a, b| b.tokens.cmp(&a.tokens).then_with(|| a.name.cmp(&b.name)));
    let mut line = |name: &str, documents: u64, tokens: u64| {
        let share = percent_of(tokens, totals.tokens);
        let (documents, tokens) = (count(documents), count(tokens));
        writeln!(out, "  {label:11} {documents:>10} documents {tokens:>15} tokens {share:>8}  {name}")
    };
    for record in sorted.iter().take(SETS_SHOWN) {
        line(&printable::text(&record.name), record.documents, record.tokens)?;
    }
    let rest = sorted.iter().skip(SETS_SHOWN);
    let (documents, tokens) = rest.fold((0, 0), |sum, r| (sum.0 + r.documents, sum.1 + r.tokens));
    if documents > 0 {
        line(&format!("{} more (--json or --html list them)", sorted.len() - SETS_SHOWN), documents, tokens)?;
    }
    let counted = records.iter().fold((0, 0), |sum, r| (sum.0 + r.documents, sum.1 + r.tokens));
    if counted.0 < totals.documents {
        line("(none of their own)", totals.documents - counted.0, totals.tokens.saturating_sub(counted.1))?;
    }
    Ok(())
}

/// Sets shown before the rest is summed up.
const SETS_SHOWN: usize = 40;

fn write_sets(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let shown = || summary.sets.iter().take(SETS_SHOWN).map(|set| (printable::text(&set.name), set));
    let width = shown().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, set) in shown() {
        let card = set.card_percent.map_or(String::new(), |card| format!(" (card: {})", percent(card)));
        writeln!(
            out,
            "  set         {:width$}  {:>15} tokens {:>8}{card}",
            name,
            count(set.tokens),
            percent_of(set.tokens, summary.totals.tokens)
        )?;
    }
    if let Some(more @ 1..) = summary.sets.len().checked_sub(SETS_SHOWN) {
        writeln!(out, "  set         and {more} more (--json or --html list them)")?;
    }
    Ok(())
}
