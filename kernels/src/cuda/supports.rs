//! What the kernels of this folder can be asked for, sizes aside.
//!
//! `trainer/src/model/path.rs` asks here before it decides who computes. Whoever teaches the kernels something new changes
//! the answer here, and the block that hands it to them (`trainer/src/model/xlstm`); nothing else in the tree knows.

use tch::{Device, Kind};

/// What a pass through a model asks for.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Type of the parameters.
    pub parameters: Kind,
    /// Type of the matrix products; `None`: that of the parameters.
    pub products: Option<Kind>,
    /// Documents are told apart: states are cleared where one begins.
    pub resets: bool,
}

/// A cell with fused kernels for the block around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusedCell {
    /// The mLSTM.
    Mlstm,
    /// The sLSTM.
    Slstm,
}

/// Whether these kernels may compute what is asked of a block with this cell, on this device. Today both cells can the same.
///
/// # Errors
/// What they lack, in words that fit into "libtorch's operations (…)".
pub fn supports(device: Device, _cell: FusedCell, request: &Request) -> Result<(), &'static str> {
    if !matches!(device, Device::Cuda(_)) {
        return Err("no GPU");
    }
    if !super::enabled(device) {
        return Err("asked for by --kernels libtorch");
    }
    if request.parameters != Kind::Float || request.products != Some(Kind::BFloat16) {
        return Err("the fused GPU kernels compute in bfloat16 over float32 parameters only");
    }
    Ok(())
}
