//! A local server that speaks the completions protocol of OpenAI, for EleutherAI's lm-evaluation-harness and for
//! anything else that knows it.
//!
//! ```text
//! GET  /v1/models                      the one model that is served
//! POST /v1/completions                 text after prompts, whole or as it is generated (`stream`); with `echo` and `logprobs`,
//!                                      log-likelihoods of the prompts
//! GET  /tokenizer_info                 `<|endoftext|>` as begin and end   (vLLM's tokenizer endpoints, which the
//! POST /tokenize, POST /detokenize     text to ids and back                harness uses as `tokenizer_backend=remote`)
//! ```
//! It listens on the loopback interface unless told otherwise, and takes JSON only, which a page in a browser cannot
//! send to it unasked. One thread owns the model: prompts of a request, and of all requests that wait to be
//! scored, are computed together. On a CPU texts of several requests are generated together too, and a request begins while others go on
//! (`together.rs`); on a GPU, where a batch that stays the same is recorded, one request after the other. Everything a stranger can send is bounded (`http.rs`); what a client no longer waits for is given up.

mod completion;
mod connections;
mod engine;
mod http;
mod protocol;
mod queue;
mod score;
mod sending;
mod stream;
mod texts;
mod together;

pub use engine::Engine;
pub use http::{Server, serve};
pub use protocol::{CompletionRequest, Prompts};
pub use score::{Score, score};
