//! The project's own Hub client, set up for the loopback Hub: short delays, a token on wish, a folder of its own.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tempfile::TempDir;
use xlstm_pipeline::hub::{
    FetchedFile, FileRequest, Hub, HubConfig, HubError, Listing, RemoteFile, RetryPolicy, SilentObserver,
    Token,
};

use super::LoopbackHub;

/// The dataset that [`Client`] asks for.
pub const REPOSITORY: &str = "owner/name";

/// A client and its folder, removed with it.
pub struct Client {
    /// The client.
    pub hub: Hub,
    /// Its folder: downloads under `data`, listings under `listings`, a Hugging Face cache under `hf`.
    pub folder: TempDir,
    /// The commit of [`REPOSITORY`].
    pub sha: String,
}

/// Settings with short delays (but patience with a slow machine), everything under `folder`.
#[must_use]
pub fn config(server: &LoopbackHub, folder: &std::path::Path) -> HubConfig {
    let mut config = HubConfig::new(server.endpoint(), folder.join("listings"));
    config.hf_cache = Some(folder.join("hf"));
    config.stall_timeout = Duration::from_secs(60);
    config.retry = RetryPolicy {
        attempts: 4,
        first_delay: Duration::from_millis(1),
        longest_delay: Duration::from_millis(5),
        rate_limit_default: Duration::from_millis(20),
        rate_limit_jitter: Duration::from_millis(2),
        rate_limit_patience: Duration::from_secs(30),
    };
    config
}

impl Client {
    /// An anonymous client.
    #[must_use]
    pub fn anonymous(server: &LoopbackHub) -> Self {
        Self::with(server, |_| {})
    }

    /// A client that sends `token`.
    #[must_use]
    pub fn with_token(server: &LoopbackHub, token: &str) -> Self {
        Self::with(server, |config| config.token = Token::new(token).expect("a plausible token"))
    }

    /// A client with settings changed.
    #[must_use]
    pub fn with(server: &LoopbackHub, change: impl FnOnce(&mut HubConfig)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = config(server, folder.path());
        change(&mut config);
        let hub = Hub::new(config).expect("settings that work");
        Self { hub, folder, sha: server.commit(REPOSITORY) }
    }

    /// Lists [`REPOSITORY`].
    ///
    /// # Errors
    /// As [`Hub::list`].
    pub fn list(&self) -> Result<Listing, HubError> {
        self.hub.list(REPOSITORY, &self.sha)
    }

    /// What the listing says of `path`.
    #[must_use]
    pub fn file(&self, path: &str) -> RemoteFile {
        let listing = self.list().expect("a listing");
        listing.files.into_iter().find(|file| file.path == path).expect("a file of the listing")
    }

    /// Where `path` is downloaded to.
    #[must_use]
    pub fn destination(&self, path: &str) -> PathBuf {
        self.folder.path().join("data").join(path)
    }

    /// Downloads `path`.
    ///
    /// # Errors
    /// As [`Hub::download`].
    pub fn download(&self, path: &str) -> Result<FetchedFile, HubError> {
        let (file, destination) = (self.file(path), self.destination(path));
        let cancel = AtomicBool::new(false);
        self.hub.download(
            &FileRequest { repository: REPOSITORY, sha: &self.sha, file: &file, destination: &destination },
            &SilentObserver,
            &cancel,
        )
    }
}

/// `length` bytes that look like nothing, the same for the same `seed`.
#[must_use]
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
