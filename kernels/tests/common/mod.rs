//! What the tests of the kernels share: golden vectors, random inputs, and the measure of an error.
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]
#![allow(unreachable_pub, reason = "a module of test programs")]
#![allow(missing_docs, non_snake_case, reason = "a module of test programs")]
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod cells;
pub mod mlstm;
pub mod projections;
pub mod sets;

use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// All tensors of one golden file.
pub type Golden = BTreeMap<String, Tensor>;

/// The golden files whose name begins with `prefix`, in the folder XLSTM_GOLDEN_DIR (default: `tests/golden`) and its folder `baselines`,
/// where that is there.
pub fn golden_files(prefix: &str) -> Vec<(String, Golden)> {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let folder = std::env::var_os("XLSTM_GOLDEN_DIR").map_or(default, PathBuf::from);
    let baselines = folder.join("baselines");
    let folders = [Some(&folder), baselines.is_dir().then_some(&baselines)];
    let mut files: Vec<PathBuf> = folders
        .into_iter()
        .flatten()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()))
        .collect();
    files.sort();
    let mut found = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with(prefix) && name.ends_with(".safetensors") {
            found.push((name, read(&path)));
        }
    }
    assert!(!found.is_empty(), "no {prefix}*.safetensors in {}", folder.display());
    found
}

fn read(path: &std::path::Path) -> Golden {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let convert = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let size: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        let kind = match view.dtype() {
            Dtype::F64 => Kind::Double,
            Dtype::F32 => Kind::Float,
            Dtype::I64 => Kind::Int64,
            other => panic!("{}: {other:?}", path.display()),
        };
        (name, Tensor::f_from_data_size(view.data(), &size, kind).unwrap())
    };
    file.tensors().into_iter().map(convert).collect()
}

/// The largest difference, relative to the largest value expected.
pub fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let scale = expected.abs().max().double_value(&[]).max(f64::MIN_POSITIVE);
    let error = (found - expected).abs().max().double_value(&[]) / scale;
    if error.is_nan() { f64::INFINITY } else { error }
}

/// Check a tensor against an expected one.
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    let error = relative_error(found, expected);
    assert!(error <= tolerance, "{what}: relative error {error:.3e} exceeds {tolerance:.1e}");
}

/// libtorch's generator belongs to the process, and tests run at the same time.
static GENERATOR: Mutex<()> = Mutex::new(());

/// Normal random values from a seed of their own.
pub fn random(seed: i64, size: &[i64], kind: Kind) -> Tensor {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    Tensor::randn(size, (Kind::Double, Device::Cpu)).to_kind(kind)
}

/// Flags that are set with a probability, from a seed of their own.
pub fn random_flags(seed: i64, size: &[i64], probability: f64) -> Tensor {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    Tensor::rand(size, (Kind::Double, Device::Cpu)).lt(probability)
}

/// Class indices below `limit`, from a seed of their own.
pub fn random_classes(seed: i64, rows: i64, limit: i64) -> Tensor {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    Tensor::randint(limit, [rows], (Kind::Int64, Device::Cpu))
}

/// Compares named tensors one by one.
#[track_caller]
pub fn compare_all(what: &str, found: &[(String, Tensor)], expected: &[(String, Tensor)], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: as many tensors");
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert_close(&format!("{what}: {name}"), found, expected, tolerance);
    }
}

/// Errors of `found` in fp32 are at most twice those of libtorch's own operations (`plain`) in fp32, both against fp64.
#[track_caller]
pub fn expect_errors_of_libtorch_twice(
    what: &str,
    found: &[(String, Tensor)],
    plain: &[(String, Tensor)],
    exact: &[(String, Tensor)],
) {
    assert!(found.len() == plain.len() && found.len() == exact.len(), "{what}: as many tensors");
    for ((name, found), ((_, plain), (_, exact))) in found.iter().zip(plain.iter().zip(exact)) {
        let (ours, theirs) = (relative_error(found, exact), relative_error(plain, exact));
        // Where libtorch happens to be exact, a few units in the last place are allowed.
        assert!(ours <= 2.0 * theirs + 2e-6, "{what}, {name}: {ours:.2e} against {theirs:.2e}");
    }
}

/// A loss in which every number of every output counts, with fixed random weights.
pub fn weighted_sum(outputs: &[&Tensor], kind: Kind) -> Tensor {
    let weighted = outputs
        .iter()
        .enumerate()
        .map(|(index, tensor)| (*tensor * random(700 + index as i64, &tensor.size(), kind)).sum(kind));
    weighted.reduce(|left, right| left + right).unwrap()
}

/// Outputs under their names, then the gradients of the leaves under theirs.
pub fn with_gradients(
    outputs: &[(&str, &Tensor)],
    names: &[&str],
    leaves: &[Tensor],
) -> Vec<(String, Tensor)> {
    let outputs = outputs.iter().map(|&(name, tensor)| (name.to_owned(), tensor.detach()));
    let gradients = names.iter().zip(leaves).map(|(name, leaf)| (format!("gradient of {name}"), leaf.grad()));
    outputs.chain(gradients).collect()
}

/// Rounded to fp32 and back, so that every precision starts from the same numbers.
pub fn rounded(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Float).to_kind(Kind::Double).detach()
}

/// A fresh leaf that asks for gradients.
pub fn leaf(tensor: &Tensor) -> Tensor {
    tensor.detach().copy().set_requires_grad(true)
}

/// Central differences of `loss` with respect to a few elements of each leaf, against its gradients (fp64).
#[track_caller]
pub fn check_gradients(leaves: &[(&str, &Tensor)], loss: &dyn Fn() -> Tensor) {
    loss().backward();
    const STEP: f64 = 1e-5;
    for (name, tensor) in leaves {
        let gradient = tensor.grad().reshape([-1]);
        let elements = gradient.size()[0];
        let scale = gradient.abs().max().double_value(&[]).max(1e-3);
        for index in (0..elements).step_by(usize::try_from(elements / 7 + 1).unwrap()) {
            let shifted = |by: f64| {
                tch::no_grad(|| {
                    let mut element = tensor.view([-1]).narrow(0, index, 1);
                    let _ = element.g_add_scalar_(by);
                    let value = loss().double_value(&[]);
                    let _ = element.g_add_scalar_(-by);
                    value
                })
            };
            let numeric = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
            let analytic = gradient.double_value(&[index]);
            let error = (numeric - analytic).abs() / scale;
            assert!(error < 2e-6, "{name}[{index}]: {analytic:.9} by backward, {numeric:.9} by differences");
        }
    }
}
