//! What whole-program tests stand on: the real binaries, corpora in every input format, a loopback Hub.

pub mod corpus;
pub mod hostile;
pub mod layouts;
pub mod loopback_hub;
pub mod program;
pub mod token_losses;
