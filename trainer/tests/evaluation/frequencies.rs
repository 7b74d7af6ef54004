//! Perplexity by how often a target occurs in the training split, against counts and losses worked out here.

use std::collections::BTreeMap;

use xlstm_manifests::token_counts::TokenCounts;
use xlstm_tests::program::data;

use super::*;

/// Tokens in a context.
const CONTEXT: usize = 64;

/// How often each id occurs in the training split.
fn counted(dataset: &Dataset) -> Vec<u64> {
    let mut counts = vec![0; dataset.manifest().tokenizer.vocabulary_size as usize];
    for row in 0..dataset.rows() {
        dataset.row(row).unwrap().tokens().iter().for_each(|&id| counts[usize::from(id)] += 1);
    }
    counts
}

/// Of the first row, by the number of digits of the target's count: targets and nats.
fn expected(fixture: &Fixture, dataset: &Dataset, counts: &[u64]) -> BTreeMap<u64, (u64, f64)> {
    let model = fixture.model();
    let row = dataset.row(0).unwrap();
    let tokens: Vec<i64> = row.tokens().iter().map(|&id| i64::from(id)).collect();
    let mut expected = BTreeMap::new();
    for (piece, targets) in tokens.chunks(CONTEXT).enumerate() {
        let before = if piece == 0 { 50256 } else { tokens[piece * CONTEXT - 1] };
        let inputs: Vec<i64> =
            std::iter::once(before).chain(targets[..targets.len() - 1].iter().copied()).collect();
        let losses = evaluation_fixture::reference(&model, &inputs, targets);
        for (&target, loss) in targets.iter().zip(losses) {
            let digits = match counts[target as usize] {
                0 => 0,
                count => count.to_string().len() as u64,
            };
            let (tokens, nll) = expected.entry(digits).or_insert((0, 0.0));
            *tokens += 1;
            *nll += loss;
        }
    }
    expected
}

#[test]
fn perplexity_by_frequency_is_that_of_counts_and_losses_worked_out_here() {
    let fixture = fixture();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let file = path("counts.json");
    let said = data(["count", text(&fixture.train), "--out", text(&file)]).success();
    let dataset = Dataset::open(&fixture.train).unwrap();
    let counts = counted(&dataset);
    let found = TokenCounts::load(&file).unwrap();
    assert_eq!(found.counts, counts);
    assert_eq!((found.tokens, found.root), (dataset.manifest().totals.tokens, dataset.manifest().root));
    let sha256 = xlstm_manifests::digest::digest_file(&file).unwrap().1.to_string();
    assert!(said.contains(&sha256) && said.contains("1 to 9 times"), "{said}");

    let out = path("report");
    let context = CONTEXT.to_string();
    let mut command = evaluate("perplexity", fixture);
    command.args(["--manifest", text(&fixture.train), "--first", "1", "--context-length", &context]);
    run(command.args(["--counts", text(&file), "--out", text(&out)])).success();
    let report = Report::load(&out).unwrap();
    let frequencies = &perplexity(&report).frequencies;
    assert_eq!(frequencies.len(), 8, "0, 1 to 9, …, and from a million on");
    let expected = expected(fixture, &dataset, &counts);
    assert!(expected.len() > 1, "rare targets and frequent ones: {expected:?}");
    for (digits, found) in (0..).zip(frequencies) {
        let (tokens, nll) = expected.get(&digits).copied().unwrap_or_default();
        assert_eq!(found.tokens, tokens, "{found:?}");
        close(found.nll, nll);
        assert_eq!(found.perplexity.is_some(), tokens > 0);
        let types = counts
            .iter()
            .filter(|&&count| found.first <= count && found.last.is_none_or(|last| count <= last));
        assert_eq!(found.types, types.count() as u64);
    }
    let link = report.setting.counts.as_ref().unwrap();
    assert_eq!((link.sha256.to_string(), link.root), (sha256, found.root));
    assert!(!report.marks.iter().any(|mark| mark.kind == MarkKind::OtherCounts), "{:?}", report.marks);
    let csv = fs_err::read_to_string(out.join("report.csv")).unwrap();
    assert!(csv.contains("frequency,,1 to 9,"), "{csv}");
    let page = fs_err::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("By frequency in the training split"));

    // The report follows from the counts: another file is another evaluation, and verify compares it.
    let verify = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
        command.arg("verify").arg(&out).output().unwrap()
    };
    assert_eq!(verify().status.code(), Some(0));
    let whole = fs_err::read_to_string(&file).unwrap();
    fs_err::write(&file, whole.replace("\"split\": \"train\"", "\"split\": \"trial\"")).unwrap();
    let output = verify();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("counts by token"), "{said}");

    // Counts that contradict themselves, of another tokenizer, and no counts at all.
    let refused = |text_of_file: &str, parts: &[&str]| {
        fs_err::write(&file, text_of_file).unwrap();
        let mut command = evaluate("perplexity", fixture);
        command.args(["--manifest", text(&fixture.train), "--counts", text(&file)]);
        let error = run(command.args(["--out", text(&path("none"))])).failure(1);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let tokens = format!("\"tokens\": {}", found.tokens);
    refused(&whole.replace(&tokens, "\"tokens\": 7"), &["counts.json", "by its counts", "7"]);
    let tokenizer = found.tokenizer_sha256.to_string();
    refused(&whole.replace(&tokenizer, &"0".repeat(64)), &["counts by the tokenizer", "xlstm-data count"]);
    refused("{}", &["counts by token"]);
}
