//! Is the difference real? Runs of one recipe with other seeds are one group; groups are compared in pairs, document by
//! document, with intervals over documents and over seeds (module [`paired`](crate::evaluation::paired)).

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use xlstm_manifests::Sha256Digest;
use xlstm_pipeline::report::{Cell, Page, Table, count};

use super::{EvaluationView, RunView};
use crate::error::Result;
use crate::evaluation::documents::{self, ScoredDocument};
use crate::evaluation::paired::{Difference, Seeds, Verdict, difference};
use crate::evaluation::results::{Interval, Results};

/// The name of what is not one set.
const EVERYTHING: &str = "everything";

/// A difference between two groups.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The groups' names.
    pub groups: [String; 2],
    /// The evaluated data, in words.
    pub data: String,
    /// The set, or everything.
    pub set: String,
    /// The figures.
    pub difference: Difference,
}

impl Comparison {
    /// Whether it is over all documents, not over a set.
    #[must_use]
    pub fn is_of_everything(&self) -> bool {
        self.set == EVERYTHING
    }

    /// The comparison in one line.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Difference { value, seeds, .. } = self.difference;
        let [first, second] = &self.groups;
        let over = self.difference.over_both.or(self.difference.over_documents);
        let over = over.map_or_else(String::new, |interval| format!(" ({})", range(interval)));
        format!(
            "{first} − {second} on {}, {}: {value:+.4} nats a token{over}, seeds {} and {}: {}",
            self.data,
            self.set,
            seeds[0],
            seeds[1],
            verdict(self)
        )
    }
}

fn range(interval: Interval) -> String {
    format!("{:+.4} to {:+.4}", interval.low, interval.high)
}

fn verdict(comparison: &Comparison) -> String {
    match comparison.difference.verdict() {
        Verdict::FirstIsLower => format!("{} is lower", comparison.groups[0]),
        Verdict::SecondIsLower => format!("{} is lower", comparison.groups[1]),
        Verdict::CannotBeToldApart => "cannot be told apart".to_owned(),
        Verdict::OneSeed => {
            "they differ on these documents; the seed may be why: train more seeds of each".to_owned()
        }
        Verdict::TooFewDocuments => "too few documents to say".to_owned(),
    }
}

/// Runs of one recipe, but for the seed, in the order of their first one: a name, and the runs' indices.
#[must_use]
pub fn groups<R: Borrow<RunView>>(runs: &[R]) -> Vec<(String, Vec<usize>)> {
    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    let mut keys: Vec<(String, Sha256Digest)> = Vec::new();
    for (index, run) in runs.iter().map(Borrow::borrow).enumerate() {
        let mut recipe = run.recipe.clone();
        // How many rows are computed at a time depends on the device, and decides rounding alone.
        recipe.training.micro_batch_rows = 0;
        let training = &mut recipe.training;
        (training.seed, training.initialization_seed, training.order_seed) = (0, 0, 0);
        for name in [&mut recipe.name, &mut recipe.description, &mut recipe.paper] {
            name.clear();
        }
        let key = (format!("{recipe:?}"), run.manifest.train.root);
        let seed = |run: usize| {
            let training = &runs[run].borrow().recipe.training;
            (training.initialization_seed(), training.order_seed())
        };
        match keys.iter().position(|known| *known == key) {
            // A seed that is there already is the same experiment again: it tells nothing of other seeds.
            Some(at) if groups[at].1.iter().any(|&other| seed(other) == seed(index)) => {}
            Some(at) => groups[at].1.push(index),
            None => {
                keys.push(key);
                groups.push((run.recipe.name.clone(), vec![index]));
            }
        }
    }
    // Recipes of one name that differ are told apart by their first run.
    let names: Vec<String> = groups.iter().map(|(name, _)| name.clone()).collect();
    for (name, members) in &mut groups {
        if names.iter().filter(|other| *other == name).count() > 1 {
            *name = format!("{name} ({})", runs[members[0]].borrow().name);
        }
    }
    groups
}

/// What two evaluations must share for their documents to be the same.
type Key = (Sha256Digest, String);

/// An evaluation's documents, with the step of its checkpoint.
struct Scored {
    step: Option<u64>,
    data: String,
    documents: Vec<ScoredDocument>,
}

/// All comparisons of groups of runs by the evaluations of their newest checkpoints; one of a run that was evaluated twice
/// on the same data counts once. Also what could not be compared.
///
/// # Errors
/// When a table of documents was altered.
pub fn comparisons<R: Borrow<RunView>>(
    runs: &[R],
    evaluations: &[EvaluationView],
) -> Result<Vec<Comparison>> {
    let groups = groups(runs);
    let mut by_key: BTreeMap<Key, BTreeMap<usize, Scored>> = BTreeMap::new();
    for view in evaluations {
        let Some((run, key, scored)) = scored(runs, view)? else { continue };
        let known = by_key.entry(key).or_default();
        if known.get(&run).is_none_or(|other| other.step < scored.step) {
            known.insert(run, scored);
        }
    }
    let mut found = Vec::new();
    for scored in by_key.values() {
        for (at, first) in groups.iter().enumerate() {
            for second in &groups[at + 1..] {
                found.extend(pair(scored, first, second));
            }
        }
    }
    Ok(found)
}

/// The run that an evaluation is of, what it can be compared by, and its documents.
fn scored<R: Borrow<RunView>>(runs: &[R], view: &EvaluationView) -> Result<Option<(usize, Key, Scored)>> {
    let report = &view.report;
    let (Some(data), Results::Perplexity(_) | Results::Paloma(_)) = (&report.dataset, &report.results) else {
        return Ok(None);
    };
    let folder = view.path.parent().unwrap_or(Path::new(""));
    let inside = runs.iter().position(|run| view.path.starts_with(&run.borrow().folder));
    let of_recipe = || {
        let link = report.run.as_ref()?;
        let same =
            |run: &RunView| run.manifest.recipe == link.recipe && run.manifest.train.root == link.train.root;
        let same = |run: &R| same(run.borrow());
        runs.iter().position(same)
    };
    let (Some(run), Some(documents)) = (inside.or_else(of_recipe), documents::read(report, folder)?) else {
        return Ok(None);
    };
    let setting = &report.setting;
    let key = (
        data.root,
        format!(
            "{:?} {} {} {:?}",
            setting.protocol, setting.context_length, setting.reset_at_document_boundaries, setting.first
        ),
    );
    let name = format!("{}, split {}", data.profile, data.split);
    Ok(Some((run, key, Scored { step: report.model.step, data: name, documents })))
}

type Group = (String, Vec<usize>);

/// Two groups on one split: over everything, then by set.
fn pair(scored: &BTreeMap<usize, Scored>, first: &Group, second: &Group) -> Vec<Comparison> {
    let of = |group: &Group| -> Vec<&Scored> { group.1.iter().filter_map(|run| scored.get(run)).collect() };
    let (one, other) = (of(first), of(second));
    let Some(reference) = one.first().filter(|_| !other.is_empty()) else { return Vec::new() };
    // The same data in the same windows has the same documents; whatever has others is left out of the pair.
    let same = |scored: &&Scored| {
        let both = scored.documents.iter().zip(&reference.documents);
        scored.documents.len() == reference.documents.len()
            && both.clone().all(|(a, b)| (a.number, a.tokens) == (b.number, b.tokens))
    };
    let (one, other): (Vec<_>, Vec<_>) =
        (one.iter().copied().filter(same).collect(), other.into_iter().filter(same).collect());
    let sets: BTreeSet<&str> = reference
        .documents
        .iter()
        .map(|document| document.set.as_str())
        .filter(|set| !set.is_empty())
        .collect();
    let whole = (EVERYTHING, None);
    let wanted = std::iter::once(whole).chain(sets.into_iter().map(|set| (set, Some(set))));
    wanted
        .filter_map(|(name, set)| {
            let chosen: Vec<usize> = (0..reference.documents.len())
                .filter(|&at| set.is_none_or(|set| reference.documents[at].set == set))
                .collect();
            let tokens: Vec<f64> = chosen.iter().map(|&at| reference.documents[at].tokens as f64).collect();
            let nll = |group: &[&Scored]| -> Seeds {
                let of = |scored: &&Scored| chosen.iter().map(|&at| scored.documents[at].nll).collect();
                group.iter().map(of).collect()
            };
            Some(Comparison {
                groups: [first.0.clone(), second.0.clone()],
                data: reference.data.clone(),
                set: name.to_owned(),
                difference: difference(&tokens, &nll(&one), &nll(&other))?,
            })
        })
        .collect()
}

/// The section on differences between recipes.
pub(super) fn write(page: &mut Page, comparisons: &[Comparison]) {
    if comparisons.is_empty() {
        return;
    }
    page.section("differences", "Is the difference real?");
    page.paragraph(
        "Losses of two recipes over the same documents, in nats a token; runs that differ in nothing but the seed are one \
         recipe. Intervals are of 95 %: over documents (paired, so that hard documents do not count twice), over seeds, and \
         over both, which decides. From one seed of each, a difference may be the seed's.",
    );
    let columns = [
        "First",
        "Second",
        "Data",
        "Set",
        "#Documents",
        "#Seeds",
        "#Loss of the first",
        "#Of the second",
        "#Difference",
        "Over documents",
        "Over seeds",
        "Over both",
        "What can be said",
    ];
    let mut table = Table::new("Differences, by set", &columns).sortable();
    for comparison in comparisons {
        let found = &comparison.difference;
        let [first, second] = &comparison.groups;
        let interval =
            |interval: Option<Interval>| Cell::of(interval, |interval| Cell::text(&range(interval)));
        table.cells(vec![
            Cell::text(first),
            Cell::text(second),
            Cell::text(&comparison.data),
            Cell::text(&comparison.set),
            Cell::count(found.documents as u64),
            Cell::text(&format!("{} and {}", count(found.seeds[0] as u64), count(found.seeds[1] as u64))),
            Cell::decimals(found.losses[0], 4),
            Cell::decimals(found.losses[1], 4),
            Cell::number(found.value, &format!("{:+.4}", found.value)),
            interval(found.over_documents),
            interval(found.over_seeds),
            interval(found.over_both),
            Cell::text(&verdict(comparison)),
        ]);
    }
    page.table(&table);
}
