//! Linear maps, with the matrix product of `cpu/gemm_parallel.h` on the CPU.
//!
//! Why our own product: the library inside libtorch takes the vector units of some processors for half as wide as
//! they are (docs/benchmarks), and nearly all the time of a training step is spent in linear maps. Few rows, as in
//! generation, read the weight as it lies (`cpu/gemm_rows.h`). On other devices libtorch computes.

use crate::KernelError;
use crate::cpu::{self, GemmProblem, address, empty};
use crate::shape::{computing_kind, dimensions, expect_device, expect_shape};
use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Output;
use xlstm_bridge::{BoxError, named_tensors};

named_tensors! {
    struct Inputs<T> { x_ND: T, weight_OD: T }
}

/// With fewer rows than this, copying the weight, as the backward pass does, would cost more than the product.
const MIN_ROWS: i64 = 16;

/// `x_D · weight_ODᵀ + bias_O`, for any dimensions before the last of `x_D`.
///
/// # Errors
/// [`KernelError`] when a shape, type or device does not fit.
pub fn linear(x_D: &Tensor, weight_OD: &Tensor, bias_O: Option<&Tensor>) -> Result<Tensor, KernelError> {
    const NAME: &str = "linear";
    let [outputs, width] = dimensions(NAME, "weight_OD", weight_OD)?;
    let mut size = x_D.size();
    if size.last() != Some(&width) {
        let expected = format!("a last dimension of {width}");
        return Err(KernelError::Shape { function: NAME, argument: "x_D", expected, found: size });
    }
    if let Some(bias_O) = bias_O {
        expect_shape(NAME, "bias_O", bias_O, &[outputs])?;
    }
    expect_device(NAME, "weight_OD", weight_OD, x_D)?;
    computing_kind(NAME, "x_D", x_D)?;
    let rows: i64 = size.iter().product::<i64>() / width.max(1);
    let ours = x_D.device() == Device::Cpu
        && x_D.kind() == Kind::Float
        && weight_OD.kind() == Kind::Float
        && rows > 0
        && cpu::has_fast_products();
    if !ours {
        return Ok(x_D.f_linear(weight_OD, bias_O)?);
    }
    let x_ND = x_D.reshape([rows, width]);
    let output = node(
        NAME,
        Inputs { x_ND: Some(&x_ND), weight_OD: Some(weight_OD) },
        |_| {
            let y_NO = empty(&[rows, outputs], Kind::Float);
            let (x_ND, weight_OD) = (x_ND.contiguous(), weight_OD.contiguous());
            multiply(&y_NO, &x_ND, &weight_OD.tr(), 0.0);
            Ok((Output { y: y_NO }, Inputs { x_ND, weight_OD }))
        },
        backward,
    )?;
    if let Some(last) = size.last_mut() {
        *last = outputs;
    }
    let y_O = output.y.view(size.as_slice());
    Ok(match bias_O {
        Some(bias_O) => y_O + bias_O,
        None => y_O,
    })
}

fn backward(
    Inputs { x_ND, weight_OD }: Inputs<Tensor>,
    upstream: Output<Option<Tensor>>,
    wanted: Inputs<bool>,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let upstream_NO = upstream.gradient()?.contiguous();
    let x_gradient = wanted.x_ND.then(|| {
        if x_ND.size()[0] < MIN_ROWS {
            return upstream_NO.matmul(&weight_OD);
        }
        let gradient = empty(&x_ND.size(), Kind::Float);
        multiply(&gradient, &upstream_NO, &weight_OD, 0.0);
        gradient
    });
    let weight_gradient = wanted.weight_OD.then(|| {
        let gradient = empty(&weight_OD.size(), Kind::Float);
        multiply(&gradient, &upstream_NO.tr(), &x_ND, 0.0);
        gradient
    });
    Ok(Inputs { x_ND: x_gradient, weight_OD: weight_gradient })
}

/// `out = a b + beta out` for matrices on the CPU, all three `Float` or all three `Double`; `out` is dense, and `a` and
/// `b` are dense or transposed.
///
/// # Panics
/// When a size, type, device or layout is another: the product would read or write outside a tensor.
pub(crate) fn multiply(out: &Tensor, a: &Tensor, b: &Tensor, beta: f64) {
    let kind = out.kind();
    assert!(
        matches!(kind, Kind::Float | Kind::Double)
            && [out, a, b].iter().all(|matrix| matrix.kind() == kind && matrix.device() == Device::Cpu),
        "a product of {:?} and {:?} into {kind:?}",
        a.kind(),
        b.kind()
    );
    let table = cpu::table();
    // SAFETY: checked above and in `problem`: matrices of fitting sizes on the CPU, in the type of the call, alive
    // during it.
    unsafe {
        if kind == Kind::Double {
            (table.gemm_f64)(&problem(out, a, b, 1.0, beta));
        } else {
            (table.gemm_f32)(&problem(out, a, b, 1.0, beta as f32));
        }
    }
}

fn problem<T>(out: &Tensor, a: &Tensor, b: &Tensor, alpha: T, beta: T) -> GemmProblem<T> {
    let (a_size, b_size, a_stride, b_stride) = (a.size(), b.size(), a.stride(), b.stride());
    assert!(
        a_size.len() == 2
            && b_size.len() == 2
            && a_size[1] == b_size[0]
            && out.size() == [a_size[0], b_size[1]],
        "a product of {a_size:?} and {b_size:?} into {:?}",
        out.size()
    );
    assert!(a_stride.contains(&1) && b_stride.contains(&1), "strides of {a_stride:?} and {b_stride:?}");
    GemmProblem {
        m: a_size[0],
        n: b_size[1],
        k: a_size[1],
        alpha,
        beta,
        a: a.data_ptr().cast(),
        a_row: a_stride[0],
        a_column: a_stride[1],
        b: b.data_ptr().cast(),
        b_row: b_stride[0],
        b_column: b_stride[1],
        c: address(out),
        c_row: b_size[1],
    }
}
