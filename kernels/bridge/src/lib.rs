//! What libtorch has and `tch` does not bind, behind safe Rust.
//!
//! | module | what it brings | C++ half |
//! |---|---|---|
//! | [`autograd`] | functions with a backward pass written in Rust, activation checkpointing, gradients with given cotangents | `cpp/autograd.cpp` |
//! | [`named`] | tensors by name: inputs, outputs and saved tensors of a node as structs | none |
//! | [`distributed`] | a table shared by processes, collective operations, gradients summed during the backward pass | `cpp/store.cpp`, `cpp/process_group.cpp`, `cpp/reducer.cpp` |
//! | [`runtime`] | denormals, threads, versions, memory | `cpp/runtime.cpp` |
//! | [`multi_tensor`] | AdamW and norms over many tensors in a few launches | `cpp/lists.cpp` |
//! | [`memory`] | pinned memory, the peak of a GPU | `cpp/lists.cpp` |
//! | [`cuda`] | opens libtorch's CUDA half at run time, where there is a driver; a thread's stream | `cpp/stream.cpp` |
//! | [`graph`] | launches recorded once and replayed | `cpp/cuda_half/graph.cpp` |
//!
//! The program links only the CPU half of libtorch. Everything crosses the border as plain C (`cpp/abi.h`): C++
//! exceptions become [`BridgeError`], panics of Rust become C++ exceptions inside the autograd engine and come
//! back as errors of the `backward` call; nothing unwinds across.

pub mod autograd;
pub mod cuda;
mod cuda_half;
pub mod distributed;
mod error;
mod ffi;
pub mod graph;
pub mod memory;
pub mod multi_tensor;
pub mod named;
pub mod runtime;

pub use error::{BoxError, BridgeError};
