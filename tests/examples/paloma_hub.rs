//! Runs a command beside a loopback Hub that has a repository in PALOMA's shape: its sixteen sources with every domain of
//! the paper's Table 10, laid out and named as PALOMA's own, filled with made-up text.
//!
//! ```text
//! target/release/examples/paloma_hub xlstm-data prepare paloma --split val --out data/paloma-shaped
//! ```
//! The command gets `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` (a folder that is removed afterwards) and, where it is
//! `prepare paloma` without one, the repository's `--revision`. Figures on this text say nothing; pages and averages have
//! the size and the edges of the real ones.
#![allow(clippy::print_stderr, reason = "an example's messages")]

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, ExitCode};

use xlstm_tests::corpus::{self, gzip_members};
use xlstm_tests::loopback_hub::LoopbackHub;

const DOMAINS: &str = include_str!("../../trainer/assets/paper/paloma_domains.csv");
const REPOSITORY: &str = "allenai/paloma";
/// About as much text in each domain.
const DOMAIN_BYTES: usize = 2_500;
/// Characters of a document at most: the longest of [`corpus::documents`] would fill an evaluation alone.
const DOCUMENT_CHARS: usize = 6_000;

/// One file a domain: numbered ones for sources without domains, `subdomain` in each record elsewhere.
fn files() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for (seed, line) in DOMAINS.lines().skip(1).enumerate() {
        let mut fields = line.split(',');
        let (source, domain) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let numbered = domain.bytes().all(|byte| byte.is_ascii_digit());
        let (name, subdomain) = match domain {
            "all" => (String::new(), None),
            number if numbered => (format!("-{number}"), None),
            domain => (format!("_{domain}"), Some(domain)),
        };
        let documents = corpus::documents(seed as u64, DOMAIN_BYTES);
        let mut lines = Vec::new();
        for (index, document) in documents.iter().enumerate() {
            let text: String = document.text.chars().take(DOCUMENT_CHARS).collect();
            let mut record =
                serde_json::json!({"text": text, "id": format!("{seed}-{index}"), "source": source});
            if let Some(subdomain) = subdomain {
                record["subdomain"] = subdomain.into();
            }
            lines.extend(record.to_string().into_bytes());
            lines.push(b'\n');
        }
        files.push((format!("{source}/val/val{name}.jsonl.gz"), gzip_members(&lines, 1)));
    }
    files
}

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(program) = (!arguments.is_empty()).then(|| arguments.remove(0)) else {
        let _ = writeln!(std::io::stderr(), "usage: paloma_hub COMMAND [ARGUMENT...]");
        return ExitCode::from(2);
    };
    let hub = LoopbackHub::builder().dataset(REPOSITORY, files()).gated("hf_loopback").start();
    let home = tempfile::tempdir().expect("a temporary folder");
    if arguments.starts_with(&["prepare".into(), "paloma".into()])
        && !arguments.iter().any(|a| a == "--revision")
    {
        arguments.extend(["--revision".into(), hub.commit(REPOSITORY)]);
    }
    let environment = BTreeMap::from([
        ("HF_ENDPOINT", hub.endpoint()),
        ("HF_TOKEN", "hf_loopback".to_owned()),
        ("HF_HOME", home.path().to_string_lossy().into_owned()),
    ]);
    match Command::new(&program).args(&arguments).envs(environment).status() {
        Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{program}: {error}");
            ExitCode::from(2)
        }
    }
}
