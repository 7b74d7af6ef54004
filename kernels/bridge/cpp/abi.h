// How the C++ half and the Rust half speak.
//
// Every function is `extern "C"`, returns null when it succeeded, and otherwise a message allocated with `malloc`
// that the caller frees with `xlstm_bridge_free`. No exception and no panic ever crosses. Tensors travel as
// pointers to `at::Tensor`: borrowed unless the name of the argument begins with `out`, and then owned by the
// receiver, in the same representation as `tch` uses, so that both sides can hold the same object.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

namespace xlstm {

inline char* copy_message(const std::string& text) {
  char* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy != nullptr) {
    std::memcpy(copy, text.c_str(), text.size() + 1);
  }
  return copy;
}

// Runs `body` and turns whatever it throws into a message.
template <typename Body>
char* guarded(const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return copy_message(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return copy_message(error.what());
  } catch (...) {
    return copy_message("unknown C++ exception");
  }
}

// A list as libtorch takes it; null stands for a tensor that is not defined.
inline std::vector<at::Tensor> collect(const at::Tensor* const* tensors, size_t count) {
  std::vector<at::Tensor> result;
  result.reserve(count);
  for (size_t index = 0; index < count; ++index) {
    result.push_back(tensors[index] == nullptr ? at::Tensor() : *tensors[index]);
  }
  return result;
}

}  // namespace xlstm
