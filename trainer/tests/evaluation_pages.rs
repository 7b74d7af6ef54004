//! Pages about evaluations, of a report in PALOMA's shape: 571 domains, a source that is missing, and the checks of the
//! report's own figures. `KEEP_PAGES=DIR` leaves the pages there for `tests/browser/pages.py`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use xlstm_manifests::Sha256Digest;
use xlstm_pipeline::overlap::{EvalSet, Filter, OverlapReport, TrainSet};
use xlstm_trainer::checkpoint::FileDigest;
use xlstm_trainer::environment;
use xlstm_trainer::evaluation::paper::{SOURCES, domain_rows};
use xlstm_trainer::evaluation::results::*;

fn eval(arguments: &[&str], paths: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xlstm-eval")).args(arguments).args(paths).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn statistics(documents: u64, tokens: u64, loss: f64) -> Statistics {
    let bytes = tokens * 4;
    let nll = loss * tokens as f64;
    let bits_per_byte = nll / (bytes as f64 * std::f64::consts::LN_2);
    let around = |value: f64| Interval { low: value * 0.98, high: value * 1.02 };
    let interval = around(nll / tokens as f64);
    Statistics {
        documents,
        tokens,
        bytes,
        nll,
        loss: nll / tokens as f64,
        loss_interval: Some(interval),
        perplexity: (nll / tokens as f64).exp(),
        perplexity_interval: Some(Interval { low: interval.low.exp(), high: interval.high.exp() }),
        bits_per_byte: Some(bits_per_byte),
        bits_per_byte_interval: Some(around(bits_per_byte)),
    }
}

fn sum<'a>(parts: impl Iterator<Item = &'a Statistics>) -> Statistics {
    let (mut documents, mut tokens, mut nll) = (0, 0, 0.0);
    for part in parts {
        documents += part.documents;
        tokens += part.tokens;
        nll += part.nll;
    }
    statistics(documents, tokens, nll / tokens as f64)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// A model that is about twice as far as the paper's best, on all domains of Table 10 but those of one source.
fn paloma() -> Paloma {
    let rows = domain_rows();
    let sources: Vec<PalomaSource> = SOURCES
        .iter()
        .map(|&(source, name)| {
            let own = rows.iter().enumerate().filter(|(_, row)| row.source == source && source != "ptb");
            let rows: Vec<Named> = own
                .map(|(index, row)| {
                    let factor = 1.6 + 0.8 * ((index * 37 % 100) as f64 / 100.0);
                    let loss = (row.perplexities[4] * factor).ln();
                    let name = row.domain.to_owned();
                    Named {
                        name,
                        statistics: statistics(10 + index as u64, 50_000 + 31 * index as u64, loss),
                    }
                })
                .collect();
            // The paper splits some sources by file: on the Hub they are one domain.
            let numbered = rows.iter().any(|row| row.name.starts_with("000000"));
            let whole = || {
                vec![Named { name: source.into(), statistics: sum(rows.iter().map(|row| &row.statistics)) }]
            };
            let (domains, files) = if numbered { (whole(), rows) } else { (rows, Vec::new()) };
            let there = !domains.is_empty();
            PalomaSource {
                source: source.into(),
                name: name.into(),
                statistics: there.then(|| sum(domains.iter().map(|domain| &domain.statistics))),
                macro_perplexity: there
                    .then(|| mean(domains.iter().map(|domain| domain.statistics.perplexity))),
                domains,
                files,
            }
        })
        .collect();
    let there: Vec<&PalomaSource> = sources.iter().filter(|source| source.statistics.is_some()).collect();
    let over: Vec<String> = there.iter().map(|source| source.source.clone()).collect();
    let average = |kind, name: &str, perplexity| Average {
        kind,
        name: name.into(),
        perplexity: Some(perplexity),
        over: over.clone(),
        missing: vec!["ptb".into()],
    };
    let total = sum(there.iter().filter_map(|source| source.statistics.as_ref()));
    let averages = vec![
        average(
            AverageKind::MeanOfSources,
            "mean of the sixteen sources",
            mean(there.iter().filter_map(|source| Some(source.statistics?.perplexity))),
        ),
        average(
            AverageKind::MeanOfDomains,
            "mean of all domains (macro)",
            mean(there.iter().flat_map(|source| source.domains.iter().map(|d| d.statistics.perplexity))),
        ),
        average(AverageKind::Micro, "all tokens (micro)", total.perplexity),
    ];
    Paloma { sources, averages, total, positions: vec![] }
}

fn report(model: &Path) -> Report {
    let digest = Sha256Digest::of(b"nothing");
    let (size, sha256) = xlstm_manifests::digest::digest_file(model).unwrap();
    Report {
        format: REPORT_FORMAT.into(),
        version: REPORT_VERSION,
        model: ModelLink {
            path: model.into(),
            step: None,
            tokens: None,
            files: BTreeMap::from([("model.safetensors".to_owned(), FileDigest { size, sha256 })]),
            parameters: 163_690_928,
            architecture: "xLSTM[7:1], 24 blocks (sLSTM at 3, 20), width 768".into(),
            vocabulary_size: 50_304,
            context_length: None,
        },
        run: None,
        dataset: Some(DatasetLink {
            path: "data/paloma/validation".into(),
            root: digest,
            manifest_sha256: digest,
            split: "validation".into(),
            profile: "paloma".into(),
            repository: Some("allenai/paloma".into()),
            revision: Some("65cd6fc".into()),
            documents: 100_000,
            tokens: 50_000_000,
            tokenizer: "gpt2".into(),
            tokenizer_sha256: digest,
        }),
        program: environment::program_named("xlstm-eval"),
        setting: Setting {
            protocol: Protocol::Paper,
            context_length: 2048,
            precision: "bfloat16".into(),
            device: "NVIDIA H100".into(),
            reset_at_document_boundaries: false,
            first: None,
            counts: None,
        },
        effort: Effort { seconds: 812.0, tokens_per_second: Some(61_000.0), world: 1 },
        marks: vec![Mark {
            kind: MarkKind::MissingSource,
            text: "the dataset has nothing of ptb: averages that it belongs to compare with no other's"
                .into(),
        }],
        results: Results::Paloma(paloma()),
    }
}

fn overlap() -> OverlapReport {
    let set = |(index, row): (usize, &xlstm_trainer::evaluation::paper::DomainRow)| EvalSet {
        name: format!("{}/{}", row.source, row.domain),
        documents: 100,
        documents_hit: (index % 7) as u64,
        ..EvalSet::default()
    };
    OverlapReport {
        train: vec!["data/train".into()],
        eval: vec!["data/paloma/validation".into()],
        eval_sets: domain_rows().iter().enumerate().map(set).collect(),
        eval_total: EvalSet::default(),
        train_sets: vec![],
        train_total: TrainSet::default(),
        filter: Filter::default(),
    }
}

/// A folder with a model's file and the report about it.
fn setup() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.safetensors");
    fs_err::write(&model, b"parameters").unwrap();
    report(&model).store(folder.path()).unwrap();
    let path = folder.path().join("report.json");
    (folder, path)
}

fn keep(name: &str, page: &str) {
    if let Some(folder) = std::env::var_os("KEEP_PAGES") {
        fs_err::create_dir_all(&folder).unwrap();
        fs_err::write(Path::new(&folder).join(name), page).unwrap();
    }
}

#[test]
fn palomas_page_holds_every_domain_and_says_what_is_missing() {
    let (folder, path) = setup();
    let known = folder.path().join("overlap.json");
    fs_err::write(&known, serde_json::to_vec(&overlap()).unwrap()).unwrap();
    let output = eval(&["page"], &[&path, Path::new("--overlap"), &known]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let page = fs_err::read_to_string(folder.path().join("report.html")).unwrap();
    keep("paloma.html", &page);
    assert!(page.len() < 5_000_000, "{} bytes", page.len());
    let rows = page.split("<h2 id=\"domains\">").nth(1).unwrap().split("</table>").next().unwrap();
    assert_eq!(rows.matches("<tr>").count(), 1 + 575);
    // All of them stand beside the paper's figures, and lead to the chain.
    assert_eq!(rows.matches("<a href=\"#chain\">").count(), 575);
    assert!(page.contains("570 of 575 rows below stand in Table 10"), "no match with the paper");
    assert!(
        page.contains("the dataset has nothing of ptb")
            && page.contains("ptb: compares with no published average")
    );
    assert!(page.contains("Penn Treebank <span class=\"quiet\">missing</span>"));
    for id in ["averages", "sources", "against", "worst", "contamination", "domains", "chain"] {
        assert!(page.contains(&format!("<h2 id=\"{id}\">")), "{id}");
    }
}

#[test]
fn a_page_without_an_overlap_report_has_no_column_for_it() {
    let (folder, path) = setup();
    assert!(eval(&["page"], &[&path]).status.success());
    let page = fs_err::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(!page.contains("In the training set") && !page.contains("id=\"contamination\""));
    fs_err::write(folder.path().join("other.json"), "{}").unwrap();
    let output = eval(&["page"], &[&path, Path::new("--overlap"), &folder.path().join("other.json")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("xlstm-data overlap TRAIN EVAL --json"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn an_altered_figure_contradicts_the_others() {
    let (folder, path) = setup();
    let output = eval(&["verify"], &[&path]);
    let told = text(&output.stdout);
    // All that can be followed holds, and not all can: that is an exit code of its own.
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.lines().any(|line| line.starts_with("not at hand  evaluated split")), "{told}");
    assert_eq!(eval(&["verify", "--strict"], &[&path]).status.code(), Some(1));
    let before = fs_err::read_to_string(&path).unwrap();
    let whole: serde_json::Value = serde_json::from_str(&before).unwrap();
    for pointer in [
        "/results/total/perplexity",
        "/results/total/nll",
        "/results/total/tokens",
        "/results/total/loss",
        "/results/total/bytes",
        "/results/total/bits_per_byte",
        "/results/total/perplexity_interval/low",
        "/results/total/loss_interval/high",
        "/results/averages/0/perplexity",
        "/results/averages/1/perplexity",
        "/results/averages/2/perplexity",
        "/results/sources/0/macro_perplexity",
        "/results/sources/0/statistics/documents",
        "/results/sources/2/domains/0/statistics/perplexity",
        "/results/sources/11/domains/99/statistics/nll",
        "/results/sources/11/domains/99/statistics/tokens",
    ] {
        let mut altered = whole.clone();
        let number = altered.pointer_mut(pointer).unwrap();
        *number = match number.as_u64() {
            Some(count) => (count + 1).into(),
            None => (number.as_f64().unwrap() * 1.0001).into(),
        };
        fs_err::write(&path, serde_json::to_vec(&altered).unwrap()).unwrap();
        let output = eval(&["verify"], &[&path]);
        let told = text(&output.stdout);
        assert!(
            output.status.code() == Some(1) && told.contains("FAILED       figures"),
            "{pointer}: {told}"
        );
    }
    fs_err::write(&path, before).unwrap();
    fs_err::write(folder.path().join("model.safetensors"), b"parameterz").unwrap();
    let output = eval(&["verify"], &[&path]);
    let told = text(&output.stdout);
    assert!(
        output.status.code() == Some(1)
            && told.contains("FAILED       evaluated checkpoint: model.safetensors"),
        "{told}"
    );
}
