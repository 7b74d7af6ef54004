//! A Hugging Face Hub on this machine's loopback, for tests: the protocol, and every way it is known to go wrong.
//!
//! ```no_run
//! use xlstm_tests::loopback_hub::{Effect, Fault, LoopbackHub};
//! let hub = LoopbackHub::builder()
//!     .dataset("cerebras/SlimPajama-627B", vec![("train/a.jsonl.zst".to_owned(), b"bytes".to_vec())])
//!     .gated("hf_right")
//!     .fault(Fault::on_body("train/a.jsonl.zst", Effect::ResetAfter(3)).times(1))
//!     .start();
//! // HF_ENDPOINT = hub.endpoint(); then look at hub.requests().
//! ```
//! Two servers run, as in the world: the Hub, and a storage host on another port that has the bytes of LFS files,
//! asks for a signature in the query, and never needs to see a token. Small files stay on the Hub, behind a redirect
//! to a relative address. Answers carry what the real ones do: `X-Repo-Commit`, `X-Linked-Etag`, `X-Linked-Size`,
//! `X-Error-Code`, `Link`, `Content-Range`. Listings come unsorted and in pages.

pub mod client;
mod dataset;
mod fault;
mod http;
mod record;
mod routes;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub use dataset::{Dataset, StoredFile, git_blob_sha1, hex};
pub use fault::{Effect, Fault, Target};
pub use record::{Host, RecordedRequest};

/// The signature that the storage host asks for: a secret that must appear in no message.
pub const SIGNATURE: &str = "f00dfacesignature";

/// A running Hub; it stops when dropped.
pub struct LoopbackHub {
    shared: Arc<Shared>,
    hub_address: SocketAddr,
    storage_address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    datasets: Vec<Dataset>,
    page_size: usize,
    faults: Mutex<Vec<Fault>>,
    requests: Mutex<Vec<RecordedRequest>>,
    next_number: AtomicU64,
    storage: SocketAddr,
    stopping: AtomicBool,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

/// Describes a [`LoopbackHub`]. Methods that concern a dataset act on the one added last.
#[derive(Default)]
pub struct Builder {
    datasets: Vec<Dataset>,
    page_size: Option<usize>,
    faults: Vec<Fault>,
}

impl Builder {
    /// Adds a dataset of one commit, with these files (path, content).
    #[must_use]
    pub fn dataset(mut self, repository: &str, files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        self.datasets.push(Dataset::new(repository, files));
        self
    }

    /// Adds a dataset with all files under `folder`.
    #[must_use]
    pub fn dataset_from(self, repository: &str, folder: &Path) -> Self {
        let files = dataset::read_folder(folder);
        self.dataset(repository, files)
    }

    /// The last dataset's files are given only to whoever sends `token`.
    #[must_use]
    pub fn gated(self, token: &str) -> Self {
        self.change(|dataset| dataset.token = Some(token.to_owned()))
    }

    /// The last dataset's commit (40 hex digits) in place of one derived from its files.
    #[must_use]
    pub fn commit(self, sha: &str) -> Self {
        self.change(|dataset| dataset.sha = sha.to_owned())
    }

    /// The licence on the last dataset's card.
    #[must_use]
    pub fn licence(self, licence: &str) -> Self {
        self.change(|dataset| dataset.licence = Some(licence.to_owned()))
    }

    /// The last dataset is switched off: 403, "Access to this resource is disabled."
    #[must_use]
    pub fn disabled(self) -> Self {
        self.change(|dataset| dataset.disabled = true)
    }

    /// An extra file in the last dataset's listing with any path whatever, such as `../evil`.
    #[must_use]
    pub fn listed_path(self, path: &str) -> Self {
        self.change(|dataset| dataset.listed_paths.push(path.to_owned()))
    }

    /// Entries in a page of a listing; 1,000 unless said.
    #[must_use]
    pub fn page_size(mut self, entries: usize) -> Self {
        self.page_size = Some(entries);
        self
    }

    /// Adds a fault; the first one that fits a request decides.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    /// Starts both servers on free ports of 127.0.0.1.
    #[must_use]
    pub fn start(self) -> LoopbackHub {
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a free port on 127.0.0.1");
        let (hub, storage) = (bind(), bind());
        let address =
            |listener: &TcpListener| listener.local_addr().expect("a bound listener has an address");
        let (hub_address, storage_address) = (address(&hub), address(&storage));
        let shared = Arc::new(Shared {
            datasets: self.datasets,
            page_size: self.page_size.unwrap_or(1000),
            faults: Mutex::new(self.faults),
            requests: Mutex::default(),
            next_number: AtomicU64::new(0),
            storage: storage_address,
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let threads = [(hub, Host::Hub), (storage, Host::Storage)].map(|(listener, host)| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.accept(&listener, host))
        });
        LoopbackHub { shared, hub_address, storage_address, threads: threads.into() }
    }

    fn change(mut self, change: impl FnOnce(&mut Dataset)) -> Self {
        change(self.datasets.last_mut().expect("add a dataset first"));
        self
    }
}

impl LoopbackHub {
    /// Starts a description.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// What to set `HF_ENDPOINT` to.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.hub_address)
    }

    /// The commit of dataset `repository`.
    #[must_use]
    pub fn commit(&self, repository: &str) -> String {
        self.shared.dataset(repository).expect("a dataset that was added").sha.clone()
    }

    /// Adds a fault to a running Hub.
    pub fn add_fault(&self, fault: Fault) {
        self.shared.faults.lock().expect("no thread panicked").push(fault);
    }

    /// All requests so far, in the order their answers began.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.requests.lock().expect("no thread panicked").clone()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        self.shared.requests.lock().expect("no thread panicked").clear();
    }

    /// Body bytes of the file `path` that were sent, over all requests so far.
    #[must_use]
    pub fn bytes_served(&self, path: &str) -> u64 {
        let requests = self.requests();
        requests.iter().filter(|r| r.file.as_deref() == Some(path) && r.is_body).map(|r| r.body_bytes).sum()
    }

    /// Requests for the file `path` that reached the Hub's resolver.
    #[must_use]
    pub fn resolver_requests(&self, path: &str) -> usize {
        let requests = self.requests();
        requests.iter().filter(|r| r.file.as_deref() == Some(path) && !r.is_body).count()
    }
}

impl Drop for LoopbackHub {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for address in [self.hub_address, self.storage_address] {
            // Wakes the accepting thread; that it may be gone already does not matter.
            let _ = TcpStream::connect(address);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let connections = std::mem::take(&mut *self.shared.connections.lock().expect("no thread panicked"));
        for thread in connections {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener, host: Host) {
        for stream in listener.incoming() {
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let shared = Arc::clone(self);
            let thread = std::thread::spawn(move || shared.serve(stream, host));
            let mut connections = self.connections.lock().expect("no thread panicked");
            connections.retain(|thread| !thread.is_finished());
            connections.push(thread);
        }
    }

    fn dataset(&self, repository: &str) -> Option<&Dataset> {
        self.datasets.iter().find(|dataset| dataset.repository == repository)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}
