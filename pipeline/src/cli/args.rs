//! Arguments, as clap parses them: the doc comments are the help texts.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use xlstm_manifests::canonical;

use crate::prepare::Task;

/// Arguments of `prepare` and `plan`.
#[derive(Debug, Args)]
pub(super) struct PrepareArgs {
    #[command(subcommand)]
    pub(super) dataset: DatasetArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum DatasetArgs {
    /// SlimPajama-627B, or a sample of it, from the Hub
    Slimpajama {
        /// Which copy: `original` (jsonl.zst), `reupload` (all of it as Parquet) or `6b` (a sample, Parquet)
        #[arg(long, default_value = "original")]
        profile: String,
        /// Branch, tag or commit in place of the pinned one
        #[arg(long)]
        revision: Option<String>,
        /// Split to prepare: train, validation, test; repeat for several [default: all]
        #[arg(long = "split", value_name = "SPLIT")]
        splits: Vec<String>,
        #[command(flatten)]
        hub: HubArgs,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// PALOMA, the sixteen public sources, stored by document with evaluation windows (gated: accept its license
    /// on the Hub and set HF_TOKEN)
    Paloma {
        /// Branch, tag or commit in place of the pinned one
        #[arg(long)]
        revision: Option<String>,
        /// Split to prepare: val, test; repeat for several [default: all]
        #[arg(long = "split", value_name = "SPLIT")]
        splits: Vec<String>,
        /// Source (folder in the repository) to prepare; repeat for several [default: all sixteen]
        #[arg(long = "source", value_name = "SOURCE")]
        sources: Vec<String>,
        #[command(flatten)]
        hub: HubArgs,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// The text of the crates in a Cargo.lock, from cargo's own cache: needs no Hub
    Crates {
        /// The lock file
        #[arg(long, default_value = "Cargo.lock")]
        lockfile: PathBuf,
        /// License of these crates, in your words or as an SPDX identifier: the manifest records it as your statement,
        /// which nobody checked, beside what each crate says itself
        #[arg(long, value_name = "LICENSE")]
        license: Option<String>,
        /// Hold out this fraction of the documents, chosen by digest, as split `validation`
        #[arg(long, value_name = "FRACTION", allow_negative_numbers = true)]
        holdout: Option<String>,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Files and folders of .txt, .md, .jsonl (plain, .zst, .gz) and .parquet
    Local {
        /// Files and folders
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Field that holds the text; dots lead into nested fields
        #[arg(long, default_value = "text", value_name = "FIELD")]
        text_field: String,
        /// Field that names the set a document counts towards
        #[arg(long, value_name = "FIELD")]
        set_field: Option<String>,
        /// Field that names the document
        #[arg(long, value_name = "FIELD")]
        id_field: Option<String>,
        /// Field that holds a document's own license: kept by document, with totals in the manifest
        #[arg(long, value_name = "FIELD")]
        license_field: Option<String>,
        /// License of these files, in your words or as an SPDX identifier: the manifest records it as your statement,
        /// which nobody checked
        #[arg(long, value_name = "LICENSE")]
        license: Option<String>,
        /// Field that says where a document is from (a repository, a site): kept likewise
        #[arg(long, value_name = "FIELD")]
        source_field: Option<String>,
        /// Hold out this fraction of the documents, chosen by digest, as split `validation`
        #[arg(long, value_name = "FRACTION", conflicts_with = "split", allow_negative_numbers = true)]
        holdout: Option<String>,
        /// Name of the split
        #[arg(long, default_value = "train")]
        split: String,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Examples of a generated task of the paper's Section 4.1: formal languages, associative recall, ListOps
    Task(Box<super::task::TaskArgs>),
    /// Examples with targets of their own, from files: masked sequence tasks, labeled sequences
    Examples(ExamplesArgs),
}

/// Examples from files of this machine.
#[derive(Debug, Args)]
pub(super) struct ExamplesArgs {
    /// Files of .jsonl (plain, .zst, .gz), one object a line: `input_ids` and `targets` of equal length, a target null
    /// (or -100) where nothing is scored; or `inputs` and `targets` that are numbers, a list of inputs for each target (or
    /// all in one list), a target null where nothing is scored; `length`, `id` and `set` may be added
    #[arg(required = true, value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    /// Output folder: one folder a split is made in it
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Name of the split
    #[arg(long, default_value = "train")]
    pub(super) split: String,
    /// Hold out this fraction of the examples, chosen by digest, as split `validation`
    #[arg(long, value_name = "FRACTION", conflicts_with = "split", allow_negative_numbers = true)]
    pub(super) holdout: Option<String>,
    /// License of these files, in your words or as an SPDX identifier: the manifest records it as your statement, which
    /// nobody checked
    #[arg(long, value_name = "LICENSE")]
    pub(super) license: Option<String>,
    /// Positions in a row; shorter examples are padded [default: those of the longest example]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) row_length: Option<u16>,
    /// Ids are below this number; give the same for all splits of one dataset [default: one more than the highest id]
    #[arg(long, value_name = "N")]
    pub(super) vocabulary_size: Option<u32>,
    /// What to do about a record that cannot be used: `skip` counts it, by reason, in the manifest
    #[arg(long, default_value = "fail", value_parser = ["fail", "skip"])]
    pub(super) on_bad_record: String,
    /// Rows in a shard; decides nothing else
    #[arg(long, default_value_t = 16_384, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=canonical::LARGEST))]
    pub(super) rows_per_shard: u64,
    /// Discard what an earlier run left in the split's folder
    #[arg(long)]
    pub(super) restart: bool,
    /// Only say what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(super) json: bool,
}

/// Options of datasets on the Hub.
#[derive(Debug, Args)]
pub(super) struct HubArgs {
    /// Folder with files already downloaded, laid out as in the repository; they are checked all the same
    #[arg(long, value_name = "DIR", help_heading = "Hub")]
    pub(super) from: Option<PathBuf>,
    /// Never ask the Hub: use a kept listing, or with --from take the files found there unchecked
    #[arg(long, help_heading = "Hub")]
    pub(super) offline: bool,
    /// Where downloads go [default: OUT/downloads]
    #[arg(long, value_name = "DIR", help_heading = "Hub")]
    pub(super) downloads: Option<PathBuf>,
    /// Remove each download once everything read from it is durable
    #[arg(long, help_heading = "Hub")]
    pub(super) discard_downloads: bool,
    /// Downloads at the same time
    #[arg(long, default_value_t = 8, value_name = "N", help_heading = "Hub")]
    pub(super) parallel_downloads: usize,
}

/// Options of all datasets.
#[derive(Debug, Args)]
pub(super) struct CommonArgs {
    /// Output folder: one folder a split is made in it
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Tokenizer threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,
    /// Stop after the document that reaches this many tokens: 15B, 300M, 2_000_000
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(super) max_tokens: Option<u64>,
    /// Leave out documents of this set, such as RedPajamaBook; repeat for several
    #[arg(long = "exclude-set", value_name = "SET")]
    pub(super) exclude_sets: Vec<String>,
    /// Leave out the copies that `xlstm-data duplicates --list FILE` found in these files: all but the first of each kind
    #[arg(long, value_name = "FILE")]
    pub(super) drop_duplicates: Option<PathBuf>,
    /// What to do about a record that cannot be used: `skip` counts it, by reason, in the manifest
    #[arg(long, default_value = "fail", value_parser = ["fail", "skip"])]
    pub(super) on_bad_record: String,
    /// Do task I of N: a contiguous share of the inputs, for `merge`
    #[arg(long, value_name = "I/N", value_parser = parse_task)]
    pub(super) task: Option<Task>,
    /// Rows of 2048 tokens in a shard; decides no token
    #[arg(long, default_value_t = 16_384, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=canonical::LARGEST))]
    pub(super) rows_per_shard: u64,
    /// Discard what an earlier run left in the split's folder
    #[arg(long)]
    pub(super) restart: bool,
    /// Only say what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(super) json: bool,
    /// No progress bars
    #[arg(long)]
    pub(super) quiet: bool,
}

/// Arguments of `merge`.
#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// Output folder that `prepare --task` was given: its parts/ are merged into one folder a split
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Part folders from elsewhere, of one split [default: all in OUT/parts]
    pub(super) parts: Vec<PathBuf>,
    /// Remove the parts once the whole is durable
    #[arg(long)]
    pub(super) remove_parts: bool,
    /// Discard what an earlier merge left
    #[arg(long)]
    pub(super) restart: bool,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(super) json: bool,
}

/// `15B`, `300M`, `20k`, `2_000_000`.
pub(super) fn parse_count(text: &str) -> Result<u64, String> {
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    let (digits, scale) = match plain.char_indices().last() {
        Some((at, 'k' | 'K')) => (&plain[..at], 1_000),
        Some((at, 'm' | 'M')) => (&plain[..at], 1_000_000),
        Some((at, 'b' | 'B' | 'g' | 'G')) => (&plain[..at], 1_000_000_000),
        Some((at, 't' | 'T')) => (&plain[..at], 1_000_000_000_000),
        _ => (plain.as_str(), 1),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(scale))
        .filter(|&number| number > 0)
        .ok_or_else(|| format!("expected a count such as 15B, 300M or 2000000, found `{text}`"))
        .and_then(|number| match number {
            0..=canonical::LARGEST => Ok(number),
            _ => Err(format!("expected a count of at most {}, found `{text}`", canonical::LARGEST)),
        })
}

/// `3/7`.
pub(super) fn parse_task(text: &str) -> Result<Task, String> {
    let fail = || format!("expected I/N with 1 ≤ I ≤ N, such as 3/7, found `{text}`");
    let (index, count) = text.split_once('/').ok_or_else(fail)?;
    let (index, count) = (index.parse().map_err(|_| fail())?, count.parse().map_err(|_| fail())?);
    if index == 0 || index > count { Err(fail()) } else { Ok(Task { index, count }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_tasks_are_read_as_people_write_them() {
        assert_eq!(parse_count("15B"), Ok(15_000_000_000));
        assert_eq!(parse_count("2_000"), Ok(2000));
        for bad in ["", "B", "0", "-1", "1.5B", "99999999999T"] {
            assert!(parse_count(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_task("3/7"), Ok(Task { index: 3, count: 7 }));
        for bad in ["", "0/7", "8/7", "3", "a/b"] {
            assert!(parse_task(bad).is_err(), "{bad}");
        }
    }
}
