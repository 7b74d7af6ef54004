//! Every kernel of the GPU against float64, and against libtorch's own operations in the same precision.
//!
//! Each check draws inputs, runs the kernel forward and backward twice, and computes the same in float64 and in its
//! own precision with libtorch, on the same GPU. A tensor passes when its error ‖x − exact‖ / ‖exact‖ is at most twice that of
//! libtorch, or at most 2⁻⁸, the rounding of the result itself (2⁻¹⁶ for kernels of float32); a kernel when all its tensors do and both runs gave
//! the same bits. Sizes are odd on purpose, gates saturated in some cases.
//!
//! The gradient of a forget gate is a running sum and that of a gate's bias a sum over all tokens: their error in one draw
//! is that of a few numbers, and its ratio to libtorch's anything between a third and three. Cells are therefore judged
//! by the root mean square of the errors over several draws.

mod around;
mod around_methods;
mod boundaries;
mod compile;
mod inner;
mod inputs;
mod loss;
mod methods;
mod mlstm;
mod plain;
mod recurrent;
mod single;

use tch::{Device, Kind, Tensor};
use xlstm_bridge::autograd::gradients;

use crate::KernelError;

/// What rounding a result to bf16 may cost.
const ROUNDING: f64 = 1.0 / 256.0;
/// What sums in float32 may cost.
const PRECISE: f64 = 1.0 / 65536.0;

/// Draws of inputs that a cell is judged by.
const DRAWS: usize = 8;

/// One tensor of a check.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedTensor {
    /// What it is: an output, or the gradient of an input.
    pub name: String,
    /// Relative error of the kernel; NaN where something was left unwritten.
    pub error: f64,
    /// Relative error of libtorch's operations in the same precision.
    pub libtorch: f64,
    /// What rounding in this precision may cost whatever libtorch's error is.
    pub rounding: f64,
}

impl CheckedTensor {
    /// Whether the error is small enough.
    pub fn passed(&self) -> bool {
        self.error <= (2.0 * self.libtorch).max(self.rounding)
    }
}

/// One kernel on one set of inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The kernel.
    pub kernel: &'static str,
    /// Sizes and kind of inputs.
    pub case: String,
    /// Outputs and gradients.
    pub tensors: Vec<CheckedTensor>,
    /// Whether two runs gave the same bits.
    pub repeatable: bool,
}

impl Check {
    /// One check of several draws: each error is the root mean square of theirs.
    fn over_draws(mut draw: impl FnMut() -> Result<Check, KernelError>) -> Result<Check, KernelError> {
        let mut all = draw()?;
        for tensor in &mut all.tensors {
            tensor.error *= tensor.error;
            tensor.libtorch *= tensor.libtorch;
        }
        for _ in 1..DRAWS {
            let check = draw()?;
            all.repeatable &= check.repeatable;
            for (sum, tensor) in all.tensors.iter_mut().zip(&check.tensors) {
                sum.error += tensor.error * tensor.error;
                sum.libtorch += tensor.libtorch * tensor.libtorch;
            }
        }
        for tensor in &mut all.tensors {
            tensor.error = (tensor.error / DRAWS as f64).sqrt();
            tensor.libtorch = (tensor.libtorch / DRAWS as f64).sqrt();
        }
        Ok(all)
    }

    /// Whether every tensor passed, and both runs agree.
    pub fn passed(&self) -> bool {
        self.repeatable && !self.tensors.is_empty() && self.tensors.iter().all(CheckedTensor::passed)
    }
}

/// A function to be checked: differentiable outputs from differentiable inputs.
type Function<'a> = dyn Fn(&[Tensor]) -> Result<Vec<Tensor>, KernelError> + 'a;

/// What is compared.
struct Subject<'a> {
    kernel: &'static str,
    case: String,
    /// Names and values, in the types that the kernel takes.
    inputs: Vec<(&'static str, Tensor)>,
    outputs: &'a [&'static str],
    /// The kernel.
    ours: &'a Function<'a>,
    /// The same by libtorch: in `Double` for double inputs, otherwise with products in bf16.
    libtorch: &'a Function<'a>,
    /// What rounding may cost.
    rounding: f64,
    /// What outputs and their gradients are multiplied with, where some rows say nothing about any implementation.
    mask: Option<Tensor>,
}

impl Subject<'_> {
    fn check(self) -> Result<Check, KernelError> {
        let values: Vec<Tensor> = self.inputs.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        let upstream = self.upstream(&values)?;
        let ours = evaluate(self.ours, &values, &upstream)?;
        let again = evaluate(self.ours, &values, &upstream)?;
        let wide: Vec<Tensor> = values.iter().map(|tensor| tensor.to_kind(Kind::Double)).collect();
        let exact = evaluate(self.libtorch, &wide, &upstream)?;
        let plain = evaluate(self.libtorch, &values, &upstream)?;
        let repeatable = ours.iter().zip(&again).all(|(a, b)| match (a, b) {
            (Some(a), Some(b)) => a.equal(b),
            (a, b) => a.is_none() && b.is_none(),
        });
        let (ours, exact, plain) = (self.masked(ours), self.masked(exact), self.masked(plain));
        let outputs = self.outputs.iter().map(|name| (*name).to_owned());
        let rounding = self.rounding;
        let names = outputs.chain(self.inputs.iter().map(|(name, _)| format!("gradient of {name}")));
        let tensors =
            names.zip(ours).zip(exact.iter().zip(&plain)).filter_map(|((name, ours), (exact, plain))| {
                let exact = exact.as_ref()?;
                let of = |tensor: Option<&Tensor>| tensor.map_or(f64::NAN, |tensor| relative(tensor, exact));
                Some(CheckedTensor { name, error: of(ours.as_ref()), libtorch: of(plain.as_ref()), rounding })
            });
        Ok(Check { kernel: self.kernel, case: self.case, tensors: tensors.collect(), repeatable })
    }

    /// Outputs without the rows that say nothing about any implementation, and the gradients as they are.
    fn masked(&self, tensors: Vec<Option<Tensor>>) -> Vec<Option<Tensor>> {
        let Some(mask) = &self.mask else { return tensors };
        let outputs = self.outputs.len();
        let keep = |(index, tensor): (usize, Option<Tensor>)| {
            tensor.map(|tensor| if index < outputs { tensor * mask.to_kind(Kind::Double) } else { tensor })
        };
        tensors.into_iter().enumerate().map(keep).collect()
    }

    /// Gradients to start the backward pass from, one for each output: numbers that bf16 holds.
    fn upstream(&self, values: &[Tensor]) -> Result<Vec<Tensor>, KernelError> {
        let outputs = tch::no_grad(|| (self.ours)(values))?;
        let draw = |output: &Tensor| {
            let drawn = output.to_kind(Kind::Float).randn_like().to_kind(Kind::BFloat16);
            match &self.mask {
                Some(mask) if mask.dim() <= drawn.dim() => drawn * mask.to_kind(Kind::BFloat16),
                _ => drawn,
            }
        };
        Ok(outputs.iter().map(draw).collect())
    }
}

/// Outputs, then gradients of the inputs.
fn evaluate(
    function: &Function<'_>,
    values: &[Tensor],
    upstream: &[Tensor],
) -> Result<Vec<Option<Tensor>>, KernelError> {
    let leaves: Vec<Tensor> =
        values.iter().map(|value| value.detach().copy().set_requires_grad(true)).collect();
    let outputs = tch::with_grad(|| function(&leaves))?;
    let weights: Vec<Tensor> =
        outputs.iter().zip(upstream).map(|(output, weight)| weight.to_kind(output.kind())).collect();
    let (heads, weights): (Vec<&Tensor>, Vec<Option<&Tensor>>) =
        outputs.iter().zip(weights.iter().map(Some)).unzip();
    let found = gradients(&heads, &weights, &leaves.iter().collect::<Vec<_>>(), false)?;
    Ok(outputs.iter().map(|output| Some(output.detach())).chain(found).collect())
}

fn relative(found: &Tensor, exact: &Tensor) -> f64 {
    let found = found.to_kind(Kind::Double).reshape_as(exact);
    let scale = exact.norm().double_value(&[]).max(1e-30);
    (found - exact).norm().double_value(&[]) / scale
}

/// Checks that belong together, by what they check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// What lies around the cells: convolutions, norms, gates, projections.
    Pointwise,
    /// The bf16 mLSTM and the block around it.
    Mlstm,
    /// States in and out, documents that begin anew, and the float32 mLSTM.
    Boundaries,
    /// sLSTM and LSTM.
    Recurrent,
    /// The other methods: recurrences, and what stands between their products.
    Methods,
    /// The loss.
    Loss,
}

impl Group {
    /// All, in the order in which they are checked.
    pub const ALL: [Self; 6] =
        [Self::Pointwise, Self::Mlstm, Self::Boundaries, Self::Recurrent, Self::Methods, Self::Loss];
}

/// Checks the kernels of these groups on this device; `each` is told of every result as it comes.
///
/// # Errors
/// When the GPU cannot be opened, a kernel does not compile, or libtorch fails.
pub fn run(
    device: Device,
    groups: &[Group],
    each: &mut dyn FnMut(&Check),
) -> Result<Vec<Check>, KernelError> {
    tch::manual_seed(7);
    if groups.len() == Group::ALL.len() {
        // All at once, on all cores; for a few they are compiled as they are needed.
        compile::compile(device)?;
    }
    let mut all = Vec::new();
    let mut take = |check: Check| {
        each(&check);
        all.push(check);
    };
    for group in Group::ALL.into_iter().filter(|group| groups.contains(group)) {
        match group {
            Group::Pointwise => {
                around::pointwise(device, &mut take)?;
                around_methods::dropouts(device, &mut take)?;
            }
            Group::Mlstm => {
                mlstm::mlstm(device, &mut take)?;
                inner::mlstm_inner(device, &mut take)?;
            }
            Group::Boundaries => boundaries::boundaries(device, &mut take)?,
            Group::Recurrent => {
                recurrent::half(device, &mut take)?;
                recurrent::single(device, &mut take)?;
            }
            Group::Methods => {
                methods::attention(device, &mut take)?;
                methods::scans(device, &mut take)?;
                recurrent::layers(device, &mut take)?;
                around_methods::shifts(device, &mut take)?;
                around_methods::norms(device, &mut take)?;
                around_methods::transformer(device, &mut take)?;
                around_methods::convolutions(device, &mut take)?;
            }
            Group::Loss => loss::cross_entropy(device, &mut take)?,
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(factor: f64) -> impl Fn(&[Tensor]) -> Result<Vec<Tensor>, KernelError> {
        move |inputs| Ok(vec![&inputs[0] * &inputs[0] * factor])
    }

    fn check(factor: f64) -> Check {
        let input = Tensor::randn([3, 5], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let subject = Subject {
            kernel: "square",
            case: "3x5".into(),
            inputs: vec![("x", input)],
            outputs: &["y"],
            ours: &square(factor),
            libtorch: &square(1.0),
            rounding: ROUNDING,
            mask: None,
        };
        subject.check().unwrap()
    }

    #[test]
    fn a_right_function_passes_and_a_wrong_one_is_named() {
        let right = check(1.0);
        assert!(right.passed(), "{right:?}");
        let names: Vec<&str> = right.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["y", "gradient of x"]);
        let wrong = check(1.1);
        assert!(!wrong.passed() && wrong.tensors.iter().all(|tensor| !tensor.passed()), "{wrong:?}");
        let unwritten = check(f64::NAN);
        assert!(!unwritten.passed(), "{unwritten:?}");
    }

    #[test]
    fn draws_count_by_their_root_mean_square_and_nothing_hides_among_them() {
        let over = |last: f64| {
            let mut errors = std::iter::repeat_n(0.01, DRAWS - 1).chain([last]);
            let draw = || {
                let error = errors.next().unwrap();
                let tensors =
                    vec![CheckedTensor { name: "y".into(), error, libtorch: 0.01, rounding: ROUNDING }];
                Ok(Check { kernel: "k", case: "c".into(), tensors, repeatable: true })
            };
            Check::over_draws(draw).unwrap()
        };
        let check = over(0.025);
        assert!((check.tensors[0].error - ((7.0 * 1e-4 + 6.25e-4) / 8.0_f64).sqrt()).abs() < 1e-12);
        assert!(check.passed(), "one draw of luck is no fault: {check:?}");
        assert!(!over(f64::NAN).passed(), "what was left unwritten");
    }

    #[test]
    fn the_plain_cells_agree_with_the_references_in_float64() {
        plain::tests_against_references();
    }
}
