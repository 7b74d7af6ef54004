//! Runs over several datasets: `--manifest DIR=WEIGHT`, given again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use xlstm_manifests::manifest::MANIFEST_NAME;
use xlstm_manifests::run_manifest::{RunManifest, rows_of_step};
use xlstm_manifests::{Manifest, identity};
use xlstm_pipeline::tasks::written::TaskPlan;
use xlstm_pipeline::tasks::{Parameters, Split, by_name};
use xlstm_tests::program::data;
use xlstm_trainer::checkpoint;
use xlstm_trainer::metrics::TakenRows;

use crate::common::runs::*;
use crate::common::{Fixture, ROW, documents, write_split};

/// Writes a split whose rows are all full, so that an audit has nothing to say.
fn whole(fixture: &Fixture, name: &str, seed: u16, count: usize) -> PathBuf {
    let mut documents = documents(seed)[..count].to_vec();
    let tokens: usize = documents.iter().map(Vec::len).sum();
    let missing = (ROW - tokens % ROW) % ROW;
    documents.last_mut().unwrap().splice(0..0, std::iter::repeat_n(1, missing));
    write_split(&fixture.path(name), "train", &documents)
}

/// The arguments of a run over these datasets.
fn mixed(fixture: &Fixture, run: &str, datasets: &[String], set: &[&str]) -> Command {
    let mut command = program();
    for dataset in datasets {
        command.args(["--manifest", dataset]);
    }
    command.arg("--validation").arg(&fixture.validation).arg("--recipe").arg(&fixture.recipe);
    set.iter().for_each(|value| {
        command.args(["--set", value]);
    });
    command.arg("--out").arg(fixture.path(run));
    command
}

fn weighted(path: &Path, weight: &str) -> String {
    format!("{}={weight}", path.display())
}

/// Rows of each dataset that all ranks really took in a step, as dataset and row.
fn taken(run: &Path, manifest: &RunManifest, world: u64, step: u64) -> Vec<(usize, u64, u64)> {
    let mut rows = Vec::new();
    for rank in 0..world {
        let text = fs_err::read_to_string(run.join(format!("rows/rank-{rank:05}.jsonl"))).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<TakenRows>(line).unwrap());
        for (epoch, row) in lines.filter(|line| line.step == step).flat_map(|line| line.rows) {
            let (dataset, row) = manifest.order.place(row);
            rows.push((dataset, epoch, row));
        }
    }
    rows.sort_unstable();
    rows
}

#[test]
fn shares_are_exact_and_all_ranks_take_the_same_rows() {
    let fixture = Fixture::new();
    let (first, second) = (whole(&fixture, "a", 0, 60), whole(&fixture, "b", 5, 20));
    let datasets = [weighted(&first, "0.7"), weighted(&second, "0.3")];
    // Ten steps of six rows are six epochs of ten; the small dataset is gone through more than once.
    let set = ["training.steps=20", "logging.rows=true", "training.micro_batch_rows=2"];
    let mut by_world = BTreeMap::new();
    for world in [1, 2, 3] {
        let name = format!("ranks-{world}");
        let said = succeed(mixed(&fixture, &name, &datasets, &set).args(["--nproc", &world.to_string()]));
        let run = fixture.path(&name);
        let manifest = RunManifest::load(&run).unwrap();
        let weights: Vec<u64> = manifest.order.datasets.iter().map(|dataset| dataset.weight).collect();
        assert_eq!((manifest.version, weights.as_slice(), manifest.order.epoch()), (3, &[7, 3][..], 10));
        let roots = [&first, &second].map(|split| Manifest::load(split).unwrap().root);
        assert_eq!(manifest.mixture.iter().map(|data| data.root).collect::<Vec<_>>(), roots);
        for expected in
            ["mixture of 2 datasets", "7 of 10", "3 of 10", "exact in every 10 rows", &roots[1].to_string()]
        {
            assert!(stderr(&said).contains(expected), "{expected}: {}", stderr(&said));
        }
        let steps: Vec<_> = (1..=20).map(|step| taken(&run, &manifest, world, step)).collect();
        let count = |steps: &[Vec<(usize, u64, u64)>], dataset| {
            steps.iter().flatten().filter(|row| row.0 == dataset).count()
        };
        for end in [5, 10, 15, 20] {
            let shares = [count(&steps[..end], 0), count(&steps[..end], 1)];
            assert_eq!(shares, [end * 6 * 7 / 10, end * 6 * 3 / 10], "{world} ranks, {end} steps");
            let line = lines(&run, "train").into_iter().find(|line| line.step == end as u64).unwrap();
            assert_eq!(line.rows_by_dataset.unwrap(), shares.map(|rows| rows as u64));
        }
        // Each row of the small dataset once before any comes again.
        let rows = Manifest::load(&second).unwrap().totals.rows;
        let mut pass: Vec<u64> =
            steps.iter().flatten().filter(|row| (row.0, row.1) == (1, 0)).map(|row| row.2).collect();
        pass.sort_unstable();
        assert_eq!(pass, (0..rows).collect::<Vec<_>>());
        for (step, rows) in (1..).zip(&steps) {
            let mut planned: Vec<_> = rows_of_step(&run, step, None)
                .unwrap()
                .into_iter()
                .map(|row| {
                    let (dataset, number) = manifest.order.place(row.row);
                    (dataset, row.epoch, number)
                })
                .collect();
            planned.sort_unstable();
            assert_eq!(&planned, rows, "{world} ranks, step {step}");
        }
        by_world.insert(world, steps);
    }
    assert!(by_world[&1] == by_world[&2] && by_world[&1] == by_world[&3], "rows depend on no rank");
}

#[test]
fn a_resumed_mixture_goes_on_bit_for_bit() {
    let fixture = Fixture::new();
    let (first, second) = (whole(&fixture, "a", 0, 60), whole(&fixture, "b", 5, 20));
    succeed(&mut mixed(&fixture, "whole", &[weighted(&first, "70"), weighted(&second, "30")], &[]));
    // The same weights in other words are the same run.
    let datasets = [weighted(&first, "1.4"), weighted(&second, "0.60")];
    succeed(&mut mixed(&fixture, "parts", &datasets, &[]));
    let parts = fixture.path("parts");
    for step in [8, 12] {
        fs_err::remove_dir_all(checkpoint::folder_of(&parts.join("checkpoints"), step)).unwrap();
    }
    succeed(&mut resume(&fixture, "parts"));
    assert_eq!(state_bytes(&parts, 12), state_bytes(&fixture.path("whole"), 12));
    let last = |run: &Path| lines(run, "train").last().unwrap().rows_by_dataset.clone();
    assert_eq!(last(&parts), last(&fixture.path("whole")));

    // Other weights, another order or one dataset alone are another run.
    for other in [
        vec![weighted(&first, "60"), weighted(&second, "40")],
        vec![weighted(&second, "30"), weighted(&first, "70")],
        vec![first.display().to_string()],
    ] {
        let mut command = resume(&fixture, "parts");
        other.iter().for_each(|dataset| {
            command.args(["--manifest", dataset]);
        });
        let message = fail(&mut command, 1);
        assert!(message.contains("expected the datasets and weights that this run began with"), "{message}");
    }
    // Datasets that were moved are found by their roots.
    fs_err::rename(&second, fixture.path("moved")).unwrap();
    succeed(&mut resume(&fixture, "parts"));
}

#[test]
fn one_dataset_is_what_it_was_before_there_were_mixtures() {
    let fixture = Fixture::new();
    succeed(&mut training(&fixture, "plain", &[]));
    succeed(&mut mixed(&fixture, "weighted", &[weighted(&fixture.train, "0.3")], &[]));
    assert_eq!(state_bytes(&fixture.path("plain"), 12), state_bytes(&fixture.path("weighted"), 12));
    let manifest = |run: &str| -> Value {
        let text = fs_err::read_to_string(fixture.path(run).join("run.json")).unwrap();
        assert!(!text.contains("mixture") && !text.contains("datasets"), "{text}");
        let mut value: Value = serde_json::from_str(&text).unwrap();
        value["sessions"][0]["started_at"] = 0.into();
        value
    };
    assert_eq!(manifest("plain"), manifest("weighted"));
    assert_eq!(manifest("plain")["version"], 1);
    assert!(lines(&fixture.path("plain"), "train").iter().all(|line| line.rows_by_dataset.is_none()));
    // A folder that is called like a weight is a folder.
    let odd = write_split(&fixture.path("data=3"), "train", &documents(0));
    succeed(&mut mixed(&fixture, "odd", &[odd.display().to_string()], &[]));
    assert_eq!(state_bytes(&fixture.path("plain"), 12), state_bytes(&fixture.path("odd"), 12));
}

#[test]
fn the_chain_leads_to_every_dataset() {
    let fixture = Fixture::new();
    let (first, second) = (whole(&fixture, "a", 0, 60), whole(&fixture, "b", 5, 20));
    let measured = whole(&fixture, "v", 11, 20);
    let mut command = program();
    command.arg("--manifest").arg(weighted(&first, "2")).arg("--manifest").arg(weighted(&second, "1"));
    command.arg("--validation").arg(&measured).arg("--recipe").arg(&fixture.recipe);
    succeed(command.arg("--out").arg(fixture.path("run")));
    let run = fixture.path("run");
    let manifest = RunManifest::load(&run).unwrap();
    let roots: Vec<String> = manifest.mixture.iter().map(|data| data.root.to_string()).collect();
    let run_text = run.display().to_string();
    let eval = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_xlstm-eval")).args(arguments).output().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output),
        )
    };
    let (code, links) = eval(&["verify", &run_text]);
    assert_eq!(code, 0, "{links}");
    for part in ["training split 1 of 2: shards", "training split 2 of 2: shards", "validation split: shards"]
    {
        assert!(links.contains(part), "{part}: {links}");
    }
    let chain = Command::new(env!("CARGO_BIN_EXE_xlstm-train")).arg("chain").arg(&run).output().unwrap();
    let chain = String::from_utf8_lossy(&chain.stdout).into_owned();
    let page = fixture.path("page.html");
    let (code, said) = eval(&["report", &run_text, "--out", &page.display().to_string()]);
    assert_eq!(code, 0, "{said}");
    let page = fs_err::read_to_string(page).unwrap();
    let trace = data(["trace", "--run", &run_text, "--step", "3"]).success();
    let json: Value =
        serde_json::from_str(&data(["trace", "--run", &run_text, "--step", "3", "--json"]).success())
            .unwrap();
    for root in roots.iter().chain([&manifest.train.root.to_string()]) {
        for (what, text) in [("chain", &chain), ("page", &page), ("trace", &trace)] {
            assert!(text.contains(root.as_str()), "{what} without {root}: {text}");
        }
    }
    assert!(chain.contains("2 of 3 rows: ") && page.contains("Training split 2 of 2"), "{chain}");
    let planned: Vec<(u64, u64)> = rows_of_step(&run, 3, None)
        .unwrap()
        .into_iter()
        .map(|row| manifest.order.place(row.row))
        .map(|(dataset, row)| (dataset as u64 + 1, row))
        .collect();
    let number = |row: &Value, key: &str| row[key].as_u64().unwrap();
    let traced: Vec<(u64, u64)> = json["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (number(row, "dataset"), number(row, "row")))
        .collect();
    assert_eq!(traced, planned);
    let (dataset, row) = planned[0];
    assert!(trace.contains(&format!("row {row} of dataset {dataset} (pass 0)")), "{trace}");

    // An altered shard of either dataset, and an altered share, break the chain.
    let shard = second.join("shard-00000.arrow");
    let honest = fs_err::read(&shard).unwrap();
    let mut altered = honest.clone();
    *altered.iter_mut().rev().nth(400).unwrap() ^= 1;
    fs_err::write(&shard, altered).unwrap();
    let (code, links) = eval(&["verify", &run_text]);
    assert!(code == 1 && links.contains("training split 2 of 2: shards"), "{links}");
    fs_err::write(&shard, honest).unwrap();
    let metrics = run.join("metrics.jsonl");
    let text = fs_err::read_to_string(&metrics).unwrap();
    let shares = lines(&run, "train").last().unwrap().rows_by_dataset.clone().unwrap();
    let (from, to) =
        (format!("[{},{}]", shares[0], shares[1]), format!("[{},{}]", shares[0] - 1, shares[1] + 1));
    fs_err::write(&metrics, text.replace(&from, &to)).unwrap();
    let (code, links) = eval(&["verify", &run_text]);
    assert!(code == 1 && links.contains("rows by dataset of step 12"), "{links}");
    fs_err::write(&metrics, text).unwrap();
    let path = run.join("run.json");
    let text = fs_err::read_to_string(&path).unwrap();
    fs_err::write(&path, text.replace("\"weight\": 2", "\"weight\": 3")).unwrap();
    let (code, links) = eval(&["verify", &run_text]);
    assert!(code == 1 && links.contains("order.root, of datasets and weights"), "{links}");
}

#[test]
fn what_cannot_be_mixed_is_refused_before_the_first_step() {
    let fixture = Fixture::new();
    let second = whole(&fixture, "b", 5, 20);
    let first = fixture.train.display().to_string();
    let refused = |datasets: &[String]| {
        let message = fail(&mut mixed(&fixture, "bad", datasets, &[]), 1);
        assert!(!fixture.path("bad").exists(), "a refused run leaves no folder behind");
        message
    };
    for weight in ["0", "-1", "0.0", "1e3", "half", "nan", ""] {
        let message = refused(&[first.clone(), weighted(&second, weight)]);
        assert!(message.contains("expected a number above zero such as 70 or 0.7"), "{weight}: {message}");
        assert!(message.contains(&format!("found `{weight}`")), "{weight}: {message}");
    }
    let message = refused(&[weighted(&fixture.train, "1"), weighted(&second, "123456.789")]);
    assert!(message.contains("at most 100000 rows"), "{message}");
    let message = refused(&[first.clone(), first.clone()]);
    assert!(message.contains("twice") && message.contains("sum of its weights"), "{message}");

    // The same rows under another tokenizer.
    let other = write_split(&fixture.path("other"), "train", &documents(3));
    let mut manifest = Manifest::load(&other).unwrap();
    manifest.tokenizer.name = "another".into();
    manifest.root = identity::root(&manifest).unwrap();
    fs_err::write(other.join(MANIFEST_NAME), manifest.to_bytes().unwrap()).unwrap();
    let message = refused(&[first.clone(), other.display().to_string()]);
    assert!(message.contains("other/manifest.json`: expected tokenizer `counting`"), "{message}");
    assert!(message.contains("found tokenizer `another`"), "{message}");

    // Rows of another layout, and of another length.
    let task = |name: &str, folder: &str| {
        let task = by_name(name, 0, &Parameters::default()).unwrap();
        TaskPlan::new(&*task, Split::Train, 40, 64)
            .unwrap()
            .execute(&fixture.path(folder), 1, false)
            .unwrap();
        fixture.path(folder).join("train").display().to_string()
    };
    let strings = task("reverse_string", "strings");
    let message = refused(&[first, strings.clone()]);
    assert!(
        message.contains("expected layout `packed`") && message.contains("found layout `examples`"),
        "{message}"
    );
    let recall = task("mqar", "recall");
    let message = refused(&[strings, recall]);
    assert!(
        message.contains("expected rows of 256 positions") && message.contains("found rows of "),
        "{message}"
    );
}
