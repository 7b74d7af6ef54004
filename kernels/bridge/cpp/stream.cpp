// The stream that a thread launches on, through the CPU half's table of devices.

#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "abi.h"

extern "C" {

// The current stream of this thread on this GPU, as CUDA has it: a cudaStream_t, null for the default stream.
char* xlstm_stream_current(int gpu, void** out_stream) {
  return xlstm::guarded([&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(gpu));
    *out_stream = c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)->getStream(device).native_handle();
  });
}

// Makes a stream of its own the current one of this thread on this GPU, until the thread ends.
char* xlstm_stream_begin(int gpu) {
  return xlstm::guarded([&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(gpu));
    const auto* devices = c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA);
    devices->exchangeStream(devices->getStreamFromGlobalPool(device));
  });
}

}  // extern "C"
