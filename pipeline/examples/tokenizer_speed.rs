//! Throughput of the tokenizer by itself: `tokenizer_speed FILE [THREADS [PASSES [CAP_MIB]]]`.
//!
//! Reads the `text` of a .jsonl or .jsonl.zst file into memory (at most CAP_MIB MiB of it, default 512),
//! then tokenizes the documents with THREADS threads, each taking every n-th document, PASSES times. Prints
//! one JSON object: bytes, tokens and the MB/s of each pass. The first pass meets every word for the first time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Deserialize;
use xlstm_pipeline::tokenizer::{EncodeScratch, Gpt2Tokenizer};

#[derive(Deserialize)]
struct Line {
    text: String,
}

fn read_documents(path: &str, cap: usize) -> Result<Vec<String>> {
    let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
    let reader: Box<dyn Read> =
        if path.ends_with(".zst") { Box::new(zstd::Decoder::new(file)?) } else { Box::new(file) };
    let mut documents = Vec::new();
    let mut bytes = 0;
    for line in BufReader::with_capacity(1 << 20, reader).lines() {
        let document: Line = serde_json::from_str(&line?)?;
        bytes += document.text.len();
        documents.push(document.text);
        if bytes >= cap {
            break;
        }
    }
    Ok(documents)
}

/// Tokenizes all documents once; the number of tokens.
fn pass(tokenizer: &Gpt2Tokenizer, documents: &[String], scratches: &mut [EncodeScratch]) -> Result<usize> {
    let threads = scratches.len();
    std::thread::scope(|scope| {
        let workers: Vec<_> = scratches
            .iter_mut()
            .enumerate()
            .map(|(first, scratch)| {
                scope.spawn(move || -> Result<usize> {
                    let (mut ids, mut tokens) = (Vec::new(), 0);
                    for document in documents.iter().skip(first).step_by(threads) {
                        ids.clear();
                        tokenizer.encode_into(scratch, document, &mut ids)?;
                        tokens += ids.len();
                    }
                    Ok(tokens)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().map_err(|_| anyhow::anyhow!("a worker died"))?).sum()
    })
}

#[allow(clippy::print_stdout, reason = "its output is data")]
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().context("usage: tokenizer_speed FILE [THREADS [PASSES [CAP_MIB]]]")?;
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (threads, passes, cap) = (number(1)?.max(1), number(3)?, number(512)? << 20);
    let documents = read_documents(&path, cap)?;
    let bytes: usize = documents.iter().map(String::len).sum();

    let started = Instant::now();
    let tokenizer = Gpt2Tokenizer::new()?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let started = Instant::now();
    let identity = tokenizer.identity()?;
    let identity_ms = started.elapsed().as_secs_f64() * 1e3;

    let mut scratches: Vec<EncodeScratch> = (0..threads).map(|_| EncodeScratch::default()).collect();
    let (mut tokens, mut speeds) = (0, Vec::new());
    for _ in 0..passes {
        let started = Instant::now();
        tokens = pass(&tokenizer, &documents, &mut scratches)?;
        speeds.push((bytes as f64 / started.elapsed().as_secs_f64() / 1e5).round() / 10.0);
    }
    let corrected: u64 = scratches.iter().map(EncodeScratch::corrections).sum();
    let report = serde_json::json!({
        "documents": documents.len(), "bytes": bytes, "tokens": tokens, "threads": threads,
        "load_ms": load_ms, "identity_ms": identity_ms, "probe_sha256": identity.probe_sha256,
        "megabytes_per_second": speeds, "corrections": corrected,
    });
    println!("{report}");
    Ok(())
}
