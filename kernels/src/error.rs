//! Errors of the kernels: which argument, what was expected, what was found.

use tch::{Device, Kind};

/// Why a kernel refused its arguments or failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A tensor has another shape than the function's legend says.
    #[error("{function}: {argument} has shape {found:?}, expected {expected}")]
    Shape {
        /// The function called.
        function: &'static str,
        /// The argument, with its shape legend.
        argument: &'static str,
        /// The shape asked for, numbers filled in.
        expected: String,
        /// The shape given.
        found: Vec<i64>,
    },
    /// A tensor has another element type than needed.
    #[error("{function}: {argument} is {found:?}, expected {expected}")]
    Kind {
        /// The function called.
        function: &'static str,
        /// The argument, with its shape legend.
        argument: &'static str,
        /// The types that are possible.
        expected: &'static str,
        /// The type given.
        found: Kind,
    },
    /// Tensors lie on different devices, or on one that the chosen version does not know.
    #[error("{function}: {argument} is on {found:?}, expected {expected}")]
    Device {
        /// The function called.
        function: &'static str,
        /// The argument, with its shape legend.
        argument: &'static str,
        /// The device asked for.
        expected: String,
        /// The device given.
        found: Device,
    },
    /// An option has no meaning.
    #[error("{function}: {option} is {found}, expected {expected}")]
    Option {
        /// The function called.
        function: &'static str,
        /// The option's name.
        option: &'static str,
        /// What is possible.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// libtorch failed.
    #[error(transparent)]
    Tch(#[from] tch::TchError),
    /// The bridge, or a custom function inside it, failed.
    #[error(transparent)]
    Bridge(#[from] xlstm_bridge::BridgeError),
}
