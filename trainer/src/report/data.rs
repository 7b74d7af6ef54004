//! What a run was trained on: totals, mixture by set, licenses.

use xlstm_manifests::origin::{Compared, Origin};
use xlstm_pipeline::audit::{Summary, write_licences, write_sets};
use xlstm_pipeline::report::{Cell, Page, count, percent};

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
                page.paragraph(&format!("The same training split as {}.", runs[first].name));
            }
            _ => split(page, run, &run.train),
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

fn split(page: &mut Page, run: &RunView, link: &DatasetLink) {
    let data = &run.manifest.train;
    let seen = run.last_step() * run.tokens_per_step();
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
