//! Checks of arguments, so that a mistake is named by argument before any pointer is taken.

use crate::KernelError;
use tch::{Kind, Tensor};

/// Compare a shape with the one expected.
pub(crate) fn expect_shape(
    function: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    expected: &[i64],
) -> Result<(), KernelError> {
    let found = tensor.size();
    if found == expected {
        return Ok(());
    }
    Err(KernelError::Shape { function, argument, expected: format!("{expected:?}"), found })
}

/// The sizes of a tensor that has `N` dimensions.
pub(crate) fn dimensions<const N: usize>(
    function: &'static str,
    argument: &'static str,
    tensor: &Tensor,
) -> Result<[i64; N], KernelError> {
    let found = tensor.size();
    <[i64; N]>::try_from(found.as_slice()).map_err(|_| KernelError::Shape {
        function,
        argument,
        expected: format!("{N} dimensions"),
        found,
    })
}

/// The type to compute in: `Double` stays, the other floating-point types become `Float`.
pub(crate) fn computing_kind(
    function: &'static str,
    argument: &'static str,
    tensor: &Tensor,
) -> Result<Kind, KernelError> {
    match tensor.kind() {
        Kind::Double => Ok(Kind::Double),
        Kind::Float | Kind::BFloat16 | Kind::Half => Ok(Kind::Float),
        found => {
            Err(KernelError::Kind { function, argument, expected: "Float, Double, BFloat16 or Half", found })
        }
    }
}

/// Check that a tensor lies on the device of `other`.
pub(crate) fn expect_device(
    function: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    other: &Tensor,
) -> Result<(), KernelError> {
    let (found, expected) = (tensor.device(), other.device());
    if found == expected {
        return Ok(());
    }
    Err(KernelError::Device { function, argument, expected: format!("{expected:?}"), found })
}

/// Check a reset mask: boolean, one flag for each step of each sequence, on the device of `data`.
pub(crate) fn expect_resets(
    function: &'static str,
    resets_BT: Option<&Tensor>,
    data: &Tensor,
    [batch, time]: [i64; 2],
) -> Result<(), KernelError> {
    let Some(resets_BT) = resets_BT else { return Ok(()) };
    if resets_BT.kind() != Kind::Bool {
        let found = resets_BT.kind();
        return Err(KernelError::Kind { function, argument: "resets_BT", expected: "Bool", found });
    }
    expect_device(function, "resets_BT", resets_BT, data)?;
    expect_shape(function, "resets_BT", resets_BT, &[batch, time])
}
