//! Files of a dataset on the Hugging Face Hub: which there are, and their bytes, verified.
//!
//! ```text
//! resolve(repository, "main") ─► 40-digit commit ─► list ─► path, size, digest of every file
//!                                                     └───► download ─► bytes whose digest is the declared one
//! ```
//! The Hub's HTTP contract, as far as it is used here:
//! - `GET /api/datasets/{repository}/revision/{revision}` names the commit; all else is asked of that commit.
//! - `GET /api/datasets/{repository}/tree/{commit}?recursive=true` lists at most 1,000 entries a page, the next
//!   page in a `Link` header. A commit never changes, so its listing is kept on disk for good. It declares the
//!   SHA-256 of every large (LFS) file and the git blob SHA-1 of every small one: what a download is checked by.
//! - `GET /datasets/{repository}/resolve/{commit}/{path}` leads to the bytes, mostly by a redirect to a storage
//!   host with a signed address. The token must not travel there, and the address must not reach a log.
//! - `429` says when to come back. Requests, not bytes, are what is scarce: no `HEAD`, one `GET` for a file.
//!
//! Modules import one another one way: `client` has the Hub and resolves revisions; `listing`, `download` and `obtain` add to
//! it; what all of them speak of is in `remote`, `observer`, `digest` and `error`.

mod access;
mod client;
mod config;
mod digest;
mod download;
mod driver;
mod error;
mod listing;
mod listing_cache;
mod observer;
mod obtain;
mod partial;
mod prefetch;
mod rate;
mod remote;
mod retry;
mod transport;
mod verify;

pub use client::Hub;
pub use config::{HubConfig, Token};
pub use digest::{DeclaredDigest, GitBlobSha1};
pub use error::HubError;
pub use listing::Listing;
pub use observer::{DownloadObserver, SilentObserver};
pub use prefetch::{Prefetch, PrefetchJobs, PrefetchOptions, Prefetched};
pub use rate::{plan_listing_seconds, plan_seconds};
pub use remote::{FetchedFile, FileRequest, Gated, Origin, RemoteFile, Revision, StoredFile};
pub use retry::RetryPolicy;
pub use verify::verify_file;
