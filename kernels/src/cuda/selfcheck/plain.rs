//! The cells written out with libtorch's operations, with matrix products in the inputs' type: what a kernel's error
//! is measured against (double inputs) and compared with (bf16 inputs, the rest in fp32).

use tch::{Kind, Tensor};

use crate::conv::ConvInput;
use crate::mlstm::EPSILON;

/// The type of everything but the products.
fn wide(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// Logarithms of what step t reads of step j, and their maximum over j, `(B, H, T, T)` and `(B, H, T, 1)`.
fn logarithms(i_BTH: &Tensor, f_BTH: &Tensor) -> (Tensor, Tensor) {
    let (i_BHT, f_BHT) = (i_BTH.transpose(1, 2), f_BTH.transpose(1, 2));
    let time = i_BHT.size()[2];
    let total = f_BHT.log_sigmoid().cumsum(-1, None);
    let exponents = total.unsqueeze(-1) - total.unsqueeze(-2) + i_BHT.unsqueeze(-2);
    let hidden = Tensor::ones([time, time], (Kind::Bool, i_BTH.device())).tril(0).logical_not();
    let exponents = exponents.masked_fill(&hidden, f64::NEG_INFINITY);
    let maximum = exponents.amax(-1, true).detach();
    (exponents, maximum)
}

/// The parallel form (paper A.3): `(B, T, H, V)`.
pub(super) fn mlstm([q, k, v, i, f]: [&Tensor; 5]) -> Tensor {
    let kind = q.kind();
    let heads_first = |tensor: &Tensor| tensor.transpose(1, 2);
    let (exponents, maximum) = logarithms(&i.to_kind(wide(kind)), &f.to_kind(wide(kind)));
    let k = heads_first(k) * (q.size()[3] as f64).powf(-0.5);
    let scores = heads_first(q).matmul(&k.transpose(-1, -2)) * (exponents - &maximum).exp();
    let floor = (-&maximum).exp();
    let norm = scores.sum_dim_intlist(-1, true, None::<Kind>).abs().maximum(&floor) + EPSILON;
    (scores / norm).to_kind(kind).matmul(&heads_first(v)).transpose(1, 2)
}

/// Where each document of a sequence begins and ends.
fn documents(resets: &[bool]) -> Vec<(i64, i64)> {
    let time = resets.len();
    let mut starts = vec![0];
    starts.extend((1..time).filter(|&token| resets[token]));
    let ends = starts.iter().skip(1).copied().chain([time]);
    starts.iter().zip(ends).map(|(&start, end)| (start as i64, end as i64)).collect()
}

/// One document by the parallel form, after a state (C, n, m) or after nothing: h, and the C, n and m after it.
fn document([q, k, v, i, f]: [&Tensor; 5], state: Option<[&Tensor; 3]>) -> [Tensor; 4] {
    let (kind, wide) = (q.kind(), wide(q.kind()));
    let heads_first = |tensor: &Tensor| tensor.transpose(1, 2);
    let (exponents, mut maximum) = logarithms(&i.to_kind(wide), &f.to_kind(wide));
    let total = heads_first(&f.to_kind(wide)).log_sigmoid().cumsum(-1, None).unsqueeze(-1);
    let (q, k, v) = (heads_first(q), heads_first(k) * (q.size()[3] as f64).powf(-0.5), heads_first(v));
    let entering = state.map(|[.., before]| total + before.unsqueeze(-1).unsqueeze(-1));
    if let Some(entering) = &entering {
        maximum = maximum.maximum(&entering.detach());
    }
    let scores = q.matmul(&k.transpose(-1, -2)) * (&exponents - &maximum).exp();
    let mut norm = scores.sum_dim_intlist(-1, true, None::<Kind>);
    let mut top = scores.to_kind(kind).matmul(&v).to_kind(wide);
    let last = exponents.size()[2] - 1;
    let left = (exponents.select(2, last) - maximum.select(2, last)).exp().unsqueeze(-1);
    let written = (&k * left).to_kind(kind);
    let mut matrix = written.transpose(-1, -2).matmul(&v).to_kind(wide);
    let mut normalizer = written.to_kind(wide).sum_dim_intlist(2, false, None::<Kind>);
    if let (Some([before_matrix, before_norm, _]), Some(entering)) = (state, entering) {
        let carry = (entering - &maximum).exp();
        norm += &carry * q.to_kind(wide).matmul(&before_norm.to_kind(wide).unsqueeze(-1));
        top += &carry * q.matmul(&before_matrix.to_kind(kind)).to_kind(wide);
        let through = carry.select(2, last);
        matrix += through.unsqueeze(-1) * before_matrix.to_kind(wide);
        normalizer += through * before_norm.to_kind(wide);
    }
    let norm = norm.abs().maximum(&(-&maximum).exp()) + EPSILON;
    let h = (top / norm).to_kind(kind).transpose(1, 2);
    [h, matrix, normalizer, maximum.select(2, last).squeeze_dim(-1)]
}

/// The cell document by document: h `(B, T, H, V)`, and C, n and m after the last token.
pub(super) fn mlstm_by_documents(
    inputs: [&Tensor; 5],
    state: Option<[&Tensor; 3]>,
    resets: &[Vec<bool>],
) -> [Tensor; 4] {
    let mut rows: [Vec<Tensor>; 4] = Default::default();
    for (row, resets) in resets.iter().enumerate() {
        let row = row as i64;
        let mut parts = Vec::new();
        let mut last = None;
        for (start, end) in documents(resets) {
            let own = inputs.map(|tensor| tensor.narrow(0, row, 1).narrow(1, start, end - start));
            let before = state.filter(|_| start == 0 && !resets[0]);
            let before = before.map(|state| state.map(|tensor| tensor.narrow(0, row, 1)));
            let borrowed = before.as_ref().map(|state| state.each_ref());
            let [h, matrix, normalizer, maximum] = document(own.each_ref(), borrowed);
            parts.push(h);
            last = Some([matrix, normalizer, maximum]);
        }
        rows[0].push(Tensor::cat(&parts, 1));
        for (rows, tensor) in rows[1..].iter_mut().zip(last.into_iter().flatten()) {
            rows.push(tensor);
        }
    }
    rows.map(|rows| Tensor::cat(&rows, 0))
}

/// The convolution document by document, the first after the three inputs of `window`: `(B, T, D)`.
pub(super) fn conv_silu_by_documents(
    [x, weight, bias, window]: [&Tensor; 4],
    resets: &[Vec<bool>],
) -> Tensor {
    let mut rows = Vec::new();
    for (row, resets) in resets.iter().enumerate() {
        let row = row as i64;
        let mut parts = Vec::new();
        for (start, end) in documents(resets) {
            let own = x.narrow(0, row, 1).narrow(1, start, end - start);
            let state = window.narrow(0, row, 1);
            let state = (start == 0 && !resets[0]).then_some(&state);
            let input =
                ConvInput { x_BTD: &own, weight_D1W: weight, bias_D: Some(bias), state, resets_BT: None };
            parts.push(crate::conv::reference(&input, 4, wide(x.kind())).to_kind(x.kind()));
        }
        rows.push(Tensor::cat(&parts, 1));
    }
    Tensor::cat(&rows, 0)
}

/// Where bf16 products determine a gradient, `(B, T, H, 1)`: not where the denominator has its kink nearby, and not
/// where the sum of scores cancels to a twentieth of its terms; there any rounding decides sign and size, in every
/// implementation, and one such row outweighs all others in the norm of the error.
pub(super) fn well_conditioned(q: &Tensor, k: &Tensor, i: &Tensor, f: &Tensor) -> Tensor {
    let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
    let (exponents, maximum) = logarithms(&double(i), &double(f));
    let k = double(k).transpose(1, 2) * (q.size()[3] as f64).powf(-0.5);
    let scores = double(q).transpose(1, 2).matmul(&k.transpose(-1, -2)) * (exponents - &maximum).exp();
    let sum = |tensor: &Tensor| tensor.sum_dim_intlist(-1, false, None::<Kind>);
    let (norm, size, floor) = (sum(&scores).abs(), sum(&scores.abs()), (-maximum).exp().squeeze_dim(-1));
    let larger = norm.maximum(&floor);
    let far = (&norm - &floor).abs().gt_tensor(&(&larger * 0.1));
    far.logical_and(&larger.gt_tensor(&(size * 0.05))).transpose(1, 2).unsqueeze(-1)
}

/// Flags of every sequence as a tensor `(B, T)`.
pub(super) fn resets_tensor(flags: &[Vec<bool>], device: tch::Device) -> Tensor {
    let rows: Vec<Tensor> = flags.iter().map(|row| Tensor::from_slice(row)).collect();
    Tensor::stack(&rows, 0).to_device(device)
}

/// As [`well_conditioned`], document by document.
pub(super) fn well_conditioned_by_documents(inputs: [&Tensor; 4], resets: &[Vec<bool>]) -> Tensor {
    let rows = resets.iter().enumerate().map(|(row, resets)| {
        let parts = documents(resets).into_iter().map(|(start, end)| {
            let own = inputs.map(|tensor| tensor.narrow(0, row as i64, 1).narrow(1, start, end - start));
            well_conditioned(&own[0], &own[1], &own[2], &own[3])
        });
        Tensor::cat(&parts.collect::<Vec<_>>(), 1)
    });
    Tensor::cat(&rows.collect::<Vec<_>>(), 0)
}

/// The recurrence step by step: `x (B, T, 4, H, E)` with biases, R `(H, E in, 4, E out)`, from a state `(4, B, H, E)`, with
/// resets `(B, T)`.
pub(super) fn slstm(
    x: &Tensor,
    recurrent: &Tensor,
    state: Option<&Tensor>,
    resets: Option<&Tensor>,
) -> Tensor {
    let kind = x.kind();
    let size = x.size();
    let (batch, time, heads, units) = (size[0], size[1], size[3], size[4]);
    let weight_HEF = recurrent.reshape([heads, units, 4 * units]).to_kind(kind);
    let mut parts: [Tensor; 4] = std::array::from_fn(|part| match state {
        Some(state) => state.select(0, part as i64).to_kind(wide(kind)),
        None => Tensor::zeros([batch, heads, units], (wide(kind), x.device())),
    });
    let mut outputs = Vec::new();
    for step in 0..time {
        parts = forgotten(parts, resets, step);
        let [hidden, mut cell, mut norm, mut maximum] = parts;
        let mixed_HBF = hidden.to_kind(kind).transpose(0, 1).matmul(&weight_HEF);
        let mixed = mixed_HBF.view([heads, batch, 4, units]).permute([1, 2, 0, 3]).to_kind(wide(kind));
        let raw = x.select(1, step).to_kind(wide(kind)) + mixed;
        let gate = |index: i64| raw.select(1, index);
        let carried = &maximum + gate(1).log_sigmoid();
        let empty = norm.eq(0.0);
        let next = gate(0).where_self(&empty, &gate(0).maximum(&carried)).detach();
        let input = (gate(0) - &next).exp();
        let forget = (carried - &next).clamp_max(0.0).exp().masked_fill(&empty, 0.0);
        cell = &forget * cell + &input * gate(2).tanh();
        norm = forget * norm + input;
        maximum = next;
        let hidden = (gate(3).sigmoid() * &cell / &norm).to_kind(kind);
        outputs.push(hidden.shallow_clone());
        parts = [hidden.to_kind(wide(kind)), cell, norm, maximum];
    }
    Tensor::stack(&outputs, 1)
}

/// Zeros where the step is a reset.
fn forgotten<const N: usize>(parts: [Tensor; N], resets: Option<&Tensor>, step: i64) -> [Tensor; N] {
    let Some(resets) = resets else { return parts };
    let reset_B11 = resets.select(1, step).view([-1, 1, 1]);
    parts.map(|part| part.masked_fill(&reset_B11, 0.0))
}

/// LSTM step by step, everything in the inputs' type: `x (B, T, 4, H, E)`, R `(H, E in, 4, E out)`, bias `(4, H, E)`, and
/// where there is one a state `(2, B, H, E)`: h of all steps, and h and c after the last.
pub(super) fn lstm(inputs: &[Tensor], resets: Option<&Tensor>) -> [Tensor; 2] {
    let (x, recurrent, bias) = (&inputs[0], &inputs[1], &inputs[2]);
    let size = x.size();
    let (batch, time, heads, units) = (size[0], size[1], size[3], size[4]);
    let weight_HEF = recurrent.reshape([heads, units, 4 * units]);
    let mut parts: [Tensor; 2] = std::array::from_fn(|part| match inputs.get(3) {
        Some(state) => state.select(0, part as i64),
        None => Tensor::zeros([batch, heads, units], (x.kind(), x.device())),
    });
    let mut outputs = Vec::new();
    for step in 0..time {
        let [hidden, cell] = forgotten(parts, resets, step);
        let mixed_HBF = hidden.transpose(0, 1).matmul(&weight_HEF);
        let mixed = mixed_HBF.view([heads, batch, 4, units]).permute([1, 2, 0, 3]);
        let raw = x.select(1, step) + mixed + bias;
        let gate = |index: i64| raw.select(1, index);
        let cell = gate(1).sigmoid() * cell + gate(0).sigmoid() * gate(2).tanh();
        let hidden = gate(3).sigmoid() * cell.tanh();
        outputs.push(hidden.shallow_clone());
        parts = [hidden, cell];
    }
    [Tensor::stack(&outputs, 1), Tensor::stack(&parts, 0)]
}

/// A layer of LSTM: x `(B, T, C)`, W `(4E, C)`, R `(4E, E)`, two biases `(4E)`, and where there is one a state `(2, B, 1, E)`.
/// As [`lstm`].
pub(super) fn lstm_layer(inputs: &[Tensor]) -> [Tensor; 2] {
    let (size, units) = (inputs[0].size(), inputs[2].size()[1]);
    let x_BTGHE = inputs[0].matmul(&inputs[1].transpose(0, 1)).view([size[0], size[1], 4, 1, units]);
    let recurrent_HEGE = inputs[2].view([4, units, units]).permute([2, 0, 1]).unsqueeze(0);
    let bias_GHE = (&inputs[3] + &inputs[4]).view([4, 1, units]);
    let state = inputs.get(5).map(Tensor::shallow_clone);
    let cell: Vec<Tensor> = [x_BTGHE, recurrent_HEGE, bias_GHE].into_iter().chain(state).collect();
    lstm(&cell, None)
}

/// Called by the module's tests: on double inputs both are the references.
#[cfg(test)]
pub(super) fn tests_against_references() {
    use crate::mlstm::{MlstmInput, MlstmKernel, MlstmOptions};
    use crate::slstm::{SlstmInput, SlstmKernel, SlstmOptions};
    use tch::Device;
    let normal = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
    let (q, k, v) = (normal(&[2, 9, 3, 4]), normal(&[2, 9, 3, 4]), normal(&[2, 9, 3, 5]));
    let (i, f) = (normal(&[2, 9, 3]), normal(&[2, 9, 3]));
    let input =
        MlstmInput { q_BTHK: &q, k_BTHK: &k, v_BTHV: &v, i_BTH: &i, f_BTH: &f, state: None, resets_BT: None };
    let options = MlstmOptions { kernel: MlstmKernel::Reference, chunk: None };
    let expected = crate::mlstm::mlstm(&input, &options).unwrap().h_BTHV;
    let difference = mlstm([&q, &k, &v, &i, &f]) - expected;
    assert!(difference.abs().max().double_value(&[]) < 1e-10);
    assert_eq!(well_conditioned(&q, &k, &i, &f).size(), [2, 9, 3, 1]);

    // Document by document, after a state, as the reference has it with resets.
    let state = [normal(&[2, 3, 4, 5]), normal(&[2, 3, 4]), normal(&[2, 3])];
    let flags: Vec<Vec<bool>> = vec![
        (0..9).map(|token| token == 4 || token == 8).collect(),
        (0..9).map(|token| token == 0 || token == 1).collect(),
    ];
    let given = crate::mlstm::MlstmState {
        matrix: state[0].shallow_clone(),
        normalizer: state[1].shallow_clone(),
        maximum: state[2].shallow_clone(),
    };
    let resets = resets_tensor(&flags, Device::Cpu);
    let input = MlstmInput { state: Some(&given), resets_BT: Some(&resets), ..input };
    let expected = crate::mlstm::mlstm(&input, &options).unwrap();
    let [h, matrix, normalizer, maximum] =
        mlstm_by_documents([&q, &k, &v, &i, &f], Some(state.each_ref()), &flags);
    let state = expected.state;
    for (found, expected) in [
        (h, expected.h_BTHV),
        (matrix, state.matrix),
        (normalizer, state.normalizer),
        (maximum, state.maximum),
    ] {
        assert!((found - expected).abs().max().double_value(&[]) < 1e-10);
    }

    let (x, recurrent) = (normal(&[2, 7, 4, 3, 5]), normal(&[3, 5, 4, 5]));
    let options =
        SlstmOptions { kernel: SlstmKernel::Reference, gradient_clip: None, exponential_forget: false };
    let resets = Tensor::from_slice(&[3_i64, 0])
        .unsqueeze(1)
        .eq_tensor(&Tensor::arange(7, (Kind::Int64, Device::Cpu)));
    let before = normal(&[4, 2, 3, 5]).abs();
    let part = |index: i64| before.select(0, index);
    let state =
        crate::slstm::SlstmState { hidden: part(0), cell: part(1), normalizer: part(2), maximum: part(3) };
    for bounded in [false, true] {
        let (resets, given) = (bounded.then_some(&resets), bounded.then_some(&state));
        let input = SlstmInput {
            x_BTGHE: &x,
            recurrent_HEGE: &recurrent,
            bias_GHE: &Tensor::zeros([4, 3, 5], (Kind::Double, Device::Cpu)),
            state: given,
            resets_BT: resets,
        };
        let expected = crate::slstm::slstm(&input, &options).unwrap().y_BTHE;
        let found = slstm(&x, &recurrent, bounded.then_some(&before), resets);
        assert!((found - expected).abs().max().double_value(&[]) < 1e-10, "resets and a state: {bounded}");
    }
    lstm_agrees_with_libtorch();
}

#[cfg(test)]
fn lstm_agrees_with_libtorch() {
    use tch::Device;
    let normal = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
    let input_BTC = normal(&[2, 7, 3]);
    let weights = [normal(&[20, 3]), normal(&[20, 5]), normal(&[20]), normal(&[20])];
    let before = normal(&[2, 2, 1, 5]);
    let start =
        [before.select(0, 0).transpose(0, 1), before.select(0, 1).transpose(0, 1)].map(|x| x.contiguous());
    let (expected, ..) = input_BTC.lstm(&start, &weights, true, 1, 0.0, false, false, true);
    let [w, r, b, c] = weights.each_ref().map(Tensor::shallow_clone);
    let [layer, _] = lstm_layer(&[input_BTC.shallow_clone(), w, r, b, c, before.shallow_clone()]);
    assert!((layer.squeeze_dim(2) - &expected).abs().max().double_value(&[]) < 1e-10);
    let x_BTGHE = input_BTC.matmul(&weights[0].tr()).view([2, 7, 4, 1, 5]);
    let recurrent_HEGE = weights[1].view([4, 5, 5]).permute([2, 0, 1]).unsqueeze(0);
    let bias_GHE = (&weights[2] + &weights[3]).view([4, 1, 5]);
    let [found, _] = lstm(&[x_BTGHE, recurrent_HEGE, bias_GHE, before], None);
    assert!((found.squeeze_dim(2) - expected).abs().max().double_value(&[]) < 1e-10);
}
