//! A file from wherever it can be had at the least cost.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::client::Hub;
use super::error::HubError;
use super::observer::DownloadObserver;
use super::remote::{FileRequest, Origin, RemoteFile, StoredFile};
use super::verify::verify_file;

impl Hub {
    /// The blob of `file` in the Hugging Face cache, if there is one of the right length. Its content is still to be
    /// verified ([`verify_file`]).
    #[must_use]
    pub fn locate_in_hf_cache(&self, repository: &str, sha: &str, file: &RemoteFile) -> Option<PathBuf> {
        let cache = hf_hub::Cache::new(self.config.hf_cache.clone()?);
        let repository = cache.repo(hf_hub::Repo::dataset(repository.to_owned()));
        // <cache>/datasets--owner--name/snapshots/<commit>: the blobs are beside the snapshots.
        let blobs = repository.pointer_path(sha).parent()?.parent()?.join("blobs");
        let blob = blobs.join(file.digest.hex());
        let metadata = fs_err::metadata(&blob).ok()?;
        (metadata.is_file() && metadata.len() == file.size).then_some(blob)
    }

    /// A file, verified, from wherever it can be had at the least cost: the destination, the Hugging Face cache,
    /// the Hub (to the destination). A blob of the cache that turns out damaged is passed over.
    ///
    /// # Errors
    /// As [`Hub::download`].
    pub fn obtain(
        &self,
        request: &FileRequest<'_>,
        observer: &dyn DownloadObserver,
        cancel: &AtomicBool,
    ) -> Result<StoredFile, HubError> {
        self.obtain_until(request, observer, &|| cancel.load(Ordering::Relaxed))
    }

    pub(super) fn obtain_until(
        &self,
        request: &FileRequest<'_>,
        observer: &dyn DownloadObserver,
        stop: &dyn Fn() -> bool,
    ) -> Result<StoredFile, HubError> {
        let FileRequest { repository, sha, file, destination } = *request;
        if stop() {
            return Err(HubError::Cancelled);
        }
        if !destination.exists()
            && let Some(path) = self.locate_in_hf_cache(repository, sha, file)
            && let Ok(fetched) = verify_file(&path, file)
        {
            observer.reused(fetched.size);
            return Ok(StoredFile { path, fetched, origin: Origin::HuggingFaceCache });
        }
        let was_there = destination.exists();
        let fetched = self.download_until(request, observer, stop)?;
        let kept = was_there && fetched.requests == 0;
        let origin = if kept { Origin::Destination } else { Origin::Hub };
        Ok(StoredFile { path: destination.to_owned(), fetched, origin })
    }
}
