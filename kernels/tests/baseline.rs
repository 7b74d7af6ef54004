//! The kernels compiled for any processor of the architecture, in a process of their own.

mod common;

use xlstm_kernels::cpu::InstructionSet;

#[test]
fn baseline_kernels_agree_with_the_reference() {
    common::sets::check(InstructionSet::Baseline, "avx");
}
