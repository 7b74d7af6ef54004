//! The CPU kernels (`cpu/`, C++) as Rust sees them: a table of functions for the processor at hand.
//!
//! The structures in `problems` (xLSTM) and `cells` (the other methods) mirror `cpu/abi.h` field by field. Tensors are checked and made dense before their addresses are
//! taken; the kernels neither allocate tensors nor keep any address.

mod cells;
mod problems;

pub(crate) use cells::*;
pub(crate) use problems::*;

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;
use tch::{Kind, Tensor};

/// Which instruction sets may be used; the tests go through all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionSet {
    /// The best that the processor has.
    Best,
    /// At most AVX2 with FMA.
    Avx2,
    /// What every processor of this architecture has.
    Baseline,
}

/// A precision of the kernels, from `f64`.
pub(crate) trait Precision: Copy {
    fn from_f64(value: f64) -> Self;
}

impl Precision for f32 {
    fn from_f64(value: f64) -> Self {
        value as Self
    }
}

impl Precision for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
}

type Call<A> = unsafe extern "C" fn(*const A);
type Call2<A, B> = unsafe extern "C" fn(*const A, *const B);

/// `KernelTable` of `cpu/abi.h`.
#[repr(C)]
pub(crate) struct KernelTable {
    name: *const c_char,
    pub(crate) mlstm_forward_f32: Call<MlstmProblem<f32>>,
    pub(crate) mlstm_forward_f64: Call<MlstmProblem<f64>>,
    pub(crate) mlstm_backward_f32: Call2<MlstmProblem<f32>, MlstmGradients<f32>>,
    pub(crate) mlstm_backward_f64: Call2<MlstmProblem<f64>, MlstmGradients<f64>>,
    pub(crate) slstm_forward_f32: Call<SlstmProblem<f32>>,
    pub(crate) slstm_forward_f64: Call<SlstmProblem<f64>>,
    pub(crate) slstm_backward_f32: Call2<SlstmProblem<f32>, SlstmGradients<f32>>,
    pub(crate) slstm_backward_f64: Call2<SlstmProblem<f64>, SlstmGradients<f64>>,
    pub(crate) gemm_f32: Call<GemmProblem<f32>>,
    pub(crate) gemm_f64: Call<GemmProblem<f64>>,
    pub(crate) cross_entropy_f32: Call<ProjectionProblem<f32>>,
    pub(crate) cross_entropy_f64: Call<ProjectionProblem<f64>>,
    pub(crate) conv_forward_f32: Call<ConvProblem<f32>>,
    pub(crate) conv_forward_f64: Call<ConvProblem<f64>>,
    pub(crate) conv_backward_f32: Call2<ConvProblem<f32>, ConvGradients<f32>>,
    pub(crate) conv_backward_f64: Call2<ConvProblem<f64>, ConvGradients<f64>>,
    pub(crate) blocks_forward_f32: Call<BlocksProblem<f32>>,
    pub(crate) blocks_forward_f64: Call<BlocksProblem<f64>>,
    pub(crate) blocks_backward_f32: Call2<BlocksProblem<f32>, BlocksGradients<f32>>,
    pub(crate) blocks_backward_f64: Call2<BlocksProblem<f64>, BlocksGradients<f64>>,
    pub(crate) qkv_gates_forward_f32: Call<QkvGatesProblem<f32>>,
    pub(crate) qkv_gates_forward_f64: Call<QkvGatesProblem<f64>>,
    pub(crate) qkv_gates_backward_f32: Call2<QkvGatesProblem<f32>, QkvGatesGradients<f32>>,
    pub(crate) qkv_gates_backward_f64: Call2<QkvGatesProblem<f64>, QkvGatesGradients<f64>>,
    pub(crate) output_forward_f32: Call<OutputProblem<f32>>,
    pub(crate) output_forward_f64: Call<OutputProblem<f64>>,
    pub(crate) output_backward_f32: Call2<OutputProblem<f32>, OutputGradients<f32>>,
    pub(crate) output_backward_f64: Call2<OutputProblem<f64>, OutputGradients<f64>>,
    pub(crate) linear_attention_forward_f32: Call<LinearAttentionProblem<f32>>,
    pub(crate) linear_attention_forward_f64: Call<LinearAttentionProblem<f64>>,
    pub(crate) linear_attention_backward_f32:
        Call2<LinearAttentionProblem<f32>, LinearAttentionGradients<f32>>,
    pub(crate) linear_attention_backward_f64:
        Call2<LinearAttentionProblem<f64>, LinearAttentionGradients<f64>>,
    pub(crate) linear_scan_forward_f32: Call<LinearScanProblem<f32>>,
    pub(crate) linear_scan_forward_f64: Call<LinearScanProblem<f64>>,
    pub(crate) linear_scan_backward_f32: Call2<LinearScanProblem<f32>, LinearScanGradients<f32>>,
    pub(crate) linear_scan_backward_f64: Call2<LinearScanProblem<f64>, LinearScanGradients<f64>>,
    pub(crate) selective_scan_forward_f32: Call<SelectiveScanProblem<f32>>,
    pub(crate) selective_scan_forward_f64: Call<SelectiveScanProblem<f64>>,
    pub(crate) selective_scan_backward_f32: Call2<SelectiveScanProblem<f32>, SelectiveScanGradients<f32>>,
    pub(crate) selective_scan_backward_f64: Call2<SelectiveScanProblem<f64>, SelectiveScanGradients<f64>>,
    pub(crate) wkv_forward_f32: Call<WkvProblem<f32>>,
    pub(crate) wkv_forward_f64: Call<WkvProblem<f64>>,
    pub(crate) wkv_backward_f32: Call2<WkvProblem<f32>, WkvGradients<f32>>,
    pub(crate) wkv_backward_f64: Call2<WkvProblem<f64>, WkvGradients<f64>>,
}

unsafe extern "C" {
    fn xlstm_cpu_table(limit: c_int) -> *const KernelTable;
}

static LIMIT: OnceLock<InstructionSet> = OnceLock::new();

/// Keep to an instruction set for the rest of the process; returns false when kernels already ran with another.
pub fn limit_instruction_set(set: InstructionSet) -> bool {
    *LIMIT.get_or_init(|| set) == set
}

/// The instruction set in use: `avx512`, `avx2` or `baseline`.
pub fn instruction_set() -> String {
    // SAFETY: a static NUL-terminated text.
    unsafe { CStr::from_ptr(table().name) }.to_string_lossy().into_owned()
}

/// Whether the matrix product of this folder is worth calling: with vectors, it is at least as fast as libtorch's.
pub(crate) fn has_fast_products() -> bool {
    instruction_set() != "baseline"
}

pub(crate) fn table() -> &'static KernelTable {
    let limit = match LIMIT.get_or_init(|| InstructionSet::Best) {
        InstructionSet::Best => 0,
        InstructionSet::Avx2 => 1,
        InstructionSet::Baseline => 2,
    };
    // SAFETY: returns the address of a static table.
    unsafe { &*xlstm_cpu_table(limit) }
}

/// The address of a dense tensor's first element.
///
/// # Panics
/// When the tensor is not dense: a kernel would read or write outside it.
pub(crate) fn address<T>(tensor: &Tensor) -> *mut T {
    assert!(tensor.is_contiguous(), "a kernel was given a tensor with strides {:?}", tensor.stride());
    tensor.data_ptr().cast()
}

/// The address of a tensor that may be absent.
pub(crate) fn optional_address<T>(tensor: Option<&Tensor>) -> *mut T {
    tensor.map_or(std::ptr::null_mut(), address)
}

/// A `(B, T, D)` tensor as rows of D dense values, the same distance apart, and that distance: half of a projection
/// needs no copy. Other layouts are copied.
pub(crate) fn evenly_spaced(tensor_BTD: &Tensor) -> (Tensor, i64) {
    let (size, stride) = (tensor_BTD.size(), tensor_BTD.stride());
    if let ([batch, time, width], [by_batch, by_time, by_width]) = (size.as_slice(), stride.as_slice()) {
        let row = if *time > 1 { *by_time } else { *by_batch };
        let dense = *by_width == 1 && row >= *width;
        if dense && (*batch == 1 || *by_batch == row * time) && (*time > 1 || *batch > 1) {
            return (tensor_BTD.shallow_clone(), row);
        }
    }
    (tensor_BTD.contiguous(), size.last().copied().unwrap_or(1))
}

/// Call the `f32` or the `f64` version of a kernel, by the type of a tensor.
macro_rules! call {
    ($kind:expr, $single:ident, $double:ident, $($argument:expr),+) => {{
        let table = $crate::cpu::table();
        // SAFETY: every address in the arguments is that of a tensor in the type of the call, of the size that
        // cpu/abi.h states, alive during the call; the caller of this macro has checked shapes and types.
        unsafe {
            if $kind == ::tch::Kind::Double {
                (table.$double)($($argument),+);
            } else {
                (table.$single)($($argument),+);
            }
        }
    }};
}
pub(crate) use call;

/// An uninitialized tensor on the CPU.
pub(crate) fn empty(size: &[i64], kind: Kind) -> Tensor {
    Tensor::empty(size, (kind, tch::Device::Cpu))
}
