//! Several processes that compute as one: c10d's store, process group and reducer.
//!
//! ```text
//!              Store (TCP)                        one process holds it; keys and bytes: who is there, who is alive
//!            ╱     │     ╲
//!      rank 0   rank 1   rank 2                   Group: sums and broadcasts, Gloo on CPUs, NCCL on GPUs
//!      Reducer  Reducer  Reducer                  gradients are summed bucket by bucket during the backward pass
//! ```
//! All ranks make the same calls on a [`Group`] in the same order. A rank that is gone makes the calls of the others
//! fail: at once where its connection breaks, else after the group's timeout.

mod ffi;
mod group;
mod nccl;
mod store;

pub use group::{BucketCounter, Group, Reducer};
pub use nccl::has_nccl;
pub use store::Store;

/// A time in whole milliseconds, as c10d takes it.
fn milliseconds(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
