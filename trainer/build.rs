//! Two things that the compiler cannot know by itself: where libtorch lies, and which commit is being built.
//!
//! Programs and tests of this package find libtorch without environment variables: a build script's link arguments
//! reach only its own package, so each repeats what `kernels/bridge/build.rs` found.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_XLSTM_KERNELS_RPATH");
    let rpath = std::env::var("DEP_XLSTM_KERNELS_RPATH").unwrap_or_default();
    for folder in rpath.split(':').filter(|folder| !folder.is_empty()) {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=XLSTM_COMMIT={}", commit());
}

/// The commit, with `-dirty` where tracked files differ; `unknown` outside a repository.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "HEAD"]) else { return "unknown".to_owned() };
    for name in ["HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => head,
        _ => format!("{head}-dirty"),
    }
}
