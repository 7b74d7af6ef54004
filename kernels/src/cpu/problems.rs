//! What the kernels of xLSTM's blocks are given, as `cpu/abi.h` lays it out.

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

/// `SlstmSaved` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SlstmSaved<T> {
    pub(crate) input: *mut T,
    pub(crate) forget: *mut T,
    pub(crate) z: *mut T,
    pub(crate) o: *mut T,
    pub(crate) cell: *mut T,
    pub(crate) normalizer: *mut T,
    pub(crate) maximum: *mut T,
}

/// `SlstmProblem` of `cpu/abi.h`; arrays of four are hidden, cell, normalizer and maximum. An LSTM has the first two.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SlstmProblem<T> {
    pub(crate) batch: i64,
    pub(crate) time: i64,
    pub(crate) heads: i64,
    pub(crate) width: i64,
    pub(crate) exponential_forget: i64,
    pub(crate) lstm: i64,
    pub(crate) clip: T,
    pub(crate) x: *const T,
    pub(crate) recurrent: *const T,
    pub(crate) bias: *const T,
    pub(crate) resets: *const u8,
    pub(crate) initial: [*const T; 4],
    pub(crate) y: *mut T,
    pub(crate) saved: SlstmSaved<T>,
    pub(crate) last: [*mut T; 4],
}

/// `SlstmGradients` of `cpu/abi.h`; arrays of four are hidden, cell, normalizer and maximum.
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

/// `ProjectionProblem` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct ProjectionProblem<T> {
    pub(crate) rows: i64,
    pub(crate) width: i64,
    pub(crate) vocabulary: i64,
    pub(crate) ignore_index: i64,
    pub(crate) chunk: i64,
    pub(crate) stride: i64,
    pub(crate) scale: T,
    pub(crate) hidden: *const T,
    pub(crate) weight: *const T,
    pub(crate) targets: *const i64,
    pub(crate) losses: *mut T,
    pub(crate) hidden_gradient: *mut T,
    pub(crate) weight_gradient: *mut T,
    pub(crate) exponentials: *mut T,
}

/// `ConvProblem` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct ConvProblem<T> {
    pub(crate) batch: i64,
    pub(crate) time: i64,
    pub(crate) width: i64,
    pub(crate) taps: i64,
    pub(crate) x_row: i64,
    pub(crate) x: *const T,
    pub(crate) weight: *const T,
    pub(crate) bias: *const T,
    pub(crate) state: *const T,
    pub(crate) resets: *const u8,
    pub(crate) y: *mut T,
}

/// `ConvGradients` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct ConvGradients<T> {
    pub(crate) y: *const T,
    pub(crate) x: *mut T,
    pub(crate) weight: *mut T,
    pub(crate) bias: *mut T,
}

/// `BlocksProblem` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct BlocksProblem<T> {
    pub(crate) rows: i64,
    pub(crate) width: i64,
    pub(crate) x_row: i64,
    pub(crate) x: *const T,
    pub(crate) weight: *const T,
    pub(crate) y: *mut T,
}

/// `BlocksGradients` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct BlocksGradients<T> {
    pub(crate) y: *const T,
    pub(crate) transposed: *const T,
    pub(crate) x: *mut T,
    pub(crate) weight: *mut T,
}

/// `QkvGatesProblem` of `cpu/abi.h`; arrays of three are for queries, keys and values.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct QkvGatesProblem<T> {
    pub(crate) rows: i64,
    pub(crate) width: i64,
    pub(crate) gates: i64,
    pub(crate) a_row: i64,
    pub(crate) c: *const T,
    pub(crate) a: *const T,
    pub(crate) blocks: [*const T; 3],
    pub(crate) gate_weight: *const T,
    pub(crate) gate_bias: *const T,
    pub(crate) qkv: [*mut T; 3],
    pub(crate) sums: *mut T,
}

/// `QkvGatesGradients` of `cpu/abi.h`; arrays of three are for queries, keys and values.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct QkvGatesGradients<T> {
    pub(crate) qkv: [*const T; 3],
    pub(crate) sums: *const T,
    pub(crate) transposed: [*const T; 3],
    pub(crate) c: *mut T,
    pub(crate) a: *mut T,
    pub(crate) blocks: [*mut T; 3],
    pub(crate) gate_weight: *mut T,
}

/// `OutputProblem` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct OutputProblem<T> {
    pub(crate) rows: i64,
    pub(crate) heads: i64,
    pub(crate) width: i64,
    pub(crate) z_row: i64,
    pub(crate) epsilon: T,
    pub(crate) h: *const T,
    pub(crate) norm: *const T,
    pub(crate) skip: *const T,
    pub(crate) conv: *const T,
    pub(crate) z: *const T,
    pub(crate) y: *mut T,
}

/// `OutputGradients` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct OutputGradients<T> {
    pub(crate) y: *const T,
    pub(crate) h: *mut T,
    pub(crate) norm: *mut T,
    pub(crate) skip: *mut T,
    pub(crate) conv: *mut T,
    pub(crate) z: *mut T,
}
