//! Extrapolation, generation, speed, and the texts of the commands.

use super::*;

#[test]
fn extrapolation_scores_the_same_tokens_and_carried_states_are_a_full_forward() {
    let fixture = fixture();
    let model = fixture.model();
    let mut reports = Vec::new();
    for (name, how) in [("carried", ["--chunk", "300"].as_slice()), ("full", &["--full"])] {
        let out = fixture.path(name);
        let arguments =
            ["--manifest", text(&fixture.paloma), "--precision", "float64", "--lengths", "512,2048"];
        let arguments = arguments.iter().chain(how).copied().chain(["--out", text(&out)]);
        run(evaluate("extrapolate", fixture).args(arguments)).success();
        reports.push(Report::load(&out).unwrap());
    }
    let figures = |report: &Report| match &report.results {
        Results::Extrapolation(results) => results.clone(),
        other => panic!("{other:?}"),
    };
    let (carried, full) = (figures(&reports[0]), figures(&reports[1]));
    assert_eq!(carried.trained_length, Some(2048));
    // Documents of at least 2048 tokens, from the dataset itself.
    let manifest = Manifest::load(&fixture.paloma).unwrap();
    let mut stretches = Vec::new();
    for shard in &manifest.shards {
        let path = shard.file.path.resolve(&fixture.paloma).unwrap();
        for document in DocumentShard::open(&path, shard.file.records).unwrap().iter() {
            if document.ids.len() >= 2048 {
                stretches.push(document.ids[..2048].iter().map(|&id| i64::from(id)).collect::<Vec<_>>());
            }
        }
    }
    for (index, length) in [512_usize, 2048].into_iter().enumerate() {
        let mut nll = 0.0;
        for ids in &stretches {
            let inputs: Vec<i64> = std::iter::once(50256).chain(ids.iter().copied()).collect();
            for start in (0..2048).step_by(length) {
                let context = start..start + length;
                nll += evaluation_fixture::reference(&model, &inputs[context.clone()], &ids[context])
                    .iter()
                    .sum::<f64>();
            }
        }
        for found in [carried.lengths[index], full.lengths[index]] {
            assert_eq!((found.length, found.tokens), (length as u64, 2048 * stretches.len() as u64));
            close(found.nll, nll);
        }
    }
    for (one, other) in carried.positions.iter().zip(&full.positions) {
        close(one.nll, other.nll);
    }
    // An interval from two stretches would stand on one difference: there is none below five.
    for length in &carried.lengths {
        assert_eq!(length.perplexity_interval.is_some(), stretches.len() >= 5, "{length:?}");
    }
    let out = fixture.path("two-stretches");
    let arguments = ["--manifest", text(&fixture.paloma), "--lengths", "512,2048", "--stretches", "2"];
    let said = run(evaluate("extrapolate", fixture).args(arguments).args(["--out", text(&out)])).success();
    let two = figures(&Report::load(&out).unwrap());
    assert_eq!(two.lengths.iter().map(|at| at.tokens).collect::<Vec<_>>(), [2 * 2048; 2]);
    assert!(two.lengths.iter().all(|at| at.perplexity_interval.is_none()), "{two:?}");
    assert!(said.contains("none from fewer than five"), "{said}");
    let rows: Vec<Vec<&str>> = said.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    for context in ["512", "2048"] {
        let row = rows.iter().find(|row| row.get(1) == Some(&context)).expect("a row of the context");
        assert_eq!(row.get(5), Some(&""), "no interval is printed: {said}");
    }
    let arguments = ["--manifest", text(&fixture.paloma), "--lengths", "2048,16384"];
    let error = run(evaluate("extrapolate", fixture).args(arguments)).failure(1);
    assert!(error.contains("16384") && error.contains("at most 4100"), "{error}");
}

#[test]
fn speed_of_generation_is_told_for_lengths_and_batches() {
    let fixture = fixture();
    let out = fixture.path("throughput");
    let arguments = ["--lengths", "4,8", "--batches", "1,2", "--tokens", "3", "--repetitions", "1"];
    run(evaluate("throughput", fixture).args(arguments).args(["--out", text(&out)])).success();
    let report = Report::load(&out).unwrap();
    let Results::Throughput(found) = &report.results else { panic!("{report:?}") };
    let tokens: Vec<u64> = found.generation.iter().map(|time| time.tokens).collect();
    assert_eq!((found.prefill, tokens), (16, vec![4, 8]));
    assert!(found.generation[0].seconds <= found.generation[1].seconds);
    assert_eq!(found.batches.iter().map(|batch| batch.batch).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn generate_and_sample_are_one_command() {
    let fixture = fixture();
    let arguments = ["--prompt", "the", "--samples", "2", "--tokens", "5", "--seed", "7", "--json"];
    let generated = run(evaluate("generate", fixture).args(arguments)).success();
    let mut sample = std::process::Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
    sample.args(["sample", text(&fixture.run), "--threads", "1", "--device", "cpu"]).args(arguments);
    assert_eq!(run(&mut sample).success(), generated);
    let value: serde_json::Value = serde_json::from_str(&generated).unwrap();
    let samples = value["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 2);
    assert_ne!(samples[0]["text"], samples[1]["text"], "each sequence draws for itself");
}

#[test]
fn help_texts_are_the_ones_that_were_reviewed() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/help");
    let commands = [
        "",
        "perplexity",
        "paloma",
        "accuracy",
        "squared-error",
        "losses",
        "extrapolate",
        "generate",
        "throughput",
        "completions",
    ];
    for command in commands {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
        program.args(Some(command).filter(|command| !command.is_empty())).arg("--help").env_remove("COLUMNS");
        let help = run(&mut program).success();
        let name = if command.is_empty() { String::new() } else { format!("-{command}") };
        let path = folder.join(format!("xlstm-eval{name}.txt"));
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            fs_err::write(&path, &help).unwrap();
        }
        let expected = fs_err::read_to_string(&path).unwrap();
        assert_eq!(help, expected, "`{}` differs; UPDATE_SNAPSHOTS=1 writes it anew", path.display());
    }
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    let script = run(program.args(["completions", "bash"])).success();
    assert!(script.contains("paloma") && script.contains("--protocol"));
}
