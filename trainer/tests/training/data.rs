//! Rows that were altered, splits without rows, examples with targets of their own.

use super::*;

/// A row of the split's only shard, overwritten in place: as many bytes, other tokens.
fn overwrite_row(split: &Path, row: usize) -> Vec<u8> {
    let path = split.join("shard-00000.arrow");
    let honest = fs_err::read(&path).unwrap();
    let stream: Vec<u16> = common::documents(0).concat();
    let bytes = |ids: &[u16]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let tokens = bytes(&stream[row * common::ROW..(row + 1) * common::ROW]);
    let at = honest.windows(tokens.len()).position(|window| window == tokens).unwrap();
    let mut altered = honest.clone();
    altered[at..at + tokens.len()].copy_from_slice(&bytes(&[7; common::ROW]));
    fs_err::write(&path, &altered).unwrap();
    honest
}

/// The run would claim data that it never saw: it stops before it computes anything from the shard.
#[test]
fn an_overwritten_row_is_never_trained_on() {
    let fixture = Fixture::new();
    let shard = fixture.train.join("shard-00000.arrow");
    let honest = overwrite_row(&fixture.train, 3);
    let error = fail(&mut training(&fixture, "altered", &[]), 1);
    for part in ["shard-00000.arrow", "tokens_root", "was wanted", "prepare the split again"] {
        assert!(error.contains(part), "`{part}` is not in {error}");
    }
    assert!(lines(&fixture.path("altered"), "train").is_empty(), "no step was done");
    // Restored, the same command trains; altered again, it does not go on.
    fs_err::write(&shard, &honest).unwrap();
    let mut child =
        training(&fixture, "run", &["training.steps=4000", "checkpoint.every_steps=1"]).spawn().unwrap();
    wait_for_checkpoint(&fixture.path("run"), 1, &mut child);
    signal(&child, "-TERM");
    child.wait().unwrap();
    overwrite_row(&fixture.train, 3);
    let error = fail(&mut resume(&fixture, "run"), 1);
    assert!(error.contains("shard-00000.arrow") && error.contains("tokens_root"), "{error}");
    // The validation split is checked too.
    fs_err::write(&shard, &honest).unwrap();
    let path = fixture.validation.join("shard-00000.arrow");
    let mut bytes = fs_err::read(&path).unwrap();
    let tokens: Vec<u8> =
        common::documents(11).concat()[..common::ROW].iter().flat_map(|id| id.to_le_bytes()).collect();
    let at = bytes.windows(tokens.len()).position(|window| window == tokens).unwrap();
    bytes[at] ^= 1;
    fs_err::write(&path, bytes).unwrap();
    let error = fail(&mut training(&fixture, "validated", &[]), 1);
    assert!(error.contains("validation") && error.contains("tokens_root"), "{error}");
}

/// What prepare makes of files whose every record was left out.
#[test]
fn a_split_without_rows_is_refused_before_the_first_step() {
    let fixture = Fixture::new();
    let empty = common::write_split(&fixture.path("empty"), "train", &[]);
    for more in [&["--dry-run"][..], &[]] {
        let mut command = program();
        command.arg("--manifest").arg(&empty).arg("--recipe").arg(&fixture.recipe).args(more);
        let error = fail(command.arg("--out").arg(fixture.path("none")), 1);
        assert!(
            error.contains("a training split with at least one row") && error.contains("none"),
            "{error}"
        );
    }
    let mut command = program();
    command.arg("--manifest").arg(&fixture.train).arg("--validation").arg(&empty);
    command.arg("--recipe").arg(&fixture.recipe).arg("--out").arg(fixture.path("none"));
    let error = fail(&mut command, 1);
    assert!(error.contains("a validation split with at least one row"), "{error}");
}

/// Writes three masked examples; they differ in length and in their number of targets.
fn write_examples(file: &Path) {
    let examples = [
        json!({"input_ids": [1, 2, 0, 0], "targets": [null, 2, 1, null], "length": 3, "id": "two-answers"}),
        json!({"input_ids": [3, 4, 5, 0], "targets": [null, null, 3, 4], "set": "long"}),
        json!({"input_ids": [6, 7], "targets": [null, 6]}),
    ];
    let lines: String = examples.iter().map(|example| format!("{example}\n")).collect();
    fs_err::write(file, lines).unwrap();
}

/// Takes every target out of a split of examples, and makes all digests anew: what only somebody else's program writes.
fn take_targets_out(split: &Path) {
    use xlstm_manifests::examples::{Example, ExamplesWriter};
    use xlstm_manifests::merkle::MerkleTree;
    let dataset = Dataset::open(split).unwrap();
    let mut manifest = dataset.manifest().clone();
    let rows: Vec<(Vec<u16>, u16)> = (0..manifest.totals.rows)
        .map(|row| dataset.example(row).unwrap().map(|row| (row.input_ids.to_vec(), row.length)).unwrap())
        .collect();
    let path = split.join("shard-00000.arrow");
    fs_err::remove_file(&path).unwrap();
    let mut writer = ExamplesWriter::create(&path, 4).unwrap();
    for (input_ids, length) in &rows {
        writer.push(&Example { input_ids, targets: &[None; 4], length: *length }).unwrap();
    }
    writer.end().unwrap();
    let mut tree = MerkleTree::new();
    writer.take_leaves().into_iter().for_each(|leaf| tree.push(leaf));
    let written = writer.finish().unwrap();
    (manifest.shards[0].file.size, manifest.shards[0].file.sha256) = (written.size, written.sha256);
    manifest.tokens_root = tree.root();
    manifest.shards[0].tokens_root = tree.root();
    manifest.root = xlstm_manifests::identity::root(&manifest).unwrap();
    fs_err::write(split.join("manifest.json"), manifest.to_bytes().unwrap()).unwrap();
}

/// A mean over no target is no loss: neither 0 nor NaN.
#[test]
fn rows_without_a_target_are_never_trained_on() {
    let fixture = Fixture::new();
    let (file, out) = (fixture.path("toy.jsonl"), fixture.path("toy"));
    write_examples(&file);
    data([OsStr::new("prepare"), "examples".as_ref(), file.as_ref(), "--out".as_ref(), out.as_ref()])
        .success();
    let split = out.join("train");
    take_targets_out(&split);
    let mut command = program();
    command.arg("--manifest").arg(&split).arg("--recipe").arg(&fixture.recipe);
    command.arg("--out").arg(fixture.path("run"));
    for set in ["training.context_length=4", "training.tokens_per_step=12", "training.steps=2"] {
        command.args(["--set", set]);
    }
    let error = fail(&mut command, 1);
    for part in
        ["toy/train/shard-00000.arrow", "at least one target in row 0", "none", "prepare the split again"]
    {
        assert!(error.contains(part), "`{part}` is not in {error}");
    }
    let told = fs_err::read_to_string(fixture.path("run/metrics.jsonl")).unwrap_or_default();
    assert!(!told.contains("\"train\""), "no step was done: {told}");
    let found = data([OsStr::new("audit"), split.as_ref()]);
    assert!(found.code == Some(1) && found.stdout.contains("at least one target"), "{found:?}");
}

/// A run ends at the accuracy that its recipe asks for, and has nothing to do when it is resumed.
fn check_early_stop(run: &Path, command: &mut dyn FnMut() -> Command) {
    let said = String::from_utf8(succeed(&mut command()).stderr).unwrap();
    assert!(said.contains("ending early at step") && said.contains("stop_at_accuracy = 1"), "{said}");
    let last = lines(run, "train").last().unwrap().step;
    assert!(last < 1000 && last.is_multiple_of(20), "step {last}");
    assert_eq!(lines(run, "validation").last().unwrap().step, last);
    let said = String::from_utf8(succeed(command().arg("--resume")).stderr).unwrap();
    assert!(said.contains(&format!("ending early at step {last}")), "{said}");
    assert_eq!(lines(run, "train").last().unwrap().step, last, "nothing was trained after it");
}

/// Three masked examples: prepared, audited, traced, trained on and scored.
#[test]
fn examples_go_from_a_file_to_a_figure() {
    let fixture = Fixture::new();
    let (file, out) = (fixture.path("toy.jsonl"), fixture.path("toy"));
    write_examples(&file);
    for split in ["train", "validation"] {
        let arguments =
            [OsStr::new("prepare"), "examples".as_ref(), file.as_ref(), "--out".as_ref(), out.as_ref()];
        let said = data(arguments.into_iter().chain(["--split".as_ref(), split.as_ref()])).success();
        assert!(said.contains("3 examples, 12 positions, 3 rows"), "{said}");
    }
    let (train, validation) = (out.join("train"), out.join("validation"));
    data([OsStr::new("audit"), out.as_ref(), "--deep".as_ref(), "all".as_ref()]).success();
    let trace = [
        OsStr::new("trace"),
        train.as_ref(),
        "--row".as_ref(),
        "1".as_ref(),
        "--token".as_ref(),
        "2".as_ref(),
    ];
    let said = data(trace).success();
    for part in ["proved", "toy.jsonl", "id 5, target 3", "set     long", "digest and text agree"] {
        assert!(said.contains(part), "`{part}` is not in {said}");
    }

    let train_toy = |run: &str, more: &[&str]| {
        let mut command = program();
        command.arg("--manifest").arg(&train).arg("--validation").arg(&validation);
        command.arg("--recipe").arg(&fixture.recipe).arg("--out").arg(fixture.path(run));
        let toy = ["training.context_length=4", "training.tokens_per_step=12", "validation.every_steps=1000"];
        toy.iter().chain(more).for_each(|text| {
            command.args(["--set", text]);
        });
        command
    };
    let run = fixture.path("run");
    succeed(&mut train_toy("run", &["training.steps=120"]));
    let measured = lines(&run, "validation");
    assert!(measured.iter().all(|line| line.tokens == Some(5)), "five targets are scored: {measured:?}");
    assert!((measured[0].loss.unwrap() - 64.0_f64.ln()).abs() < 0.5, "{measured:?}");
    assert_eq!(measured.last().unwrap().accuracy, Some(1.0), "{measured:?}");
    check_early_stop(&fixture.path("early"), &mut || {
        train_toy(
            "early",
            &["training.steps=1000", "validation.every_steps=20", "validation.stop_at_accuracy=1.0"],
        )
    });
    // A step's mean is over its targets, whatever micro-batches it is cut into: they have 2, 2 and 1.
    let losses = |run: &str, rows: &str| {
        let cut = format!("training.micro_batch_rows={rows}");
        succeed(&mut train_toy(run, &["training.steps=3", &cut]));
        lines(&fixture.path(run), "train").iter().map(|line| line.loss.unwrap()).collect::<Vec<_>>()
    };
    let (whole, cut) = (losses("whole", "3"), losses("cut", "1"));
    assert_eq!((whole.len(), cut.len()), (3, 3));
    for (whole, cut) in whole.iter().zip(&cut) {
        assert!((whole - cut).abs() < 1e-5, "{whole} {cut}");
    }
    // Before the first update the step's loss is the validation's, over the same three rows.
    assert!((whole[0] - measured[0].loss.unwrap()).abs() < 1e-5);

    let evaluate = |command: &str, manifest: &Path, out: &str| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
        program.arg(command).arg(&run).arg("--manifest").arg(manifest).arg("--out").arg(fixture.path(out));
        program.args(["--device", "cpu", "--threads", "1", "--json"]);
        program
    };
    let report: Value =
        serde_json::from_slice(&succeed(&mut evaluate("accuracy", &validation, "accuracy")).stdout).unwrap();
    let results = &report["results"];
    assert_eq!(results["total"]["targets"], 5);
    assert_eq!(results["total"]["accuracy"], 1.0);
    let lengths: Vec<(u64, u64)> = results["lengths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|length| (length["first"].as_u64().unwrap(), length["figures"]["targets"].as_u64().unwrap()))
        .collect();
    assert_eq!(lengths, [(2, 1), (3, 2), (4, 2)]);
    let positions: Vec<(u64, u64)> = results["positions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|place| (place["first"].as_u64().unwrap(), place["targets"].as_u64().unwrap()))
        .collect();
    assert_eq!(positions, [(1, 2), (2, 2), (3, 1)]);
    assert!(results.get("scaled").is_none(), "nobody knows what a guess is right of: {results}");
    let csv = fs_err::read_to_string(fixture.path("accuracy").join("report.csv")).unwrap();
    assert!(csv.contains("total,,,3,5,5,1,") && csv.contains("position,3,3,,1,1,1,"), "{csv}");
    assert!(
        fs_err::read_to_string(fixture.path("accuracy").join("report.html"))
            .unwrap()
            .contains("Accuracy 1.0000")
    );
    let verified =
        succeed(Command::new(env!("CARGO_BIN_EXE_xlstm-eval")).arg("verify").arg(fixture.path("accuracy")));
    assert!(!String::from_utf8(verified.stdout).unwrap().contains("failed"));

    // Text where examples are needed, and the other way round.
    let error = fail(&mut evaluate("accuracy", &fixture.validation, "none"), 1);
    assert!(error.contains("layout `examples`") && error.contains("layout `packed`"), "{error}");
    for command in ["perplexity", "extrapolate"] {
        let error = fail(&mut evaluate(command, &validation, "none"), 1);
        assert!(error.contains("layout `packed`") && error.contains("found layout `examples`"), "{error}");
    }
    let mut mixed = program();
    mixed
        .arg("--manifest")
        .arg(&train)
        .arg("--validation")
        .arg(&fixture.validation)
        .arg("--recipe")
        .arg(&fixture.recipe);
    mixed.args(["--set", "training.context_length=4", "--set", "training.tokens_per_step=12"]);
    let error = fail(mixed.arg("--out").arg(fixture.path("mixed")), 1);
    assert!(error.contains("layout `examples`") && error.contains("layout `packed`"), "{error}");
    let error = fail(&mut train_toy("cut-examples", &["training.context_length=2"]), 1);
    assert!(error.contains("training.context_length") && error.contains("never cut"), "{error}");
}

/// The address space is what is limited, so that the test takes no memory and no GPU.
#[test]
fn too_little_memory_is_an_error_that_names_what_to_lower() {
    let fixture = Fixture::new();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 2500000; exec \"$@\"", "sh"]).arg(env!("CARGO_BIN_EXE_xlstm-train"));
    command.arg("--manifest").arg(&fixture.train).arg("--recipe").arg(&fixture.recipe);
    command.arg("--out").arg(fixture.path("large")).args(["--device", "cpu", "--threads", "1"]);
    command.args(["--set", "model.embedding_dim=2048", "--set", "model.blocks=6"]);
    let error = fail(&mut command, 1);
    for part in ["not enough memory", "training.micro_batch_rows", "choose a smaller recipe"] {
        assert!(error.contains(part), "`{part}` is not in {error}");
    }
    for part in ["frame #", "panicked", "c10::"] {
        assert!(!error.contains(part), "`{part}` is in {error}");
    }
}
