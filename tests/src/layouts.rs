//! Files laid out and named as the datasets on the Hub are, filled with made-up text.

use crate::corpus::{self, gzip_members};

/// The original SlimPajama's repository.
pub const ORIGINAL: &str = "cerebras/SlimPajama-627B";
/// The commit of it that the catalog pins.
pub const ORIGINAL_COMMIT: &str = "2d0accdd58c5d5511943ca1f5ff0e3eb5e293543";
/// PALOMA's repository.
pub const PALOMA: &str = "allenai/paloma";

/// Paths in a repository, and what is in the files.
pub type Files = Vec<(String, Vec<u8>)>;

const DOMAINS: &str = include_str!("../../trainer/assets/paper/paloma_domains.csv");
/// About as much text in each domain.
const DOMAIN_BYTES: usize = 2_500;
/// Characters of a document at most: the longest of [`corpus::documents`] would fill an evaluation alone.
const DOCUMENT_CHARS: usize = 6_000;

/// SlimPajama's original: a few files in every chunk; numbers that sort differently as text.
#[must_use]
pub fn slimpajama_files() -> Files {
    let mut files = Vec::new();
    for (seed, (split, name, chunks)) in
        [("train", "train", 10), ("validation", "holdout", 5), ("test", "holdout", 5)].into_iter().enumerate()
    {
        for chunk in 1..=chunks {
            for number in [0, 2, 10] {
                let documents = corpus::documents(seed as u64 * 1000 + chunk * 20 + number, 30_000);
                let content = corpus::zstd_frames(&corpus::json_lines(&documents), 2);
                files.push((format!("{split}/chunk{chunk}/example_{name}_{number}.jsonl.zst"), content));
            }
        }
    }
    files.push(("README.md".into(), b"# SlimPajama".to_vec()));
    files
}

/// PALOMA's validation split with every domain of the paper's Table 10, one file a domain: numbered ones for sources without domains, `subdomain` in each record elsewhere.
#[must_use]
pub fn paloma_files() -> Files {
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
