//! Rows become inputs, targets and resets as the format says.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Arc;

use common::{Fixture, ROW};
use xlstm_manifests::Dataset;
use xlstm_manifests::order::{Order, StepRow};
use xlstm_pipeline::tasks::written::TaskPlan;
use xlstm_pipeline::tasks::{Parameters, Split, by_name};
use xlstm_trainer::loader::{BatchShape, Loader, LoaderOptions, MicroBatch};
use xlstm_trainer::model::IGNORE_TARGET;

#[test]
fn each_token_is_predicted_once_from_the_one_before() {
    let fixture = Fixture::new();
    let dataset = Dataset::open(&fixture.train).unwrap();
    let stream: Vec<i64> = common::documents(0).concat().into_iter().map(i64::from).collect();
    let mut targets = Vec::new();
    for row in 0..dataset.rows() {
        for context in [ROW, 8] {
            let shape = BatchShape { rows: 1, context, resets: true };
            let batch = MicroBatch::read(&dataset, &[StepRow { epoch: 0, row }], shape).unwrap();
            assert_eq!(batch.inputs[0], 0, "the separator comes first");
            let known = batch.tokens as usize;
            assert_eq!(batch.inputs[1..known], batch.targets[..known - 1]);
            assert!(batch.targets[known..].iter().all(|&target| target == IGNORE_TARGET));
            // A document begins where the input is the separator that ended the one before.
            for position in 1..known {
                assert_eq!(
                    batch.resets[position],
                    batch.inputs[position] == 0,
                    "row {row}, position {position}"
                );
            }
            if context == ROW {
                targets.extend(batch.targets[..known].iter().copied());
            }
        }
    }
    assert_eq!(targets, stream);
}

#[test]
fn ranks_read_one_step_together() {
    let fixture = Fixture::new();
    let dataset = Arc::new(Dataset::open(&fixture.train).unwrap());
    let order = Order::new(dataset.manifest(), 9, 7);
    let read = |rank, world| {
        let shape = BatchShape { rows: 2, context: ROW, resets: false };
        let plan = LoaderOptions { order: order.clone(), rank, world, shape, first_step: 3, last_step: 4 };
        let mut loader = Loader::start(Arc::clone(&dataset), plan);
        let batches = order.rank_range(rank, world).len().div_ceil(2) * 2;
        let rows: Vec<StepRow> = (0..batches).flat_map(|_| loader.next_batch().unwrap().rows).collect();
        assert!(loader.next_batch().is_err(), "nothing past the last step");
        rows
    };
    let whole = read(0, 1);
    assert_eq!(whole, [order.rows_of_step(3), order.rows_of_step(4)].concat());
    let mut shared: Vec<StepRow> = (0..3).flat_map(|rank| read(rank, 3)).collect();
    let mut expected = whole;
    shared.sort_unstable_by_key(|row| (row.epoch, row.row));
    expected.sort_unstable_by_key(|row| (row.epoch, row.row));
    assert_eq!(shared, expected);
}

/// A model looks back alone: what lies behind the last target of a batch decides nothing.
#[test]
fn a_batch_of_examples_is_cut_behind_its_last_target() {
    let folder = tempfile::tempdir().unwrap();
    let task = by_name("reverse_string", 0, &Parameters::default()).unwrap();
    TaskPlan::new(&*task, Split::Train, 40, 64).unwrap().execute(folder.path(), 1, false).unwrap();
    let dataset = Dataset::open(&folder.path().join("train")).unwrap();
    let shape = BatchShape { rows: 5, context: 256, resets: true };
    let mut contexts = Vec::new();
    for first in (0..40).step_by(5) {
        let rows: Vec<StepRow> = (first..first + 5).map(|row| StepRow { epoch: 0, row }).collect();
        let batch = MicroBatch::read(&dataset, &rows, shape).unwrap();
        let examples: Vec<_> = rows.iter().map(|row| dataset.example(row.row).unwrap().unwrap()).collect();
        let longest = examples.iter().map(|example| usize::from(example.length)).max().unwrap();
        assert_eq!(batch.context, longest.next_multiple_of(8));
        let kept = batch.context;
        for (row, example) in examples.iter().enumerate() {
            let ids: Vec<i64> = example.input_ids[..kept].iter().map(|&id| i64::from(id)).collect();
            let targets: Vec<i64> =
                example.targets().take(kept).map(|target| target.map_or(IGNORE_TARGET, i64::from)).collect();
            assert_eq!(batch.inputs[row * kept..(row + 1) * kept], ids);
            assert_eq!(batch.targets[row * kept..(row + 1) * kept], targets);
        }
        assert_eq!(batch.tokens, examples.iter().map(|example| example.scored() as u64).sum::<u64>());
        assert_eq!(batch.resets.len(), 5 * kept);
        contexts.push(kept);
    }
    assert!(
        contexts.iter().all(|&kept| kept <= 40) && contexts.iter().any(|&kept| kept < 40),
        "{contexts:?}"
    );
    // A context below the row is the recipe's own cut, which stays.
    let shape = BatchShape { context: 128, ..shape };
    assert_eq!(MicroBatch::read(&dataset, &[StepRow { epoch: 0, row: 0 }], shape).unwrap().context, 128);
}
