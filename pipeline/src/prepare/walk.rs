//! Which files of this machine are inputs: what the paths given name, in order, and what was passed over.
//!
//! Files come in the order of their names, byte by byte, below each path given; paths come in the order given. Symbolic
//! links are followed, and what they lead to is recorded under the link's own name, which is how it is found again; a
//! link in a circle or to nowhere is an error. Passed over inside folders, and said, are hidden files, files of no known
//! ending, what is no regular file, and what this program wrote itself: splits (a dataset must not become its own input),
//! parts, downloads and runs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};
use xlstm_manifests::manifest::{FORMAT, MANIFEST_NAME};
use xlstm_manifests::run_manifest::{RUN_FORMAT, RUN_NAME};
use xlstm_manifests::safe_path::SafePath;
use xlstm_manifests::{Error as ContractError, printable};

use super::refuse;
use crate::audit::INPUTS_POINTER;
use crate::plan::{Location, PlannedInput};
use crate::sources::{Format, SourceError};
use crate::split::WORK_FOLDER;

/// The endings that are read, for messages.
pub(super) const ENDINGS: &str =
    ".txt, .md, .jsonl, .ndjson (plain, .zst, .gz), .json.zst, .json.gz, .parquet, .crate";

/// The inputs that some paths name.
pub(super) struct Found {
    pub(super) inputs: Vec<PlannedInput>,
    /// The folder that their names are relative to.
    pub(super) base: PathBuf,
    /// What was passed over, a line for each folder given.
    pub(super) notes: Vec<String>,
}

/// The inputs below `paths`.
///
/// # Errors
/// When a path cannot be read, names what is no input, or holds a name that cannot be recorded.
pub(super) fn inputs(paths: &[PathBuf]) -> anyhow::Result<Found> {
    let places = paths.iter().map(|path| place(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let base = common_folder(&places)?;
    let mut found = Found { inputs: Vec::new(), base, notes: Vec::new() };
    let mut seen = BTreeSet::new();
    for (path, place) in paths.iter().zip(&places) {
        let files = if place.is_dir() {
            let (files, note) = below(path, place)?;
            found.notes.extend(note);
            files
        } else {
            let format = Format::from_path(place).ok_or_else(|| {
                let json = place.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
                let hint = if json { "; if it holds one object a line, rename it to .jsonl" } else { "" };
                refuse(format!("`{}`: expected a name ending in {ENDINGS}{hint}", printable::path(path)))
            })?;
            vec![(place.clone(), format)]
        };
        let mut named = Vec::new();
        for (file, format) in files {
            named.push((relative(&found.base, &file)?, file, format));
        }
        named.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, file, format) in named {
            if !seen.insert(name.clone()) {
                return Err(refuse(format!(
                    "`{}` is given twice: name each file once",
                    printable::path(&file)
                )));
            }
            found.inputs.push(planned(name, file, format)?);
        }
    }
    Ok(found)
}

fn planned(path: SafePath, file: PathBuf, format: Format) -> anyhow::Result<PlannedInput> {
    let metadata = fs_err::metadata(&file)?;
    if !metadata.is_file() {
        return Err(SourceError::NotAFile { path: file }.into());
    }
    Ok(PlannedInput {
        path,
        format,
        size: Some(metadata.len()),
        declared: None,
        licence: None,
        location: Location::Local(file),
        set_prefix: None,
    })
}

/// The place of a path that was given: of a folder, with all links resolved; of a file, in its folder under its own name.
fn place(path: &Path) -> anyhow::Result<PathBuf> {
    if fs_err::metadata(path)?.is_dir() {
        return Ok(fs_err::canonicalize(path)?);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path
        .file_name()
        .ok_or_else(|| refuse(format!("`{}`: expected a file or a folder", printable::path(path))))?;
    Ok(fs_err::canonicalize(folder)?.join(name))
}

/// The folder that the names of some files are relative to.
///
/// # Errors
/// When a path cannot be read, or they share no folder.
pub(super) fn base_of(paths: &[PathBuf]) -> anyhow::Result<PathBuf> {
    common_folder(&paths.iter().map(|path| place(path)).collect::<anyhow::Result<Vec<_>>>()?)
}

/// The name that the file `path` is recorded under.
///
/// # Errors
/// When it cannot be read or its name cannot be recorded.
pub(super) fn name_below(base: &Path, path: &Path) -> anyhow::Result<SafePath> {
    relative(base, &place(path)?)
}

/// The folder itself when one folder is given; else the deepest folder that holds all paths.
fn common_folder(places: &[PathBuf]) -> anyhow::Result<PathBuf> {
    let mut common: Option<PathBuf> = None;
    for place in places {
        let folder = if place.is_dir() {
            place.clone()
        } else {
            place.parent().map(Path::to_path_buf).unwrap_or_default()
        };
        common = Some(match common {
            None => folder,
            Some(mut common) => {
                while !folder.starts_with(&common) {
                    if !common.pop() {
                        return Err(refuse("the paths given share no folder: put them below one"));
                    }
                }
                common
            }
        });
    }
    common.ok_or_else(|| refuse("no path given"))
}

/// The name that a file is recorded under.
fn relative(base: &Path, file: &Path) -> anyhow::Result<SafePath> {
    let cannot = |reason: &str| {
        refuse(format!(
            "`{}`: a manifest cannot record this name, since {reason}: rename the file",
            printable::path(file)
        ))
    };
    let below = file.strip_prefix(base).unwrap_or(file);
    let text = below.to_str().ok_or_else(|| cannot("it is not UTF-8"))?;
    SafePath::new(text).map_err(|error| match error {
        ContractError::UnsafePath { reason, .. } => cannot(reason),
        other => other.into(),
    })
}

/// What was passed over in a folder.
#[derive(Default)]
struct PassedOver {
    hidden: u64,
    irregular: u64,
    /// Files of other endings, by ending.
    endings: BTreeMap<String, u64>,
    /// Folders that this program wrote.
    ours: Vec<String>,
}

impl PassedOver {
    fn sentence(&self) -> Option<String> {
        let mut parts = Vec::new();
        let other: u64 = self.endings.values().sum();
        if other > 0 {
            let mut endings: Vec<_> = self.endings.iter().collect();
            endings.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
            let shown: Vec<_> = endings
                .iter()
                .take(12)
                .map(|(ending, count)| format!("{} {count}", printable::text(ending)))
                .collect();
            let more = if endings.len() > 12 { ", …" } else { "" };
            parts.push(format!("{} of other endings ({}{more})", files(other), shown.join(", ")));
        }
        if self.hidden > 0 {
            parts.push(format!("{} hidden", self.hidden));
        }
        if self.irregular > 0 {
            parts.push(format!("{} that are not regular files", self.irregular));
        }
        if !self.ours.is_empty() {
            parts.push(format!("what this program wrote ({})", self.ours.join(", ")));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

fn files(count: u64) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}

/// Files with their formats.
type Files = Vec<(PathBuf, Format)>;

/// The files of known formats below a folder, and a line about the others.
fn below(given: &Path, folder: &Path) -> anyhow::Result<(Files, Option<String>)> {
    let shown = printable::path(given);
    if is_written_by_us(folder) {
        return Err(refuse(format!(
            "`{shown}` is a prepared split, a run of training or a report: its files are no inputs; name the files that are"
        )));
    }
    let passed = RefCell::new(PassedOver::default());
    let mut found = Vec::new();
    let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || is_wanted(entry, folder, &passed)) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if error.path().is_some_and(|path| path.file_name().is_some_and(is_hidden)) => {
                passed.borrow_mut().hidden += 1;
                continue;
            }
            Err(error) => return Err(cannot_walk(&shown, &error)),
        };
        if entry.file_type().is_dir() {
            continue;
        }
        match Format::from_path(entry.path()) {
            _ if !entry.file_type().is_file() => passed.borrow_mut().irregular += 1,
            Some(format) => found.push((entry.into_path(), format)),
            None => {
                let ending = entry.path().extension();
                let ending =
                    ending.map_or("none".to_owned(), |ending| format!(".{}", ending.to_string_lossy()));
                *passed.borrow_mut().endings.entry(ending).or_default() += 1;
            }
        }
    }
    let note = passed.into_inner().sentence();
    Ok((found, note.map(|note| format!("passed over in `{shown}`: {note}"))))
}

fn is_wanted(entry: &DirEntry, root: &Path, passed: &RefCell<PassedOver>) -> bool {
    // Ours, beside the splits that are said.
    if entry.file_name() == INPUTS_POINTER {
        return false;
    }
    if is_hidden(entry.file_name()) {
        passed.borrow_mut().hidden += 1;
        return false;
    }
    if !entry.file_type().is_dir() {
        return true;
    }
    let beside_pointer = |name: &str| {
        entry.file_name() == name
            && entry.path().parent().is_some_and(|folder| folder.join(INPUTS_POINTER).is_file())
    };
    if is_written_by_us(entry.path()) || beside_pointer("parts") || beside_pointer("downloads") {
        let name = entry.path().strip_prefix(root).unwrap_or(entry.path());
        passed.borrow_mut().ours.push(format!("`{}`", printable::path(name)));
        return false;
    }
    true
}

/// Files that say by their `format` whose folder they lie in: splits, runs, reports of evaluations, tables of sweeps.
const OWN: [(&str, &str); 4] = [
    (MANIFEST_NAME, FORMAT),
    (RUN_NAME, RUN_FORMAT),
    ("report.json", "xlstm-evaluation"),
    ("results.json", "xlstm-sweep"),
];

/// Whether a folder is a split, finished or not, a run of training, a report or a sweep.
fn is_written_by_us(folder: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct Header {
        format: String,
    }
    let is = |name: &str, format: &str| {
        let path = folder.join(name);
        path.is_file()
            && fs_err::read(path)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Header>(&bytes).ok())
                .is_some_and(|header| header.format == format)
    };
    folder.join(WORK_FOLDER).join("journal.jsonl").is_file()
        || OWN.iter().any(|(name, format)| is(name, format))
}

pub(super) fn cannot_walk(shown: &str, error: &walkdir::Error) -> anyhow::Error {
    let path = error.path().map_or_else(|| shown.to_owned(), printable::path);
    if let Some(ancestor) = error.loop_ancestor() {
        let ancestor = printable::path(ancestor);
        return refuse(format!(
            "`{path}` is a symbolic link back to `{ancestor}`, so the folder has no end: remove the link, or name the \
             files and folders to read"
        ));
    }
    let broken = error.path().is_some_and(Path::is_symlink)
        && error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    if broken {
        return refuse(format!(
            "`{path}` is a symbolic link that leads nowhere: restore what it leads to, or remove the link"
        ));
    }
    refuse(format!(
        "cannot list `{path}`: {}; give this user access to it, or name the files to read",
        error.io_error().map_or_else(|| error.to_string(), ToString::to_string)
    ))
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}
