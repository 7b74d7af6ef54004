//! A table of bytes that one process holds and others reach over TCP.

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;

use super::{ffi, milliseconds};
use crate::{BridgeError, ffi as common};

/// c10d's `TCPStore`. One call at a time goes over a connection: a thread of its own needs a [`Store`] of its own.
#[derive(Debug)]
pub struct Store {
    handle: *mut c_void,
    port: u16,
}

// SAFETY: the C++ object serializes the calls on its connection with a mutex of its own.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Makes the table in this process and listens on `port` of the loopback interface; 0: a free port, see
    /// [`port`](Self::port). It ends when the value is dropped. It asks nobody who they are, and takes any number of bytes:
    /// whoever lets other machines reach it has to see to both.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn serve(port: u16, prefix: &str, timeout: Duration) -> Result<Self, BridgeError> {
        Self::open("127.0.0.1", port, true, prefix, timeout)
    }

    /// Reaches the table at `host`:`port`, which may still be about to start, within `timeout`. `prefix` goes before
    /// every key.
    ///
    /// # Errors
    /// When nobody answers there in time.
    pub fn connect(host: &str, port: u16, prefix: &str, timeout: Duration) -> Result<Self, BridgeError> {
        Self::open(host, port, false, prefix, timeout)
    }

    fn open(
        host: &str,
        port: u16,
        server: bool,
        prefix: &str,
        timeout: Duration,
    ) -> Result<Self, BridgeError> {
        let (host, prefix) = (text(host)?, text(prefix)?);
        let (mut handle, mut found) = (std::ptr::null_mut(), 0);
        // SAFETY: NUL-terminated texts and places for the results, all valid for the call.
        unsafe {
            common::check(ffi::xlstm_store_open(
                host.as_ptr(),
                port,
                c_int::from(server),
                prefix.as_ptr(),
                milliseconds(timeout),
                &mut handle,
                &mut found,
            ))?;
        }
        Ok(Self { handle, port: found })
    }

    /// The port of the table.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Writes a value.
    ///
    /// # Errors
    /// When the process that holds the table is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), BridgeError> {
        let key = text(key)?;
        // SAFETY: the bytes are valid for the call.
        unsafe { common::check(ffi::xlstm_store_set(self.handle, key.as_ptr(), value.as_ptr(), value.len())) }
    }

    /// Reads a value; waits for it as long as `timeout`.
    ///
    /// # Errors
    /// When it does not come in time, or the process that holds the table is gone.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, BridgeError> {
        let key = text(key)?;
        let (mut bytes, mut count): (*mut c_char, usize) = (std::ptr::null_mut(), 0);
        // SAFETY: places for the results are valid for the call; `bytes` then holds `count` bytes and a NUL.
        unsafe {
            common::check(ffi::xlstm_store_get(
                self.handle,
                key.as_ptr(),
                milliseconds(timeout),
                &mut bytes,
                &mut count,
            ))?;
            if bytes.is_null() {
                return Ok(Vec::new());
            }
            let value = std::slice::from_raw_parts(bytes.cast::<u8>(), count).to_vec();
            common::xlstm_bridge_free(bytes);
            Ok(value)
        }
    }

    /// Reads a value that may not be there.
    ///
    /// # Errors
    /// When the process that holds the table is gone.
    pub fn find(&self, key: &str) -> Result<Option<Vec<u8>>, BridgeError> {
        let name = text(key)?;
        let mut has = 0;
        // SAFETY: the place for the result is valid for the call.
        unsafe { common::check(ffi::xlstm_store_has(self.handle, name.as_ptr(), &mut has)) }?;
        if has == 0 { Ok(None) } else { self.get(key, Duration::from_secs(10)).map(Some) }
    }

    /// Adds to a counter, which begins at 0; returns its new value.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, BridgeError> {
        let key = text(key)?;
        let mut sum = 0;
        // SAFETY: the place for the result is valid for the call.
        unsafe { common::check(ffi::xlstm_store_add(self.handle, key.as_ptr(), amount, &mut sum)) }?;
        Ok(sum)
    }

    pub(super) fn handle(&self) -> *const c_void {
        self.handle
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by xlstm_store_open and freed once; a group holds a reference of its own.
        unsafe { ffi::xlstm_store_free(self.handle) };
    }
}

fn text(text: &str) -> Result<CString, BridgeError> {
    CString::new(text).map_err(|_| BridgeError::Contract {
        name: "store",
        expected: "a text without NUL".into(),
        found: text.escape_debug().to_string(),
    })
}
