//! A bridge between plain threads and the asynchronous HTTP library.
//!
//! One thread runs the library's connections, however many downloads there are; each download blocks its own thread
//! on one future at a time. The thread ends with the [`Driver`], and with it every connection.

use std::future::Future;
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::error::HubError;

/// The thread that runs the HTTP library's tasks.
pub(super) struct Driver {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    pub(super) fn start() -> Result<Self, HubError> {
        let failed =
            |error| HubError::Disk { action: "start", path: "the network thread".into(), source: error };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("hub-network".into()).spawn(move || {
            // Ends at a message, or when the sender is dropped: both mean stop.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        });
        Ok(Self { handle, stop: Some(stop), thread: Some(thread.map_err(failed)?) })
    }

    /// Blocks the calling thread, which must not be one of an asynchronous runtime, until `future` is done.
    pub(super) fn wait<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
