// c10d's Reducer: gradients are summed over ranks while the backward pass still runs.
//
// It hangs a hook on each parameter. As soon as the gradients of a bucket are there, the bucket goes over the network,
// and the end of the backward pass waits for the last of them. Libtorch's own hook divides by the number of ranks;
// ours sums, because each rank scales its loss by its share of the step's tokens.

#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <memory>
#include <unordered_map>
#include <vector>

#include "abi.h"
#include "distributed.h"

using xlstm::GroupHandle;

namespace {

class SumHook final : public c10d::CppCommHookInterface<GroupHandle*> {
 public:
  explicit SumHook(GroupHandle* group) : c10d::CppCommHookInterface<GroupHandle*>(group) {}

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
    state_->buckets.fetch_add(1, std::memory_order_relaxed);
    std::vector<at::Tensor> tensors{bucket.getBufferRef()};
    return state_->group->allreduce(tensors)->getFuture();
  }
};

struct ReducerHandle {
  std::shared_ptr<c10d::Reducer> reducer;
};

}  // namespace

extern "C" {

// Watches the gradients of `parameters`, leaves of the same order on every rank. The group must outlive the reducer.
char* xlstm_reducer_create(GroupHandle* group, const at::Tensor* const* parameters, size_t count,
                           int64_t bucket_bytes, ReducerHandle** out_reducer) {
  return xlstm::guarded([&] {
    std::vector<at::Tensor> tensors;
    tensors.reserve(count);
    for (size_t index = 0; index < count; ++index) {
      tensors.push_back(*parameters[index]);
    }
    c10d::verify_params_across_processes(group->group, tensors, std::nullopt);
    const std::vector<bool> sparse(count, false);
    const int64_t first_bytes = std::min<int64_t>(c10d::kDefaultFirstBucketBytes, bucket_bytes);
    const std::vector<size_t> limits{static_cast<size_t>(first_bytes), static_cast<size_t>(bucket_bytes)};
    auto assigned = c10d::compute_bucket_assignment_by_size(tensors, limits, sparse);
    auto buckets = std::get<0>(std::move(assigned));
    // Gradients come in about the reverse of the parameters' order; after the first step libtorch knows the true one.
    std::reverse(buckets.begin(), buckets.end());
    auto reducer = std::make_shared<c10d::Reducer>(
        tensors, std::move(buckets), group->group, sparse, bucket_bytes, /*find_unused_parameters=*/false,
        /*gradient_as_bucket_view=*/true, std::unordered_map<size_t, std::string>(), first_bytes,
        /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false, std::vector<int64_t>());
    reducer->register_comm_hook(std::make_unique<SumHook>(group));
    *out_reducer = new ReducerHandle{std::move(reducer)};
  });
}

void xlstm_reducer_free(ReducerHandle* reducer) { delete reducer; }

// The next backward pass sums; one that is not announced only adds to the local gradients.
char* xlstm_reducer_prepare(const ReducerHandle* reducer) {
  return xlstm::guarded([&] {
    reducer->reducer->rebuild_buckets();
    reducer->reducer->prepare_for_backward({});
  });
}

// Throws, naming them, when parameters got no gradient in the announced backward pass.
char* xlstm_reducer_check(const ReducerHandle* reducer) {
  return xlstm::guarded([&] { reducer->reducer->check_finalized(); });
}

uint64_t xlstm_group_buckets(const GroupHandle* group) { return group->buckets.load(std::memory_order_relaxed); }

}  // extern "C"
