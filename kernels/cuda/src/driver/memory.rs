//! Device memory of this program's own.

use super::Driver;
use crate::CudaError;

impl Driver {
    /// Device memory with these bytes in it.
    ///
    /// # Errors
    /// [`CudaError::Driver`], above all when memory is short.
    pub fn upload(&self, bytes: &[u8]) -> Result<DeviceMemory<'_>, CudaError> {
        let mut memory = DeviceMemory { driver: self, address: 0, length: bytes.len() };
        // SAFETY: the allocation is at least as long as the copy.
        unsafe {
            self.check("cuMemAlloc", (self.functions.allocate)(&raw mut memory.address, bytes.len().max(1)))?;
            self.check(
                "cuMemcpyHtoD",
                (self.functions.to_device)(memory.address, bytes.as_ptr().cast(), bytes.len()),
            )?;
        }
        Ok(memory)
    }
}

/// Device memory, freed when dropped.
#[derive(Debug)]
pub struct DeviceMemory<'a> {
    driver: &'a Driver,
    address: u64,
    length: usize,
}

impl DeviceMemory<'_> {
    /// The device address.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Copies everything back, after all work before it.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for a kernel that failed before.
    pub fn download(&self) -> Result<Vec<u8>, CudaError> {
        let mut bytes = vec![0_u8; self.length];
        // SAFETY: both ends hold `length` bytes.
        let code = unsafe {
            (self.driver.functions.from_device)(bytes.as_mut_ptr().cast(), self.address, self.length)
        };
        self.driver.check("cuMemcpyDtoH", code)?;
        Ok(bytes)
    }
}

impl Drop for DeviceMemory<'_> {
    fn drop(&mut self) {
        if self.address != 0 {
            // SAFETY: allocated by this driver and freed once. An error here belongs to an earlier kernel.
            unsafe { (self.driver.functions.free)(self.address) };
        }
    }
}
