//! The audit as a page: verdict, findings, figures and plots of each split.

use xlstm_manifests::manifest::SetTotals;

use super::{AuditReport, SplitReport, Summary};
use crate::report::{Bar, Cell, Page, Table, bar_chart, bytes, count, histogram, percent, percent_of, share};

/// The page of `report`.
pub(super) fn page(report: &AuditReport) -> String {
    let mut page = Page::new("Audit of a prepared dataset");
    let findings: usize = report.splits.iter().map(|split| split.findings.len()).sum();
    let splits = match report.splits.len() {
        1 => "One split was checked".to_owned(),
        n => format!("{n} splits were checked"),
    };
    if report.clean {
        page.verdict(true, "Nothing found.", &format!("{splits}; everything is as the manifest says."));
    } else {
        page.verdict(false, "Not right.", &format!("{splits}; findings: {findings}, each with its file."));
    }
    for split in &report.splits {
        write_split(&mut page, split);
    }
    page.render()
}

fn write_split(page: &mut Page, split: &SplitReport) {
    page.heading(&split.folder.display().to_string());
    let checked = &split.checked;
    let looked = format!(
        "{} files ({}) were read and hashed, and the content of {} shards checked.",
        count(checked.files),
        bytes(checked.bytes),
        count(checked.shards)
    );
    match split.findings.len() {
        0 => page.verdict(true, "In order.", &looked),
        n => page.verdict(false, &format!("{n} findings."), &looked),
    }
    if !split.findings.is_empty() {
        let mut table = Table::new("What was found", &["File", "Check", "Expected and found"]);
        for finding in &split.findings {
            table.row(&[&finding.file, finding.check.name(), &finding.message]);
        }
        page.table(&table);
    }
    split.not_done.iter().for_each(|not_done| page.paragraph(not_done));
    write_deeper(page, split);
    if let Some(summary) = &split.summary {
        write_facts(page, summary);
        write_sets(page, summary);
        write_lengths(page, summary);
        write_left_out(page, summary);
        write_licences(page, summary);
    }
}

fn write_deeper(page: &mut Page, split: &SplitReport) {
    if let Some(documents) = split.text_documents {
        page.paragraph(&format!(
            "The tokens of {} documents were decoded and compared with the digests of their texts.",
            count(documents)
        ));
    }
    if let Some(deep) = &split.deep {
        page.paragraph(&format!(
            "{} of {} documents were read again from {} source files and tokenized anew ({} of text).",
            count(deep.documents),
            count(deep.of),
            count(deep.inputs),
            bytes(deep.text_bytes)
        ));
        if let Some(copies) = deep.copies {
            page.paragraph(&format!("{} copies that a list left out were read again too.", count(copies)));
        }
    }
    if let Some(sources) = &split.sources {
        page.paragraph(&match &sources.repository {
            None => "The sources are no repository of the Hub: nothing could be asked.".into(),
            Some(repository) => format!(
                "On the Hub, {repository}: {} inputs match, {} changed, {} are missing.",
                count(sources.matches),
                count(sources.changed.len() as u64),
                count(sources.missing.len() as u64)
            ),
        });
    }
}

fn write_facts(page: &mut Page, summary: &Summary) {
    let totals = &summary.totals;
    let mut facts = vec![
        ("Root", summary.root.to_string()),
        ("Profile", format!("{}, split {}", summary.profile, summary.split)),
    ];
    let origin = summary.origin.sentence();
    if !origin.is_empty() {
        facts.push(("Source", origin));
    }
    facts.extend([
        ("Inputs", count(summary.inputs)),
        ("Documents", count(totals.documents)),
        ("Text", bytes(totals.text_bytes)),
        ("Tokens", count(totals.tokens)),
        ("Rows", count(totals.rows)),
    ]);
    if let Some(duplicates) = &summary.duplicate_documents {
        let about = match duplicates.sampled_one_in {
            1 => String::new(),
            n => format!(" (estimated from one text in {})", count(n)),
        };
        let documents = count(duplicates.documents);
        facts.push(("Exact copies", format!("{documents} documents repeat an earlier one{about}")));
    }
    for (earlier, later) in &summary.duplicate_inputs {
        facts.push(("Same bytes twice", format!("{later} is {earlier}")));
    }
    page.facts(&facts);
}

/// Bars drawn at most; the table lists the rest.
const BARS: usize = 30;

/// Writes how the tokens are shared between sets: bars and a table; nothing where there are no sets.
pub fn write_sets(page: &mut Page, summary: &Summary) {
    if summary.sets.is_empty() {
        return;
    }
    page.subheading("Tokens by set");
    let mut sorted: Vec<_> = summary.sets.iter().collect();
    sorted.sort_by(|a, b| b.tokens.cmp(&a.tokens).then_with(|| a.name.cmp(&b.name)));
    let card = sorted.iter().any(|set| set.card_percent.is_some());
    let bars: Vec<Bar> = sorted
        .iter()
        .take(BARS)
        .map(|set| Bar {
            label: set.name.clone(),
            // A split without tokens has no shares, and its bars no length.
            value: set.token_percent.unwrap_or(0.0),
            shown: percent_of(set.tokens, summary.totals.tokens),
            mark: set.card_percent,
        })
        .collect();
    let title = match (card, sorted.len() > BARS) {
        (true, _) => {
            "Share of the tokens by set; the upright marks are the shares that the dataset's card states"
        }
        (false, true) => "Share of the tokens: the thirty largest sets",
        (false, false) => "Share of the tokens by set",
    };
    page.push(&bar_chart(title, &bars));
    let columns: &[&str] = if card {
        &["Set", "#Documents", "#Text", "#Tokens", "#Share", "#Card"]
    } else {
        &["Set", "#Documents", "#Text", "#Tokens", "#Share"]
    };
    let mut table = Table::new("Every set", columns).sortable();
    for set in sorted {
        let share = |value| Cell::number(value, &percent(value));
        let mut cells = vec![
            Cell::text(&set.name),
            Cell::count(set.documents),
            Cell::number(set.text_bytes as f64, &bytes(set.text_bytes)),
            Cell::count(set.tokens),
            Cell::of(set.token_percent, share),
        ];
        if card {
            cells.push(Cell::of(set.card_percent, share));
        }
        table.cells(cells);
    }
    page.table(&table);
}

fn write_lengths(page: &mut Page, summary: &Summary) {
    let Some(lengths) = summary.lengths.as_ref().filter(|lengths| !lengths.is_empty()) else { return };
    page.subheading("Lengths of documents");
    page.push(&histogram("Documents by length in tokens; each bar covers a doubling", "tokens", lengths));
    let mut table = Table::new("Documents by length", &["Tokens", "#Documents", "#Share"]);
    let total = lengths.iter().sum();
    for (k, &documents) in lengths.iter().enumerate().filter(|&(_, &documents)| documents > 0) {
        let range = format!("{} to {}", count(1 << k), count((1u64 << (k + 1)) - 1));
        table.row(&[&range, &count(documents), &percent_of(documents, total)]);
    }
    page.table(&table);
}

fn write_left_out(page: &mut Page, summary: &Summary) {
    if summary.totals.left_out.is_empty() {
        return;
    }
    page.subheading("Records left out");
    let bars: Vec<Bar> = summary
        .totals
        .left_out
        .iter()
        .map(|(reason, &records)| Bar {
            label: reason.clone(),
            value: records as f64,
            shown: count(records),
            mark: None,
        })
        .collect();
    page.push(&bar_chart("Records left out, by reason", &bars));
    let mut table = Table::new("Records left out", &["Reason", "#Records"]);
    bars.iter().for_each(|bar| table.row(&[&bar.label, &bar.shown]));
    page.table(&table);
}

fn write_records(page: &mut Page, title: &str, column: &str, records: &[SetTotals], summary: &Summary) {
    if records.is_empty() {
        return;
    }
    let totals = &summary.totals;
    let mut table = Table::new(title, &[column, "#Documents", "#Text", "#Tokens", "#Share"]).sortable();
    let mut row = |name: &str, documents, text_bytes: u64, tokens| {
        table.cells(vec![
            Cell::text(name),
            Cell::count(documents),
            Cell::number(text_bytes as f64, &bytes(text_bytes)),
            Cell::count(tokens),
            Cell::of(share(tokens, totals.tokens), |share| Cell::number(share, &percent(share))),
        ]);
    };
    let mut rest = (totals.documents, totals.text_bytes, totals.tokens);
    for record in records {
        row(&record.name, record.documents, record.text_bytes, record.tokens);
        rest.0 = rest.0.saturating_sub(record.documents);
        rest.1 = rest.1.saturating_sub(record.text_bytes);
        rest.2 = rest.2.saturating_sub(record.tokens);
    }
    if rest.0 > 0 {
        row("(none of their own)", rest.0, rest.1, rest.2);
    }
    page.table(&table);
}

/// Writes what is said about the license, and by whom, and what documents say of themselves.
pub fn write_licences(page: &mut Page, summary: &Summary) {
    if !summary.licences.is_empty() {
        let mut table =
            Table::new("What is said about the license, and by whom", &["Who", "Statement", "SPDX"]);
        for licence in &summary.licences {
            table.row(&[&licence.claimed_by, &licence.statement, licence.spdx.as_deref().unwrap_or("–")]);
        }
        page.subheading("Licenses");
        page.table(&table);
    }
    write_records(
        page,
        "Licenses that documents carry themselves",
        "License",
        &summary.record_licenses,
        summary,
    );
    write_records(page, "Where documents say that they are from", "From", &summary.record_sources, summary);
    if !summary.input_licences.is_empty() {
        let mut table = Table::new("Licenses that inputs carry themselves", &["License", "#Inputs"]);
        for (licence, inputs) in summary.licences_by_inputs() {
            table.row(&[licence, &count(inputs)]);
        }
        page.table(&table);
    }
}
