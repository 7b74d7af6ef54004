//! An overlap report as a page.

use super::OverlapReport;
use super::text::ONLY_WHOLE;
use crate::report::{Bar, Page, Table, bar_chart, bytes, count, percent_of, share};

/// Bars drawn at most; the table lists the rest.
const BARS: usize = 30;

/// The page of `report`.
pub(super) fn page(report: &OverlapReport) -> String {
    let mut page = Page::new("Overlap of evaluation and training data");
    let eval = &report.eval_total;
    let sentence = format!(
        "{} of {} evaluation documents have a paragraph of at least 13 words in the training set; {} stand there whole.",
        count(eval.documents_hit),
        count(eval.documents),
        count(eval.documents_identical)
    );
    let nothing = eval.documents == 0 || report.train_total.documents == 0;
    let verdict = match eval.documents_hit {
        _ if nothing => "Nothing was compared: one side holds no document.",
        0 if eval.paragraphs == 0 => "No document stands in both; no text within documents was compared.",
        0 => "No overlap.",
        _ => "They overlap.",
    };
    page.verdict(eval.documents_hit == 0 && !nothing && eval.paragraphs > 0, verdict, &sentence);
    if !nothing && eval.paragraphs == 0 {
        page.paragraph(&format!("{ONLY_WHOLE}."));
    }
    let paths = |paths: &[std::path::PathBuf]| {
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    };
    let train = &report.train_total;
    page.facts(&[
        ("Training set", paths(&report.train)),
        ("Evaluation sets", paths(&report.eval)),
        ("Evaluation paragraphs", format!("{} of {}", count(eval.paragraphs_hit), count(eval.paragraphs))),
        (
            "Training documents",
            format!(
                "{} of {} ({} of the tokens): what PALOMA's decontamination would drop",
                count(train.documents_hit),
                count(train.documents),
                percent_of(train.tokens_hit, train.tokens)
            ),
        ),
    ]);
    write_eval(&mut page, report);
    write_train(&mut page, report);
    write_filter(&mut page, report);
    page.render()
}

fn write_eval(page: &mut Page, report: &OverlapReport) {
    page.heading("By evaluation set");
    // A set without documents has no share: it stands last, and its bar has no length.
    let part = |hit: u64, of: u64| share(hit, of).unwrap_or(0.0);
    let mut sorted: Vec<_> = report.eval_sets.iter().collect();
    sorted.sort_by(|a, b| {
        let (x, y) = (part(a.documents_hit, a.documents), part(b.documents_hit, b.documents));
        y.total_cmp(&x).then_with(|| a.name.cmp(&b.name))
    });
    let bars: Vec<Bar> = sorted
        .iter()
        .take(BARS)
        .map(|set| {
            let (hit, of) = (set.documents_hit, set.documents);
            Bar { label: set.name.clone(), value: part(hit, of), shown: percent_of(hit, of), mark: None }
        })
        .collect();
    page.push(&bar_chart("Evaluation documents with text in the training set, highest shares first", &bars));
    let columns = [
        "Set",
        "#Documents",
        "#Hit",
        "#Share",
        "#Identical",
        "#Paragraphs",
        "#Paragraphs hit",
        "#Share of them",
    ];
    let mut table = Table::new("Every evaluation set", &columns);
    for set in sorted.into_iter().chain([&report.eval_total]) {
        table.row(&[
            &set.name,
            &count(set.documents),
            &count(set.documents_hit),
            &percent_of(set.documents_hit, set.documents),
            &count(set.documents_identical),
            &count(set.paragraphs),
            &count(set.paragraphs_hit),
            &percent_of(set.paragraphs_hit, set.paragraphs),
        ]);
    }
    page.table(&table);
}

fn write_train(page: &mut Page, report: &OverlapReport) {
    page.heading("By training set");
    let part = |hit: u64, of: u64| share(hit, of).unwrap_or(0.0);
    let mut sorted: Vec<_> = report.train_sets.iter().collect();
    sorted.sort_by(|a, b| {
        let (x, y) = (part(a.tokens_hit, a.tokens), part(b.tokens_hit, b.tokens));
        y.total_cmp(&x).then_with(|| a.name.cmp(&b.name))
    });
    let bars: Vec<Bar> = sorted
        .iter()
        .take(BARS)
        .map(|set| Bar {
            label: set.name.clone(),
            value: part(set.tokens_hit, set.tokens),
            shown: percent_of(set.tokens_hit, set.tokens),
            mark: None,
        })
        .collect();
    page.push(&bar_chart("Share of each training set's tokens in documents with a hit", &bars));
    let columns = ["Set", "#Documents", "#Hit", "#Identical", "#Paragraphs hit", "#Tokens of hits", "#Share"];
    let mut table = Table::new("Every training set", &columns);
    for set in sorted.into_iter().chain([&report.train_total]) {
        table.row(&[
            &set.name,
            &count(set.documents),
            &count(set.documents_hit),
            &count(set.documents_identical),
            &count(set.paragraphs_hit),
            &count(set.tokens_hit),
            &percent_of(set.tokens_hit, set.tokens),
        ]);
    }
    page.table(&table);
}

fn write_filter(page: &mut Page, report: &OverlapReport) {
    page.heading("How it was found");
    let filter = &report.filter;
    page.paragraph(
        "Texts are split at newlines; paragraphs with at least 13 words (Unicode segmentation) and whole \
         documents are compared by digest. A Bloom filter of the evaluation sets finds suspects in the training \
         set; each is then looked up in the evaluation sets, so that false hits are not counted.",
    );
    page.facts(&[
        (
            "Filter",
            format!(
                "{} members, {}, {} bits each",
                count(filter.members),
                bytes(filter.bytes),
                filter.places
            ),
        ),
        ("Made for", format!("a false-positive rate of {:e}", filter.false_positive_rate)),
        ("Keys asked about", count(filter.asked)),
        ("Confirmed", format!("{} different keys", count(filter.confirmed))),
        ("False", format!("{} different keys", count(filter.false_positives))),
    ]);
}
