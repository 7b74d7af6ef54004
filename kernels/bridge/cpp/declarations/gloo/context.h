// Declarations of our own that stand for Gloo's headers, which the PyTorch wheel does not carry.
//
// libtorch exports ProcessGroupGloo, with Gloo inside. Its header names a few types of Gloo, all of them behind
// pointers, so a declaration is all that the compiler needs: nothing here is ever made, called or destroyed by the
// bridge. Declare no more than ProcessGroupGloo.hpp names.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  virtual ~Context();
  void setTimeout(std::chrono::milliseconds timeout);
};

namespace transport {

class UnboundBuffer {
 public:
  virtual ~UnboundBuffer();
};

}  // namespace transport

}  // namespace gloo
