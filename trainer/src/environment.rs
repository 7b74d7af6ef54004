//! Which program this is: version, source commit, the digest of the binary that runs.

use xlstm_bridge::runtime;
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::run_manifest::Program;

/// The source commit of this build; `-dirty` where files differed, `unknown` outside a repository.
pub const COMMIT: &str = env!("XLSTM_COMMIT");

/// What a run manifest says of `xlstm-train`.
#[must_use]
pub fn program() -> Program {
    program_named("xlstm-train")
}

/// What a report says of the program that wrote it.
#[must_use]
pub fn program_named(name: &str) -> Program {
    let binary = std::env::current_exe().ok().and_then(|path| digest_file(&path).ok());
    Program {
        name: name.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        commit: COMMIT.into(),
        binary_sha256: binary.map(|(_, sha256)| sha256),
        libtorch: runtime::LIBTORCH_VERSION.into(),
        kernels: format!("xlstm-kernels {}", env!("CARGO_PKG_VERSION")),
    }
}
