//! What is shown, for people. Texts are strangers': each line of them goes through `printable::text`.

use std::io::{self, Write};

use xlstm_manifests::printable;

use super::{Lengths, ShowReport, ShownDocument, ShownRow};
use crate::report::{bytes, count, percent_of};

/// Characters of the longest bar.
const BAR: u64 = 40;

pub(super) fn write(out: &mut dyn Write, report: &ShowReport) -> io::Result<()> {
    let ShowReport { split, root, documents, tokens, rows, .. } = report;
    let rows = if *rows > 0 { format!(" in {} rows", count(*rows)) } else { String::new() };
    let split = printable::text(split);
    writeln!(
        out,
        "split {split}: {} documents, {} tokens{rows}, root {root}",
        count(*documents),
        count(*tokens)
    )?;
    for set in &report.sets {
        writeln!(
            out,
            "  set {}: {} documents, {} tokens ({})",
            printable::text(&set.name),
            count(set.documents),
            count(set.tokens),
            percent_of(set.tokens, *tokens)
        )?;
    }
    if let Some(lengths) = &report.lengths {
        write_lengths(out, lengths)?;
    }
    report.shown.iter().try_for_each(|document| write_document(out, document))?;
    report.shown_rows.iter().try_for_each(|row| write_row(out, row))
}

fn write_lengths(out: &mut dyn Write, lengths: &Lengths) -> io::Result<()> {
    let Lengths { documents, tokens, longest, bins } = lengths;
    if *documents == 0 {
        return writeln!(out, "\nlengths: no document");
    }
    let mean = *tokens as f64 / *documents as f64;
    writeln!(
        out,
        "\nlengths of {} documents, tokens: mean {mean:.1}, longest {}",
        count(*documents),
        count(*longest)
    )?;
    let most = bins.iter().map(|bin| bin.documents).max().unwrap_or(1).max(1);
    // Lengths below the shortest document's say nothing.
    for bin in bins.iter().skip_while(|bin| bin.documents == 0) {
        let range = if bin.first == bin.last {
            count(bin.first)
        } else {
            format!("{} to {}", count(bin.first), count(bin.last))
        };
        // The shortest bar that is not none says that there are some.
        let bar = "#".repeat((bin.documents * BAR).div_ceil(most) as usize);
        let (number, share) = (count(bin.documents), percent_of(bin.documents, *documents));
        writeln!(out, "  {range:>22}  {number:>12}  {share:>7}  {bar}")?;
    }
    Ok(())
}

fn write_document(out: &mut dyn Write, document: &ShownDocument) -> io::Result<()> {
    let ShownDocument { set, id, license, input, record, sha256, .. } = document;
    let (tokens, size) = (count(document.tokens), bytes(document.bytes));
    writeln!(out, "\ndocument {}: {tokens} tokens, {size}", document.document)?;
    let named = [("set", set), ("id", id), ("license", license)];
    for (name, value) in named.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
        writeln!(out, "  {name:<7} {}", printable::text(value))?;
    }
    writeln!(out, "  source  record {record} of {}, text sha256 {sha256}", printable::text(input))?;
    if let Some(targets) = &document.targets {
        writeln!(out, "  targets {targets}")?;
    }
    write_text(out, &document.text, document.cut)
}

fn write_row(out: &mut dyn Write, row: &ShownRow) -> io::Result<()> {
    let (tokens, documents) = (count(row.tokens), count(row.documents));
    writeln!(out, "\nrow {}: {tokens} tokens of {documents} documents", row.row)?;
    write_text(out, &row.text, row.cut)
}

/// The text behind a bar, so that no line of it can be taken for one of ours.
fn write_text(out: &mut dyn Write, text: &str, cut: bool) -> io::Result<()> {
    for line in text.split('\n') {
        writeln!(out, "  | {}", printable::text(line))?;
    }
    if cut { writeln!(out, "  … more: --bytes 0 shows all") } else { Ok(()) }
}
