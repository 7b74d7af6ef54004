//! `compare` says whether recipes differ: seeds of one recipe are one group, documents are paired, and what one seed cannot
//! tell is said.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};

use common::Fixture;
use common::prepared::{eval, train};

/// Trains with these recipe values and evaluates on the validation split.
fn run(fixture: &Fixture, name: &str, set: &[&str]) -> PathBuf {
    let run = fixture.path(name);
    let mut arguments =
        common::prepared::training(&fixture.train, &fixture.validation, &fixture.recipe, &run);
    arguments.extend(set.iter().flat_map(|value| ["--set".into(), PathBuf::from(value)]));
    train(arguments).success();
    let options = ["--device", "cpu", "--threads", "1", "--manifest"].map(PathBuf::from);
    let arguments = [PathBuf::from("perplexity"), run.clone()].into_iter().chain(options);
    eval(arguments.chain([fixture.validation.clone()])).success();
    run
}

/// The page and what was said about differences.
fn compare(fixture: &Fixture, runs: &[&Path]) -> (String, String) {
    let out = fixture.path("compared.html");
    let arguments = [Path::new("compare")].into_iter().chain(runs.iter().copied());
    let said = eval(arguments.chain([Path::new("--out"), &out])).success();
    (fs_err::read_to_string(out).unwrap(), said.stderr)
}

#[test]
fn recipes_are_compared_over_documents_and_seeds() {
    let fixture = Fixture::new();
    common::write_split(&fixture.validation, "validation", &common::documents(11));
    let seed = |seed: u32| format!("training.seed={seed}");
    let (mut learned, mut slow) = (Vec::new(), Vec::new());
    for number in 1..=3 {
        learned.push(run(&fixture, &format!("learned-{number}"), &[&seed(number)]));
        let rate = ["optimizer.learning_rate=1e-5", &seed(number)];
        slow.push(run(&fixture, &format!("slow-{number}"), &rate));
    }
    let paths: Vec<&Path> = learned.iter().chain(&slow).map(PathBuf::as_path).collect();
    let (page, said) = compare(&fixture, &paths);
    assert!(page.contains("<h2 id=\"differences\">") && page.contains("Is the difference real?"));
    // Each recipe is one curve: a mean, and a band of its seeds.
    assert!(
        page.contains("(learned-1), 3 seeds, training") && page.contains("(slow-1), 3 seeds, validation")
    );
    for band in ["class=\"band s0\"", "class=\"band s1\""] {
        assert_eq!(page.matches(band).count(), 2, "{band}");
    }
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("nats a token")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].contains("seeds 3 and 3: ") && lines[0].ends_with("(learned-1) is lower"), "{said}");
    // The difference is that of the mean losses of the reports.
    let loss = |runs: &[PathBuf]| {
        let of = |run: &PathBuf| {
            let folder = fs_err::read_dir(run.join("evaluations")).unwrap().next().unwrap().unwrap().path();
            let report = xlstm_trainer::evaluation::results::Report::load(&folder).unwrap();
            report.headline().unwrap().ln()
        };
        runs.iter().map(of).sum::<f64>() / runs.len() as f64
    };
    let expected = format!(": {:+.4} nats a token", loss(&learned) - loss(&slow));
    assert!(lines[0].contains(&expected), "{expected}: {said}");

    // Seeds of one recipe are not compared with each other.
    let (page, said) = compare(&fixture, &[&learned[0], &learned[1]]);
    assert!(!page.contains("id=\"differences\"") && !said.contains("nats a token"), "{said}");
    // From one seed each, a difference may be the seed's.
    let (page, said) = compare(&fixture, &[&learned[0], &slow[0]]);
    assert!(said.contains("seeds 1 and 1: ") && said.contains("the seed may be why"), "{said}");
    assert!(page.contains("the seed may be why"));
    // A recipe that is the same but for what decides nothing here cannot be told apart.
    let again: Vec<PathBuf> = (1..=2)
        .map(|number| {
            run(&fixture, &format!("again-{number}"), &["checkpoint.keep_last=50", &seed(number + 10)])
        })
        .collect();
    let (_, said) = compare(&fixture, &[&learned[0], &learned[1], &learned[2], &again[0], &again[1]]);
    assert!(said.contains("cannot be told apart"), "{said}");
    // A table that is not its report's is no basis.
    let folder = fs_err::read_dir(slow[0].join("evaluations")).unwrap().next().unwrap().unwrap().path();
    let table = folder.join("documents.csv");
    let content = fs_err::read_to_string(&table).unwrap();
    fs_err::write(&table, content.lines().take(4).collect::<Vec<_>>().join("\n")).unwrap();
    let refused =
        eval([Path::new("compare"), &learned[0], &slow[0], Path::new("--out"), &fixture.path("x.html")]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("the documents of its report"), "{}", refused.stderr);
}
