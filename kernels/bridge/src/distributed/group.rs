//! Collective operations, and gradients that are summed while the backward pass runs.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::time::Duration;

use tch::{Device, Tensor};

use super::{Store, ffi, milliseconds};
use crate::{BridgeError, ffi as common};

/// Bytes of gradients that go over the network at a time; libtorch's own default.
const BUCKET_BYTES: i64 = 25 << 20;

/// c10d's process group over the ranks of a run: Gloo for tensors on the CPU, NCCL for those on a GPU.
///
/// A group after a failed call is not destroyed but left to the end of the process: its threads may wait for a rank
/// that never answers.
#[derive(Debug)]
pub struct Group {
    handle: Arc<GroupHandle>,
}

/// Reads how many buckets of gradients this rank has sent, from any thread.
#[derive(Debug, Clone)]
pub struct BucketCounter(Arc<GroupHandle>);

#[derive(Debug)]
struct GroupHandle {
    pointer: *mut c_void,
    failed: std::sync::atomic::AtomicBool,
}

// SAFETY: the owner calls collectives from one thread at a time ([`Group`] is not Sync); other threads only read the
// atomic counter of buckets.
unsafe impl Send for GroupHandle {}
// SAFETY: as above.
unsafe impl Sync for GroupHandle {}

impl Drop for GroupHandle {
    fn drop(&mut self) {
        if !self.failed.load(std::sync::atomic::Ordering::Relaxed) {
            // SAFETY: made by xlstm_group_create, freed once.
            unsafe { ffi::xlstm_group_free(self.pointer) };
        }
    }
}

impl Group {
    /// Joins the group; every rank calls it with the same `world` and a `store` onto the same table.
    ///
    /// `device` is where the ranks compute: on GPUs, tensors there are reduced by NCCL. A call that waits longer
    /// than `timeout` fails. `loopback` keeps all of Gloo's connections on this machine; else the address of the
    /// host's name is used, or of the interface that `GLOO_SOCKET_IFNAME` names.
    ///
    /// # Errors
    /// When a rank does not come in time, or the device's backend is missing.
    pub fn join(
        store: &Store,
        (rank, world): (u64, u64),
        device: Device,
        timeout: Duration,
        loopback: bool,
    ) -> Result<Self, BridgeError> {
        let number = |value: u64| c_int::try_from(value).unwrap_or(c_int::MAX);
        let (nccl, gpu) = match device {
            Device::Cuda(gpu) => (Some(super::nccl::backend_function()?), c_int::try_from(gpu).unwrap_or(0)),
            _ => (None, 0),
        };
        let mut pointer = std::ptr::null_mut();
        // SAFETY: the store is alive, and the group takes a reference of its own to what it needs of it.
        unsafe {
            common::check(ffi::xlstm_group_create(
                store.handle(),
                number(rank),
                number(world),
                milliseconds(timeout),
                c_int::from(loopback),
                nccl,
                gpu,
                &mut pointer,
            ))?;
        }
        Ok(Self { handle: Arc::new(GroupHandle { pointer, failed: false.into() }) })
    }

    /// For a thread that watches this rank.
    #[must_use]
    pub fn progress(&self) -> BucketCounter {
        BucketCounter(Arc::clone(&self.handle))
    }

    /// Sums a tensor over all ranks, in place.
    ///
    /// # Errors
    /// When a rank is gone or does not answer in time.
    pub fn sum(&self, tensor: &Tensor) -> Result<(), BridgeError> {
        // SAFETY: the tensor is alive during the call, which returns when the sum is there.
        self.note(unsafe { common::check(ffi::xlstm_group_sum(self.handle.pointer, tensor.as_ptr().cast())) })
    }

    /// Copies rank 0's tensors over those of the others, in place. All on one device.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn broadcast(&self, tensors: &[Tensor]) -> Result<(), BridgeError> {
        let handles = common::handles(tensors.iter().map(Some));
        // SAFETY: the tensors are alive during the call.
        self.note(unsafe {
            common::check(ffi::xlstm_group_broadcast(self.handle.pointer, handles.as_ptr(), handles.len()))
        })
    }

    /// Returns when all ranks have come here.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub fn barrier(&self) -> Result<(), BridgeError> {
        self.sum(&Tensor::f_zeros([1], (tch::Kind::Float, Device::Cpu))?)
    }

    /// Sums the gradients of these parameters during backward passes. Every rank names the same ones in the same
    /// order.
    ///
    /// # Errors
    /// When ranks differ in the parameters' number or shapes, or as [`sum`](Self::sum).
    pub fn reducer(&self, parameters: &[Tensor]) -> Result<Reducer, BridgeError> {
        let handles = common::handles(parameters.iter().map(Some));
        let mut pointer = std::ptr::null_mut();
        // SAFETY: the parameters are alive during the call, the reducer keeps references of its own.
        self.note(unsafe {
            common::check(ffi::xlstm_reducer_create(
                self.handle.pointer,
                handles.as_ptr(),
                handles.len(),
                BUCKET_BYTES,
                &mut pointer,
            ))
        })?;
        Ok(Reducer { pointer, group: Arc::clone(&self.handle) })
    }

    /// From now on the group is left alone when it is dropped: a rank is lost.
    pub fn abandon(&self) {
        self.handle.abandon();
    }

    fn note<T>(&self, result: Result<T, BridgeError>) -> Result<T, BridgeError> {
        if result.is_err() {
            self.abandon();
        }
        result
    }
}

impl GroupHandle {
    fn abandon(&self) {
        self.failed.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

impl BucketCounter {
    /// Buckets of gradients that this rank has handed to the group.
    #[must_use]
    pub fn buckets(&self) -> u64 {
        // SAFETY: the handle is alive, and the counter is atomic.
        unsafe { ffi::xlstm_group_buckets(self.0.pointer) }
    }
}

/// c10d's `Reducer`. It holds hooks on the parameters until it is dropped.
#[derive(Debug)]
pub struct Reducer {
    pointer: *mut c_void,
    group: Arc<GroupHandle>,
}

impl Reducer {
    /// Announces that the next backward pass sums gradients over all ranks. A backward pass that is not announced
    /// only adds to this rank's own.
    ///
    /// # Errors
    /// When the pass before left parameters without gradients, or a rank is gone.
    pub fn prepare(&self) -> Result<(), BridgeError> {
        // SAFETY: the reducer is alive.
        self.note(unsafe { common::check(ffi::xlstm_reducer_prepare(self.pointer)) })
    }

    /// Checks that the announced backward pass gave every parameter its gradient, and so summed it.
    ///
    /// # Errors
    /// When it did not.
    pub fn check(&self) -> Result<(), BridgeError> {
        // SAFETY: the reducer is alive.
        self.note(unsafe { common::check(ffi::xlstm_reducer_check(self.pointer)) })
    }

    fn note(&self, result: Result<(), BridgeError>) -> Result<(), BridgeError> {
        if result.is_err() {
            self.group.abandon();
        }
        result
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        if !self.group.failed.load(std::sync::atomic::Ordering::Relaxed) {
            // SAFETY: made by xlstm_reducer_create, freed once, and before its group.
            unsafe { ffi::xlstm_reducer_free(self.pointer) };
        }
    }
}
