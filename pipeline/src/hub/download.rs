//! One file, by as many requests as it takes, to a verified file under its name.
//!
//! Each request asks for what is missing (`Range: bytes=N-`). What the answer may be, and what follows:
//!
//! | answer | |
//! |---|---|
//! | 206 whose `Content-Range` starts at N and whose total is the declared size | append |
//! | 200 | storage hosts may ignore a range: start anew from this answer's first byte |
//! | 206 with another range, or 416 before the end | start anew, without a range; counts as a failure |
//! | another total than declared, or a body that runs over it | wrong content, as a wrong digest |
//! | a body that ends or breaks off early, or stalls | go on from the byte reached, after a delay |
//!
//! Content that is wrong is thrown away and asked for once more from the first byte; then it is an error.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use reqwest::{Response, StatusCode};

use super::access::Subject;
use super::client::Hub;
use super::error::HubError;
use super::observer::DownloadObserver;
use super::partial::Partial;
use super::remote::{FetchedFile, FileRequest, RemoteFile};
use super::retry::{Effort, Speed};
use super::transport::{Broken, Bucket};
use super::verify::verify_file;

/// Content that is not the declared one: what was expected, what was found.
enum Wrong {
    Size(u64),
    Digest(String),
}

/// What an answer's header calls for.
enum Continuation {
    Append,
    StartHere,
    AskAgain(String),
    Wrong(Wrong),
}

impl Hub {
    /// Downloads the file of `request` to its destination.
    ///
    /// A file that is already there is verified and kept; a partial one is resumed. When `cancel` becomes
    /// true, this returns [`HubError::Cancelled`] soon, and what has arrived stays for the next time.
    ///
    /// # Errors
    /// What the Hub refuses (see [`HubError`]), [`HubError::Unreachable`] after all retries,
    /// [`HubError::WrongSize`] or [`HubError::WrongDigest`] for content that is wrong twice, and
    /// [`HubError::Disk`], [`HubError::Busy`] from this side.
    pub fn download(
        &self,
        request: &FileRequest<'_>,
        observer: &dyn DownloadObserver,
        cancel: &AtomicBool,
    ) -> Result<FetchedFile, HubError> {
        self.download_until(request, observer, &|| cancel.load(Ordering::Relaxed))
    }

    pub(super) fn download_until(
        &self,
        request: &FileRequest<'_>,
        observer: &dyn DownloadObserver,
        stop: &dyn Fn() -> bool,
    ) -> Result<FetchedFile, HubError> {
        let FileRequest { repository, sha, file, destination } = *request;
        Self::check_repository(repository)?;
        Self::check_commit(sha)?;
        let waiting = |reason: &str, duration| observer.waiting(reason, duration);
        let what = format!("downloading {} of {repository}", file.path);
        let mut effort = Effort::new(what, self.transport.policy(), stop, &waiting);
        let mut partial = match prepare(file, destination, observer, &effort)? {
            Start::Finished(fetched) => return Ok(fetched),
            Start::Missing(partial) => partial,
        };
        let subject = Subject { repository, revision: sha, path: Some(&file.path) };
        let mut reused_bytes = partial.reached();
        let mut last_chance = false;
        loop {
            let wrong = match self.complete(&subject, file, &mut partial, observer, &mut effort)? {
                Some(wrong) => wrong,
                None => match partial.digests() {
                    (sha256, digest) if digest == file.digest => {
                        partial.finish(destination)?;
                        let requests = effort.requests;
                        return Ok(FetchedFile { sha256, size: file.size, reused_bytes, requests });
                    }
                    (_, digest) => Wrong::Digest(digest.to_string()),
                },
            };
            if last_chance {
                partial.discard();
                return Err(wrong_content(file, wrong));
            }
            last_chance = true;
            rewind(&mut partial, observer)?;
            effort.starts_anew();
            reused_bytes = 0;
        }
    }

    /// Requests what is missing until nothing is. The content may be found wrong on the way.
    fn complete(
        &self,
        subject: &Subject<'_>,
        file: &RemoteFile,
        partial: &mut Partial,
        observer: &dyn DownloadObserver,
        effort: &mut Effort<'_>,
    ) -> Result<Option<Wrong>, HubError> {
        let address = self.transport.address(
            ["datasets"]
                .into_iter()
                .chain(subject.repository.split('/'))
                .chain(["resolve", subject.revision])
                .chain(file.path.split('/')),
        );
        while partial.reached() < file.size {
            let range = Some(partial.reached()).filter(|&reached| reached > 0);
            let mut answer = self.transport.get(&address, range, Bucket::Resolver, subject, effort)?;
            match plan(answer.response.status(), answer.response.headers(), partial.reached(), file.size) {
                Continuation::Append => {}
                Continuation::StartHere => rewind(partial, observer)?,
                Continuation::AskAgain(reason) => {
                    rewind(partial, observer)?;
                    effort.failed(&reason)?;
                    continue;
                }
                Continuation::Wrong(wrong) => return Ok(Some(wrong)),
            }
            if let Some(wrong) = self.pump(&mut answer.response, file, partial, observer, effort)? {
                return Ok(Some(wrong));
            }
        }
        Ok(None)
    }

    /// Writes a response body to the partial file until it ends or breaks off.
    fn pump(
        &self,
        response: &mut Response,
        file: &RemoteFile,
        partial: &mut Partial,
        observer: &dyn DownloadObserver,
        effort: &mut Effort<'_>,
    ) -> Result<Option<Wrong>, HubError> {
        let mut pace = self.transport.pace();
        loop {
            match self.transport.next_chunk(response, effort.stop()) {
                Ok(Some(bytes)) if bytes.len() as u64 > file.size - partial.reached() => {
                    return Ok(Some(Wrong::Size(partial.reached() + bytes.len() as u64)));
                }
                Ok(Some(bytes)) => {
                    partial.append(&bytes)?;
                    observer.advanced(bytes.len() as u64);
                    effort.progressed_to(partial.reached());
                    match pace.advance(bytes.len()) {
                        Speed::Unknown => {}
                        Speed::Enough => effort.well_paced(),
                        Speed::TooSlow if partial.reached() == file.size => {}
                        Speed::TooSlow => {
                            effort.too_slow()?;
                            return Ok(None);
                        }
                    }
                }
                Ok(None) if partial.reached() == file.size => return Ok(None),
                Ok(None) => {
                    let reason = format!("the body ended at byte {} of {}", partial.reached(), file.size);
                    effort.failed(&reason)?;
                    return Ok(None);
                }
                Err(Broken::Fatal(error)) => return Err(error),
                // All there is has come; how the connection ended does not matter.
                Err(Broken::Interrupted(_)) if partial.reached() == file.size => return Ok(None),
                Err(Broken::Interrupted(reason)) => {
                    effort.failed(&reason)?;
                    return Ok(None);
                }
            }
        }
    }
}

enum Start {
    Finished(FetchedFile),
    Missing(Box<Partial>),
}

/// What is on disk already, verified.
fn prepare(
    file: &RemoteFile,
    destination: &Path,
    observer: &dyn DownloadObserver,
    effort: &Effort<'_>,
) -> Result<Start, HubError> {
    if let Some(folder) = destination.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs_err::create_dir_all(folder).map_err(HubError::disk("create", folder))?;
    }
    let mut replace = false;
    loop {
        if !replace && destination.exists() {
            match verify_file(destination, file) {
                Ok(fetched) => {
                    observer.reused(fetched.size);
                    return Ok(Start::Finished(fetched));
                }
                Err(problem @ (HubError::WrongSize { .. } | HubError::WrongDigest { .. })) => {
                    observer.replacing(destination, &problem);
                    replace = true;
                }
                Err(error) => return Err(error),
            }
        }
        let Some(partial) = Partial::open(destination, file, &|| effort.check_stop())? else { continue };
        if !replace && destination.exists() {
            // Another process finished between our two looks.
            partial.discard();
            continue;
        }
        observer.reused(partial.reached());
        return Ok(Start::Missing(Box::new(partial)));
    }
}

fn rewind(partial: &mut Partial, observer: &dyn DownloadObserver) -> Result<(), HubError> {
    if partial.reached() > 0 {
        observer.rewound(partial.reached());
        partial.restart()?;
    }
    Ok(())
}

fn plan(status: StatusCode, headers: &HeaderMap, reached: u64, size: u64) -> Continuation {
    let header =
        |name| headers.get(name).and_then(|value: &reqwest::header::HeaderValue| value.to_str().ok());
    match status {
        StatusCode::PARTIAL_CONTENT => match header(CONTENT_RANGE).and_then(parse_content_range) {
            Some((_, Some(total))) if total != size => Continuation::Wrong(Wrong::Size(total)),
            Some((first, _)) if first == reached => Continuation::Append,
            _ => Continuation::AskAgain(format!("bytes from {reached} on were asked for, others came")),
        },
        StatusCode::OK => match header(CONTENT_LENGTH).and_then(|length| length.parse().ok()) {
            Some(length) if length != size => Continuation::Wrong(Wrong::Size(length)),
            _ => Continuation::StartHere,
        },
        _ => Continuation::AskAgain(format!("the server has no bytes from {reached} on, of {size}")),
    }
}

/// First byte and total (`None` for `*`) of `bytes first-last/total`.
fn parse_content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

fn wrong_content(file: &RemoteFile, wrong: Wrong) -> HubError {
    let path = file.path.clone().into();
    let hint =
        "it was downloaded twice from its first byte and was wrong both times: the mirror or a proxy alters \
                it; try another HF_ENDPOINT, or later"
            .to_owned();
    match wrong {
        Wrong::Size(found) => HubError::WrongSize { path, expected: file.size, found, hint },
        Wrong::Digest(found) => {
            HubError::WrongDigest { path, expected: file.digest.to_string(), found, hint }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, None)));
        for bad in ["bytes */10", "bytes 9-5/10", "bytes 5-10/10", "items 5-9/10", "bytes 5-9", ""] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
