//! The binaries under test, run as a user runs them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// `xlstm-data` of this workspace in the profile of the tests: the one that lies beside the running test if it is
/// newer than its sources (`cargo test` over several packages has just built it), else built now.
#[must_use]
pub fn xlstm_data() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| beside("xlstm-data").unwrap_or_else(|| build("xlstm-pipeline", "xlstm-data")))
}

/// The binary in the profile's folder, unless a source is newer.
fn beside(binary: &str) -> Option<PathBuf> {
    // target/release/deps/TEST-HASH ─► target/release/BINARY
    let program = std::env::current_exe().ok()?.parent()?.parent()?.join(binary);
    let built = fs_err::metadata(&program).ok()?.modified().ok()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let mut folders = ["pipeline/src", "manifests/src", "manifests/catalog", "manifests/recipes"]
        .map(|folder| root.join(folder))
        .to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).ok()? {
            let entry = entry.ok()?;
            if entry.file_type().ok()?.is_dir() {
                folders.push(entry.path());
            } else if entry.metadata().ok()?.modified().ok()? > built {
                return None;
            }
        }
    }
    Some(program)
}

/// Builds a binary and asks cargo where it put it.
fn build(package: &str, binary: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // As `cargo test --workspace` builds it: alone, a package's dependencies would be compiled anew with other features.
    let libtorch = std::env::var_os("LIBTORCH").is_some_and(|folder| Path::new(&folder).join("lib").is_dir());
    let what = if libtorch { ["--workspace", "--bin", binary] } else { ["-p", package, "--bins"] };
    command.args(["build", "--locked", "--message-format=json"]).args(what);
    // Cargo describes the running test in these; build scripts that look at them would run again.
    let inherited = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| inherited.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo build -p {package} failed");
    String::from_utf8(output.stdout)
        .expect("cargo prints UTF-8")
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == binary)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the executable")
}

/// What a run printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails the test unless the program succeeded; returns its standard output.
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self.stdout
    }

    /// Fails the test unless the program ended with `code`; returns its standard error.
    #[track_caller]
    pub fn failure(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self.stderr
    }
}

/// `xlstm-data` with `arguments`, in an environment that holds nothing of the Hugging Face variables.
#[must_use]
pub fn data_command<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(xlstm_data());
    command.args(arguments).stdin(Stdio::null());
    for name in
        ["HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "COLUMNS"]
    {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn run(command: &mut Command) -> Ran {
    Ran::of(command.output().expect("the program starts"))
}

/// Runs `xlstm-data` with `arguments`.
#[must_use]
pub fn data<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    run(&mut data_command(arguments))
}

/// Every file below `folder` with its bytes, by relative path.
///
/// # Panics
/// When the folder cannot be read.
#[must_use]
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(current) = folders.pop() {
        for entry in fs_err::read_dir(&current).expect("the folder is there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below the folder").to_path_buf();
                found.insert(name, fs_err::read(&path).expect("a file"));
            }
        }
    }
    found
}

/// Fails the test unless two folders hold the same files with the same bytes.
///
/// # Panics
/// Naming the first file that differs.
#[track_caller]
pub fn assert_same_files(expected: &Path, found: &Path) {
    let (expected, found) = (files(expected), files(found));
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        assert!(bytes == &found[name], "`{}` differs", name.display());
    }
}
