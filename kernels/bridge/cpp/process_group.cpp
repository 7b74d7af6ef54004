// Collective operations over the ranks of a run: c10d's ProcessGroup with Gloo for tensors on the CPU and, where the
// ranks compute on GPUs, NCCL for tensors there.

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>

#include <chrono>
#include <string>
#include <vector>

#include "abi.h"
#include "distributed.h"

using xlstm::collect;
using xlstm::GroupHandle;
using xlstm::StoreHandle;

namespace {

// Buffers of this size go over the network at a time when parameters are broadcast.
constexpr size_t kBroadcastBytes = 250 << 20;

}  // namespace

extern "C" {

// A group over Gloo; `loopback` keeps all connections on this machine. With `nccl`, also over that backend.
char* xlstm_group_create(const StoreHandle* store, int rank, int world, int64_t timeout_ms, int loopback,
                         xlstm::NcclBackendFunction nccl, int gpu, GroupHandle** out_group) {
  return xlstm::guarded([&] {
    using c10d::ProcessGroup;
    const auto timeout = std::chrono::milliseconds(timeout_ms);
    auto options = loopback != 0 ? c10d::ProcessGroupGloo::Options::create(timeout)
                                 : c10d::ProcessGroupGloo::Options::create_default(timeout);
    if (loopback != 0) {
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
    }
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store->store, rank, world, options);
    auto group = c10::make_intrusive<ProcessGroup>(store->store, rank, world);
    group->setBackend(c10::DeviceType::CPU, ProcessGroup::BackendType::GLOO,
                      c10::intrusive_ptr<c10d::Backend>(gloo));
    auto common = ProcessGroup::BackendType::GLOO;
    if (nccl != nullptr) {
      c10::intrusive_ptr<c10d::Backend> backend;
      if (char* message = nccl(store, rank, world, gpu, timeout_ms, &backend)) {
        const std::string text(message);
        std::free(message);
        throw std::runtime_error(text);
      }
      common = ProcessGroup::BackendType::NCCL;
      group->setBackend(c10::DeviceType::CUDA, common, backend);
    }
    group->setDefaultBackend(common);
    group->setGroupName("xlstm");
    auto* handle = new GroupHandle;
    handle->group = std::move(group);
    *out_group = handle;
  });
}

void xlstm_group_free(GroupHandle* group) { delete group; }

// Sums the tensor over all ranks, in place.
char* xlstm_group_sum(const GroupHandle* group, const at::Tensor* tensor) {
  return xlstm::guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    group->group->allreduce(tensors)->wait();
  });
}

// Copies rank 0's tensors over those of all others.
char* xlstm_group_broadcast(const GroupHandle* group, const at::Tensor* const* tensors, size_t count) {
  return xlstm::guarded([&] {
    at::NoGradGuard no_grad;
    c10d::broadcast_coalesced(group->group, collect(tensors, count), kBroadcastBytes, 0);
  });
}

}  // extern "C"
