//! Cases of mLSTM: random inputs, and all that a version computes from them.

use super::{leaf, random, random_flags, relative_error};
use tch::{Kind, Tensor};
use xlstm_kernels::mlstm::{MlstmInput, MlstmKernel, MlstmOptions, MlstmOutput, MlstmState, mlstm};

/// Inputs in fp64: q, k, v, i, f, then C, n, m of an initial state if there is one.
pub struct Case {
    pub inputs: Vec<Tensor>,
    pub resets_BT: Option<Tensor>,
}

/// Sizes and gates of a case.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub batch: i64,
    pub time: i64,
    pub heads: i64,
    pub key: i64,
    pub value: i64,
}

pub const NAMES: [&str; 8] = ["q", "k", "v", "i", "f", "matrix", "normalizer", "maximum"];

impl Case {
    pub fn new(seed: i64, shape: Shape, gate_scale: f64, with_state: bool) -> Self {
        let Shape { batch, time, heads, key, value } = shape;
        let normal = |offset: i64, size: &[i64]| random(seed * 16 + offset, size, Kind::Double);
        let mut inputs = vec![
            normal(0, &[batch, time, heads, key]),
            normal(1, &[batch, time, heads, key]),
            normal(2, &[batch, time, heads, value]),
            normal(3, &[batch, time, heads]) * gate_scale,
            normal(4, &[batch, time, heads]) * gate_scale + if gate_scale < 5.0 { 3.0 } else { 0.0 },
        ];
        if with_state {
            inputs.push(normal(5, &[batch, heads, key, value]));
            inputs.push(normal(6, &[batch, heads, key]));
            inputs.push(normal(7, &[batch, heads]));
        }
        Self { inputs: inputs.iter().map(Tensor::detach).collect(), resets_BT: None }
    }

    pub fn with_resets(mut self, probability: f64, seed: i64) -> Self {
        let size = &self.inputs[0].size()[..2];
        self.resets_BT = Some(random_flags(seed, size, probability));
        self
    }

    /// Inputs rounded to fp32, so that every precision starts from the same numbers.
    pub fn rounded(mut self) -> Self {
        self.inputs =
            self.inputs.iter().map(|input| input.to_kind(Kind::Float).to_kind(Kind::Double)).collect();
        self
    }

    /// h, the final state, and the gradients of all inputs, for fixed random weights on all outputs.
    pub fn run(&self, options: MlstmOptions, kind: Kind) -> Vec<(String, Tensor)> {
        let leaves: Vec<Tensor> = self.inputs.iter().map(|input| leaf(&input.to_kind(kind))).collect();
        let output = apply(&leaves, self.resets_BT.as_ref(), options);
        let state = &output.state;
        let outputs = [&output.h_BTHV, &state.matrix, &state.normalizer, &state.maximum];
        let weighted = outputs.iter().enumerate().map(|(index, tensor)| {
            let weights = random(900 + index as i64, &tensor.size(), kind);
            (*tensor * weights).sum(kind)
        });
        weighted.reduce(|left, right| left + right).unwrap().backward();
        let named = ["h", "final matrix", "final normalizer", "final maximum"].map(str::to_owned);
        let mut found: Vec<(String, Tensor)> = named.into_iter().zip(outputs.map(Tensor::detach)).collect();
        found.extend(
            NAMES.iter().zip(&leaves).map(|(name, leaf)| (format!("gradient of {name}"), leaf.grad())),
        );
        found
    }
}

pub fn apply(leaves: &[Tensor], resets_BT: Option<&Tensor>, options: MlstmOptions) -> MlstmOutput {
    with_input(leaves, resets_BT, |input| mlstm(input, &options).unwrap())
}

/// What `function` makes of an input of these tensors.
pub fn with_input<R>(
    leaves: &[Tensor],
    resets_BT: Option<&Tensor>,
    function: impl FnOnce(&MlstmInput<'_>) -> R,
) -> R {
    let state = (leaves.len() == 8).then(|| MlstmState {
        matrix: leaves[5].shallow_clone(),
        normalizer: leaves[6].shallow_clone(),
        maximum: leaves[7].shallow_clone(),
    });
    let input = MlstmInput {
        q_BTHK: &leaves[0],
        k_BTHK: &leaves[1],
        v_BTHV: &leaves[2],
        i_BTH: &leaves[3],
        f_BTH: &leaves[4],
        state: state.as_ref(),
        resets_BT,
    };
    function(&input)
}

pub fn reference() -> MlstmOptions {
    MlstmOptions { kernel: MlstmKernel::Reference, chunk: None }
}

pub fn chunkwise(chunk: usize) -> MlstmOptions {
    MlstmOptions { kernel: MlstmKernel::Chunkwise, chunk: Some(chunk) }
}

pub fn composed(chunk: usize) -> MlstmOptions {
    MlstmOptions { kernel: MlstmKernel::Composed, chunk: Some(chunk) }
}

/// Compare two runs, value by value.
#[track_caller]
pub fn compare(what: &str, found: &[(String, Tensor)], expected: &[(String, Tensor)], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        let error = relative_error(found, expected);
        assert!(error <= tolerance, "{what}: {name}: relative error {error:.3e} exceeds {tolerance:.1e}");
    }
}
