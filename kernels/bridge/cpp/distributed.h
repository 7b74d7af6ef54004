// What the store, the process group and the reducer share. `cuda_half/backend_nccl.cpp` is compiled into a library of its own
// (see build.rs) with the same compiler against the same libtorch, so C++ objects may cross between the two.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <atomic>
#include <cstdint>

namespace xlstm {

struct StoreHandle {
  c10::intrusive_ptr<c10d::Store> store;
};

struct GroupHandle {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  // Gradient buckets that this rank has handed to the group so far.
  std::atomic<uint64_t> buckets{0};
};

// Makes libtorch's backend for one GPU and puts it into `out_backend` (a c10::intrusive_ptr<c10d::Backend>).
using NcclBackendFunction = char* (*)(const StoreHandle* store, int rank, int world, int gpu, int64_t timeout_ms,
                                      void* out_backend);

}  // namespace xlstm
