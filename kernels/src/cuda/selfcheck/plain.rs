//! The cells written out with libtorch's operations, with matrix products in the inputs' type: what a kernel's error
//! is measured against (double inputs) and compared with (bf16 inputs, the rest in fp32).

use tch::{Kind, Tensor};

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

/// The recurrence step by step: `x (B, T, 4, H, E)` with biases, R `(H, E in, 4, E out)`.
pub(super) fn slstm(x: &Tensor, recurrent: &Tensor) -> Tensor {
    let kind = x.kind();
    let size = x.size();
    let (batch, time, heads, units) = (size[0], size[1], size[3], size[4]);
    let weight_HEF = recurrent.reshape([heads, units, 4 * units]).to_kind(kind);
    let zeros = |kind: Kind| Tensor::zeros([batch, heads, units], (kind, x.device()));
    let (mut hidden, mut cell) = (zeros(kind), zeros(wide(kind)));
    let (mut norm, mut maximum) = (zeros(wide(kind)), zeros(wide(kind)));
    let mut outputs = Vec::new();
    for step in 0..time {
        let mixed_HBF = hidden.transpose(0, 1).matmul(&weight_HEF);
        let mixed = mixed_HBF.view([heads, batch, 4, units]).permute([1, 2, 0, 3]).to_kind(wide(kind));
        let raw = x.select(1, step).to_kind(wide(kind)) + mixed;
        let gate = |index: i64| raw.select(1, index);
        let carried = &maximum + gate(1).log_sigmoid();
        let next = if step == 0 { gate(0) } else { gate(0).maximum(&carried) }.detach();
        let input = (gate(0) - &next).exp();
        let kept = if step == 0 { input.zeros_like() } else { (carried - &next).exp() };
        cell = &kept * cell + &input * gate(2).tanh();
        norm = kept * norm + input;
        maximum = next;
        hidden = (gate(3).sigmoid() * &cell / &norm).to_kind(kind);
        outputs.push(hidden.shallow_clone());
    }
    Tensor::stack(&outputs, 1)
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

    let (x, recurrent) = (normal(&[2, 7, 4, 3, 5]), normal(&[3, 5, 4, 5]));
    let input = SlstmInput {
        x_BTGHE: &x,
        recurrent_HEGE: &recurrent,
        bias_GHE: &Tensor::zeros([4, 3, 5], (Kind::Double, Device::Cpu)),
        state: None,
        resets_BT: None,
    };
    let options =
        SlstmOptions { kernel: SlstmKernel::Reference, gradient_clip: None, exponential_forget: false };
    let expected = crate::slstm::slstm(&input, &options).unwrap().y_BTHE;
    assert!((slstm(&x, &recurrent) - expected).abs().max().double_value(&[]) < 1e-10);
}
