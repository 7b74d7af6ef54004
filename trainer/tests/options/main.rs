//! What a researcher changes on the second day: each change by its documented command, over the real programs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../common/mod.rs"]
mod common;
mod initial;
mod mixtures;
mod recipes;
mod training_options;
