// Operations over lists of tensors, which libtorch runs as a few launches and `tch` does not bind.

#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <vector>

#include "abi.h"

using xlstm::collect;

extern "C" {

// One update of AdamW for tensors of one device; `step` (fp32, one element) counts from 1, `scale` divides gradients, and
// with `skip` 1 nothing is changed.
char* xlstm_optimizer_adamw(const at::Tensor* const* parameters, const at::Tensor* const* gradients,
                            const at::Tensor* const* first, const at::Tensor* const* second, size_t count,
                            const at::Tensor* step, const at::Tensor* scale, const at::Tensor* learning_rate,
                            const at::Tensor* skip, double beta1, double beta2, double weight_decay, double epsilon) {
  return xlstm::guarded([&] {
    at::NoGradGuard guard;
    const std::vector<at::Tensor> steps(count, *step);
    at::_fused_adamw_(collect(parameters, count), collect(gradients, count), collect(first, count),
                      collect(second, count), {}, steps, *learning_rate, beta1, beta2, weight_decay, epsilon, false,
                      false, *scale, *skip);
  });
}

// Euclidean norm of all tensors together, one element, on their device.
char* xlstm_optimizer_norm(const at::Tensor* const* tensors, size_t count, at::Tensor** out) {
  return xlstm::guarded([&] {
    at::NoGradGuard guard;
    const auto norms = at::_foreach_norm(collect(tensors, count));
    *out = new at::Tensor(at::linalg_vector_norm(at::stack(norms)));
  });
}

// Leaves these without gradients: the next backward pass gives them new ones instead of adding to what is there.
char* xlstm_optimizer_drop_gradients(const at::Tensor* const* tensors, size_t count) {
  return xlstm::guarded([&] {
    for (size_t index = 0; index < count; ++index) {
      tensors[index]->mutable_grad().reset();
    }
  });
}

// The same numbers in memory that a GPU reads itself, so that a copy to it need not be waited for.
char* xlstm_pin_memory(const at::Tensor* tensor, at::Tensor** out) {
  return xlstm::guarded([&] { *out = new at::Tensor(tensor->pin_memory()); });
}

// Copies numbers of the CPU over those of a tensor on a GPU, without waiting.
char* xlstm_upload(const at::Tensor* to, const at::Tensor* from) {
  return xlstm::guarded([&] {
    at::NoGradGuard guard;
    to->copy_(from->pin_memory(), true);
  });
}

// The most bytes that tensors on this GPU have taken at once since the last reset, and that libtorch holds for them.
char* xlstm_device_memory(int gpu, int reset, uint64_t* out_allocated, uint64_t* out_reserved) {
  return xlstm::guarded([&] {
    auto* allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    const auto device = static_cast<c10::DeviceIndex>(gpu);
    const auto statistics = allocator->getDeviceStats(device);
    const auto total = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *out_allocated = static_cast<uint64_t>(statistics.allocated_bytes[total].peak);
    *out_reserved = static_cast<uint64_t>(statistics.reserved_bytes[total].peak);
    if (reset != 0) {
      allocator->resetPeakStats(device);
    }
  });
}

// Frees the GPU memory that libtorch caches and no tensor uses, once the work that reads it is done.
char* xlstm_gpu_release_cached() {
  return xlstm::guarded([] { c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache(); });
}

}  // extern "C"
