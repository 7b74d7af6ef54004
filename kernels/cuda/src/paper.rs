//! The list of compilations that the paper's models use.

use crate::gated_norm::GatedNormForm;
use crate::layers::ResidualForm;
use crate::linear_attention::LinearAttentionSizes;
use crate::linear_attention_chunks::LinearAttentionChunkSizes;
use crate::mlstm_step::StepSizes;
use crate::recurrent::{Cell, RecurrentSizes};
use crate::selective_scan::SelectiveScanForm;
use crate::short::ShortSizes;
use crate::slstm::Direction;
use crate::step_product::{ProductSizes, ProductStage};
use crate::token_shift::TokenShiftForm;
use crate::{Architecture, MlstmSizes, SlstmSizes, Source, Specialization};

/// Every compilation that a model of the paper needs: mLSTM heads of 384 to 1280 (125M to 2.7B) and 64 and 128
/// (synthetic tasks), 128 × 256 (the published kernels' benchmark), sLSTM heads of 192 to
/// 640 in bf16 and of 8 to 512 in float32, LSTMs of 128 and 512 units, and, for table 1's other methods, recurrences, norms, token shifts
/// and gates. `everything`: all of it for
/// every compute capability; otherwise the whole list for 8.0 and 9.0, and the smallest, a middle and the largest size for
/// the others, which have the sources of 8.0.
#[must_use]
pub fn paper_specializations(everything: bool) -> Vec<Specialization> {
    let mut all = Vec::new();
    for architecture in Architecture::NATIVE {
        let whole = everything || matches!(architecture, Architecture::Sm80 | Architecture::Sm90a);
        let heads: &[u32] = if whole { &[64, 192, 384, 512, 768, 1024, 1280] } else { &[64, 384, 1280] };
        let widths: &[u32] = if whole { &[768, 1024, 1536, 2048, 2560] } else { &[768] };
        let mlstm: &[(u32, u32)] = if whole {
            &[
                (64, 64),
                (128, 128),
                (128, 256),
                (384, 384),
                (512, 512),
                (768, 768),
                (1024, 1024),
                (1280, 1280),
            ]
        } else {
            &[(64, 64), (384, 384), (1280, 1280)]
        };
        for float32 in [false, true] {
            all.extend(heads.iter().map(|&head| Specialization::pointwise(architecture, head, float32)));
        }
        all.push(Specialization::projections(architecture));
        for form in [ResidualForm::ScaleLessOne, ResidualForm::Layer, ResidualForm::Rms] {
            all.extend(widths.iter().map(|&width| Specialization::residual(architecture, width, form)));
        }
        all.extend([false, true].map(|boundaries| Specialization::inner(architecture, 8, boundaries)));
        all.push(Specialization::cross_entropy(architecture, 50304));
        all.push(Specialization::sums(architecture));
        all.extend(slstm_specializations(architecture, whole));
        all.push(Specialization::precise(architecture));
        all.push(Specialization::scan(architecture));
        all.push(Specialization::transformer(architecture, false));
        all.extend([false, true].map(|float32| Specialization::dropout(architecture, float32)));
        let selective = [SelectiveScanForm::plain(16), SelectiveScanForm::gated(16, false)];
        all.extend(selective.into_iter().flatten().map(|form| form.specialization(architecture)));
        let shifts = [(2, false), (3, false), (4, false), (1, false), (5, true)];
        all.extend(
            shifts.map(|(mixes, own)| {
                TokenShiftForm { mixes, own, float32: false }.specialization(architecture)
            }),
        );
        // RWKV-5 and RWKV-6; RetNet and GLA; HGRN.
        let normed = [(64, false, false), (256, true, false), (1024, true, true)];
        all.extend(normed.iter().filter_map(|&(head, rms, float32_input)| {
            let form = GatedNormForm::new(head, rms, [false, float32_input])?;
            Some(form.specialization(architecture))
        }));
        // RWKV-5 and RWKV-6; HGRN2; RetNet and GLA.
        let attention: &[(u32, u32, bool)] =
            if whole { &[(64, 64, true), (128, 128, false), (128, 256, false)] } else { &[(64, 64, true)] };
        all.extend(attention.iter().flat_map(|&(key, value, bonus)| {
            let by_step = LinearAttentionSizes::new(key, value, bonus);
            let in_chunks = LinearAttentionChunkSizes::new(key, value, bonus);
            let in_chunks = in_chunks.map(|sizes| sizes.specializations(architecture));
            let by_step =
                by_step.map(|sizes| [sizes, sizes.in_bf16()].map(|sizes| sizes.specialization(architecture)));
            by_step.into_iter().flatten().chain(in_chunks.into_iter().flatten())
        }));
        let short: &[(u32, u32)] =
            if whole { &[(40, 64), (64, 32), (64, 64), (64, 128)] } else { &[(40, 64)] };
        all.extend(short.iter().filter_map(|&(tokens, head)| {
            let sizes = ShortSizes::new(architecture, tokens, head, head)?;
            Some(Specialization::short(architecture, sizes))
        }));
        all.extend(step_specializations(architecture, mlstm));
        for &(key, value) in mlstm {
            let sizes = MlstmSizes::fastest(key, value, 2048);
            all.extend(Source::MLSTM.map(|source| Specialization::mlstm(source, architecture, sizes)));
        }
    }
    all
}

/// One token of four heads, of one sequence and of a full batch, with its products, of one sequence and of as many as there are
/// kernels for.
fn step_specializations(architecture: Architecture, heads: &[(u32, u32)]) -> Vec<Specialization> {
    let mut all: Vec<Specialization> = Vec::new();
    for &(_, head) in heads {
        for sequences in [1, 128] {
            let sizes = StepSizes::new(4, head, sequences);
            all.extend(sizes.map(|sizes| Specialization::mlstm_step(architecture, sizes)));
        }
        for (batch, stage) in [1, 2].into_iter().flat_map(|n| {
            [(n, ProductStage::Up { width: 2 * head }), (n, ProductStage::Down { heads: 4, head })]
        }) {
            let sizes = ProductSizes::new(stage, batch, 2 * head);
            all.extend(sizes.map(|sizes| Specialization::step_product(architecture, sizes)));
        }
    }
    each_once(all)
}

/// The sLSTM of the paper's models in bf16 at every batch, and of its small ones in float32; the smallest and the largest
/// unless `whole`.
fn slstm_specializations(architecture: Architecture, whole: bool) -> Vec<Specialization> {
    let half: &[u32] = if whole { &[192, 256, 384, 512, 640] } else { &[192, 640] };
    let single: &[u32] = if whole { &[8, 16, 24, 32, 64, 128, 192, 256, 512] } else { &[8, 128, 512] };
    let mut all: Vec<Specialization> = Vec::new();
    for (&units, batch) in half.iter().flat_map(|units| [16, 32, 64, 256].map(|batch| (units, batch))) {
        for direction in [Direction::Forward, Direction::Backward] {
            let sizes = SlstmSizes::fastest(architecture, units, batch, direction);
            all.extend(sizes.map(|sizes| Specialization::slstm(architecture, sizes)));
        }
    }
    let lstm = [32, 128, 512].map(|units| (units, Cell::Lstm));
    let sizes = single.iter().map(|&units| (units, Cell::Slstm)).chain(lstm);
    let sizes = sizes.filter_map(|(units, cell)| RecurrentSizes::new(units, cell));
    all.extend(sizes.map(|sizes| Specialization::recurrent(architecture, sizes)));
    each_once(all)
}

/// Without what stands earlier already: neighboring sizes are compiled as one.
fn each_once(all: Vec<Specialization>) -> Vec<Specialization> {
    let mut once = Vec::new();
    for one in all {
        if !once.contains(&one) {
            once.push(one);
        }
    }
    once
}
