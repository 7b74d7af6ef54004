//! The kernels compiled for AVX2, in a process of their own.

mod common;

use xlstm_kernels::cpu::InstructionSet;

#[test]
fn avx2_kernels_agree_with_the_reference() {
    common::sets::check(InstructionSet::Avx2, "avx512");
}
