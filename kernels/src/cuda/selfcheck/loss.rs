//! The loss.

use tch::{Device, Kind, Tensor};

use super::inputs::{half, normal};
use super::{Check, ROUNDING, Subject};
use crate::{KernelError, cuda};

/// Vocabulary of the cross-entropy's check: no multiple of a block's 8192 logits.
pub(super) const VOCABULARY: i64 = 10_000;

/// The loss, with targets that count for nothing.
pub(super) fn cross_entropy(device: Device, take: &mut dyn FnMut(Check)) -> Result<(), KernelError> {
    for (rows, width) in [(300, 136), (1, 64)] {
        let targets = Tensor::randint(VOCABULARY, [rows], (Kind::Int64, device));
        if rows > 1 {
            let _ = targets.narrow(0, 3, 7).fill_(-100);
        }
        let count = targets.ne(-100).sum(Kind::Int64).int64_value(&[]);
        let subject = Subject {
            kernel: "cross_entropy",
            case: format!("{rows}x{width}, vocabulary {VOCABULARY}"),
            inputs: vec![
                ("hidden", half(&[rows, width], device)),
                ("weight", normal(&[VOCABULARY, width], device) * 0.3),
            ],
            outputs: &["loss"],
            ours: &|x| Ok(vec![cuda::projected_cross_entropy(&x[0], &x[1], &targets, -100, count)?.loss]),
            libtorch: &|x| {
                let logits = x[0].matmul(&x[1].to_kind(x[0].kind()).tr());
                let logits = if x[0].kind() == Kind::Double { logits } else { logits.to_kind(Kind::Float) };
                let none = None::<&Tensor>;
                Ok(vec![logits.cross_entropy_loss(&targets, none, tch::Reduction::Mean, -100, 0.0)])
            },
            rounding: ROUNDING,
            mask: None,
        };
        take(subject.check()?);
    }
    Ok(())
}
