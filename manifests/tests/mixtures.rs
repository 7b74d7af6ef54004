//! Mixtures of any sizes and weights, and run manifests that claim ones that cannot be.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::Path;

use proptest::prelude::*;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::mixture::{MAX_EPOCH, MixedDataset, Weight, lowest_terms};
use xlstm_manifests::order::Order;
use xlstm_manifests::run_manifest::{
    DatasetRef, Program, RUN_FORMAT, RUN_NAME, RecipeRef, RunManifest, rows_of_step,
};

fn dataset(number: usize, weight: u64, rows: u64) -> MixedDataset {
    MixedDataset { root: Sha256Digest::of(&number.to_le_bytes()), weight, rows, tokens: rows * 8 }
}

proptest! {
    /// Whatever the sizes and weights: shares are exact in each epoch, each dataset's rows come once a pass, and ranks
    /// share a step without gap or overlap.
    #[test]
    fn any_mixture_keeps_its_shares(
        parts in prop::collection::vec((1_u64..9, 1_u64..30), 1..5),
        rows_per_step in 1_u64..13,
        world in 1_u64..4,
        seed in any::<u64>(),
    ) {
        let weights: Vec<Weight> = parts.iter().map(|(weight, _)| weight.to_string().parse().unwrap()).collect();
        let terms = lowest_terms(&weights).unwrap();
        let mixed: Vec<MixedDataset> =
            parts.iter().zip(&terms).enumerate().map(|(i, ((_, rows), &weight))| dataset(i, weight, *rows)).collect();
        let order = Order::of(&mixed, 8, seed, rows_per_step);
        let epoch = order.epoch();
        prop_assert_eq!(epoch, terms.iter().sum::<u64>());
        let steps = (3 * epoch * 30).div_ceil(rows_per_step);
        let mut samples = Vec::new();
        for step in 1..=steps {
            let rows = order.rows_of_step(step);
            let shared: Vec<_> =
                (0..world).flat_map(|rank| rows[order.rank_range(rank, world)].to_vec()).collect();
            prop_assert_eq!(&shared, &rows);
            samples.extend(rows.iter().map(|row| (order.place(row.row), row.epoch)));
        }
        for (number, part) in mixed.iter().enumerate() {
            for samples in samples.chunks_exact(epoch as usize) {
                let own = samples.iter().filter(|((dataset, _), _)| *dataset == number).count() as u64;
                prop_assert_eq!(own, part.weight);
            }
            let own: Vec<_> = samples.iter().filter(|((dataset, _), _)| *dataset == number).collect();
            for pass in 0..own.len() as u64 / part.rows {
                let of_pass = own.iter().filter(|(_, epoch)| *epoch == pass);
                let mut rows: Vec<u64> = of_pass.map(|((_, row), _)| *row).collect();
                rows.sort_unstable();
                // The last pass may have rows of an epoch that is not over.
                if (pass + 1) * part.rows + part.weight <= own.len() as u64 {
                    prop_assert_eq!(rows, (0..part.rows).collect::<Vec<_>>());
                }
            }
        }
        let counted: Vec<u64> = (0..mixed.len())
            .map(|number| samples.iter().filter(|((dataset, _), _)| *dataset == number).count() as u64)
            .collect();
        prop_assert_eq!(order.rows_by_dataset(steps), counted);
    }
}

fn run_over(datasets: &[MixedDataset]) -> RunManifest {
    let order = Order::of(datasets, 8, 1, 4);
    let reference = |data: &MixedDataset| DatasetRef {
        root: data.root,
        path: "data".into(),
        split: "train".into(),
        profile: "local".into(),
        rows: data.rows,
        tokens: data.tokens,
        tokenizer_sha256: None,
    };
    let whole = MixedDataset { root: order.root, weight: 1, rows: order.rows, tokens: order.tokens };
    let program = Program {
        name: "xlstm-train".into(),
        version: "0".into(),
        commit: "unknown".into(),
        binary_sha256: None,
        libtorch: "none".into(),
        kernels: "none".into(),
    };
    let mut run = RunManifest {
        format: RUN_FORMAT.into(),
        version: 1,
        train: reference(&whole),
        mixture: order.datasets.iter().map(reference).collect(),
        validation: None,
        recipe: RecipeRef { name: "any".into(), sha256: order.root },
        order,
        initialization_seed: 1,
        initialized_from: None,
        parameters: 1,
        program,
        sessions: Vec::new(),
    };
    run.version = run.version_needed();
    run
}

/// What loading says, after this text of the file was replaced.
fn altered(folder: &Path, from: &str, to: &str) -> String {
    run_over(&[dataset(0, 2, 10), dataset(1, 1, 7)]).store(folder).unwrap();
    let path = folder.join(RUN_NAME);
    let text = fs_err::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}: {text}");
    fs_err::write(&path, text.replacen(from, to, 1)).unwrap();
    rows_of_step(folder, 1, None)
        .map_or_else(|error| error.to_string(), |rows| format!("{} rows", rows.len()))
}

#[test]
fn a_mixture_that_cannot_be_is_refused_before_its_rows_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert_eq!(altered(folder, "\"weight\": 2", "\"weight\": 2"), "4 rows");
    let most = MAX_EPOCH.to_string();
    for (from, to) in [
        ("\"weight\": 2", "\"weight\": 0"),
        ("\"weight\": 2", "\"weight\": 18446744073709551615"),
        ("\"weight\": 2", &format!("\"weight\": {MAX_EPOCH}")),
        ("\"rows\": 7,\n        \"tokens\"", "\"rows\": 0,\n        \"tokens\""),
    ] {
        let said = altered(folder, from, to);
        assert!(said.contains(RUN_NAME) && said.contains(&most), "{to}: {said}");
    }
    let mut run = run_over(&[dataset(0, 2, 10), dataset(1, 1, 7)]);
    run.mixture.pop();
    run.store(folder).unwrap();
    let said = RunManifest::load(folder).unwrap_err().to_string();
    assert!(said.contains("as many datasets") && said.contains("1 and 2"), "{said}");
    let mut run = run_over(&[dataset(0, 2, 10), dataset(1, 1, 7)]);
    run.mixture.swap(0, 1);
    run.store(folder).unwrap();
    let said = RunManifest::load(folder).unwrap_err().to_string();
    assert!(said.contains("in `mixture`"), "{said}");
}

#[test]
fn a_run_over_one_dataset_says_nothing_of_mixtures() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_over(&[dataset(0, 1, 10)]);
    assert_eq!((run.version, run.trained_on().len()), (1, 1));
    run.store(folder.path()).unwrap();
    let text = fs_err::read_to_string(folder.path().join(RUN_NAME)).unwrap();
    assert!(!text.contains("mixture") && !text.contains("datasets") && !text.contains("weight"), "{text}");
    assert_eq!(RunManifest::load(folder.path()).unwrap(), run);
    assert_eq!(run_over(&[dataset(0, 2, 10), dataset(1, 1, 7)]).version, 3);
}
