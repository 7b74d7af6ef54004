//! `xlstm-data count`: how often each token occurs in a split of text.
//!
//! Tokens are those that are predicted: of a packed split all valid tokens, separators included; of a split stored by
//! document its documents' tokens. Every shard is compared with the manifest before it counts.

use std::io::Write;
use std::path::PathBuf;

use rayon::prelude::*;
use serde_json::json;
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::documents::DocumentShard;
use xlstm_manifests::manifest::{Layout, Shard};
use xlstm_manifests::token_counts::{FREQUENCY_BUCKETS, TokenCounts, counts_of_bucket, frequency_bucket};
use xlstm_manifests::{Dataset, Error, Manifest, printable};

use crate::report::{CommandError, Outcome, count as shown, write_json};

/// Count how often each token occurs in a split of text
#[derive(Debug, Clone, clap::Args)]
pub struct CountArgs {
    /// Folder of a split, or its manifest
    #[arg(value_name = "SPLIT")]
    pub path: PathBuf,
    /// File for the counts, as `xlstm-eval perplexity --counts` takes it
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Counts the tokens of the split that `args` name.
///
/// # Errors
/// When it is no split of text, or is not what its manifest says.
pub fn count(args: &CountArgs) -> Result<TokenCounts, CommandError> {
    let manifest = Manifest::load(&args.path)?;
    let file = Manifest::locate(&args.path);
    let folder = file.parent().unwrap_or(std::path::Path::new(".")).to_path_buf();
    let size = manifest.tokenizer.vocabulary_size as usize;
    let counts = match manifest.layout {
        Layout::Packed => {
            let dataset = Dataset::open_checked(&args.path)?;
            let rows = |shard: (u64, &Shard)| -> Result<Vec<u64>, CommandError> {
                let mut counts = vec![0; size];
                for row in shard.0..shard.0 + shard.1.file.records {
                    add(&mut counts, dataset.row(row)?.tokens());
                }
                Ok(counts)
            };
            let shards: Vec<_> = dataset.shards().collect();
            shards.into_par_iter().map(rows).try_reduce(|| vec![0; size], |a, b| Ok(sum(a, &b)))?
        }
        Layout::Documents => {
            let documents = |shard: &Shard| -> Result<Vec<u64>, CommandError> {
                let path = shard.file.path.resolve(&folder)?;
                let (_, found) = digest_file(&path)?;
                if found != shard.file.sha256 {
                    let expected = format!("SHA-256 {}", shard.file.sha256);
                    return Err(Error::damaged(&path, expected, found.to_string()).into());
                }
                let mut counts = vec![0; size];
                for document in DocumentShard::open(&path, shard.file.records)?.iter() {
                    add(&mut counts, &document.ids);
                }
                Ok(counts)
            };
            manifest.shards.par_iter().map(documents).try_reduce(|| vec![0; size], |a, b| Ok(sum(a, &b)))?
        }
        layout @ (Layout::Examples | Layout::Vectors) => {
            let hint =
                "the frequency of tokens is about text: count a split that `prepare` made of documents";
            let expected = format!("layout `{}` or `{}`", Layout::Packed, Layout::Documents);
            return Err(Error::mismatch(&file, expected, format!("layout `{layout}`"), hint).into());
        }
    };
    let counts = TokenCounts::new(&manifest, counts);
    if manifest.totals.tokens == 0 {
        let hint = "how often a token occurs says nothing where none does: count a split with text";
        return Err(Error::mismatch(&file, "at least one token", "none", hint).into());
    }
    if counts.tokens == manifest.totals.tokens {
        return Ok(counts);
    }
    let expected = format!("{} tokens below {size}, as the manifest says", manifest.totals.tokens);
    Err(Error::damaged(&file, expected, counts.tokens.to_string()).into())
}

/// Ids outside the vocabulary count for nothing, so that the sum tells of them.
fn add(counts: &mut [u64], ids: &[u16]) {
    for &id in ids {
        if let Some(count) = counts.get_mut(usize::from(id)) {
            *count += 1;
        }
    }
}

fn sum(mut all: Vec<u64>, more: &[u64]) -> Vec<u64> {
    all.iter_mut().zip(more).for_each(|(sum, count)| *sum += count);
    all
}

/// Runs the command: what was counted goes to `out`.
///
/// # Errors
/// As [`count`], and when the file or the report cannot be written.
pub fn run(args: &CountArgs, out: &mut dyn Write) -> Result<Outcome, CommandError> {
    let counts = count(args)?;
    let written = counts.store(&args.out)?;
    let buckets = buckets(&counts);
    if args.json {
        let list: Vec<_> = buckets
            .iter()
            .map(|(first, last, types, tokens)| json!({"first": first, "last": last, "types": types, "tokens": tokens}))
            .collect();
        let report = json!({
            "path": args.out, "sha256": written.sha256, "root": counts.root, "tokens": counts.tokens,
            "types": counts.types, "buckets": list,
        });
        write_json(out, &report)?;
        return Ok(Outcome::Clean);
    }
    writeln!(
        out,
        "{} tokens of {} types in split {}, root {}",
        shown(counts.tokens),
        shown(counts.types),
        printable::text(&counts.split),
        counts.root
    )?;
    for (first, last, types, tokens) in buckets {
        let range = match last {
            Some(last) if last == first => shown(first),
            Some(last) => format!("{} to {}", shown(first), shown(last)),
            None => format!("{} and more", shown(first)),
        };
        writeln!(out, "  {range:>20} times  {:>8} types  {:>16} tokens", shown(types), shown(tokens))?;
    }
    writeln!(out, "{}  {}", written.sha256, printable::path(&args.out))?;
    Ok(Outcome::Clean)
}

/// Of each bucket its smallest and largest count, and its types and tokens.
fn buckets(counts: &TokenCounts) -> Vec<(u64, Option<u64>, u64, u64)> {
    let mut sums = [(0, 0); FREQUENCY_BUCKETS];
    for &count in &counts.counts {
        let (types, tokens) = &mut sums[frequency_bucket(count)];
        *types += 1;
        *tokens += count;
    }
    let named = |(bucket, (types, tokens)): (usize, (u64, u64))| {
        let (first, last) = counts_of_bucket(bucket);
        (first, last, types, tokens)
    };
    sums.into_iter().enumerate().map(named).collect()
}
