//! Runs a command beside a loopback Hub, to try what needs the Hub without it: SlimPajama's original layout, and PALOMA
//! with its sixteen sources and every domain of the paper's Table 10, laid out and named as the real ones, filled with
//! made-up text.
//!
//! ```text
//! target/release/examples/loopback_hub target/release/xlstm-data prepare paloma --split val --out data/paloma-shaped
//! ```
//! The command gets `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` (a folder that is removed afterwards) and, where it prepares PALOMA,
//! the repository's `--revision`. Figures on this text say nothing; pages and averages have the size and the edges of the
//! real ones.
#![allow(clippy::print_stderr, reason = "an example's messages")]

use std::process::{Command, ExitCode};

use xlstm_tests::layouts::{ORIGINAL, ORIGINAL_COMMIT, PALOMA, paloma_files, slimpajama_files};
use xlstm_tests::loopback_hub::LoopbackHub;

const TOKEN: &str = "hf_loopback";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        eprintln!("usage: loopback_hub COMMAND [ARGUMENT...]");
        return ExitCode::from(2);
    }
    let program = arguments.remove(0);
    let hub = LoopbackHub::builder()
        .dataset(ORIGINAL, slimpajama_files())
        .commit(ORIGINAL_COMMIT)
        .dataset(PALOMA, paloma_files())
        .gated(TOKEN)
        .start();
    let home = tempfile::tempdir().expect("a temporary folder");
    let prepares_paloma = arguments.starts_with(&["prepare".into(), "paloma".into()]);
    if prepares_paloma && !arguments.iter().any(|argument| argument == "--revision") {
        arguments.extend(["--revision".into(), hub.commit(PALOMA)]);
    }
    let mut command = Command::new(&program);
    command
        .args(&arguments)
        .env("HF_ENDPOINT", hub.endpoint())
        .env("HF_TOKEN", TOKEN)
        .env("HF_HOME", home.path());
    match command.status() {
        Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)),
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::from(2)
        }
    }
}
