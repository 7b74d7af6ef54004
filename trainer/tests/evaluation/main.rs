//! Whole evaluations by the real programs: a PALOMA from the loopback Hub with every edge case of windows, against a
//! plain reference computed here token by token in float64; the same figures for any batch size and number of ranks,
//! after a kill too; and everything that must be refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod commands;
#[path = "../evaluation_fixture/mod.rs"]
mod evaluation_fixture;
mod frequencies;
mod own_text;
mod refused;

use std::time::{Duration, Instant};

use evaluation_fixture::{Fixture, SOURCES, evaluate, fixture, text};
use xlstm_manifests::documents::DocumentShard;
use xlstm_manifests::{Dataset, Manifest};
use xlstm_tests::program::run;
use xlstm_trainer::evaluation::results::{
    AverageKind, MarkKind, Paloma, Perplexity, Report, Results, Statistics,
};
use xlstm_trainer::model::export;

const TOLERANCE: f64 = 1e-6;

#[track_caller]
fn close(found: f64, expected: f64) {
    let scale = expected.abs().max(1.0);
    assert!((found - expected).abs() <= TOLERANCE * scale, "{found} is not {expected}");
}

fn paloma(report: &Report) -> &Paloma {
    let Results::Paloma(paloma) = &report.results else { panic!("no PALOMA in {report:?}") };
    paloma
}

fn perplexity(report: &Report) -> &Perplexity {
    let Results::Perplexity(perplexity) = &report.results else { panic!("no perplexity in {report:?}") };
    perplexity
}

/// Windows of a document, worked out here: which tokens are scored after which context; -1 is the separator.
fn windows(tokens: usize, overlapping: bool) -> Vec<(i64, usize, usize)> {
    let mut found = Vec::new();
    for start in (0..tokens).step_by(2048) {
        let end = (start + 2048).min(tokens);
        let filled_up = overlapping && start > 0 && end - start < 2048;
        let first = if filled_up { end as i64 - 2049 } else { start as i64 - 1 };
        found.push((first, start, end));
    }
    found
}

#[test]
fn windows_of_the_reference_are_those_worked_by_hand() {
    assert_eq!(windows(1, true), [(-1, 0, 1)]);
    assert_eq!(windows(2048, true), [(-1, 0, 2048)]);
    assert_eq!(windows(2049, true), [(-1, 0, 2048), (0, 2048, 2049)]);
    assert_eq!(windows(3000, true), [(-1, 0, 2048), (951, 2048, 3000)]);
    assert_eq!(windows(3000, false), [(-1, 0, 2048), (2047, 2048, 3000)]);
}

/// A document's figures by the reference.
struct Expected {
    source: String,
    domain: String,
    file: String,
    tokens: usize,
    bytes: u64,
    nll: f64,
}

fn expected_documents(fixture: &Fixture, overlapping: bool) -> Vec<Expected> {
    let model = fixture.model();
    let manifest = Manifest::load(&fixture.paloma).unwrap();
    let mut expected = Vec::new();
    for shard in &manifest.shards {
        let path = shard.file.path.resolve(&fixture.paloma).unwrap();
        for document in DocumentShard::open(&path, shard.file.records).unwrap().iter() {
            let mut nll = 0.0;
            for (first, start, end) in windows(document.ids.len(), overlapping) {
                let id = |index: i64| if index < 0 { 50256 } else { i64::from(document.ids[index as usize]) };
                let inputs: Vec<i64> = (first..end as i64 - 1).map(id).collect();
                let targets: Vec<i64> = (start as i64..end as i64).map(id).collect();
                nll += evaluation_fixture::reference(&model, &inputs, &targets).iter().sum::<f64>();
            }
            expected.push(Expected {
                source: document.source,
                domain: document.domain,
                file: manifest.inputs[document.input as usize].path.to_string(),
                tokens: document.ids.len(),
                bytes: document.bytes,
                nll,
            });
        }
    }
    expected
}

/// The probability that Student's t lies within `width` of zero, by the trapezoid rule over its density.
fn student_inside(width: f64, degrees: f64) -> f64 {
    let area = |end: f64| {
        let steps = 20_000;
        let at = |step: i32| (end * f64::from(step) / f64::from(steps)).cos().powf(degrees - 1.0);
        end / f64::from(steps) * ((1..steps).map(at).sum::<f64>() + (at(0) + at(steps)) / 2.0)
    };
    // With t = √ν tan θ the density is that of cos^(ν-1) θ.
    area((width / degrees.sqrt()).atan()) / area(std::f64::consts::FRAC_PI_2)
}

#[track_caller]
fn check(found: &Statistics, expected: &[&Expected]) {
    let tokens: usize = expected.iter().map(|document| document.tokens).sum();
    let bytes: u64 = expected.iter().map(|document| document.bytes).sum();
    let nll: f64 = expected.iter().map(|document| document.nll).sum();
    assert_eq!((found.documents, found.tokens), (expected.len() as u64, tokens as u64));
    assert_eq!(found.bytes, bytes);
    close(found.nll, nll);
    close(found.perplexity, (nll / tokens as f64).exp());
    close(found.bits_per_byte.unwrap(), nll / std::f64::consts::LN_2 / bytes as f64);
    let squares: f64 = expected.iter().map(|document| (document.tokens as f64).powi(2)).sum();
    let effective = (tokens as f64).powi(2) / squares;
    assert_eq!(found.perplexity_interval.is_some(), expected.len() >= 5 && effective >= 3.0);
}

#[test]
fn paloma_is_what_the_reference_says_for_any_batch_size_and_number_of_ranks() {
    let fixture = fixture();
    let expected = expected_documents(fixture, true);
    let of = |source: &str| expected.iter().filter(|document| document.source == source).collect::<Vec<_>>();
    for (name, batch, ranks) in [("one", "1", "1"), ("some", "4096", "2"), ("many", "70000", "1")] {
        let out = fixture.path(name);
        let arguments =
            ["--manifest", text(&fixture.paloma), "--precision", "float64", "--batch-tokens", batch];
        let more = ["--nproc", ranks, "--out", text(&out)];
        run(evaluate("paloma", fixture).args(arguments).args(more)).success();
        let report = Report::load(&out).unwrap();
        assert_eq!(report.effort.world.to_string(), ranks);
        let found = paloma(&report);
        assert_eq!(found.sources.len(), SOURCES.len());
        check(&found.total, &expected.iter().collect::<Vec<_>>());
        let mut perplexities = Vec::new();
        for (source, (folder, _)) in found.sources.iter().zip(SOURCES) {
            assert_eq!(source.source, folder);
            let documents = of(folder);
            let statistics = source.statistics.unwrap();
            check(&statistics, &documents);
            perplexities.push(statistics.perplexity);
            let mut macro_sum = 0.0;
            for domain in &source.domains {
                let own: Vec<_> =
                    documents.iter().copied().filter(|document| document.domain == domain.name).collect();
                check(&domain.statistics, &own);
                macro_sum += domain.statistics.perplexity;
            }
            close(source.macro_perplexity.unwrap(), macro_sum / source.domains.len() as f64);
            let numbers: Vec<&str> = source.files.iter().map(|file| file.name.as_str()).collect();
            let expected: &[&str] = if folder == "mc4" { &["00000000", "00000001"] } else { &[] };
            assert_eq!(
                numbers, expected,
                "{folder}: only numbered files of a source without domains are told apart"
            );
            for file in &source.files {
                let own = documents.iter().copied().filter(|document| document.file.contains(&file.name));
                check(&file.statistics, &own.collect::<Vec<_>>());
            }
        }
        let average = |kind| found.averages.iter().find(|average| average.kind == kind).unwrap();
        let table_4 = average(AverageKind::PaperTable4);
        close(table_4.perplexity.unwrap(), perplexities[..12].iter().sum::<f64>() / 12.0);
        assert!(table_4.missing.is_empty() && table_4.over.len() == 12);
        let all = average(AverageKind::MeanOfSources).perplexity.unwrap();
        close(all, perplexities.iter().sum::<f64>() / 16.0);
        close(average(AverageKind::Micro).perplexity.unwrap(), found.total.perplexity);
        let positions: (f64, u64) = found
            .positions
            .iter()
            .fold((0.0, 0), |sum, position| (sum.0 + position.nll, sum.1 + position.tokens));
        close(positions.0, found.total.nll);
        assert_eq!(positions.1, found.total.tokens);
        assert!(report.marks.iter().any(|mark| mark.kind == MarkKind::ShortDocuments));
        assert!(
            report.marks.iter().any(|mark| mark.kind == MarkKind::LeftOut && mark.text.contains("empty"))
        );
        chain_holds(fixture, &report);
        let csv = fs_err::read_to_string(out.join("report.csv")).unwrap();
        let fields = csv.lines().next().unwrap().split(',').count();
        assert!(csv.lines().all(|line| line.split(',').count() == fields), "{csv}");
        let markdown = fs_err::read_to_string(out.join("report.md")).unwrap();
        assert!(
            markdown.contains("C4 Domains")
                && markdown.contains(&report.model.files["model.safetensors"].sha256.to_string())
        );
        let page = fs_err::read_to_string(out.join("report.html")).unwrap();
        assert!(
            page.contains("Every domain") && page.contains("00000001"),
            "the page stands beside the report"
        );
        assert!(!out.join(".work").exists());
    }
}

/// Every link of the chain is the digest of what lies there.
fn chain_holds(fixture: &Fixture, report: &Report) {
    let digest = |path: &std::path::Path| xlstm_manifests::digest::digest_file(path).unwrap().1;
    let run = report.run.as_ref().unwrap();
    assert_eq!(run.manifest_sha256, digest(&fixture.run.join("run.json")));
    assert_eq!(run.train.root, Manifest::load(&fixture.train).unwrap().root);
    assert_eq!(report.model.files["model.safetensors"].sha256, digest(&report.model.path));
    let data = report.dataset.as_ref().unwrap();
    assert_eq!(data.manifest_sha256, digest(&fixture.paloma.join("manifest.json")));
    assert_eq!(data.revision.as_deref(), Some(fixture.commit.as_str()));
    assert_eq!(report.program.commit, run_program_commit(fixture));
}

fn run_program_commit(fixture: &Fixture) -> String {
    xlstm_manifests::run_manifest::RunManifest::load(&fixture.run).unwrap().program.commit
}

#[test]
fn windows_that_never_overlap_are_an_option() {
    let fixture = fixture();
    let expected = expected_documents(fixture, false);
    let out = fixture.path("disjoint");
    let arguments = [
        "--manifest",
        text(&fixture.paloma),
        "--precision",
        "float64",
        "--protocol",
        "disjoint",
        "--out",
        text(&out),
    ];
    run(evaluate("paloma", fixture).args(arguments)).success();
    let report = Report::load(&out).unwrap();
    check(&paloma(&report).total, &expected.iter().collect::<Vec<_>>());
}

#[test]
fn a_killed_evaluation_goes_on_to_the_same_figures() {
    let fixture = fixture();
    let (whole, killed) = (fixture.path("whole"), fixture.path("killed"));
    let arguments = ["--manifest", text(&fixture.paloma), "--batch-tokens", "1"];
    run(evaluate("paloma", fixture).args(arguments).args(["--out", text(&whole)])).success();
    let mut child =
        evaluate("paloma", fixture).args(arguments).args(["--out", text(&killed)]).spawn().unwrap();
    let journal = killed.join(".work/scores-0.jsonl");
    let deadline = Instant::now() + Duration::from_secs(120);
    while fs_err::read_to_string(&journal).map_or(0, |text| text.lines().count()) < 4 {
        assert!(Instant::now() < deadline, "no batch was noted");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.join("report.json").exists());
    // With another number of ranks: what is scored once is the same for all.
    let ran = run(evaluate("paloma", fixture).args(arguments).args(["--nproc", "2", "--out", text(&killed)]));
    assert!(ran.stderr.contains("going on"), "{}", ran.stderr);
    ran.success();
    let (whole, again) = (Report::load(&whole).unwrap(), Report::load(&killed).unwrap());
    assert_eq!(whole.results, again.results);
    // A finished evaluation is shown again, not computed again; another one does not replace it.
    let shown =
        run(evaluate("paloma", fixture).args(arguments).args(["--out", text(&killed), "--json"])).success();
    assert_eq!(serde_json::from_str::<Report>(&shown).unwrap(), again);
    let other = ["--manifest", text(&fixture.paloma), "--protocol", "disjoint", "--out", text(&killed)];
    let error = run(evaluate("paloma", fixture).args(other)).failure(1);
    assert!(error.contains("report.json") && error.contains("another --out"), "{error}");
}

#[test]
fn perplexity_of_a_packed_split_is_that_of_its_rows() {
    let fixture = fixture();
    let model = fixture.model();
    let dataset = Dataset::open(&fixture.train).unwrap();
    let mut stream = Vec::new();
    for row in 0..dataset.rows() {
        let tokens: Vec<i64> = dataset.row(row).unwrap().tokens().iter().map(|&id| i64::from(id)).collect();
        let inputs: Vec<i64> =
            std::iter::once(50256).chain(tokens[..tokens.len() - 1].iter().copied()).collect();
        stream.extend(evaluation_fixture::reference(&model, &inputs, &tokens));
    }
    let out = fixture.path("packed");
    let arguments = ["--manifest", text(&fixture.train), "--precision", "float64", "--out", text(&out)];
    run(evaluate("perplexity", fixture).args(arguments)).success();
    let report = Report::load(&out).unwrap();
    let found = perplexity(&report);
    let total: f64 = stream.iter().sum();
    close(found.total.nll, total);
    assert_eq!(found.total.tokens, stream.len() as u64);
    let spans: Vec<_> = dataset.spans(0).unwrap().iter().collect();
    assert_eq!(found.total.documents, spans.len() as u64);
    let bytes: u64 = spans.iter().map(|span| span.bytes).sum();
    close(found.total.bits_per_byte.unwrap(), total / std::f64::consts::LN_2 / bytes as f64);
    // The ratio's interval: the ratio without each document in turn, and Student's t with as many degrees of freedom as
    // equally long documents that would tell as much, less one.
    assert_eq!(spans.len(), 6);
    let (mut start, mut sums) = (0, Vec::new());
    for span in &spans {
        let end = start + span.length as usize;
        sums.push(stream[start..end].iter().sum::<f64>());
        start = end;
    }
    let without = |index: usize| (total - sums[index]) / (stream.len() as f64 - spans[index].length as f64);
    let middle = (0..6).map(without).sum::<f64>() / 6.0;
    let squares: f64 = (0..6).map(|index| (without(index) - middle).powi(2)).sum();
    let error = (5.0 / 6.0 * squares).sqrt();
    let lengths: Vec<f64> = spans.iter().map(|span| span.length as f64).collect();
    let effective =
        lengths.iter().sum::<f64>().powi(2) / lengths.iter().map(|length| length.powi(2)).sum::<f64>();
    let interval = found.total.loss_interval.unwrap();
    let inside = student_inside((interval.high - interval.low) / 2.0 / error, effective - 1.0);
    assert!((inside - 0.95).abs() < 1e-4, "{interval:?}: {inside}");
    // Each document's own figures lie beside the report.
    let table = fs_err::read_to_string(out.join("documents.csv")).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 6, "{table}");
    for ((row, span), sum) in rows.iter().zip(&spans).zip(&sums) {
        assert_eq!((row[2], row[4]), (&*span.record.to_string(), &*span.length.to_string()));
        assert_eq!(row[5], span.bytes.to_string());
        close(row[6].parse().unwrap(), *sum);
        close(row[7].parse().unwrap(), sum / span.length as f64);
    }
    // The split is the one that it was trained on: said, here and on the page.
    assert!(report.marks.iter().any(|mark| mark.kind == MarkKind::TrainingData));
    let page = fs_err::read_to_string(out.join("report.md")).unwrap();
    assert!(
        page.contains("trained on") && page.contains("Student's t over the documents of a line"),
        "{page}"
    );

    let first = fixture.path("first");
    let arguments =
        ["--manifest", text(&fixture.train), "--precision", "float64", "--first", "1", "--out", text(&first)];
    run(evaluate("perplexity", fixture).args(arguments)).success();
    let report = Report::load(&first).unwrap();
    close(perplexity(&report).total.nll, stream[..2048].iter().sum());
    assert!(report.marks.iter().any(|mark| mark.kind == MarkKind::Partial));
}

#[test]
fn the_models_own_context_counts_wherever_its_file_lies() {
    let fixture = fixture();
    // The same parameters by themselves, trained with a context of 512 as their file says.
    let alone = fixture.path("alone/model-512.safetensors");
    fs_err::create_dir_all(alone.parent().unwrap()).unwrap();
    export(&fixture.model(), &alone, 512).unwrap();
    let setting = |name: &str, data: &std::path::Path, how: &[&str]| {
        let out = fixture.path(name);
        let command = if data == fixture.paloma { "paloma" } else { "perplexity" };
        let mut command = evaluation_fixture::evaluate_model(command, &alone);
        run(command.args(["--manifest", text(data), "--out", text(&out)]).args(how)).success();
        let report = Report::load(&out).unwrap();
        let longer = report.marks.iter().any(|mark| mark.kind == MarkKind::LongerThanTrained);
        (report.model.context_length, report.setting.context_length, longer)
    };
    assert_eq!(setting("alone-packed", &fixture.train, &[]), (Some(512), 512, false));
    assert_eq!(setting("alone-paloma", &fixture.paloma, &[]), (Some(512), 512, false));
    assert_eq!(setting("alone-windows", &fixture.paloma, &["--prepared-windows"]), (Some(512), 2048, true));
    let page = fs_err::read_to_string(fixture.path("alone-windows/report.md")).unwrap();
    assert!(page.contains("with a context of 512 tokens") && page.contains("trained with 512"), "{page}");
    // There is one protocol of overlapping windows, under one name.
    let mut official = evaluate("paloma", fixture);
    let error =
        run(official.args(["--manifest", text(&fixture.paloma), "--protocol", "official"])).failure(2);
    assert!(error.contains("official"), "{error}");
}

#[test]
fn names_of_sets_break_no_table_and_command_no_terminal() {
    let fixture = fixture();
    let lines: String = ["a|b", "line\nbreak", "<b>", "`x`", "\u{1b}[2J", "\u{202e}x"]
        .iter()
        .map(|set| format!("{}\n", serde_json::json!({"text": "the of and to in is was for", "set": set})))
        .collect();
    let folder = fixture.path("weird");
    fs_err::create_dir_all(&folder).unwrap();
    fs_err::write(folder.join("a.jsonl"), lines).unwrap();
    let data = folder.join("data");
    let mut prepare = xlstm_tests::program::data_command(["prepare", "local"]);
    prepare.arg(folder.join("a.jsonl")).args(["--set-field", "set", "--out", text(&data), "--quiet"]);
    run(&mut prepare).success();
    let out = fixture.path("weird-report");
    let mut command = evaluate("perplexity", fixture);
    let shown = run(command.args(["--manifest", text(&data.join("train")), "--out", text(&out)])).success();
    let page = fs_err::read_to_string(out.join("report.md")).unwrap();
    let sets: Vec<&str> = page.lines().skip_while(|line| !line.starts_with("| set")).collect();
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    assert_eq!(sets.iter().take_while(|line| line.starts_with('|')).count(), 2 + 6 + 1, "{page}");
    assert!(sets[..9].iter().all(|line| columns(line) == columns(sets[0])), "{page}");
    for hidden in ['\u{1b}', '\u{202e}'] {
        assert!(!page.contains(hidden) && !shown.contains(hidden));
    }
    assert!(page.contains("a\\|b") && page.contains("line\\nbreak") && page.contains("\\u{1b}[2J"), "{page}");
}

#[test]
fn a_missing_source_is_said_wherever_it_counts() {
    let fixture = fixture();
    let data = fixture.prepare_sources("two", &["ptb", "gab"]);
    let out = fixture.path("missing");
    let ran = run(evaluate("paloma", fixture).args(["--manifest", text(&data), "--out", text(&out)]));
    assert!(ran.stderr.contains("c4_en"), "{}", ran.stderr);
    assert!(ran.success().contains("missing"));
    let report = Report::load(&out).unwrap();
    assert!(report.marks.iter().any(|mark| mark.kind == MarkKind::MissingSource));
    let found = paloma(&report);
    assert_eq!(found.sources.iter().filter(|source| source.statistics.is_none()).count(), 14);
    for average in &found.averages {
        assert!(average.missing.contains(&"c4_en".to_owned()), "{average:?}");
    }
    let table_4 = &found.averages[0];
    assert_eq!((table_4.over.as_slice(), table_4.missing.len()), (["ptb".to_owned()].as_slice(), 11));
}
