//! What a run was trained on: totals, mixture by set, licenses.

use xlstm_manifests::origin::{Compared, Origin};
use xlstm_manifests::run_manifest::DatasetRef;
use xlstm_pipeline::audit::{Summary, write_licences, write_sets};
use xlstm_pipeline::report::{Cell, Page, Table, count, percent};

use super::RunView;
use crate::provenance::DatasetLink;

/// The section on data. Runs that share a training split share its description.
pub(super) fn write(page: &mut Page, runs: &[RunView]) {
    page.section("data", "Data and licenses");
    for (index, run) in runs.iter().enumerate() {
        let first = runs.iter().position(|other| other.manifest.train.root == run.manifest.train.root);
        if runs.len() > 1 {
            page.subheading(&run.name);
        }
        match first {
            Some(first) if first < index => {
                page.paragraph(&format!("The same training data as {}.", runs[first].name));
            }
            _ => trained_on(page, run),
        }
    }
}

/// What was compared with published digests, and what was only claimed, as facts of a page.
pub(super) fn origin_facts(origin: &Origin) -> Vec<(&'static str, Cell)> {
    let mut facts = Vec::new();
    if let Some(repository) = &origin.repository {
        let revision = origin.revision.as_deref().unwrap_or("a revision not recorded");
        facts.push(("Source", Cell::text(&format!("{repository} @ {revision}"))));
    }
    if let Some(claim) = &origin.claimed {
        facts.push(("Source", Cell::text(&claim.sentence()).warn()));
    }
    for Compared { by, algorithm, inputs } in &origin.compared {
        let text = format!("{} source files with {algorithm} published by {by}", count(*inputs));
        facts.push(("Compared", Cell::text(&text)));
    }
    if origin.not_compared > 0 {
        let text = format!("{} source files with nothing that anybody published", count(origin.not_compared));
        let cell = Cell::text(&text);
        facts.push(("Compared", if origin.claimed.is_some() { cell.warn() } else { cell }));
    }
    facts
}

/// The one training split, or those of a mixture with what was taken of each.
fn trained_on(page: &mut Page, run: &RunView) {
    let order = &run.manifest.order;
    let taken = order.rows_by_dataset(run.last_step());
    if order.is_mixed() {
        mixture(page, run, &taken);
    }
    for ((link, (_, data)), rows) in run.train.iter().zip(run.manifest.trained_on()).zip(taken) {
        if order.is_mixed() {
            page.subheading(&link.name());
        }
        split(page, link, data, rows * order.row_length);
    }
}

/// What was asked of each dataset and what was taken.
fn mixture(page: &mut Page, run: &RunView, taken: &[u64]) {
    let (order, all) = (&run.manifest.order, taken.iter().sum::<u64>());
    let caption = format!("Mixture of root {}; shares are exact in every {} rows", order.root, order.epoch());
    let columns = ["Dataset", "Root", "#Asked", "#Taken", "#Rows taken", "#Passes"];
    let mut table = Table::new(&caption, &columns);
    for ((mixed, data), taken) in order.datasets.iter().zip(&run.manifest.mixture).zip(taken) {
        let asked = 100.0 * mixed.weight as f64 / order.epoch() as f64;
        let share = if all > 0 { 100.0 * *taken as f64 / all as f64 } else { 0.0 };
        table.cells(vec![
            Cell::text(&format!("{}, split {}", data.profile, data.split)),
            Cell::code(&data.root.to_string()),
            Cell::number(asked, &percent(asked)),
            Cell::number(share, &percent(share)),
            Cell::count(*taken),
            Cell::decimals(*taken as f64 / mixed.rows.max(1) as f64, 3),
        ]);
    }
    page.table(&table);
}

fn split(page: &mut Page, link: &DatasetLink, data: &DatasetRef, seen: u64) {
    let passes = match data.tokens {
        0 => "of a split without a token".to_owned(),
        tokens => format!("{:.3} passes over the split", seen as f64 / tokens as f64),
    };
    let mut facts = vec![
        ("Profile", Cell::text(&format!("{}, split {}", data.profile, data.split))),
        ("Root", Cell::code(&data.root.to_string())),
        ("Tokens", Cell::text(&format!("{} in {} rows", count(data.tokens), count(data.rows)))),
        ("Seen", Cell::text(&format!("{} tokens: {passes}", count(seen)))),
    ];
    let summary = link.manifest().map(Summary::of);
    if let Some(summary) = &summary {
        facts.push(("Documents", Cell::count(summary.totals.documents)));
        facts.push(("Source files", Cell::count(summary.inputs)));
        facts.extend(origin_facts(&summary.origin));
        let left_out: u64 = summary.totals.left_out.values().sum();
        if left_out > 0 {
            let of = left_out + summary.totals.documents;
            let share = percent(100.0 * left_out as f64 / of as f64);
            facts.push((
                "Left out",
                Cell::text(&format!("{} of {} records ({share})", count(left_out), count(of))),
            ));
        }
    }
    page.fact_cells(&facts);
    match &summary {
        Some(summary) => {
            write_sets(page, summary);
            write_licences(page, summary);
        }
        None => page.paragraph(
            "Mixture and licenses stand in the dataset's manifest, which is not at hand here; write the page again \
             where it is.",
        ),
    }
}
