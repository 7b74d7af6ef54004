// Chooses the kernels for the processor at hand. Compiled without -m flags, so that it runs anywhere.

#include "abi.h"

extern "C" const KernelTable* xlstm_cpu_table_baseline();
#if defined(__x86_64__)
extern "C" const KernelTable* xlstm_cpu_table_avx2();
extern "C" const KernelTable* xlstm_cpu_table_avx512();
#endif

// `limit`: 0 takes the best, 1 no more than AVX2, 2 the baseline; the tests go through all.
extern "C" const KernelTable* xlstm_cpu_table(int limit) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512 && limit < 1) {
    return xlstm_cpu_table_avx512();
  }
  if (avx2 && limit < 2) {
    return xlstm_cpu_table_avx2();
  }
#endif
  (void)limit;
  return xlstm_cpu_table_baseline();
}
