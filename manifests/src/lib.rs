//! The contract between data and training.
//!
//! A dataset is a folder with one split's `manifest.json`, its shards and a `manifest-sha256.txt`:
//!
//! ```text
//! train/
//!   manifest.json          what this is, where it came from, every digest and count   (module `manifest`)
//!   shard-00000.arrow      rows, Arrow IPC, read in place through mmap                (modules `packed`, `examples`)
//!   spans-00000.arrow      where each document that starts in shard 0 is              (module `spans`)
//!   manifest-sha256.txt    `sha256sum -c` accepts it                                  (module `checksums`)
//! ```
//!
//! Whatever is stored, a model gets inputs, targets and beginnings of documents from one reader (module `rows`).
//! A run over it, or over several (modules `mixture`, `mixed_rows`), keeps `run.json` (module `run_manifest`); which rows
//! make a step is arithmetic (module `order`), and what else decides it is a recipe (module `recipe`).
//!
//! `root` (module `identity`) is one digest over everything that decides the tokens and nothing that
//! does not: no time, host, thread count, shard size or path of the machine enters it.
//! The byte-level description is `docs/reference/dataset-format.md`.

pub mod arrow_file;
mod arrow_layout;
pub mod atomic;
pub mod canonical;
pub mod catalog;
pub mod checksums;
pub mod dataset;
mod dataset_ref;
pub mod digest;
pub mod documents;
pub mod error;
pub mod examples;
pub mod file_digest;
mod hashing_writer;
pub mod identity;
pub mod manifest;
pub mod mapped;
pub mod merkle;
pub mod mixed_rows;
pub mod mixture;
pub mod order;
pub mod origin;
pub mod packed;
pub mod printable;
pub mod reading;
pub mod recipe;
pub mod rows;
pub mod rows_writer;
mod run_checks;
pub mod run_manifest;
pub mod safe_path;
mod sha256_lanes;
pub mod spans;
pub mod stored;
pub mod token_counts;
pub mod vectors;
mod versioned;

pub use dataset::Dataset;
pub use digest::Sha256Digest;
pub use error::{Error, Result};
pub use manifest::Manifest;

/// Tokens in a packed row that `prepare` writes: the paper's context length. Readers ask the manifest.
pub const ROW_LENGTH: usize = 2048;

/// GPT-2's `<|endoftext|>`, the separator of text that `prepare` writes. Readers ask the manifest.
pub const END_OF_TEXT: u16 = 50256;
