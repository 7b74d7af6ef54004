//! PALOMA's page: averages, sources and domains beside the paper's 1.3B models (Tables 4, 9 and 10).
//!
//! The paper's models have 1.3B parameters and saw 300B tokens. Ratios to them say how far away a model is; they are no
//! contest between models of other sizes, and the page says so.
//!
//! A domain stands beside a row of Table 10 when source and name are the same but for case, signs and the leading
//! number of some of PALOMA's folders; a source that is one domain stands beside its own column of Tables 4 and 9. The
//! paper splits C4, mC4, Refined Web, Gab and 4chan by number; these numbers are taken to be those of PALOMA's files.

use std::collections::BTreeMap;

use xlstm_pipeline::overlap::{EvalSet, OverlapReport};
use xlstm_pipeline::report::{Bar, Cell, Cloud, Page, Table, bar_chart, count, percent, share};

use super::figures::perplexity_cell;
use crate::evaluation::paper::{DOMAIN_MODELS, DomainTable, SOURCE_PERPLEXITIES, SOURCES};
use crate::evaluation::results::{Average, Named, Paloma, PalomaSource, Statistics};

/// xLSTM[1:0] 1.3B in [`DOMAIN_MODELS`]: the paper's best, which ratios refer to.
const REFERENCE: usize = 4;
/// Domains in the list of the worst.
const WORST: usize = 20;
/// Share of a domain's documents with text in the training set from which it is marked.
const CONTAMINATED: f64 = 1.0;

/// A domain with what stands beside it.
struct Domain<'a> {
    source: &'a PalomaSource,
    name: &'a str,
    statistics: &'a Statistics,
    /// The paper's perplexities.
    paper: Option<[f64; 5]>,
    overlap: Option<&'a EvalSet>,
}

impl Domain<'_> {
    fn full_name(&self) -> String {
        format!("{}/{}", self.source.source, self.name)
    }

    /// Our perplexity over the paper's.
    fn ratio(&self, model: usize) -> Option<f64> {
        self.paper.map(|paper| self.statistics.perplexity / paper[model])
    }

    fn contamination(&self) -> Option<f64> {
        self.overlap.and_then(|set| share(set.documents_hit, set.documents))
    }
}

fn domains<'a>(results: &'a Paloma, overlap: Option<&'a OverlapReport>) -> Vec<Domain<'a>> {
    let table = DomainTable::new();
    let sets: BTreeMap<&str, &EvalSet> =
        overlap.iter().flat_map(|report| &report.eval_sets).map(|set| (set.name.as_str(), set)).collect();
    let mut found = Vec::new();
    for source in &results.sources {
        // Where the paper splits a source by number, its files stand beside the paper's rows, and the whole beside none.
        let numbered = |file: &&Named| table.find(&source.source, &file.name).is_some();
        let files: Vec<&Named> = source.files.iter().filter(numbered).collect();
        let whole = source.domains.len() == 1 && files.is_empty();
        for Named { name, statistics } in source.domains.iter().chain(files) {
            let short = name.strip_prefix(&format!("{}/", source.source)).unwrap_or(name);
            let row = table.find(&source.source, short).map(|row| row.perplexities);
            let alone = whole.then(|| of_source(&source.source)).flatten();
            let full = format!("{}/{short}", source.source);
            let overlap = sets.get(full.as_str()).or_else(|| sets.get(name.as_str())).copied();
            found.push(Domain { source, name: short, statistics, paper: row.or(alone), overlap });
        }
    }
    found
}

fn of_source(source: &str) -> Option<[f64; 5]> {
    SOURCES.iter().position(|(folder, _)| *folder == source).map(|index| SOURCE_PERPLEXITIES[index])
}

/// Writes PALOMA's sections; figures link to the section with the id `chain`.
pub(super) fn write(page: &mut Page, results: &Paloma, overlap: Option<&OverlapReport>, chain: &str) {
    let domains = domains(results, overlap);
    averages(page, results, chain);
    sources(page, results, chain);
    if domains.iter().any(|domain| domain.paper.is_some()) {
        against(page, &domains);
        worst(page, &domains);
    }
    contamination(page, &domains, overlap.is_some());
    all(page, &domains, overlap.is_some(), chain);
}

fn averages(page: &mut Page, results: &Paloma, chain: &str) {
    page.section("averages", "Averages");
    let mut table = Table::new("Averages of perplexity", &["Average", "#Perplexity", "#Sources", "Missing"]);
    for Average { name, perplexity, over, missing, .. } in &results.averages {
        let figure = Cell::of(*perplexity, |perplexity| Cell::decimals(perplexity, 3).link(chain));
        let absent = match missing.is_empty() {
            true => Cell::text("none"),
            false => {
                Cell::text(&format!("{}: compares with no published average", missing.join(", "))).warn()
            }
        };
        table.cells(vec![Cell::text(name), figure, Cell::count(over.len() as u64), absent]);
    }
    let total = &results.total;
    table.cells(vec![
        Cell::text("all tokens together").note(&format!(
            "{} documents, {} tokens",
            count(total.documents),
            count(total.tokens)
        )),
        perplexity_cell(total).link(chain),
        Cell::count(results.sources.iter().filter(|source| source.statistics.is_some()).count() as u64),
        Cell::text("–"),
    ]);
    page.table(&table);
}

fn sources(page: &mut Page, results: &Paloma, chain: &str) {
    page.section("sources", "Sources");
    let mut columns = vec![
        "Source",
        "#Documents",
        "#Tokens",
        "#Perplexity, 95 % interval",
        "#Mean of domains",
        "#Bits a byte",
    ];
    let models: Vec<String> = DOMAIN_MODELS.iter().map(|model| format!("#{model}")).collect();
    columns.extend(models.iter().map(String::as_str));
    let caption = "Sources in the paper's order, beside its 1.3B models on 300B tokens (Tables 4 and 9)";
    let mut table = Table::new(caption, &columns).sortable();
    for source in &results.sources {
        let Some(statistics) = &source.statistics else {
            let mut cells = vec![Cell::text(&source.name).note("missing").warn()];
            cells.resize_with(6, Cell::missing);
            cells.extend(paper_cells(of_source(&source.source)));
            table.cells(cells);
            continue;
        };
        let mut cells = vec![
            Cell::text(&source.name).note(&source.source),
            Cell::count(statistics.documents),
            Cell::count(statistics.tokens),
            perplexity_cell(statistics).link(chain),
            Cell::of(source.macro_perplexity, |mean| Cell::decimals(mean, 3)),
            Cell::of(statistics.bits_per_byte, |bits| Cell::decimals(bits, 4)),
        ];
        cells.extend(paper_cells(of_source(&source.source)));
        table.cells(cells);
    }
    page.table(&table);
}

fn paper_cells(paper: Option<[f64; 5]>) -> Vec<Cell> {
    (0..DOMAIN_MODELS.len()).map(|model| Cell::of(paper, |paper| Cell::decimals(paper[model], 2))).collect()
}

/// Clouds of domains against each of the paper's models, and who is ahead where.
fn against(page: &mut Page, domains: &[Domain]) {
    page.section("against", "Domains against the paper's models");
    let beside: Vec<&Domain> = domains.iter().filter(|domain| domain.paper.is_some()).collect();
    page.paragraph(&format!(
        "{} of {} rows below stand in Table 10. The paper's models have 1.3B parameters and saw 300B tokens: read this as a \
         distance, not as a contest, unless the model here has the same size and data.",
        beside.len(),
        domains.len()
    ));
    let mut table = Table::new(
        "Domains on which this model has the lower or the higher perplexity",
        &["Paper's model", "#Lower", "#Equal to two decimals", "#Higher", "#Median ratio"],
    )
    .sortable();
    for (model, name) in DOMAIN_MODELS.iter().enumerate() {
        let (mut lower, mut equal, mut higher) = (0, 0, 0);
        for domain in &beside {
            let paper = domain.paper.map_or(f64::NAN, |paper| paper[model]);
            // The paper prints two decimals.
            let ours = (domain.statistics.perplexity * 100.0).round() / 100.0;
            match ours.total_cmp(&paper) {
                std::cmp::Ordering::Less => lower += 1,
                std::cmp::Ordering::Equal => equal += 1,
                std::cmp::Ordering::Greater => higher += 1,
            }
        }
        let median = super::view::median(beside.iter().filter_map(|domain| domain.ratio(model)));
        table.cells(vec![
            Cell::text(name),
            Cell::count(lower),
            Cell::count(equal),
            Cell::count(higher),
            Cell::of(median, |ratio| Cell::decimals(ratio, 3)),
        ]);
    }
    page.table(&table);
    let cloud = |model: usize| {
        let name = DOMAIN_MODELS[model];
        let point =
            |domain: &&Domain| Some((domain.full_name(), domain.paper?[model], domain.statistics.perplexity));
        Cloud {
            title: format!("Perplexity by domain: this model against {name} (a point above the dashed line is worse here)"),
            x: format!("{name}, perplexity"),
            y: "this model, perplexity".into(),
            points: beside.iter().filter_map(point).collect(),
        }
        .render()
    };
    page.push(&cloud(REFERENCE));
    for model in (0..REFERENCE).rev() {
        page.details(&format!("Against {}", DOMAIN_MODELS[model]), |page| page.push(&cloud(model)));
    }
}

fn worst(page: &mut Page, domains: &[Domain]) {
    page.section("worst", "Worst domains");
    let mut sorted: Vec<(&Domain, f64)> =
        domains.iter().filter_map(|domain| Some((domain, domain.ratio(REFERENCE)?))).collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
    sorted.truncate(WORST);
    let bars: Vec<Bar> = sorted
        .iter()
        .map(|(domain, ratio)| Bar {
            label: domain.full_name(),
            value: *ratio,
            shown: format!("{ratio:.3}"),
            mark: Some(1.0),
        })
        .collect();
    let title = format!(
        "Perplexity here over that of {}: the highest ratios; the mark is 1",
        DOMAIN_MODELS[REFERENCE]
    );
    page.push(&bar_chart(&title, &bars));
}

fn contamination(page: &mut Page, domains: &[Domain], given: bool) {
    if !given {
        return;
    }
    page.section("contamination", "Text of these domains in the training set");
    let known = domains.iter().filter(|domain| domain.overlap.is_some()).count();
    let mut hit: Vec<(&Domain, f64)> = domains
        .iter()
        .filter_map(|domain| Some((domain, domain.contamination()?)))
        .filter(|(_, share)| *share > 0.0)
        .collect();
    hit.sort_by(|a, b| b.1.total_cmp(&a.1));
    page.paragraph(&format!(
        "{} of {known} domains that the overlap report knows have documents with a paragraph of at least 13 words in the \
         training set (`xlstm-data overlap`). Their perplexity may be lower for that reason alone.",
        hit.len()
    ));
    let bars: Vec<Bar> = hit
        .iter()
        .take(WORST)
        .map(|(domain, share)| Bar {
            label: domain.full_name(),
            value: *share,
            shown: percent(*share),
            mark: None,
        })
        .collect();
    if !bars.is_empty() {
        page.push(&bar_chart("Documents with text in the training set, the highest shares", &bars));
    }
}

fn all(page: &mut Page, domains: &[Domain], overlap: bool, chain: &str) {
    page.section("domains", "Every domain");
    let ratio = format!("#Ratio to {}", DOMAIN_MODELS[REFERENCE]);
    let models: Vec<String> = DOMAIN_MODELS.iter().map(|model| format!("#{model}")).collect();
    let mut columns = vec![
        "Domain",
        "Source",
        "#Documents",
        "#Tokens",
        "#Perplexity",
        "#95 % interval, from",
        "#to",
        "#Bits a byte",
        ratio.as_str(),
    ];
    columns.extend(models.iter().map(String::as_str));
    columns.extend(overlap.then_some("#In the training set"));
    let caption = "Every domain, beside the paper's 1.3B models where Table 10 has it; the last columns are the paper's";
    let mut table = Table::new(caption, &columns).filterable(Some(1));
    for domain in domains {
        let statistics = domain.statistics;
        let end = |end: Option<f64>| Cell::of(end, |end| Cell::decimals(end, 3));
        let interval = statistics.perplexity_interval;
        let mut cells = vec![
            Cell::text(domain.name),
            Cell::text(&domain.source.name),
            Cell::count(statistics.documents),
            Cell::count(statistics.tokens),
            Cell::decimals(statistics.perplexity, 3).link(chain),
            end(interval.map(|interval| interval.low)),
            end(interval.map(|interval| interval.high)),
            Cell::of(statistics.bits_per_byte, |bits| Cell::decimals(bits, 4)),
            Cell::of(domain.ratio(REFERENCE), |ratio| Cell::decimals(ratio, 3)),
        ];
        cells.extend(paper_cells(domain.paper));
        if overlap {
            cells.push(Cell::of(domain.contamination(), |share| {
                let cell = Cell::number(share, &percent(share));
                if share >= CONTAMINATED { cell.warn() } else { cell }
            }));
        }
        table.cells(cells);
    }
    page.table(&table);
}
