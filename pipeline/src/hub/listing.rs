//! All files of a commit: path, size, digest.
//!
//! An entry of the Hub's tree API, and what is used of it:
//! ```json
//! {"type": "file", "path": "train/chunk1/example_train_0.jsonl.zst", "size": 15100000,
//!  "oid": "<git blob id; of the pointer, for an LFS file>",
//!  "lfs": {"oid": "<SHA-256>", "size": 15100000, "pointerSize": 134}, "xetHash": "<64 hex digits>"}
//! ```
//! The order is not guaranteed, so files are sorted by path, byte by byte. Paths come from outside and become
//! names on this disk: one that could leave its folder makes the whole listing refused.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, LINK};
use serde::Deserialize;
use xlstm_manifests::safe_path::SafePath;

use super::access::Subject;
use super::client::Hub;
use super::digest::DeclaredDigest;
use super::error::HubError;
use super::listing_cache;
use super::observer::{DownloadObserver, SilentObserver, observed};
use super::remote::RemoteFile;
use super::retry::Effort;

/// Files of a listing; SlimPajama has 59,000. They are all in memory.
const MAX_FILES: usize = 2_000_000;
/// Its pages; the Hub puts 1,000 files on one.
const MAX_PAGES: usize = 10_000;
/// The longest that a listing may take altogether.
const MAX_DURATION: Duration = Duration::from_secs(2 * 3600);

/// The files of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// `owner/name`.
    pub repository: String,
    /// The commit, 40 hex digits.
    pub sha: String,
    /// Its files, sorted by path, byte by byte.
    pub files: Vec<RemoteFile>,
    /// Requests made for it; none when it was kept from an earlier time.
    pub requests: u64,
    /// Why it could not be kept for the next time, if it could not.
    pub not_kept: Option<String>,
}

#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<LfsEntry>,
    #[serde(rename = "xetHash")]
    xet_hash: Option<String>,
}

#[derive(Deserialize)]
struct LfsEntry {
    oid: String,
    size: u64,
}

impl Hub {
    /// The files of commit `sha` of dataset `repository`: from the listing cache, else from the Hub, page by page.
    ///
    /// # Errors
    /// What the Hub refuses, [`HubError::Protocol`] for an answer that is no listing, and
    /// [`HubError::UnsafePath`] for a listing that names a path which could leave its folder.
    pub fn list(&self, repository: &str, sha: &str) -> Result<Listing, HubError> {
        self.list_observed(repository, sha, &SilentObserver, &AtomicBool::new(false))
    }

    /// As [`Hub::list`], telling `observer` of each page and each wait, and returning [`HubError::Cancelled`] soon
    /// after `cancel` becomes true.
    ///
    /// # Errors
    /// As [`Hub::list`].
    pub fn list_observed(
        &self,
        repository: &str,
        sha: &str,
        observer: &dyn DownloadObserver,
        cancel: &AtomicBool,
    ) -> Result<Listing, HubError> {
        Self::check_repository(repository)?;
        Self::check_commit(sha)?;
        let key = listing_cache::Key { endpoint: &self.config.endpoint, repository, sha };
        let (repository, sha) = (repository.to_owned(), sha.to_owned());
        if let Some(files) = listing_cache::read(&self.config.listing_cache, &key) {
            return Ok(Listing { repository, sha, files, requests: 0, not_kept: None });
        }
        let (files, requests) = self.request_listing(&repository, &sha, observer, cancel)?;
        let kept = listing_cache::write(&self.config.listing_cache, &key, &files);
        let not_kept = kept.err().map(|error| error.to_string());
        Ok(Listing { repository, sha, files, requests, not_kept })
    }

    fn request_listing(
        &self,
        repository: &str,
        sha: &str,
        observer: &dyn DownloadObserver,
        cancel: &AtomicBool,
    ) -> Result<(Vec<RemoteFile>, u64), HubError> {
        let what = format!("listing the files of {repository}");
        let (stop, waiting) = observed(observer, cancel);
        let mut effort = Effort::new(what, self.transport.policy(), &stop, &waiting);
        let subject = Subject { repository, revision: sha, path: None };
        let segments = ["api", "datasets"].into_iter().chain(repository.split('/')).chain(["tree", sha]);
        let mut address = self.transport.address(segments);
        address.set_query(Some("recursive=true"));
        let mut files = Vec::new();
        let mut visited = HashSet::new();
        let begin = Instant::now();
        loop {
            if visited.len() >= MAX_PAGES {
                return Err(protocol(&effort, &format!("at most {MAX_PAGES} pages"), "more"));
            }
            if begin.elapsed() > MAX_DURATION {
                let expected = format!("a listing within {} s", MAX_DURATION.as_secs());
                return Err(protocol(&effort, &expected, &format!("{} pages by then", visited.len())));
            }
            if !visited.insert(address.clone()) {
                return Err(protocol(&effort, "each page once", "a page that links to an earlier one"));
            }
            let (headers, body) = self.transport.get_document(&address, &subject, &mut effort)?;
            let page = parse_page(&body, repository, &effort)?;
            effort.progressed_to(visited.len() as u64);
            let empty = page.entries == 0;
            files.extend(page.files);
            if files.len() > MAX_FILES {
                return Err(protocol(&effort, &format!("at most {MAX_FILES} files"), "more"));
            }
            observer.listed(files.len());
            match next_link(&headers) {
                None => break,
                Some(_) if empty => {
                    return Err(protocol(&effort, "entries on each page but the last", "a page without any"));
                }
                Some(link) => {
                    address = self.transport.address_of_link(&address, &link).ok_or_else(|| {
                        protocol(&effort, "an address in the Link header", "what cannot be parsed")
                    })?;
                }
            }
        }
        files.sort_unstable_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        if let Some(pair) = files.windows(2).find(|pair| pair[0].path == pair[1].path) {
            let found = format!("`{}` twice", pair[0].path.escape_debug());
            return Err(protocol(&effort, "each path once", &found));
        }
        Ok((files, effort.requests))
    }
}

fn protocol(effort: &Effort<'_>, expected: &str, found: &str) -> HubError {
    HubError::Protocol { what: effort.what.clone(), expected: expected.into(), found: found.into() }
}

/// A page of a listing.
struct Page {
    /// Files and folders on it.
    entries: usize,
    files: Vec<RemoteFile>,
}

fn parse_page(body: &[u8], repository: &str, effort: &Effort<'_>) -> Result<Page, HubError> {
    let entries: Vec<TreeEntry> = serde_json::from_slice(body).map_err(|error| {
        protocol(effort, "a JSON array of tree entries", &format!("other data ({error})"))
    })?;
    let count = entries.len();
    let files = entries.into_iter().filter(|entry| entry.kind == "file");
    let files = files.map(|entry| remote_file(entry, repository, effort)).collect::<Result<_, _>>()?;
    Ok(Page { entries: count, files })
}

fn remote_file(entry: TreeEntry, repository: &str, effort: &Effort<'_>) -> Result<RemoteFile, HubError> {
    let path = check_path(entry.path, repository)?;
    let (digest, size) = match entry.lfs {
        Some(lfs) => {
            (lfs.oid.parse().map(DeclaredDigest::Sha256).map_err(|error| error.to_string()), lfs.size)
        }
        None => (entry.oid.parse().map(DeclaredDigest::GitBlobSha1), entry.size),
    };
    let digest = digest.map_err(|error| {
        protocol(effort, &format!("a digest for `{}`", path.escape_debug()), &error.to_string())
    })?;
    Ok(RemoteFile { path, size, digest, xet_hash: entry.xet_hash })
}

/// A listing names paths on another machine, where `\` may separate folders: more is refused than in local names.
fn check_path(path: String, repository: &str) -> Result<String, HubError> {
    match SafePath::portable(path.as_str()) {
        Ok(_) => Ok(path),
        Err(error) => Err(HubError::UnsafePath {
            repository: repository.to_owned(),
            path: path.escape_debug().to_string(),
            reason: match error {
                xlstm_manifests::Error::UnsafePath { reason, .. } => reason.to_owned(),
                other => other.to_string(),
            },
        }),
    }
}

/// The address of `Link: <address>; rel="next"`.
fn next_link(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(links).find(|(_, next)| *next).map(|(address, _)| address.to_owned())
}

/// Each `<address>` of a Link header, and whether its parameters say `rel="next"`.
fn links(value: &str) -> Vec<(&str, bool)> {
    let parts = value.split('<').skip(1).filter_map(|part| part.split_once('>'));
    parts
        .map(|(address, parameters)| {
            let next = parameters.split([';', ',']).any(|parameter| {
                let (key, value) = parameter.split_once('=').unwrap_or_default();
                key.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"') == "next"
            });
            (address, next)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_other_links() {
        let next = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, value.parse().unwrap());
            next_link(&headers)
        };
        assert_eq!(next(r#"<https://h/a?x=1,2>; rel="next""#).as_deref(), Some("https://h/a?x=1,2"));
        assert_eq!(next(r#"<p>; rel="prev", <n>; title="t"; rel=next"#).as_deref(), Some("n"));
        assert_eq!(next(r#"<p>; rel="prev""#), None);
        assert_eq!(next("nonsense"), None);
    }

    #[test]
    fn the_lfs_digest_and_size_count_where_there_are_any() {
        let policy = Default::default();
        let effort = Effort::new("listing".into(), &policy, &|| false, &|_, _| {});
        let (sha256, sha1) = ("ab".repeat(32), "cd".repeat(20));
        let page = serde_json::json!([
            {"type": "directory", "path": "d", "oid": sha1, "size": 0},
            {"type": "file", "path": "d/a", "oid": sha1, "size": 7, "xetHash": "x",
             "lfs": {"oid": sha256, "size": 7, "pointerSize": 134}},
            {"type": "file", "path": "b", "oid": sha1, "size": 2},
        ]);
        let page = parse_page(page.to_string().as_bytes(), "o/n", &effort).unwrap();
        assert_eq!(page.entries, 3);
        let files = page.files;
        assert_eq!(files.len(), 2);
        assert_eq!(files[0].digest.hex(), sha256);
        assert_eq!((files[0].size, files[0].xet_hash.as_deref()), (7, Some("x")));
        assert_eq!(files[1].digest.hex(), sha1);
        let bad = serde_json::json!([{"type": "file", "path": "b", "oid": "?", "size": 2}]).to_string();
        assert!(matches!(parse_page(bad.as_bytes(), "o/n", &effort), Err(HubError::Protocol { .. })));
    }
}
