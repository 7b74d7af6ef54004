// libtorch's ProcessGroupNCCL, in a shared library of its own that is opened where there is a GPU (build.rs,
// src/cuda_half.rs): it needs symbols of libtorch_cuda.so, which the program does not link.

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <chrono>

#include "abi.h"
#include "distributed.h"

extern "C" {

// xlstm::NcclBackendFunction
__attribute__((visibility("default"))) char* xlstm_nccl_backend(const xlstm::StoreHandle* store, int rank, int world, int gpu, int64_t timeout_ms,
                         void* out_backend) {
  return xlstm::guarded([&] {
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(gpu));
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store->store, rank, world, options);
    // Connects now: a GPU that two ranks share, or a missing network, is an error here and not in the first step.
    backend->eagerConnectSingleDevice(at::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(gpu)));
    *static_cast<c10::intrusive_ptr<c10d::Backend>*>(out_backend) = backend;
  });
}

}  // extern "C"
