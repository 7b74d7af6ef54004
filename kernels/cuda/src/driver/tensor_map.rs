//! What the copy engine must know of a tensor.

use std::ffi::{c_uint, c_void};

use super::Driver;
use crate::CudaError;

/// `CUtensorMap`: what the copy engine must know of a tensor. All zeros: none.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, Default)]
pub struct TensorMap([u64; 16]);

/// A bf16 tensor of four axes, the first contiguous, for copies of boxes of 64 columns and 64 rows (`bulk.cuh`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoxedTensor {
    /// Device address.
    pub address: u64,
    /// Elements along each axis.
    pub sizes: [u64; 4],
    /// Elements from one to the next along the second to the fourth axis.
    pub strides: [u64; 3],
}

impl Driver {
    /// What the copy engine must know of a tensor; what lies outside it is read as zero, and rows of a box are swizzled
    /// over 128 bytes. Nothing is read now.
    ///
    /// # Errors
    /// [`CudaError::Driver`] for an address or a stride that is no multiple of 16 bytes.
    pub fn tensor_map(&self, tensor: &BoxedTensor) -> Result<TensorMap, CudaError> {
        const BF16: c_uint = 9;
        const NOT_INTERLEAVED: c_uint = 0;
        const SWIZZLE_128_BYTES: c_uint = 3;
        const PROMOTE_256_BYTES: c_uint = 3;
        const ZEROS_OUTSIDE: c_uint = 0;
        let mut map = TensorMap::default();
        // An axis of one element may have any stride; the driver wants one of at least 16 bytes all the same.
        let strides = tensor.strides.map(|stride| (2 * stride).max(16));
        let (boxes, steps) = ([64_u32, 64, 1, 1], [1_u32; 4]);
        // SAFETY: a place for the map, and arrays of as many numbers as the tensor has axes (strides one less); the
        // address is stored, not read.
        let code = unsafe {
            (self.functions.encode_tiled)(
                &raw mut map,
                BF16,
                4,
                tensor.address as *mut c_void,
                tensor.sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                NOT_INTERLEAVED,
                SWIZZLE_128_BYTES,
                PROMOTE_256_BYTES,
                ZEROS_OUTSIDE,
            )
        };
        self.check("cuTensorMapEncodeTiled", code)?;
        Ok(map)
    }
}
