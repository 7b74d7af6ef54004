// All kernels for one instruction set: compiled once for each, see build.rs.

#include "cross_entropy.h"
#include "gemm_parallel.h"
#include "linear_attention.h"
#include "mlstm_backward.h"
#include "mlstm_forward.h"
#include "pointwise.h"
#include "projections.h"
#include "scan.h"
#include "slstm.h"

#define XLSTM_TEXT_(name) #name
#define XLSTM_TEXT(name) XLSTM_TEXT_(name)
#define XLSTM_JOIN_(left, right) left##right
#define XLSTM_JOIN(left, right) XLSTM_JOIN_(left, right)

extern "C" const KernelTable* XLSTM_JOIN(xlstm_cpu_table_, XLSTM_ISA)() {
  using namespace XLSTM_ISA;
  static const KernelTable table = {
      XLSTM_TEXT(XLSTM_ISA),
      mlstm_forward<float>,
      mlstm_forward<double>,
      mlstm_backward<float>,
      mlstm_backward<double>,
      slstm_forward<float>,
      slstm_forward<double>,
      slstm_backward<float>,
      slstm_backward<double>,
      gemm_parallel<float>,
      gemm_parallel<double>,
      cross_entropy<float>,
      cross_entropy<double>,
      conv_forward<float>,
      conv_forward<double>,
      conv_backward<float>,
      conv_backward<double>,
      blocks_forward<float>,
      blocks_forward<double>,
      blocks_backward<float>,
      blocks_backward<double>,
      qkv_gates_forward<float>,
      qkv_gates_forward<double>,
      qkv_gates_backward<float>,
      qkv_gates_backward<double>,
      output_forward<float>,
      output_forward<double>,
      output_backward<float>,
      output_backward<double>,
      linear_attention_forward<float>,
      linear_attention_forward<double>,
      linear_attention_backward<float>,
      linear_attention_backward<double>,
      linear_scan_forward<float>,
      linear_scan_forward<double>,
      linear_scan_backward<float>,
      linear_scan_backward<double>,
      selective_scan_forward<float>,
      selective_scan_forward<double>,
      selective_scan_backward<float>,
      selective_scan_backward<double>,
      wkv_forward<float>,
      wkv_forward<double>,
      wkv_backward<float>,
      wkv_backward<double>,
  };
  return &table;
}
