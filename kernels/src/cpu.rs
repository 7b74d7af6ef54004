//! The CPU kernels (`cpu/`, C++) as Rust sees them: a table of functions for the processor at hand.
//!
//! The structures mirror `cpu/abi.h` field by field. Tensors are checked and made dense before their addresses are
//! taken; the kernels neither allocate tensors nor keep any address.

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

/// `MlstmProblem` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct MlstmProblem<T> {
    pub(crate) batch: i64,
    pub(crate) time: i64,
    pub(crate) heads: i64,
    pub(crate) key: i64,
    pub(crate) value: i64,
    pub(crate) chunk: i64,
    pub(crate) q: *const T,
    pub(crate) k: *const T,
    pub(crate) v: *const T,
    pub(crate) i: *const T,
    pub(crate) f: *const T,
    pub(crate) resets: *const u8,
    pub(crate) initial_matrix: *const T,
    pub(crate) initial_normalizer: *const T,
    pub(crate) initial_maximum: *const T,
    pub(crate) h: *mut T,
    pub(crate) read: *mut T,
    pub(crate) states: *mut T,
    pub(crate) normalizers: *mut T,
    pub(crate) final_matrix: *mut T,
    pub(crate) final_normalizer: *mut T,
    pub(crate) final_maximum: *mut T,
}

/// `MlstmGradients` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct MlstmGradients<T> {
    pub(crate) h: *const T,
    pub(crate) final_matrix: *const T,
    pub(crate) final_normalizer: *const T,
    pub(crate) final_maximum: *const T,
    pub(crate) q: *mut T,
    pub(crate) k: *mut T,
    pub(crate) v: *mut T,
    pub(crate) i: *mut T,
    pub(crate) f: *mut T,
    pub(crate) initial_matrix: *mut T,
    pub(crate) initial_normalizer: *mut T,
    pub(crate) initial_maximum: *mut T,
    pub(crate) states: *mut T,
    pub(crate) normalizers: *mut T,
}

/// `SlstmKept` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SlstmKept<T> {
    pub(crate) input: *mut T,
    pub(crate) forget: *mut T,
    pub(crate) z: *mut T,
    pub(crate) o: *mut T,
    pub(crate) cell: *mut T,
    pub(crate) normalizer: *mut T,
    pub(crate) maximum: *mut T,
}

/// `SlstmProblem` of `cpu/abi.h`; arrays of four are hidden, cell, normaliser and maximum.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SlstmProblem<T> {
    pub(crate) batch: i64,
    pub(crate) time: i64,
    pub(crate) heads: i64,
    pub(crate) width: i64,
    pub(crate) clip: T,
    pub(crate) x: *const T,
    pub(crate) recurrent: *const T,
    pub(crate) bias: *const T,
    pub(crate) resets: *const u8,
    pub(crate) initial: [*const T; 4],
    pub(crate) y: *mut T,
    pub(crate) kept: SlstmKept<T>,
    pub(crate) last: [*mut T; 4],
}

/// `SlstmGradients` of `cpu/abi.h`; arrays of four are hidden, cell, normaliser and maximum.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SlstmGradients<T> {
    pub(crate) y: *const T,
    pub(crate) last: [*const T; 4],
    pub(crate) x: *mut T,
    pub(crate) recurrent: *mut T,
    pub(crate) bias: *mut T,
    pub(crate) initial: [*mut T; 4],
}

/// `GemmProblem` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct GemmProblem<T> {
    pub(crate) m: i64,
    pub(crate) n: i64,
    pub(crate) k: i64,
    pub(crate) alpha: T,
    pub(crate) beta: T,
    pub(crate) a: *const T,
    pub(crate) a_row: i64,
    pub(crate) a_column: i64,
    pub(crate) b: *const T,
    pub(crate) b_row: i64,
    pub(crate) b_column: i64,
    pub(crate) c: *mut T,
    pub(crate) c_row: i64,
}

/// `CrossEntropyProblem` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct CrossEntropyProblem<T> {
    pub(crate) rows: i64,
    pub(crate) vocabulary: i64,
    pub(crate) ignore_index: i64,
    pub(crate) scale: T,
    pub(crate) logits: *mut T,
    pub(crate) targets: *const i64,
    pub(crate) losses: *mut T,
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
    pub(crate) cross_entropy_f32: Call<CrossEntropyProblem<f32>>,
    pub(crate) cross_entropy_f64: Call<CrossEntropyProblem<f64>>,
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
pub(crate) fn address<T>(tensor: &Tensor) -> *mut T {
    debug_assert!(tensor.is_contiguous());
    tensor.data_ptr().cast()
}

/// The address of a tensor that may be absent.
pub(crate) fn optional_address<T>(tensor: Option<&Tensor>) -> *mut T {
    tensor.map_or(std::ptr::null_mut(), address)
}

/// An uninitialised tensor on the CPU.
pub(crate) fn empty(size: &[i64], kind: Kind) -> Tensor {
    Tensor::empty(size, (kind, tch::Device::Cpu))
}
