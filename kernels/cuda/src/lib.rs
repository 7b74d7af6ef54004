//! CUDA kernels of the sLSTM and mLSTM layers, and of the recurrences that they are compared with, compiled when they are first needed.
//!
//! The `.cu` and `.cuh` files beside this crate are part of the binary. NVRTC, opened at run time ([`Nvrtc`]), turns
//! them into machine code for one architecture and one set of sizes ([`Specialization`]); the result is kept in a
//! folder under the digest of everything that decides it ([`Cache`]). Nothing of CUDA is needed to build, and no
//! header of CUDA to compile: the sources state their instructions themselves. Where there is no GPU, everything up
//! to the machine code still works, with the assembler's account of registers and spills ([`ResourceReport`]):
//! that is how tests see every kernel without one.
//!
//! This crate knows neither tensors nor libtorch.

mod architecture;
mod cache;
mod description;
pub mod driver;
pub mod dropout;
mod error;
pub mod gated_norm;
pub mod layers;
mod library;
pub mod linear_attention;
pub mod linear_attention_chunks;
pub mod mlstm;
pub mod mlstm_step;
mod nvrtc;
mod paper;
pub mod precise;
pub mod recurrent;
mod report;
pub mod scan;
pub mod selective_scan;
pub mod selfcheck;
pub mod short;
pub mod slstm;
mod source;
mod specialization;
pub mod step_product;
pub mod token_shift;
pub mod transformer;

pub use architecture::Architecture;
pub use cache::Cache;
pub use description::{Description, describe};
pub use error::CudaError;
pub use nvrtc::{Compiled, Nvrtc};
pub use paper::paper_specializations;
pub use report::{KernelResources, ResourceReport};
pub use source::Source;
pub use specialization::{MlstmSizes, SlstmSizes, Specialization};
