// Threads, arithmetic mode and versions of the libtorch that this program runs with.

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include "abi.h"

extern "C" {

// Decayed gates are full of denormal numbers, each of which costs the processor a hundred cycles or more. The mode
// belongs to a thread, and a new thread takes it from its maker: the caller first, then the pool that exists.
char* xlstm_runtime_flush_denormals(int* out_supported) {
  return xlstm::guarded([&] {
    *out_supported = at::globalContext().setFlushDenormal(true) ? 1 : 0;
    at::parallel_for(0, at::get_num_threads(), 1,
                     [](int64_t, int64_t) { at::globalContext().setFlushDenormal(true); });
  });
}

// Matrix products of bf16 on a GPU add up in fp32 also where the sum is split over several blocks.
char* xlstm_runtime_full_sums() {
  return xlstm::guarded([] { at::globalContext().setAllowBF16ReductionCuBLAS(false); });
}

// Matrix products of float32 on a GPU round their operands to ten bits of mantissa where that is allowed; also those inside
// cuDNN's convolutions and LSTM, where libtorch would allow it unasked.
char* xlstm_runtime_allow_tf32(int allowed) {
  return xlstm::guarded([&] {
    at::globalContext().setAllowTF32CuBLAS(allowed != 0);
    at::globalContext().setAllowTF32CuDNN(allowed != 0);
  });
}

// The same for what cuDNN computes alone: where products are rounded anyway, its LSTM's may be, while its states stay float32.
char* xlstm_runtime_allow_tf32_in_cudnn(int allowed) {
  return xlstm::guarded([&] {
    at::globalContext().setAllowTF32CuDNN(allowed != 0 || at::globalContext().allowTF32CuBLAS());
  });
}

char* xlstm_runtime_set_threads(int threads) {
  return xlstm::guarded([&] { at::set_num_threads(threads); });
}

int xlstm_runtime_threads() { return at::get_num_threads(); }

// One text: how libtorch was built. The caller frees it.
char* xlstm_runtime_build_text() { return xlstm::copy_message(at::show_config()); }

char* xlstm_runtime_cpu_capability() { return xlstm::copy_message(at::get_cpu_capability()); }

int xlstm_runtime_has_cuda() {
  try {
    return at::hasCUDA() ? 1 : 0;
  } catch (...) {
    return 0;
  }
}

}  // extern "C"
