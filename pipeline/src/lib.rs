//! From bytes on the Hub to audited shards.
//!
//! ```text
//! inputs (hub | local | crates) ─► records ─► tokenize ─► sink (packed rows | documents) ─► manifest
//! ```
//! Work is split by input and put together in input order, so no thread count, task count or restart
//! can change a byte of what is written.

pub mod audit;
pub mod cli;
pub mod count;
pub mod diff;
pub mod duplicates;
pub mod engine;
pub mod export;
mod guard;
pub mod hub;
pub mod merge;
pub mod overlap;
pub mod plan;
pub mod prepare;
pub mod record;
pub mod report;
pub mod show;
pub mod sources;
pub mod split;
pub mod tasks;
pub mod tokenizer;
pub mod trace;
