//! Whether what a folder holds was made from the inputs that are asked for now: a finished split answers for no other
//! files, and an unfinished run is not resumed with them.

use std::path::Path;

use rayon::prelude::*;
use xlstm_manifests::manifest::{Input, Manifest};
use xlstm_manifests::{digest, printable};

use crate::plan::{Location, Plan, PlannedInput, format_name};
use crate::split::SplitError;

/// Compares a finished split with the plan's inputs: the same files in the same order, with the same bytes.
///
/// # Errors
/// [`SplitError::OtherRun`] naming the first file that differs.
pub(super) fn check(folder: &Path, plan: &Plan, manifest: &Manifest) -> anyhow::Result<()> {
    let differ = |differs| differ(folder, "a finished dataset", differs);
    let reached = plan.spec.selection.max_tokens.is_some_and(|limit| manifest.totals.tokens >= limit);
    for (planned, input) in plan.inputs.iter().zip(&manifest.inputs) {
        if planned.path != input.path {
            let (was, is) = (printable::text(input.path.as_str()), printable::text(planned.path.as_str()));
            return Err(differ(format!("its inputs: it was made from `{was}` where `{is}` is now")));
        }
    }
    match (plan.inputs.get(manifest.inputs.len()), manifest.inputs.get(plan.inputs.len())) {
        (Some(added), _) if !reached => {
            return Err(differ(format!("its inputs: `{}` is new", printable::text(added.path.as_str()))));
        }
        (_, Some(gone)) => {
            let gone = printable::text(gone.path.as_str());
            return Err(differ(format!("its inputs: `{gone}` is gone")));
        }
        _ => {}
    }
    match first_changed(plan, &manifest.inputs)? {
        None => Ok(()),
        Some((name, Bytes::Unknown)) => Err(differ(unknown(&name))),
        Some((name, _)) => {
            Err(differ(format!("its inputs: `{name}` has other bytes, or is read in another way")))
        }
    }
}

/// Compares the inputs that an unfinished run has read to their ends with what they are now. The one that it is in the
/// middle of is compared when it is opened again.
///
/// # Errors
/// [`SplitError::OtherRun`] naming the first file that differs.
pub(super) fn check_resumed(folder: &Path, plan: &Plan, ended: &[Input]) -> anyhow::Result<()> {
    match first_changed(plan, ended)? {
        None => Ok(()),
        Some((name, bytes)) => {
            let differs = match bytes {
                Bytes::Unknown => unknown(&name),
                _ => format!("its inputs: `{name}` has other bytes than it had then"),
            };
            Err(differ(folder, "an unfinished run", differs))
        }
    }
}

fn differ(folder: &Path, found: &'static str, differs: String) -> anyhow::Error {
    SplitError::OtherRun { folder: folder.into(), found, differs }.into()
}

fn unknown(name: &str) -> String {
    format!(
        "its inputs: `{name}` is published by another kind of digest than then, which cannot be compared with what was read"
    )
}

/// What an input's bytes are beside those that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bytes {
    Same,
    Other,
    /// Nothing that is at hand tells.
    Unknown,
}

/// The first input that was read and is another one now, or may be: by name.
fn first_changed(plan: &Plan, read: &[Input]) -> anyhow::Result<Option<(String, Bytes)>> {
    let bytes = plan.inputs.par_iter().zip(read).map(|(planned, input)| compare(planned, input));
    let bytes: Vec<Bytes> = bytes.collect::<anyhow::Result<_>>()?;
    let first = bytes.iter().zip(read).find(|(bytes, _)| **bytes != Bytes::Same);
    Ok(first.map(|(bytes, input)| (printable::text(input.path.as_str()).into_owned(), *bytes)))
}

/// Compares a planned input with one that was read. A digest that is published now tells if it is the SHA-256, which every
/// input has in the manifest, or of the kind that was published then; else a file that is here is read.
fn compare(planned: &PlannedInput, input: &Input) -> anyhow::Result<Bytes> {
    let same = |same: bool| if same { Bytes::Same } else { Bytes::Other };
    if planned.path != input.path
        || format_name(planned.format) != input.format
        || planned.size.is_some_and(|size| size != input.size)
    {
        return Ok(Bytes::Other);
    }
    match (&planned.declared, &input.declared) {
        (Some(now), _) if now.algorithm == "sha256" => {
            return Ok(same(now.digest == input.sha256.to_string()));
        }
        (Some(now), Some(then)) if now.algorithm == then.algorithm => {
            return Ok(same(now.digest == then.digest));
        }
        _ => {}
    }
    match &planned.location {
        Location::Remote(_) => Ok(Bytes::Unknown),
        Location::Local(path) => Ok(same(digest::digest_file(path)? == (input.size, input.sha256))),
    }
}

#[cfg(test)]
mod tests {
    use xlstm_manifests::Sha256Digest;
    use xlstm_manifests::manifest::{Declared, InputCounts};
    use xlstm_manifests::safe_path::SafePath;

    use super::*;
    use crate::hub::{DeclaredDigest, RemoteFile};
    use crate::sources::Format;

    const TEXT: &[u8] = b"some text\n";

    fn declared(algorithm: &str, digest: &str) -> Option<Declared> {
        Some(Declared { algorithm: algorithm.into(), digest: digest.into(), by: "hub".into() })
    }

    #[test]
    fn digests_are_compared_with_their_own_kind_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.txt");
        fs_err::write(&file, TEXT).unwrap();
        let name = SafePath::new("a.txt").unwrap();
        let (right, wrong) = (Sha256Digest::of(TEXT).to_string(), Sha256Digest::of(b"other").to_string());
        let (blob, other_blob) = ("1".repeat(40), "2".repeat(40));
        let (sha, git) = ("sha256", "git-blob-sha1");
        let remote = RemoteFile {
            path: name.to_string(),
            size: TEXT.len() as u64,
            digest: DeclaredDigest::Sha256(Sha256Digest::of(TEXT)),
            xet_hash: None,
        };
        let (remote, local) = (Location::Remote(remote), Location::Local(file));
        let cases = [
            (&remote, declared(sha, &right), declared(sha, &right), Bytes::Same),
            (&remote, declared(sha, &wrong), declared(sha, &right), Bytes::Other),
            (&remote, declared(sha, &right), declared(git, &blob), Bytes::Same),
            (&remote, declared(sha, &wrong), declared(git, &blob), Bytes::Other),
            (&remote, declared(sha, &right), None, Bytes::Same),
            (&remote, declared(git, &blob), declared(git, &blob), Bytes::Same),
            (&remote, declared(git, &other_blob), declared(git, &blob), Bytes::Other),
            (&remote, declared(git, &blob), declared(sha, &right), Bytes::Unknown),
            (&remote, declared(git, &blob), None, Bytes::Unknown),
            (&local, declared(git, &blob), declared(sha, &right), Bytes::Same),
            (&local, None, None, Bytes::Same),
        ];
        for (location, now, then, expected) in cases {
            let planned = PlannedInput {
                path: name.clone(),
                format: Format::of(Path::new("a.txt")).unwrap(),
                location: location.clone(),
                size: None,
                declared: now,
                licence: None,
                set_prefix: None,
            };
            let input = Input {
                path: name.clone(),
                format: format_name(planned.format).into(),
                size: TEXT.len() as u64,
                sha256: Sha256Digest::of(TEXT),
                declared: then,
                licence: None,
                counts: InputCounts::default(),
            };
            assert_eq!(compare(&planned, &input).unwrap(), expected, "{planned:?} after {input:?}");
        }
    }
}
