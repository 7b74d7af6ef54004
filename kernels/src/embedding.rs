//! Rows of a table by number, with a gradient that two runs agree on.
//!
//! libtorch's own backward pass on a GPU adds up in no fixed order where a number is frequent. Here a small table's gradient
//! is a product with ones and zeros, and a large one's is added up in the order of sorted numbers.

use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Output;
use xlstm_bridge::named_tensors;

use crate::KernelError;
use crate::shape::{dimensions, expect_device};

/// The largest table whose gradient is a product: it takes a number for each row of the table and each token.
const SMALL_TABLE: i64 = 512;

named_tensors! {
    /// What [`embedding`] differentiates.
    struct Inputs<T> { table_VC: T }

    struct Saved { index_N: Tensor }
}

/// Rows `index` of `table_VC`, `(…, C)`, for numbers (Int64) of any shape; gradients flow to the table.
///
/// # Errors
/// [`KernelError`] when the index is no Int64 on the table's device. A number outside the table is libtorch's error.
pub fn embedding(table_VC: &Tensor, index: &Tensor) -> Result<Tensor, KernelError> {
    const NAME: &str = "embedding";
    let [rows, width] = dimensions(NAME, "table_VC", table_VC)?;
    expect_device(NAME, "index", index, table_VC)?;
    if index.kind() != Kind::Int64 {
        let found = index.kind();
        return Err(KernelError::Kind { function: NAME, argument: "index", expected: "Int64", found });
    }
    if !matches!(table_VC.device(), Device::Cuda(_)) {
        return Ok(Tensor::f_embedding(table_VC, index, -1, false, false)?);
    }
    let index_N = index.f_reshape([-1])?;
    let output = node(
        NAME,
        Inputs { table_VC: Some(table_VC) },
        |_| {
            let y_NC = table_VC.f_index_select(0, &index_N)?;
            Ok((Output { y: y_NC }, Saved { index_N: index_N.shallow_clone() }))
        },
        move |saved: Saved, upstream: Output<Option<Tensor>>, _| {
            let upstream_NC = upstream.gradient()?.f_contiguous()?;
            let Saved { index_N } = saved;
            let options = (upstream_NC.kind(), upstream_NC.device());
            let table_VC = if rows <= SMALL_TABLE {
                let number_V = Tensor::f_arange(rows, (Kind::Int64, upstream_NC.device()))?;
                let is_VN = number_V.f_unsqueeze(1)?.f_eq_tensor(&index_N.f_unsqueeze(0)?)?;
                is_VN.f_to_kind(upstream_NC.kind())?.f_mm(&upstream_NC)?
            } else {
                let mut gradient_VC = Tensor::f_zeros([rows, width], options)?;
                gradient_VC.f_index_put_(&[Some(&index_N)], &upstream_NC, true)?
            };
            Ok(Inputs { table_VC: Some(table_VC) })
        },
    )?;
    let mut size = index.size();
    size.push(width);
    Ok(output.y.f_view(size.as_slice())?)
}
