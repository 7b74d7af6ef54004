//! Ranks as threads of one process: c10d keeps no global state, so each has a store, a group and a reducer of its own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::backward;
use xlstm_bridge::distributed::{Group, Store};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs `body` as each rank of a group.
fn ranks<T: Send>(world: u64, body: impl Fn(u64, &Group) -> T + Sync) -> Vec<T> {
    let table = Store::serve(0, "", TIMEOUT).unwrap();
    let port = table.port();
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..world)
            .map(|rank| {
                let body = &body;
                scope.spawn(move || {
                    let store = Store::connect("127.0.0.1", port, "test", TIMEOUT).unwrap();
                    let group = Group::join(&store, (rank, world), Device::Cpu, TIMEOUT, true).unwrap();
                    body(rank, &group)
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

#[test]
fn a_table_is_shared_and_counts() {
    let table = Store::serve(0, "run", TIMEOUT).unwrap();
    let other = Store::connect("127.0.0.1", table.port(), "run", TIMEOUT).unwrap();
    assert_eq!(other.find("name").unwrap(), None);
    table.set("name", b"a\0b").unwrap();
    assert_eq!(other.get("name", TIMEOUT).unwrap(), b"a\0b");
    assert_eq!(other.find("name").unwrap().unwrap(), b"a\0b");
    assert_eq!((table.add("count", 2).unwrap(), other.add("count", 3).unwrap()), (2, 5));
    let foreign = Store::connect("127.0.0.1", table.port(), "another run", TIMEOUT).unwrap();
    assert_eq!(foreign.find("name").unwrap(), None);
    assert!(foreign.get("name", Duration::from_millis(50)).is_err(), "nobody writes it");
}

#[test]
fn a_port_in_use_is_an_error() {
    let table = Store::serve(0, "", TIMEOUT).unwrap();
    let error = Store::serve(table.port(), "", TIMEOUT).unwrap_err().to_string();
    assert!(error.contains("EADDRINUSE"), "{error}");
}

#[test]
fn sums_and_broadcasts_reach_every_rank() {
    for world in [1, 2, 3] {
        ranks(world, |rank, group| {
            let sum = Tensor::from_slice(&[rank as f64 + 1.0, 0.5]);
            group.sum(&sum).unwrap();
            assert_eq!(
                Vec::<f64>::try_from(&sum).unwrap(),
                [(world * (world + 1)) as f64 / 2.0, world as f64 / 2.0]
            );
            let tensors =
                [Tensor::from(rank as i64), Tensor::ones([3, 2], (Kind::Float, Device::Cpu)) * rank as f64];
            group.broadcast(&tensors).unwrap();
            assert_eq!(i64::try_from(&tensors[0]).unwrap(), 0);
            assert_eq!(tensors[1].abs().sum(Kind::Float).double_value(&[]), 0.0);
            group.barrier().unwrap();
        });
    }
}

/// A loss with two layers, over one row of data for each `(rank, micro-batch)`.
fn loss(weights: &[Tensor], number: u64) -> Tensor {
    let input = Tensor::from_slice(&[number as f32 + 1.0, 0.5, -0.25 * number as f32]);
    let hidden = weights[0].mv(&input).tanh();
    (hidden * &weights[1]).sum(Kind::Float)
}

fn weights() -> Vec<Tensor> {
    let make = |rows: &[i64], offset: i64| {
        let values = Tensor::arange(rows.iter().product::<i64>(), (Kind::Float, Device::Cpu)) + offset;
        (values * 0.1).sin().reshape(rows).set_requires_grad(true)
    };
    vec![make(&[4, 3], 1), make(&[4], 7)]
}

#[test]
fn the_reducer_sums_gradients_of_all_ranks_and_micro_batches() {
    // Three steps: the second one rebuilds libtorch's buckets.
    ranks(3, |rank, group| {
        let reference = weights();
        for number in 0..6 {
            backward(&[&loss(&reference, number)], &[None], false).unwrap();
        }
        let own = weights();
        let reducer = group.reducer(&own).unwrap();
        for step in 0..3 {
            for weight in &own {
                let mut gradient = weight.grad();
                if gradient.defined() {
                    let _ = gradient.zero_();
                }
            }
            backward(&[&loss(&own, 2 * rank)], &[None], false).unwrap();
            reducer.prepare().unwrap();
            backward(&[&loss(&own, 2 * rank + 1)], &[None], false).unwrap();
            reducer.check().unwrap();
            for (found, expected) in own.iter().zip(&reference) {
                let error = (found.grad() - expected.grad()).abs().max().double_value(&[]);
                assert!(error < 1e-6, "step {step}, rank {rank}: {error}");
            }
        }
        assert!(group.progress().buckets() >= 3);
    });
}

#[test]
fn a_parameter_without_a_gradient_is_an_error() {
    ranks(2, |_, group| {
        let own = weights();
        let reducer = group.reducer(&own).unwrap();
        reducer.prepare().unwrap();
        let partial = own[0].sum(Kind::Float);
        backward(&[&partial], &[None], false).unwrap();
        let error = reducer.check().unwrap_err().to_string();
        assert!(error.contains("Parameter indices which did not receive grad"), "{error}");
    });
}

#[test]
fn a_rank_that_leaves_ends_the_others_calls() {
    let begin = Instant::now();
    let results =
        ranks(
            2,
            |rank, group| if rank == 0 { group.barrier().map_err(|error| error.to_string()) } else { Ok(()) },
        );
    assert!(results[0].is_err(), "rank 1 is gone");
    assert!(begin.elapsed() < TIMEOUT, "at once, not after the timeout");
}
