#!/bin/sh
# Builds and runs products.cpp for a processor with AVX-512, with the flags of kernels/build.rs.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
mkdir -p "$root/target"
"${CXX:-c++}" -std=c++17 -O3 -fopenmp -ffp-contract=fast -fno-math-errno -fno-trapping-math -mavx512f -mavx512dq \
  -mavx512bw -mavx512vl -mavx2 -mfma -mprefer-vector-width=512 -DXLSTM_ISA=avx512 "$root/docs/benchmarks/cpu/products.cpp" \
  -o "$root/target/products"
"$root/target/products"
