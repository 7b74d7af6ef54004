//! How good a model is, where, and on which data.
//!
//! | module | holds |
//! |---|---|
//! | [`results`] | the report that every evaluation writes |
//! | [`paper`] | the paper's own figures, to stand beside ours |

pub mod paper;
pub mod results;
