// A step's launches, recorded once and replayed: libtorch's CUDAGraph with the stream that it is recorded on.
//
// Memory that is taken while recording comes from a pool of the graph's own, so every tensor of the recording keeps its
// address until the graph is freed.

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <map>

#include "abi.h"

namespace {

#define XLSTM_EXPORT __attribute__((visibility("default")))

struct Recording {
  Recording(c10::cuda::CUDAStream before, c10::cuda::CUDAStream side) : before(before), side(side) {}

  at::cuda::CUDAGraph graph;
  c10::cuda::CUDAStream before;
  c10::cuda::CUDAStream side;
};

// The stream that this thread records on: always the same, since libraries keep memory for each stream that they see (cuBLAS
// 32 MiB), and what they took while recording stays with the recording's pool.
c10::cuda::CUDAStream side_stream(c10::DeviceIndex device) {
  thread_local std::map<c10::DeviceIndex, c10::cuda::CUDAStream> streams;
  auto found = streams.find(device);
  if (found == streams.end()) {
    found = streams.emplace(device, c10::cuda::getStreamFromPool(false, device)).first;
  }
  return found->second;
}

}  // namespace

extern "C" {

// Begins to record what this thread, and the backward passes that it starts, launch on the GPU. Other threads may go on
// using libtorch meanwhile (relaxed mode).
XLSTM_EXPORT char* xlstm_graph_begin(int device, void** out_recording) {
  return xlstm::guarded([&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    c10::cuda::set_device(index);
    const auto before = c10::cuda::getCurrentCUDAStream(index);
    auto recording = std::make_unique<Recording>(before, side_stream(index));
    before.synchronize();
    c10::cuda::setCurrentCUDAStream(recording->side);
    try {
      recording->graph.capture_begin({0, 0}, cudaStreamCaptureModeRelaxed);
    } catch (...) {
      c10::cuda::setCurrentCUDAStream(before);
      throw;
    }
    *out_recording = recording.release();
  });
}

// Ends the recording; `keep` is 0 when it is to be thrown away, and then nothing is an error.
XLSTM_EXPORT char* xlstm_graph_end(void* handle, int keep) {
  return xlstm::guarded([&] {
    auto* recording = static_cast<Recording*>(handle);
    const auto before = recording->before;
    try {
      recording->graph.capture_end();
    } catch (...) {
      c10::cuda::setCurrentCUDAStream(before);
      // What went wrong in the recording is told once.
      static_cast<void>(cudaGetLastError());
      if (keep != 0) {
        throw;
      }
      return;
    }
    c10::cuda::setCurrentCUDAStream(before);
  });
}

// Launches everything recorded on this thread's current stream.
XLSTM_EXPORT char* xlstm_graph_replay(void* handle) {
  return xlstm::guarded([&] { static_cast<Recording*>(handle)->graph.replay(); });
}

XLSTM_EXPORT void xlstm_graph_free(void* handle) { delete static_cast<Recording*>(handle); }

}  // extern "C"
