//! PALOMA: figures by source and domain, and the averages of the two papers.
//!
//! ```text
//! source   exp(Σ nll / Σ tokens) over the source's documents           xLSTM paper, Tables 4 and 9
//! domain   the same over a domain's documents                          xLSTM paper, Table 10
//! macro    mean over a source's domains of their perplexities          PALOMA, section 4.1
//! file     the same as a source over one of its numbered files         xLSTM paper, Table 10: 31 of its rows
//! ```
//! The windows are the same in the paper's text and in the official evaluator (`catwalk`, `lm-eval`'s
//! `get_rolling_token_windows` and `make_disjoint_window`): worked by hand in `manifests/src/documents.rs`. What differs is
//! which averages are quoted. PALOMA's text (guideline G5) has windows that never overlap: protocol `disjoint`.

use std::collections::BTreeMap;

use super::corpus::Corpus;
use super::paper::{SOURCES, TABLE_4_SOURCES};
use super::perplexity::{named, nothing};
use super::results::{Average, AverageKind, Mark, MarkKind, Named, Paloma, PalomaSource, Statistics};
use super::score::Scores;
use super::statistics::{DocumentScore, documents, positions, statistics};
use crate::error::Result;

/// Sources that PALOMA's Figure 1 leaves out of its average: three fringe sources, and code.
const FRINGE_AND_CODE: [&str; 4] =
    ["manosphere_meta_sep", "gab", "4chan_meta_sep", "dolma_100_programing_languages"];

/// The figures of a scored corpus.
///
/// # Errors
/// When nothing was scored.
pub fn results(corpus: &Corpus, scores: &Scores) -> Result<Paloma> {
    let documents = documents(corpus, scores);
    let domains = named(&corpus.sets, &documents);
    let mut sources: Vec<PalomaSource> = Vec::new();
    for (source, name) in SOURCES {
        sources.push(source_of(corpus, &documents, &domains, source, name));
    }
    for set in &corpus.sets {
        let source = split(set).0;
        if !sources.iter().any(|known| known.source == source) {
            sources.push(source_of(corpus, &documents, &domains, source, source));
        }
    }
    let averages = averages(&sources);
    let total = statistics(documents.iter()).ok_or_else(nothing)?;
    Ok(Paloma { sources, averages, total, positions: positions(scores) })
}

/// Source and domain of a set's name.
fn split(set: &str) -> (&str, &str) {
    set.split_once('/').unwrap_or((set, set))
}

fn source_of(
    corpus: &Corpus,
    documents: &[DocumentScore],
    domains: &[Named],
    source: &str,
    name: &str,
) -> PalomaSource {
    let belongs = |document: &&DocumentScore| {
        let set = document.set.and_then(|set| corpus.sets.get(set as usize));
        set.is_some_and(|set| split(set).0 == source)
    };
    let statistics = statistics(documents.iter().filter(belongs));
    let own = domains.iter().filter(|domain| split(&domain.name).0 == source);
    let domains: Vec<Named> = own
        .map(|domain| Named { name: split(&domain.name).1.to_owned(), statistics: domain.statistics })
        .collect();
    let macro_perplexity = mean(domains.iter().map(|domain| domain.statistics.perplexity));
    let undivided = matches!(domains.as_slice(), [only] if only.name == source);
    let files = if undivided { files_of(corpus, documents.iter().filter(belongs)) } else { Vec::new() };
    PalomaSource { source: source.into(), name: name.into(), statistics, macro_perplexity, domains, files }
}

/// Figures by numbered file; none where the numbers alone do not name the parts: where a file has none, or two have the
/// same.
fn files_of<'a>(corpus: &Corpus, documents: impl Iterator<Item = &'a DocumentScore>) -> Vec<Named> {
    let mut files: BTreeMap<&str, Vec<&DocumentScore>> = BTreeMap::new();
    let mut paths: BTreeMap<&str, &str> = BTreeMap::new();
    for document in documents {
        let input = corpus.manifest().inputs.get(document.input as usize);
        let Some(path) = input.map(|input| input.path.as_str()) else { return Vec::new() };
        let Some(number) = file_number(path) else { return Vec::new() };
        if *paths.entry(number).or_insert(path) != path {
            return Vec::new();
        }
        files.entry(number).or_default().push(document);
    }
    let named = files.into_iter().filter_map(|(number, documents)| {
        Some(Named { name: number.to_owned(), statistics: statistics(documents.into_iter())? })
    });
    named.collect()
}

/// `00000003` of `c4_en/val/val-00000003.jsonl.gz` (the Hub's name), and of `c4_en_00000003.jsonl.gz` (the name that the
/// files have at AI2: source, subdomain, number; the first two may have dots and lines).
fn file_number(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next()?;
    let (stem, _) = name.rsplit_once(".json")?;
    let (_, number) = stem.rsplit_once(['-', '_'])?;
    (number.len() == 8 && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(number)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn averages(sources: &[PalomaSource]) -> Vec<Average> {
    let known = &sources[..SOURCES.len()];
    let calm: Vec<&PalomaSource> =
        known.iter().filter(|source| !FRINGE_AND_CODE.contains(&source.source.as_str())).collect();
    let table_4: Vec<&PalomaSource> = known[..TABLE_4_SOURCES].iter().collect();
    let known: Vec<&PalomaSource> = known.iter().collect();
    let by_source = |sources: &[&PalomaSource]| {
        mean(sources.iter().filter_map(|source| Some(source.statistics?.perplexity)))
    };
    let by_domain = |sources: &[&PalomaSource]| {
        let domains = sources.iter().flat_map(|source| &source.domains);
        mean(domains.map(|domain| domain.statistics.perplexity))
    };
    vec![
        average(AverageKind::PaperTable4, "mean of the twelve sources of Table 4", &table_4, &by_source),
        average(AverageKind::MeanOfSources, "mean of the sixteen sources", &known, &by_source),
        average(AverageKind::MeanOfDomains, "mean of all domains (macro)", &known, &by_domain),
        average(AverageKind::Micro, "all tokens (micro)", &known, &micro),
        average(
            AverageKind::MicroWithoutFringeAndCode,
            "all tokens without fringe sources and code (PALOMA's Figure 1)",
            &calm,
            &micro,
        ),
    ]
}

fn micro(sources: &[&PalomaSource]) -> Option<f64> {
    let there: Vec<Statistics> = sources.iter().filter_map(|source| source.statistics).collect();
    let tokens: u64 = there.iter().map(|statistics| statistics.tokens).sum();
    let nll: f64 = there.iter().map(|statistics| statistics.nll).sum();
    (tokens > 0).then(|| super::statistics::perplexity(nll / tokens as f64))
}

fn average(
    kind: AverageKind,
    name: &str,
    sources: &[&PalomaSource],
    figure: &dyn Fn(&[&PalomaSource]) -> Option<f64>,
) -> Average {
    let names = |there: bool| {
        let chosen = sources.iter().filter(|source| source.statistics.is_some() == there);
        chosen.map(|source| source.source.clone()).collect()
    };
    Average { kind, name: name.into(), perplexity: figure(sources), over: names(true), missing: names(false) }
}

/// The mark for sources that are not there; `None` when all sixteen are.
pub(super) fn missing_mark(results: &Paloma) -> Option<Mark> {
    let missing: Vec<&str> = results
        .sources
        .iter()
        .filter(|source| source.statistics.is_none())
        .map(|source| source.source.as_str())
        .collect();
    (!missing.is_empty()).then(|| Mark {
        kind: MarkKind::MissingSource,
        text: format!(
            "the dataset has nothing of {}: averages that they belong to compare with no other's",
            missing.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbered_files_have_a_number() {
        for path in [
            "c4_en/val/val-00000003.jsonl.gz",
            "c4_en/c4_en_00000003.jsonl.gz",
            "c4_en_00000003.json",
            "c4_100_domains_www.example.com_00000003.jsonl.gz",
            "m2d2_s2orc_unsplit_cs.AI-x_00000003.jsonl.zst",
        ] {
            assert_eq!(file_number(path), Some("00000003"), "{path}");
        }
        for path in [
            "c4_en/00000003.jsonl.gz",
            "c4_en_000000003.jsonl.gz",
            "c4_en_0000000x.jsonl.gz",
            "ptb/val/val.jsonl.gz",
            "redpajama/val/val_c4-en.jsonl.gz",
            "x/val-0000003.jsonl",
            "val-00000003",
        ] {
            assert_eq!(file_number(path), None, "{path}");
        }
    }
}
