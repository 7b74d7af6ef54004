//! An overlap report as text.

use std::io::{self, Write};

use xlstm_manifests::printable;

use super::{EvalSet, OverlapReport, TrainSet};
use crate::report::{bytes, count, percent_of};

/// Of evaluation sets whose paragraphs are all shorter than those that are compared.
pub(super) const ONLY_WHOLE: &str = "No evaluation paragraph has 13 words: documents were compared as a whole alone, and text within them not at all";

pub(super) fn write(out: &mut dyn Write, report: &OverlapReport) -> io::Result<()> {
    let eval = &report.eval_total;
    for (what, documents) in [("evaluation", eval.documents), ("training", report.train_total.documents)] {
        if documents == 0 {
            writeln!(out, "nothing was compared: the {what} sets hold no document")?;
        }
    }
    if eval.documents > 0 && eval.paragraphs == 0 {
        writeln!(out, "{ONLY_WHOLE}")?;
    }
    writeln!(
        out,
        "{} of {} evaluation documents ({}) have text in the training set; {} of them stand there whole",
        count(eval.documents_hit),
        count(eval.documents),
        percent_of(eval.documents_hit, eval.documents),
        count(eval.documents_identical)
    )?;
    writeln!(
        out,
        "{} of {} evaluation paragraphs of at least 13 words ({})",
        count(eval.paragraphs_hit),
        count(eval.paragraphs),
        percent_of(eval.paragraphs_hit, eval.paragraphs)
    )?;
    let sets = report.eval_sets.iter().map(|set| &set.name);
    let names = sets.chain(report.train_sets.iter().map(|set| &set.name));
    let width = names.map(|name| printable::text(name).chars().count()).max().unwrap_or(0).max(18);
    let title = "by evaluation set";
    writeln!(out, "\n{title:width$}   documents       hit  identical  paragraphs       hit    share")?;
    report.eval_sets.iter().chain([&report.eval_total]).try_for_each(|set| write_eval(out, set, width))?;
    let title = "by training set";
    writeln!(out, "\n{title:width$}   documents       hit  identical  paragraphs hit     tokens of hits")?;
    report.train_sets.iter().chain([&report.train_total]).try_for_each(|set| write_train(out, set, width))?;
    let filter = &report.filter;
    writeln!(
        out,
        "\nBloom filter: {} members, {}, {} bits each, false-positive rate {:e}; {} keys asked about: \
         {} confirmed, {} false",
        count(filter.members),
        bytes(filter.bytes),
        filter.places,
        filter.false_positive_rate,
        count(filter.asked),
        count(filter.confirmed),
        count(filter.false_positives)
    )
}

fn write_eval(out: &mut dyn Write, set: &EvalSet, width: usize) -> io::Result<()> {
    writeln!(
        out,
        "{:width$} {:>11} {:>9} {:>10} {:>11} {:>9} {:>8}",
        printable::text(&set.name),
        count(set.documents),
        count(set.documents_hit),
        count(set.documents_identical),
        count(set.paragraphs),
        count(set.paragraphs_hit),
        percent_of(set.documents_hit, set.documents)
    )
}

fn write_train(out: &mut dyn Write, set: &TrainSet, width: usize) -> io::Result<()> {
    writeln!(
        out,
        "{:width$} {:>11} {:>9} {:>10} {:>15} {:>18} ({})",
        printable::text(&set.name),
        count(set.documents),
        count(set.documents_hit),
        count(set.documents_identical),
        count(set.paragraphs_hit),
        count(set.tokens_hit),
        percent_of(set.tokens_hit, set.tokens)
    )
}
