//! Throughput of the tokenizer by itself: `tokenizer_speed FILE [THREADS [PASSES [CAP_MIB [TOKENIZER_JSON]]]]`.
//!
//! Reads the `text` of a .jsonl or .jsonl.zst file into memory (at most CAP_MIB MiB of it, default 512),
//! then tokenizes the documents with THREADS threads, each taking every n-th document, PASSES times. Prints
//! one JSON object: bytes, tokens and the MB/s of each pass. The first pass meets every word for the first time.
//!
//! With GPT-2's tokenizer.json the library `tokenizers` does the same as its users call it: `encode` of one
//! document, `encode` of 1000 documents, and `encode_into`, its entry for loops that allocates nothing. Each
//! begins with a tokenizer just loaded, and must give as many tokens as ours.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokenizers::pipeline::{EncodeOptions, PipelineTokenizer};
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

/// Gives each of `workers` every n-th document; the number of tokens of all.
fn pass<'a, W: Send>(
    documents: &'a [String],
    workers: &mut [W],
    work: impl Fn(&mut W, &mut dyn Iterator<Item = &'a str>) -> Result<usize> + Sync,
) -> Result<usize> {
    let (count, work) = (workers.len(), &work);
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter_mut()
            .enumerate()
            .map(|(first, worker)| {
                let mut share = documents.iter().skip(first).step_by(count).map(String::as_str);
                scope.spawn(move || work(worker, &mut share))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread died"))?).sum()
    })
}

/// MB/s of each of `passes` passes, and the tokens of the last.
fn speeds(bytes: usize, passes: usize, mut pass: impl FnMut() -> Result<usize>) -> Result<(Vec<f64>, usize)> {
    let (mut speeds, mut tokens) = (Vec::new(), 0);
    for _ in 0..passes {
        let started = Instant::now();
        tokens = pass()?;
        speeds.push((bytes as f64 / started.elapsed().as_secs_f64() / 1e5).round() / 10.0);
    }
    Ok((speeds, tokens))
}

fn ours(
    tokenizer: &Gpt2Tokenizer,
    scratch: &mut EncodeScratch,
    documents: &mut dyn Iterator<Item = &str>,
) -> Result<usize> {
    let (mut ids, mut tokens) = (Vec::new(), 0);
    for document in documents {
        ids.clear();
        tokenizer.encode_into(scratch, document, &mut ids)?;
        tokens += ids.len();
    }
    Ok(tokens)
}

/// A way to call the library.
type Call =
    fn(&PipelineTokenizer, &EncodeOptions, &mut dyn Iterator<Item = &str>) -> tokenizers::Result<usize>;

const CALLS: [(&str, Call); 3] = [
    ("encode", |tokenizer, options, documents| {
        let mut tokens = 0;
        for document in documents {
            tokens += tokenizer.encode(document, options).wait()?.iter().map(|e| e.len()).sum::<usize>();
        }
        Ok(tokens)
    }),
    ("encode_1000_documents", |tokenizer, options, documents| {
        let mut tokens = 0;
        loop {
            let batch: Vec<&str> = (&mut *documents).take(1000).collect();
            if batch.is_empty() {
                return Ok(tokens);
            }
            tokens += tokenizer.encode(batch, options).wait()?.iter().map(|e| e.len()).sum::<usize>();
        }
    }),
    ("encode_into", |tokenizer, options, documents| {
        let (mut ids, mut tokens) = (Vec::new(), 0);
        for document in documents {
            ids.clear();
            tokenizer.encode_into(document, options, &mut ids)?;
            tokens += ids.len();
        }
        Ok(tokens)
    }),
];

fn library(
    path: &str,
    documents: &[String],
    threads: usize,
    passes: usize,
    expected: usize,
) -> Result<serde_json::Value> {
    let text = tokenizers::canonicalize_file(path)?;
    let options = EncodeOptions { encode_special_tokens: true, ..EncodeOptions::no_specials() };
    let bytes = documents.iter().map(String::len).sum();
    let mut report = serde_json::Map::new();
    for (name, call) in CALLS {
        let tokenizer = tokenizers::from_json(&text).map_err(|error| anyhow::anyhow!("{path}: {error}"))?;
        let mut workers = vec![(); threads];
        let (speeds, tokens) = speeds(bytes, passes, || {
            pass(documents, &mut workers, |(), share| {
                call(&tokenizer, &options, share).map_err(|error| anyhow::anyhow!("{error}"))
            })
        })?;
        anyhow::ensure!(tokens == expected, "the library gives {tokens} tokens, ours gives {expected}");
        report.insert(name.to_owned(), speeds.into());
    }
    Ok(report.into())
}

#[allow(clippy::print_stdout, reason = "its output is data")]
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments
        .next()
        .context("usage: tokenizer_speed FILE [THREADS [PASSES [CAP_MIB [TOKENIZER_JSON]]]]")?;
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (threads, passes, cap) = (number(1)?.max(1), number(3)?, number(512)? << 20);
    let tokenizer_json = arguments.next();
    let documents = read_documents(&path, cap)?;
    let bytes: usize = documents.iter().map(String::len).sum();

    let started = Instant::now();
    let tokenizer = Gpt2Tokenizer::new()?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let started = Instant::now();
    let identity = tokenizer.identity()?;
    let identity_ms = started.elapsed().as_secs_f64() * 1e3;

    let mut scratches: Vec<EncodeScratch> = (0..threads).map(|_| EncodeScratch::default()).collect();
    let (speeds, tokens) = speeds(bytes, passes, || {
        pass(&documents, &mut scratches, |scratch, share| ours(&tokenizer, scratch, share))
    })?;
    let library = match tokenizer_json {
        Some(path) => library(&path, &documents, threads, passes, tokens)?,
        None => serde_json::Value::Null,
    };
    let corrected: u64 = scratches.iter().map(EncodeScratch::corrections).sum();
    let report = serde_json::json!({
        "documents": documents.len(), "bytes": bytes, "tokens": tokens, "threads": threads,
        "load_ms": load_ms, "identity_ms": identity_ms, "probe_sha256": identity.probe_sha256,
        "megabytes_per_second": speeds, "corrections": corrected, "library": library,
    });
    println!("{report}");
    Ok(())
}
