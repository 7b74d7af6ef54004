//! How good a model is, where, and on which data.
//!
//! ```text
//! open ─► corpus ─► score ──────────► statistics ─► perplexity | paloma ─► results ─► output
//! checks   cut        batches, ranks,                                       JSON, CSV, Markdown
//!                     journal
//! ```
//! | module | holds |
//! |---|---|
//! | [`results`] | the report that every evaluation writes |
//! | [`open`] | model and dataset, checked |
//! | [`corpus`], [`score`] | a split as sequences, and their log-likelihoods |
//! | [`statistics`], [`perplexity`], [`paloma`] | figures from sums over documents |
//! | [`documents`], [`paired`] | figures of single documents, and whether two recipes differ |
//! | [`evaluate`] | one evaluation from arguments to report |
//! | [`stored`] | stored targets instead of text: how many tokens come out first (`accuracy`), how far off numbers are (`squared_error`) |
//! | [`losses`] | losses of single tokens as a table |
//! | [`own_text`] | a file of text in place of a prepared split |
//! | [`extrapolate`], [`throughput`] | longer contexts than in training; speed of generation |
//! | [`output`], [`text`] | a report as files and for people |
//! | [`paper`] | the paper's own figures, to stand beside ours |

mod accuracy;
pub mod corpus;
pub mod documents;
pub mod evaluate;
pub mod extrapolate;
mod handed_over;
mod journal;
pub mod losses;
pub mod open;
pub mod output;
pub mod own_text;
pub mod paired;
pub mod paloma;
pub mod paper;
pub mod perplexity;
mod progress;
pub mod results;
pub mod score;
mod squared_error;
pub mod statistics;
pub mod stored;
pub mod text;
pub mod throughput;
