//! Custom autograd functions: derivatives, failures, and what happens to the memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::{Device, Kind, Tensor};
use xlstm_bridge::BridgeError;
use xlstm_bridge::autograd::{Forward, backward, checkpoint, custom_function, gradients, node};
use xlstm_bridge::named::{Named, Output};
use xlstm_bridge::named_tensors;

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

named_tensors! {
    struct Factors<T> { left: T, right: T }
    struct SavedFactors { factors: Factors<Tensor>, absent: Option<Tensor>, more: [Option<Tensor>; 2] }
}

/// y = a * b, with gradients only where they are wanted.
fn product(a: &Tensor, b: &Tensor) -> Result<Tensor, BridgeError> {
    let output = node(
        "product",
        Factors { left: Some(a), right: Some(b) },
        |_| {
            let factors = Factors { left: a.shallow_clone(), right: b.shallow_clone() };
            let more = [None, Some(b.shallow_clone())];
            Ok((Output { y: a * b }, SavedFactors { factors, absent: None, more }))
        },
        |saved, gradients, wanted| {
            let gradient = gradients.gradient()?;
            let Factors { left, right } = saved.factors;
            assert!(saved.absent.is_none() && saved.more[0].is_none());
            assert!(saved.more[1].as_ref().is_some_and(|again| again.equal(&right)));
            Ok(Factors {
                left: wanted.left.then(|| &gradient * right),
                right: wanted.right.then(|| &gradient * left),
            })
        },
    )?;
    Ok(output.y)
}

fn failing(input: &Tensor, fail: fn() -> Result<Tensor, xlstm_bridge::BoxError>) -> Tensor {
    let mut outputs = custom_function(
        "failing",
        &[Some(input)],
        |_| Ok(Forward { outputs: vec![input + 1.0], saved: vec![] }),
        move |_| Ok(vec![Some(fail()?)]),
    )
    .expect("the forward pass cannot fail");
    outputs.swap_remove(0)
}

#[test]
fn gradients_reach_the_leaves_and_chain_with_libtorch() {
    let (a, b) = (leaf(&[1.0, 2.0, 3.0]), leaf(&[4.0, 5.0, 6.0]));
    let y = product(&(&a * 2.0), &b).unwrap();
    y.sin().sum(Kind::Double).backward();
    let expected = (&a * &b * 2.0).cos() * &b * 2.0;
    assert!(a.grad().allclose(&expected, 1e-12, 1e-12, false));
    let expected = (&a * &b * 2.0).cos() * &a * 2.0;
    assert!(b.grad().allclose(&expected, 1e-12, 1e-12, false));
}

#[test]
fn named_values_keep_their_order() {
    let factors = Factors::from_values(&mut [1, 2, 3].into_iter()).unwrap();
    assert_eq!((factors.left, factors.right), (1, 2));
    assert_eq!(factors.map(|value| value * 10).into_values(), [10, 20]);
    assert!(Factors::from_values(&mut [1].into_iter()).is_none());
}

#[test]
fn outputs_and_gradients_meet_by_name() {
    named_tensors! { struct Parts<T> { sum: T, difference: T } }
    let (a, b) = (leaf(&[2.0, 3.0]), leaf(&[5.0, 7.0]));
    let parts = node(
        "parts",
        Factors { left: Some(&a), right: Some(&b) },
        |recorded| {
            assert!(recorded);
            Ok((Parts { sum: &a + &b, difference: &a - &b }, ()))
        },
        |(), gradients, _| {
            assert!(gradients.sum.is_none());
            let gradient = gradients.difference.ok_or("no gradient of the difference")?;
            Ok(Factors { right: Some(-&gradient), left: Some(gradient) })
        },
    )
    .unwrap();
    assert_eq!(Vec::<f64>::try_from(&parts.sum.detach()).unwrap(), [7.0, 10.0]);
    parts.difference.sum(Kind::Double).backward();
    assert_eq!(Vec::<f64>::try_from(&a.grad()).unwrap(), [1.0, 1.0]);
    assert_eq!(Vec::<f64>::try_from(&b.grad()).unwrap(), [-1.0, -1.0]);
}

#[test]
fn only_wanted_gradients_are_asked_for() {
    let (a, b) = (leaf(&[1.0]), Tensor::from_slice(&[3.0]));
    let seen = Arc::new(AtomicUsize::new(0));
    let seen_inside = seen.clone();
    let y = custom_function(
        "spy",
        &[Some(&a), Some(&b), None],
        |recorded| {
            assert!(recorded);
            Ok(Forward { outputs: vec![&a * &b], saved: vec![] })
        },
        move |context| {
            assert_eq!(context.needs_gradient, [true, false, false]);
            seen_inside.fetch_add(1, Ordering::SeqCst);
            Ok(vec![Some(Tensor::from_slice(&[3.0])), None, None])
        },
    )
    .unwrap();
    y[0].sum(Kind::Double).backward();
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[test]
fn nothing_is_recorded_without_need() {
    let a = leaf(&[1.0]);
    let y = tch::no_grad(|| product(&a, &a).unwrap());
    assert!(!y.requires_grad());
    let plain = Tensor::from_slice(&[1.0]);
    assert!(!product(&plain, &plain).unwrap().requires_grad());
}

#[test]
fn an_error_in_backward_comes_back_as_an_error() {
    let y = failing(&leaf(&[1.0]), || Err("state has the wrong shape".into()));
    let error = backward(&[&y.sum(Kind::Double)], &[None], false).unwrap_err().to_string();
    assert!(error.contains("failing (backward): state has the wrong shape"), "{error}");
}

#[test]
fn a_panic_in_backward_comes_back_as_an_error() {
    let y = failing(&leaf(&[1.0]), || panic!("out of cheese"));
    let error = backward(&[&y.sum(Kind::Double)], &[None], false).unwrap_err().to_string();
    assert!(error.contains("panicked: out of cheese"), "{error}");
}

#[test]
fn a_wrong_number_of_gradients_is_an_error() {
    let a = leaf(&[1.0]);
    let y = custom_function(
        "short",
        &[Some(&a)],
        |_| Ok(Forward { outputs: vec![&a + 1.0], saved: vec![] }),
        |_| Ok(vec![]),
    )
    .unwrap();
    let error = backward(&[&y[0].sum(Kind::Double)], &[None], false).unwrap_err().to_string();
    assert!(error.contains("returned 0 gradients for 1 inputs"), "{error}");
}

#[test]
fn a_saved_input_changed_in_place_is_noticed() {
    let a = leaf(&[1.0, 2.0]);
    let inner = &a * 1.0;
    let y = product(&inner, &inner).unwrap();
    let _ = tch::no_grad(|| inner.shallow_clone().fill_(7.0));
    let error = backward(&[&y.sum(Kind::Double)], &[None], false).unwrap_err().to_string();
    assert!(error.contains("modified by an inplace operation"), "{error}");
}

#[test]
fn going_through_twice_needs_retain_graph() {
    let a = leaf(&[2.0]);
    let y = product(&a, &a).unwrap().sum(Kind::Double);
    backward(&[&y], &[None], true).unwrap();
    backward(&[&y], &[None], false).unwrap();
    assert_eq!(a.grad().double_value(&[0]), 8.0);
    assert!(backward(&[&y], &[None], false).is_err());
}

#[test]
fn a_second_derivative_is_refused() {
    let a = leaf(&[2.0]);
    let y = product(&a, &a).unwrap().sum(Kind::Double);
    let error = Tensor::f_run_backward(&[y], &[&a], true, true).unwrap_err().to_string();
    assert!(error.contains("second derivative"), "{error}");
}

#[test]
fn an_input_returned_as_output_is_refused() {
    let a = leaf(&[2.0]);
    let result = custom_function(
        "identity",
        &[Some(&a)],
        |_| Ok(Forward { outputs: vec![a.shallow_clone()], saved: vec![] }),
        |_| Ok(vec![None]),
    );
    assert!(result.unwrap_err().to_string().contains("is one of the inputs"));
}

#[test]
fn views_and_saved_outputs_and_unused_outputs() {
    let a = leaf(&[0.5, 1.0, 1.5, 2.0]);
    let y = custom_function(
        "views",
        &[Some(&a)],
        |_| {
            let exponential = a.exp();
            let view = exponential.view([2, 2]).transpose(0, 1);
            Ok(Forward { outputs: vec![view.shallow_clone(), &a * 3.0], saved: vec![view] })
        },
        |context| {
            assert!(context.gradients[1].is_none());
            let gradient = context.gradients[0].as_ref().ok_or("no gradient")?;
            Ok(vec![Some((gradient * &context.saved[0]).transpose(0, 1).reshape([4]))])
        },
    )
    .unwrap();
    assert_eq!(y[0].size(), [2, 2]);
    (&y[0] * 2.0).sum(Kind::Double).backward();
    assert!(a.grad().allclose(&(a.exp() * 2.0), 1e-12, 0.0, false));
}

#[test]
fn the_closure_is_dropped_with_the_graph() {
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let drops = Arc::new(AtomicUsize::new(0));
    let counted = Counted(drops.clone());
    let a = leaf(&[1.0]);
    let y = custom_function(
        "counted",
        &[Some(&a)],
        |_| Ok(Forward { outputs: vec![&a * 2.0], saved: vec![] }),
        move |context| {
            let _ = &counted;
            Ok(vec![context.gradients[0].as_ref().map(|gradient| gradient * 2.0)])
        },
    )
    .unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 0);
    drop(y);
    assert_eq!(drops.load(Ordering::SeqCst), 1);
}

#[test]
fn backward_works_from_several_threads_at_once() {
    let threads: Vec<_> = (0..4)
        .map(|seed| {
            std::thread::spawn(move || {
                let a =
                    Tensor::full([16], f64::from(seed), (Kind::Double, Device::Cpu)).set_requires_grad(true);
                let y = product(&a, &a).unwrap();
                y.sum(Kind::Double).backward();
                assert_eq!(a.grad().double_value(&[3]), 2.0 * f64::from(seed));
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn gradients_with_given_weights() {
    let (a, b, unused) = (leaf(&[2.0, 3.0]), leaf(&[5.0, 7.0]), leaf(&[1.0]));
    let y = product(&a, &b).unwrap();
    let weights = Tensor::from_slice(&[1.0, 10.0]);
    let found = gradients(&[&y], &[Some(&weights)], &[&a, &unused], false).unwrap();
    assert_eq!(Vec::<f64>::try_from(found[0].as_ref().unwrap()).unwrap(), [5.0, 70.0]);
    assert!(found[1].is_none());
    assert!(!a.grad().defined());
}

#[test]
fn checkpointing_gives_the_same_gradients_and_reaches_captured_parameters() {
    let weight = leaf(&[0.3, -0.7]);
    let plain_weight = leaf(&[0.3, -0.7]);
    let (a, plain_a) = (leaf(&[1.0, 2.0]), leaf(&[1.0, 2.0]));
    let captured = weight.shallow_clone();
    let outputs =
        checkpoint("block", &[&a], move |inputs| Ok(vec![(&inputs[0] * &captured).tanh() * &inputs[0]]))
            .unwrap();
    outputs[0].sum(Kind::Double).backward();
    ((&plain_a * &plain_weight).tanh() * &plain_a).sum(Kind::Double).backward();
    assert!(a.grad().equal(&plain_a.grad()));
    assert!(weight.grad().equal(&plain_weight.grad()));
}
