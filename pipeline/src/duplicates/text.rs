//! The report for people.

use std::io::{self, Write};

use xlstm_manifests::printable;

use super::{DuplicatesReport, SetCopies};
use crate::report::{count, percent_of};

pub(super) fn write(out: &mut dyn Write, report: &DuplicatesReport) -> io::Result<()> {
    for (split, root) in report.splits.iter().zip(&report.roots) {
        writeln!(out, "split  {}, root {root}", printable::path(split))?;
    }
    writeln!(
        out,
        "near   from a similarity of {} of five-word shingles: {} pairs compared, {} reached it",
        report.threshold,
        count(report.pairs_compared),
        count(report.pairs_near)
    )?;
    writeln!(out, "\n  {:<24} {:>14} {:>22} {:>22}", "set", "documents", "exact copies", "near copies")?;
    report.sets.iter().chain([&report.total]).try_for_each(|set| write_set(out, set))?;
    if report.again > 0 {
        writeln!(
            out,
            "\n{} of these copies are an earlier document once more: the same record of the same file, in another split or in one \
             that was named twice. They are not in a list, since --drop-duplicates would leave out both: name each split once, \
             and give each file to one split",
            count(report.again)
        )?;
    }
    Ok(())
}

fn write_set(out: &mut dyn Write, set: &SetCopies) -> io::Result<()> {
    let of = |copies: u64| format!("{} ({})", count(copies), percent_of(copies, set.documents));
    writeln!(
        out,
        "  {:<24} {:>14} {:>22} {:>22}",
        printable::text(&set.name),
        count(set.documents),
        of(set.exact),
        of(set.near)
    )
}
