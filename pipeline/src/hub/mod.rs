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

mod access;
mod client;
mod config;
mod digest;
mod download;
mod driver;
mod error;
mod listing;
mod listing_cache;
mod partial;
mod prefetch;
mod rate;
mod retry;
mod transport;
mod verify;

pub use client::{Gated, Hub, Origin, Revision, StoredFile};
pub use config::{HubConfig, Token};
pub use digest::{DeclaredDigest, GitBlobSha1};
pub use download::{DownloadObserver, SilentObserver};
pub use error::HubError;
pub use listing::{Listing, RemoteFile};
pub use prefetch::{Prefetch, PrefetchOptions, Prefetched};
pub use rate::{plan_listing_seconds, plan_seconds};
pub use retry::RetryPolicy;
pub use verify::{FetchedFile, verify_file};
