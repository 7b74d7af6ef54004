//! The tokenizer against ids that others computed, and over all of Unicode.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use xlstm_pipeline::tokenizer::{EncodeScratch, Gpt2Tokenizer};

#[derive(Deserialize)]
struct Golden {
    text: String,
    ids: Vec<u16>,
}

fn golden_files() -> Vec<PathBuf> {
    let directory = std::env::var_os("XLSTM_GOLDEN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden"), PathBuf::from);
    let entries = std::fs::read_dir(&directory).unwrap();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with("tokens.jsonl"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no *tokens.jsonl in {}", directory.display());
    files
}

#[test]
fn reference_ids_are_reproduced() {
    let tokenizer = Gpt2Tokenizer::new().unwrap();
    let mut scratch = EncodeScratch::default();
    for path in golden_files() {
        let file = std::fs::read_to_string(&path).unwrap();
        for (number, line) in file.lines().enumerate() {
            let golden: Golden = serde_json::from_str(line).unwrap();
            let mut ids = Vec::new();
            tokenizer.encode_into(&mut scratch, &golden.text, &mut ids).unwrap();
            assert_eq!(ids, golden.ids, "{} line {}", path.display(), number + 1);
        }
    }
    assert_eq!(scratch.corrections(), 0);
}

/// Every character of Unicode between letters, digits, punctuation and spaces: the digest changes if the
/// library's idea of any character's class does. `tokenizers` 0.23.3 and `tiktoken` 0.14.0 (Python) give the same.
#[test]
fn every_character_keeps_its_class() {
    let tokenizer = Gpt2Tokenizer::new().unwrap();
    let mut scratch = EncodeScratch::default();
    let (mut text, mut ids) = (String::new(), Vec::new());
    let mut hash = Sha256::new();
    for block in 0..0x1100u32 {
        text.clear();
        for character in (block * 256..(block + 1) * 256).filter_map(char::from_u32) {
            text.extend(['x', character, '1', character, character, ' ', character, '.', character]);
        }
        ids.clear();
        tokenizer.encode_into(&mut scratch, &text, &mut ids).unwrap();
        assert_eq!(tokenizer.decode(&ids), text.as_bytes());
        for id in &ids {
            hash.update(id.to_le_bytes());
        }
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, "4521c508abb0e76137432053d3991742c55c1a2a2f99e65859f1b162e267d3f5");
}
