//! All pairs of an experiment's methods: the paper's order, the difference of ours with its interval, and whether they agree.

use std::collections::BTreeMap;

use xlstm_pipeline::report::{Cell, Page, Table, count};

use super::agreement::Agreement;
use crate::evaluation::paired::{Difference, Verdict};
use crate::report::Comparison;

/// Two methods.
pub(super) struct Pair {
    /// Their places in the list of methods.
    pub(super) methods: [usize; 2],
    /// The first less the second.
    pub(super) difference: Difference,
    /// What it says to the paper's order; `None` where the paper has none.
    pub(super) agreement: Option<Agreement>,
}

/// Pairs of methods by the names of their groups and the paper's figures.
pub(super) fn pairs(names: &[String], paper: &[f64], comparisons: &[Comparison]) -> Vec<Pair> {
    let of: BTreeMap<&str, usize> =
        names.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
    let whole = comparisons.iter().filter(|comparison| comparison.is_of_everything());
    whole
        .filter_map(|comparison| {
            let [one, other] = comparison.groups.each_ref().map(|name| of.get(name.as_str()).copied());
            let (methods, difference) = ([one?, other?], comparison.difference);
            let agreement =
                Agreement::of(methods.map(|method| paper[method]), difference.value, difference.verdict());
            Some(Pair { methods, difference, agreement })
        })
        .collect()
}

/// How many pairs agree, contradict, and are undecided.
pub(super) fn counts<'a>(pairs: impl Iterator<Item = &'a Pair>) -> [u64; 3] {
    let mut counts = [0; 3];
    for pair in pairs {
        match pair.agreement {
            Some(Agreement::Agrees) => counts[0] += 1,
            Some(Agreement::Contradicts) => counts[1] += 1,
            Some(Agreement::Undecided) => counts[2] += 1,
            None => {}
        }
    }
    counts
}

/// The difference of one method to another one, whichever of them stands first in the pair.
pub(super) fn between(pairs: &[Pair], one: usize, other: usize) -> Option<(f64, Option<(f64, f64)>)> {
    let found = pairs.iter().find(|pair| pair.methods == [one, other] || pair.methods == [other, one])?;
    let sign = if found.methods[0] == one { 1.0 } else { -1.0 };
    let interval = found.difference.over_both.or(found.difference.over_documents).map(|interval| {
        let (low, high) = (sign * interval.low, sign * interval.high);
        (low.min(high), low.max(high))
    });
    Some((sign * found.difference.value, interval))
}

/// An interval of differences in words.
pub(super) fn shown(value: f64, interval: Option<(f64, f64)>) -> String {
    match interval {
        Some((low, high)) => format!("{value:+.3} ({low:+.3} to {high:+.3})"),
        None => format!("{value:+.3}"),
    }
}

/// The table of all pairs, those against the paper first.
pub(super) fn write(page: &mut Page, pairs: &[Pair], labels: &[String], paper: &[String]) {
    let rank = |pair: &&Pair| match pair.agreement {
        Some(Agreement::Contradicts) => 0,
        Some(Agreement::Undecided) => 1,
        Some(Agreement::Agrees) => 2,
        None => 3,
    };
    let mut sorted: Vec<&Pair> = pairs.iter().collect();
    sorted.sort_by(|a, b| {
        let size = |pair: &Pair| pair.difference.value.abs();
        rank(a).cmp(&rank(b)).then(size(b).total_cmp(&size(a)))
    });
    let columns = [
        "Lower loss here",
        "Than",
        "#By, nats a token (95 %)",
        "#Paper: the first",
        "#The second",
        "#Seeds",
        "The paper's order",
    ];
    let mut table =
        Table::new("All pairs: difference of the losses over the same documents", &columns).sortable();
    for pair in sorted {
        let [first, second] = pair.methods;
        let (low, high) = if pair.difference.value <= 0.0 { (first, second) } else { (second, first) };
        let Some((value, interval)) = between(pairs, low, high) else { continue };
        let [a, b] = pair.difference.seeds.map(|seeds| count(seeds as u64));
        table.cells(vec![
            Cell::text(&labels[low]),
            Cell::text(&labels[high]),
            Cell::number(value, &shown(value, interval)),
            Cell::text(&paper[low]),
            Cell::text(&paper[high]),
            Cell::text(&if low == first { format!("{a} and {b}") } else { format!("{b} and {a}") }),
            Cell::text(pair.agreement.map_or("none: equal figures", Agreement::word)),
        ]);
    }
    page.details(&format!("All {} pairs", count(pairs.len() as u64)), |page| page.table(&table));
}

/// Whether all that was decided was decided over several seeds.
pub(super) fn over_seeds(pairs: &[Pair]) -> bool {
    pairs.iter().all(|pair| pair.difference.verdict() != Verdict::OneSeed)
}
