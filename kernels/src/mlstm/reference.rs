//! mLSTM over all pairs of steps at once (paper eq. 71–86), with an initial state and resets.
//!
//! Quadratic in time and differentiated by libtorch: slow, plain, and in `Double` the yardstick for every other
//! version. The initial state enters as one more column of the pair matrix, at logarithm F_i + m_0, where F_i is the
//! sum of log σ(f~) up to step i. A reset splits time into segments; pairs across segments have weight zero.

use super::{EPSILON, MlstmInput, MlstmOutput, MlstmState, Sizes};
use tch::{Kind, Tensor};

pub(super) fn mlstm(input: &MlstmInput<'_>, sizes: Sizes) -> MlstmOutput {
    let scale = (sizes.key as f64).powf(-0.5);
    let heads_first = |tensor: &Tensor| tensor.transpose(1, 2);
    let q_BHTK = heads_first(input.q_BTHK);
    let k_BHTK = heads_first(input.k_BTHK) * scale;
    let v_BHTV = heads_first(input.v_BTHV);
    let i_BHT = heads_first(input.i_BTH);
    // F_i: logarithm of what is left at step i of something written before step 0.
    let kept_BHT = heads_first(input.f_BTH).log_sigmoid().cumsum(-1, None);
    let segments_BT = segments(input, sizes);

    let pairs_BHTS = pair_logarithms(&kept_BHT, &i_BHT, &segments_BT, sizes);
    let initial = input.state.map(|state| Initial::new(state, &kept_BHT, &segments_BT));
    let mut maximum_BHT = pairs_BHTS.amax(-1, false);
    if let Some(initial) = &initial {
        maximum_BHT = maximum_BHT.maximum(&initial.logarithm_BHT);
    }
    let weights_BHTS =
        q_BHTK.matmul(&k_BHTK.transpose(-2, -1)) * (&pairs_BHTS - maximum_BHT.unsqueeze(-1)).exp();
    let mut numerator_BHTV = weights_BHTS.matmul(&v_BHTV);
    let mut normalizer_BHT = weights_BHTS.sum_dim_intlist(-1, false, None::<Kind>);
    if let Some(initial) = &initial {
        let read_BHTK = (&initial.logarithm_BHT - &maximum_BHT).exp().unsqueeze(-1) * &q_BHTK;
        numerator_BHTV += read_BHTK.matmul(&initial.state.matrix);
        normalizer_BHT += read_BHTK.matmul(&initial.state.normalizer.unsqueeze(-1)).squeeze_dim(-1);
    }
    let denominator_BHT = normalizer_BHT.abs().maximum(&(-&maximum_BHT).exp()) + EPSILON;
    let h_BHTV = numerator_BHTV / denominator_BHT.unsqueeze(-1);

    let state = final_state(&pairs_BHTS, &maximum_BHT, &k_BHTK, &v_BHTV, initial.as_ref(), sizes);
    MlstmOutput { h_BTHV: h_BHTV.transpose(1, 2), state }
}

/// How many resets happened up to and including each step: `(B, T)`.
fn segments(input: &MlstmInput<'_>, sizes: Sizes) -> Tensor {
    match input.resets_BT {
        Some(resets_BT) => resets_BT.to_kind(Kind::Int64).cumsum(1, None),
        None => Tensor::zeros([sizes.batch, sizes.time], (Kind::Int64, input.q_BTHK.device())),
    }
}

/// log D~ of the paper: what step i reads of step j, −∞ where it reads nothing.
fn pair_logarithms(kept_BHT: &Tensor, i_BHT: &Tensor, segments_BT: &Tensor, sizes: Sizes) -> Tensor {
    let logarithm_BHTS = kept_BHT.unsqueeze(-1) + (i_BHT - kept_BHT).unsqueeze(-2);
    let causal_TS = Tensor::ones([sizes.time, sizes.time], (Kind::Bool, kept_BHT.device())).tril(0);
    let same_BTS = segments_BT.unsqueeze(-1).eq_tensor(&segments_BT.unsqueeze(-2));
    let hidden_BHTS = same_BTS.logical_and(&causal_TS).logical_not().unsqueeze(1);
    logarithm_BHTS.masked_fill(&hidden_BHTS, f64::NEG_INFINITY)
}

/// The state before the first step, and how much of it each step reads.
struct Initial<'a> {
    state: &'a MlstmState,
    logarithm_BHT: Tensor,
}

impl<'a> Initial<'a> {
    fn new(state: &'a MlstmState, kept_BHT: &Tensor, segments_BT: &Tensor) -> Self {
        let forgotten_BHT = segments_BT.gt(0).unsqueeze(1);
        let logarithm_BHT =
            (kept_BHT + state.maximum.unsqueeze(-1)).masked_fill(&forgotten_BHT, f64::NEG_INFINITY);
        Self { state, logarithm_BHT }
    }
}

/// C, n and m after the last step: the last row of the pair matrix says what is left of each step.
fn final_state(
    pairs_BHTS: &Tensor,
    maximum_BHT: &Tensor,
    k_BHTK: &Tensor,
    v_BHTV: &Tensor,
    initial: Option<&Initial<'_>>,
    sizes: Sizes,
) -> MlstmState {
    let last = sizes.time - 1;
    let maximum_BH = maximum_BHT.select(-1, last);
    let left_BHT = (pairs_BHTS.select(-2, last) - maximum_BH.unsqueeze(-1)).exp();
    let written_BHTK = k_BHTK * left_BHT.unsqueeze(-1);
    let mut matrix = written_BHTK.transpose(-2, -1).matmul(v_BHTV);
    let mut normalizer = written_BHTK.sum_dim_intlist(-2, false, None::<Kind>);
    if let Some(initial) = initial {
        let kept_BH1 = (initial.logarithm_BHT.select(-1, last) - &maximum_BH).exp().unsqueeze(-1);
        matrix += &initial.state.matrix * kept_BH1.unsqueeze(-1);
        normalizer += &initial.state.normalizer * kept_BH1;
    }
    MlstmState { matrix, normalizer, maximum: maximum_BH }
}
