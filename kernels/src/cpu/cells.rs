//! What the kernels of the other methods' cells are given, as `cpu/abi.h` lays it out.

/// `LinearAttentionProblem` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct LinearAttentionProblem<T> {
    pub(crate) batch: i64,
    pub(crate) time: i64,
    pub(crate) heads: i64,
    pub(crate) key: i64,
    pub(crate) value: i64,
    pub(crate) decay_batch: i64,
    pub(crate) decay_time: i64,
    pub(crate) decay_head: i64,
    pub(crate) decay_key: i64,
    pub(crate) scale: T,
    pub(crate) q: *const T,
    pub(crate) k: *const T,
    pub(crate) v: *const T,
    pub(crate) decay: *const T,
    pub(crate) bonus: *const T,
    pub(crate) resets: *const u8,
    pub(crate) initial: *const T,
    pub(crate) o: *mut T,
    pub(crate) last: *mut T,
}

/// `LinearAttentionGradients` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct LinearAttentionGradients<T> {
    pub(crate) o: *const T,
    pub(crate) last: *const T,
    pub(crate) q: *mut T,
    pub(crate) k: *mut T,
    pub(crate) v: *mut T,
    pub(crate) decay: *mut T,
    pub(crate) bonus: *mut T,
    pub(crate) initial: *mut T,
}

/// `LinearScanProblem` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct LinearScanProblem<T> {
    pub(crate) batch: i64,
    pub(crate) time: i64,
    pub(crate) width: i64,
    pub(crate) a: *const T,
    pub(crate) x: *const T,
    pub(crate) initial: *const T,
    pub(crate) resets: *const u8,
    pub(crate) h: *mut T,
}

/// `LinearScanGradients` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct LinearScanGradients<T> {
    pub(crate) h: *const T,
    pub(crate) a: *mut T,
    pub(crate) x: *mut T,
    pub(crate) initial: *mut T,
}

/// `SelectiveScanProblem` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SelectiveScanProblem<T> {
    pub(crate) batch: i64,
    pub(crate) time: i64,
    pub(crate) width: i64,
    pub(crate) states: i64,
    pub(crate) u: *const T,
    pub(crate) step: *const T,
    pub(crate) a: *const T,
    pub(crate) write: *const T,
    pub(crate) read: *const T,
    pub(crate) initial: *const T,
    pub(crate) resets: *const u8,
    pub(crate) y: *mut T,
    pub(crate) last: *mut T,
    pub(crate) saved: *mut T,
}

/// `SelectiveScanGradients` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SelectiveScanGradients<T> {
    pub(crate) groups: i64,
    pub(crate) y: *const T,
    pub(crate) last: *const T,
    pub(crate) u: *mut T,
    pub(crate) step: *mut T,
    pub(crate) a: *mut T,
    pub(crate) write: *mut T,
    pub(crate) read: *mut T,
    pub(crate) initial: *mut T,
}

/// `WkvProblem` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct WkvProblem<T> {
    pub(crate) batch: i64,
    pub(crate) time: i64,
    pub(crate) width: i64,
    pub(crate) omega: *const T,
    pub(crate) bonus: *const T,
    pub(crate) k: *const T,
    pub(crate) v: *const T,
    pub(crate) initial: [*const T; 3],
    pub(crate) resets: *const u8,
    pub(crate) y: *mut T,
    pub(crate) last: [*mut T; 3],
    pub(crate) saved: [*mut T; 3],
}

/// `WkvGradients` of `cpu/abi.h`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct WkvGradients<T> {
    pub(crate) y: *const T,
    pub(crate) last: [*const T; 2],
    pub(crate) omega: *mut T,
    pub(crate) bonus: *mut T,
    pub(crate) k: *mut T,
    pub(crate) v: *mut T,
    pub(crate) initial: [*mut T; 2],
}
