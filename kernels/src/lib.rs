//! sLSTM, mLSTM, the cells of the methods they are compared with, and the operations around them: one reference and the
//! fast versions of each, one function in front.
//!
//! | function | paper | versions |
//! |---|---|---|
//! | [`mlstm::mlstm`], [`mlstm::mlstm_step`] | eq. 19–27, 71–86 | quadratic reference, recurrent step, chunkwise |
//! | [`slstm::slstm`] | eq. 8–17 | step loop, fused loop |
//! | [`lstm::lstm`] | – | step loop, fused loop |
//! | [`conv::causal_conv_silu`], [`conv::causal_conv`] | fig. 10, 11 | reference, fused |
//! | [`norm::layer_norm`], [`norm::head_norm`] | fig. 10, 11 | reference, fused |
//! | [`gates`] | fig. 10, 11 | reference, fused |
//! | [`projections::mlstm_projections`] | fig. 11 | composed, fused |
//! | [`dropout::dropout`] | appendix B.1.1 | composed, fused on a GPU |
//! | [`embedding::embedding`] | – | libtorch; on a GPU a gradient in a fixed order |
//! | [`linear::linear`] | – | libtorch, own product |
//! | [`cross_entropy::projected_cross_entropy`] | – | composed, fused |
//! | [`linear_attention::linear_attention`] | GLA, HGRN2, RetNet, RWKV-5, RWKV-6 | step loop, chunks, fused loop |
//! | [`scan::linear_scan`], [`scan::selective_scan`], [`scan::gated_selective_scan`], [`scan::wkv`] | HGRN, Mamba, RWKV-4 | step loop, doubling, fused loop |
//! | [`token_shift::token_shift`] | RWKV | composed, fused on a GPU |
//! | [`transformer::rotary`], [`transformer::swiglu`] | Llama and those with its shell | composed, fused on a GPU |
//! | [`gated_norm::gated_norm`] | GLA, HGRN, RetNet, RWKV-5, RWKV-6 | composed, fused on a GPU |
//! | [`long_convolution::long_convolution`] | H3, Hyena | libtorch |
//!
//! Names of tensors end in their shape: `x_BTD` has dimensions batch, time, width. The letters, everywhere:
//!
//! ```text
//! B  batch                                D  width of what an operation takes (a head's share of it: E)
//! T  time (tokens)                        F  twice D, or the inner width of a feed-forward part
//! H  heads                                G  gates: of sLSTM input, forget, cell input (z), output
//! K  width of a head's keys and queries   W  taps of a convolution; L of a long one
//! V  width of a head's values, and the vocabulary where there are no heads
//! N  rows (batch and time as one), blocks of a block-diagonal map, states of a channel: the function says which
//! O, I  outputs and inputs of a map       M  chunks, where a function says so
//! ```
//!
//! Everything is laid out as the residual is, batch and time first: `q_BTHK` is a plain view of a `(B, T, H·K)`
//! tensor, and no function needs a transposed copy. Each function takes any length (also 1), initial states where
//! it has any, and optional `resets_BT` (boolean: forget everything *before* this step, for document boundaries).
//! `Float` and `Double` are computed as they are; `BFloat16` and `Half` are computed in `Float` and rounded once at
//! the end. States are returned in the computing type.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]

pub mod conv;
pub mod cpu;
pub mod cross_entropy;
pub mod cuda;
pub mod dropout;
pub mod embedding;
mod error;
pub mod gated_norm;
pub mod gates;
pub mod linear;
pub mod linear_attention;
pub mod long_convolution;
pub mod lstm;
pub mod mlstm;
pub mod norm;
pub mod projections;
mod recurrent;
pub mod scan;
mod shape;
pub mod slstm;
pub mod token_shift;
pub mod transformer;
pub mod z_loss;

pub use error::KernelError;
