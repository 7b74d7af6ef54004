// A node of libtorch's autograd graph whose backward pass is a function of Rust.
//
// The forward pass runs in Rust with gradients off. `xlstm_autograd_attach` then makes the outputs children of a
// node that keeps what the backward pass needs. Saved tensors go through SavedVariable, as in libtorch's own
// functions: an input that was changed in place is noticed, an output does not keep itself alive in a circle, and
// the memory is given back as soon as the node has run.

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <mutex>
#include <vector>

#include "abi.h"

namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using xlstm::collect;

// Rust fills `out_gradients` (null: no gradient) and returns null, or returns a message that Rust allocated.
using BackwardFunction = char* (*)(void* context, const Tensor* const* gradients, size_t gradient_count,
                                   const Tensor* const* saved, size_t saved_count, const uint8_t* needs_gradient,
                                   Tensor** out_gradients, size_t input_count);
using ReleaseFunction = void (*)(void* context);
using ReleaseMessage = void (*)(char* message);

class RustNode final : public Node {
 public:
  RustNode(std::string name, void* context, BackwardFunction backward, ReleaseFunction release,
           ReleaseMessage release_message)
      : name_(std::move(name)),
        context_(context),
        backward_(backward),
        release_(release),
        release_message_(release_message) {}

  ~RustNode() override { release_(context_); }

  std::string name() const override { return name_; }

  void save(const Tensor& tensor, bool is_output) { saved_.emplace_back(tensor, is_output); }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& saved : saved_) {
      saved.reset_data();
    }
  }

 protected:
  variable_list apply(variable_list&& gradients) override {
    TORCH_CHECK(!at::GradMode::is_enabled(), name_,
                ": a second derivative was asked for (create_graph), and this function has none; "
                "use the reference implementation for that");
    variable_list saved = unpack();
    std::vector<const Tensor*> gradient_pointers = pointers(gradients);
    std::vector<const Tensor*> saved_pointers = pointers(saved);
    const size_t input_count = num_outputs();
    std::vector<uint8_t> needs_gradient(input_count);
    for (size_t index = 0; index < input_count; ++index) {
      needs_gradient[index] = task_should_compute_output(index) ? 1 : 0;
    }
    std::vector<Tensor*> results(input_count, nullptr);
    char* message = backward_(context_, gradient_pointers.data(), gradient_pointers.size(), saved_pointers.data(),
                              saved_pointers.size(), needs_gradient.data(), results.data(), input_count);
    variable_list owned(input_count);
    for (size_t index = 0; index < input_count; ++index) {
      if (results[index] != nullptr) {
        owned[index] = std::move(*results[index]);
        delete results[index];
      }
    }
    if (message != nullptr) {
      std::string text(message);
      release_message_(message);
      throw std::runtime_error(name_ + " (backward): " + text);
    }
    return owned;
  }

 private:
  variable_list unpack() {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list tensors;
    tensors.reserve(saved_.size());
    for (auto& saved : saved_) {
      tensors.push_back(saved.unpack(getptr()));
    }
    return tensors;
  }

  static std::vector<const Tensor*> pointers(const variable_list& tensors) {
    std::vector<const Tensor*> result;
    result.reserve(tensors.size());
    for (const auto& tensor : tensors) {
      result.push_back(tensor.defined() ? &tensor : nullptr);
    }
    return result;
  }

  std::string name_;
  void* context_;
  BackwardFunction backward_;
  ReleaseFunction release_;
  ReleaseMessage release_message_;
  std::vector<SavedVariable> saved_;
};

bool is_same(const Tensor& left, const Tensor& right) {
  return left.unsafeGetTensorImpl() == right.unsafeGetTensorImpl();
}

}  // namespace

extern "C" {

void xlstm_bridge_free(char* message) { std::free(message); }

// Whether a function of these inputs is to be recorded: gradients are on, and an input asks for one.
int xlstm_autograd_is_recorded(const Tensor* const* inputs, size_t input_count) {
  return torch::autograd::compute_requires_grad(collect(inputs, input_count)) ? 1 : 0;
}

// Takes ownership of `context` in every case.
char* xlstm_autograd_attach(const char* name, const Tensor* const* inputs, size_t input_count,
                            const Tensor* const* outputs, size_t output_count, const Tensor* const* saved,
                            size_t saved_count, void* context, BackwardFunction backward, ReleaseFunction release,
                            ReleaseMessage release_message, Tensor** out_outputs) {
  return xlstm::guarded([&] {
    auto node = std::shared_ptr<RustNode>(new RustNode(name, context, backward, release, release_message),
                                          torch::autograd::deleteNode);
    variable_list input_list = collect(inputs, input_count);
    node->set_next_edges(torch::autograd::collect_next_edges(input_list));
    variable_list fresh;
    fresh.reserve(output_count);
    for (size_t index = 0; index < output_count; ++index) {
      for (const auto& input : input_list) {
        TORCH_CHECK(!input.defined() || !is_same(input, *outputs[index]), name, ": output ", index,
                    " is one of the inputs; return a copy");
      }
      // The same memory without its history: a view made while gradients were off could not get a parent.
      fresh.push_back(outputs[index]->variable_data());
      torch::autograd::set_history(fresh.back(), node);
    }
    for (size_t index = 0; index < saved_count; ++index) {
      size_t output = 0;
      while (output < output_count && !is_same(*saved[index], *outputs[output])) {
        ++output;
      }
      const bool is_output = output < output_count;
      node->save(is_output ? fresh[output] : *saved[index], is_output);
    }
    for (size_t index = 0; index < output_count; ++index) {
      out_outputs[index] = new Tensor(std::move(fresh[index]));
    }
  });
}

// Back-propagates given output gradients into the leaves; a null gradient stands for ones (scalars only).
char* xlstm_autograd_backward(const Tensor* const* outputs, const Tensor* const* gradients, size_t count,
                              int retain_graph) {
  return xlstm::guarded([&] {
    torch::autograd::backward(collect(outputs, count), collect(gradients, count), retain_graph != 0);
  });
}

// Gradients of `outputs` with respect to `inputs`; null where an input was not used.
char* xlstm_autograd_gradients(const Tensor* const* outputs, const Tensor* const* gradients, size_t output_count,
                               const Tensor* const* inputs, size_t input_count, int retain_graph,
                               Tensor** out_gradients) {
  return xlstm::guarded([&] {
    variable_list results =
        torch::autograd::grad(collect(outputs, output_count), collect(inputs, input_count),
                              collect(gradients, output_count), retain_graph != 0, false, true);
    for (size_t index = 0; index < input_count; ++index) {
      out_gradients[index] = results[index].defined() ? new Tensor(std::move(results[index])) : nullptr;
    }
  });
}

}  // extern "C"
