//! What the kernels of this folder can be asked for.
//!
//! `trainer/src/model/path.rs` asks here before it decides who computes. Whoever teaches the kernels something new changes
//! the answer here and what asks for it, in `trainer/src/model`. Each architecture's `Network` says what it wants
//! (`fused_obstacle`, `between_products`, `recurrence`); dropout and a z-loss, of which no kernel knows, are `path.rs`'s own.

use tch::{Device, Kind};
use xlstm_cuda::gated_norm::GatedNormForm;
use xlstm_cuda::linear_attention::LinearAttentionSizes;
use xlstm_cuda::recurrent::{Cell, RecurrentSizes};
use xlstm_cuda::selective_scan::SelectiveScanForm;

use crate::lstm::layer_fits;

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

/// What goes from step to step in a method other than xLSTM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recurrence {
    /// Gated linear attention, with so many keys and values of a head.
    LinearAttention {
        /// K.
        keys: u64,
        /// V.
        values: u64,
    },
    /// The scan of HGRN or of RWKV-4.
    Scan,
    /// Mamba's, with so many states of a channel.
    SelectiveScan {
        /// N.
        states: u64,
    },
    /// That of an LSTM with recurrent matrices of so many units.
    Lstm {
        /// H; more than one is block-diagonal.
        heads: u64,
        /// E.
        units: u64,
        /// Documents begin within sequences.
        resets: bool,
    },
}

/// Who computes a recurrence on a GPU beside libtorch's operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecurrenceBy {
    /// A kernel of this project.
    Kernel,
    /// libtorch's own LSTM, that is cuDNN's.
    LibraryLstm,
}

/// What stands between the products of a method that has no fused blocks, sizes that kernels must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BetweenProducts {
    /// Width of the residual.
    pub width: u64,
    /// Width of the heads that are normed and gated behind the recurrence, where there are such.
    pub head: Option<u64>,
}

impl BetweenProducts {
    /// Whether kernels take a residual of this width: its norms, and what is as wide.
    ///
    /// # Errors
    /// Why not, in words that fit into "libtorch's operations (…)".
    pub fn supports_width(self) -> Result<(), String> {
        if super::residual_fits(i64::try_from(self.width).unwrap_or(i64::MAX)) {
            return Ok(());
        }
        Err(format!("a width of {}; kernels take multiples of 8 up to 4096", self.width))
    }

    /// Whether there is a kernel for the norm of each head with its gate.
    ///
    /// # Errors
    /// Why not, in words that fit into "libtorch's operations (…)".
    pub fn supports_heads(self) -> Result<(), String> {
        let Some(head) = self.head else { return Ok(()) };
        match GatedNormForm::new(u32::try_from(head).unwrap_or(u32::MAX), false, [false, false]) {
            Some(_) => Ok(()),
            None => Err(format!("norms of heads of {head}; kernels take powers of two from 16 to 1024")),
        }
    }
}

/// Whether more than libtorch's operations step by step computes this recurrence on a GPU, and in `kind`.
///
/// # Errors
/// What there is no kernel for, in words that fit into "libtorch's operations (…)".
pub fn supports_recurrence(
    device: Device,
    kind: Kind,
    recurrence: Recurrence,
) -> Result<RecurrenceBy, String> {
    if !super::enabled(device) {
        return Err("asked for by --kernels libtorch".into());
    }
    if kind == Kind::Double {
        return Err("kernels compute it in float32".into());
    }
    let narrow = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
    match recurrence {
        Recurrence::LinearAttention { keys, values } => {
            match LinearAttentionSizes::new(narrow(keys), narrow(values), false) {
                Some(_) => Ok(RecurrenceBy::Kernel),
                None => Err(format!(
                    "heads of {keys} keys and {values} values; kernels take powers of two from 16 to 512"
                )),
            }
        }
        Recurrence::SelectiveScan { states } if SelectiveScanForm::plain(narrow(states)).is_none() => {
            Err(format!("{states} states of a channel; kernels take 8 or 16"))
        }
        Recurrence::Scan | Recurrence::SelectiveScan { .. } => Ok(RecurrenceBy::Kernel),
        Recurrence::Lstm { heads, units, resets } => {
            let signed = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
            if layer_fits(device, signed(heads), signed(units), resets) {
                return Ok(RecurrenceBy::LibraryLstm);
            }
            match RecurrentSizes::new(narrow(units), Cell::Lstm) {
                Some(_) => Ok(RecurrenceBy::Kernel),
                None if heads == 1 && resets => Err(format!(
                    "documents that begin within sequences, and no kernel for a head of {units} units"
                )),
                None => Err(format!("no kernel for heads of {units} units")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_and_heads_without_a_kernel_are_named() {
        let between = |width, head| BetweenProducts { width, head };
        assert_eq!(between(512, Some(64)).supports_width(), Ok(()));
        assert_eq!(between(512, Some(64)).supports_heads(), Ok(()));
        assert_eq!(between(512, None).supports_heads(), Ok(()));
        let odd = between(516, None).supports_width().unwrap_err();
        assert!(odd.contains("a width of 516"), "{odd}");
        let wide = between(768, Some(768)).supports_heads().unwrap_err();
        assert!(wide.contains("norms of heads of 768"), "{wide}");
    }

    #[test]
    fn sizes_without_a_kernel_are_named() {
        let said = |recurrence| supports_recurrence(Device::Cuda(0), Kind::Float, recurrence);
        assert_eq!(said(Recurrence::LinearAttention { keys: 128, values: 256 }), Ok(RecurrenceBy::Kernel));
        let odd = said(Recurrence::LinearAttention { keys: 96, values: 64 }).unwrap_err();
        assert!(odd.contains("heads of 96 keys and 64 values"), "{odd}");
        assert_eq!(said(Recurrence::Scan), Ok(RecurrenceBy::Kernel));
        assert_eq!(said(Recurrence::SelectiveScan { states: 16 }), Ok(RecurrenceBy::Kernel));
        let many = said(Recurrence::SelectiveScan { states: 32 }).unwrap_err();
        assert!(many.contains("32 states"), "{many}");
        assert!(supports_recurrence(Device::Cuda(0), Kind::Double, Recurrence::Scan).is_err());
    }

    #[test]
    fn wide_heads_of_an_lstm_are_left_to_cudnn_and_documents_to_kernels() {
        let said = |heads, units, resets| {
            let recurrence = Recurrence::Lstm { heads, units, resets };
            supports_recurrence(Device::Cuda(0), Kind::Float, recurrence)
        };
        assert_eq!(said(1, 128, false), Ok(RecurrenceBy::Kernel));
        assert_eq!(said(1, 512, false), Ok(RecurrenceBy::LibraryLstm));
        assert_eq!(said(1, 1536, false), Ok(RecurrenceBy::LibraryLstm));
        assert_eq!(said(4, 512, false), Ok(RecurrenceBy::Kernel));
        assert_eq!(said(1, 512, true), Ok(RecurrenceBy::Kernel));
        let wide = said(1, 1024, true).unwrap_err();
        assert!(wide.contains("documents that begin within sequences"), "{wide}");
        let blocks = said(2, 1024, false).unwrap_err();
        assert!(blocks.contains("heads of 1024 units"), "{blocks}");
    }
}
