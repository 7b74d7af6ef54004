//! What whole-program tests stand on.

pub mod loopback_hub;
