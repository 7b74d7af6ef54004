//! sLSTM, mLSTM and the operations around them: one reference and the fast versions of each, one function in front.
//!
//! | function | paper | versions |
//! |---|---|---|
//! | [`mlstm::mlstm`], [`mlstm::mlstm_step`] | eq. 19–27, 71–86 | quadratic reference, recurrent step, chunkwise |
//! | [`slstm::slstm`] | eq. 8–17 | step loop, fused loop |
//! | [`conv::causal_conv_silu`] | fig. 10, 11 | reference, fused |
//! | [`norm::layer_norm`], [`norm::head_norm`] | fig. 10, 11 | reference, fused |
//! | [`gates`] | fig. 10, 11 | reference, fused |
//! | [`projections::mlstm_projections`] | fig. 11 | composed, fused |
//! | [`linear::linear`] | – | libtorch, own product |
//! | [`cross_entropy::projected_cross_entropy`] | – | composed, fused |
//!
//! Names of tensors end in their shape: `x_BTD` has dimensions batch, time, width. The letters, everywhere:
//!
//! ```text
//! B  batch           T  time (tokens)     D  width of the stream    H  heads
//! K  width of a head's keys and queries   V  width of a head's values (sLSTM: D per head is written E)
//! G  the four gates of sLSTM, in the order input, forget, cell input (z), output
//! ```
//!
//! Everything is laid out as the stream is, batch and time first: `q_BTHK` is a plain view of a `(B, T, H·K)`
//! tensor, and no function needs a transposed copy. Each function takes any length (also 1), initial states where
//! it has any, and optional `resets_BT` (boolean: forget everything *before* this step, for document boundaries).
//! `Float` and `Double` are computed as they are; `BFloat16` and `Half` are computed in `Float` and rounded once at
//! the end. States are returned in the computing type.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]

pub mod conv;
pub mod cpu;
pub mod cross_entropy;
pub mod cuda;
mod error;
pub mod gates;
pub mod linear;
pub mod mlstm;
pub mod norm;
pub mod projections;
mod shape;
pub mod slstm;

pub use error::KernelError;
