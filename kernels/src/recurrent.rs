//! What LSTM and sLSTM share: the checks of their arguments, and the loop in C++ that computes both (`cpu/slstm.h`,
//! `cpu/lstm.h`).

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use tch::{Device, Kind, Tensor};

use crate::KernelError;
use crate::cpu::{Precision, SlstmGradients, SlstmProblem, SlstmSaved, address, call, optional_address};
use crate::shape::{computing_kind, dimensions, expect_device, expect_resets, expect_shape};

/// Sizes of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) batch: i64,
    pub(crate) time: i64,
    pub(crate) heads: i64,
    pub(crate) width: i64,
}

/// The arguments of both cells but for the state, whose parts differ.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arguments<'a> {
    /// The function's name, for messages.
    pub(crate) function: &'static str,
    pub(crate) x_BTGHE: &'a Tensor,
    pub(crate) recurrent_HEGE: &'a Tensor,
    pub(crate) bias_GHE: &'a Tensor,
    pub(crate) resets_BT: Option<&'a Tensor>,
}

impl Arguments<'_> {
    /// The sizes and the type to compute in, once all arguments fit each other; `state` has its parts by name.
    pub(crate) fn check<'s>(
        &self,
        state: impl IntoIterator<Item = (&'static str, &'s Tensor)>,
    ) -> Result<(Sizes, Kind), KernelError> {
        let Self { function, x_BTGHE, recurrent_HEGE, bias_GHE, resets_BT } = *self;
        let [batch, time, _, heads, width] = dimensions(function, "x_BTGHE", x_BTGHE)?;
        expect_shape(function, "x_BTGHE", x_BTGHE, &[batch, time, 4, heads, width])?;
        expect_shape(function, "recurrent_HEGE", recurrent_HEGE, &[heads, width, 4, width])?;
        expect_shape(function, "bias_GHE", bias_GHE, &[4, heads, width])?;
        expect_resets(function, resets_BT, x_BTGHE, [batch, time])?;
        if batch * time * heads * width == 0 {
            let (found, expected) = (x_BTGHE.size(), "sizes of at least 1".to_owned());
            return Err(KernelError::Shape { function, argument: "x_BTGHE", expected, found });
        }
        let mut kind = computing_kind(function, "x_BTGHE", x_BTGHE)?;
        for (argument, tensor) in [("recurrent_HEGE", recurrent_HEGE), ("bias_GHE", bias_GHE)] {
            expect_device(function, argument, tensor, x_BTGHE)?;
            if computing_kind(function, argument, tensor)? == Kind::Double {
                kind = Kind::Double;
            }
        }
        for (argument, tensor) in state {
            expect_shape(function, argument, tensor, &[batch, heads, width])?;
            expect_device(function, argument, tensor, x_BTGHE)?;
        }
        if let Some(resets_BT) = resets_BT {
            expect_device(function, "resets_BT", resets_BT, x_BTGHE)?;
        }
        Ok((Sizes { batch, time, heads, width }, kind))
    }

    /// Refuses a call of the fused kernel that is not on the CPU.
    pub(crate) fn expect_cpu(&self) -> Result<(), KernelError> {
        match self.x_BTGHE.device() {
            Device::Cpu => Ok(()),
            found => Err(KernelError::Device {
                function: self.function,
                argument: "x_BTGHE",
                expected: "the CPU (the fused kernel knows no other)".to_owned(),
                found,
            }),
        }
    }
}

/// Which cell the loop computes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LoopCell {
    Lstm,
    Slstm { exponential_forget: bool },
}

/// Values of each step, `(B, T, H, E)`: the gates after their activation, the cell, and the rest of the state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoopSteps<'a> {
    pub(crate) input: &'a Tensor,
    pub(crate) forget: &'a Tensor,
    pub(crate) z: &'a Tensor,
    pub(crate) o: &'a Tensor,
    pub(crate) cell: &'a Tensor,
    /// The normalizer; of an LSTM the cell's tanh.
    pub(crate) normalizer: &'a Tensor,
    /// `None` of an LSTM.
    pub(crate) maximum: Option<&'a Tensor>,
}

/// One call of the loop. Tensors are dense and of the computing type; a state has hidden, cell, normalizer and maximum, of
/// an LSTM the first two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loop<'a> {
    pub(crate) sizes: Sizes,
    pub(crate) cell: LoopCell,
    /// Limit of the gradient through R; 0: none.
    pub(crate) clip: f64,
    pub(crate) x: &'a Tensor,
    pub(crate) recurrent: &'a Tensor,
    pub(crate) bias: &'a Tensor,
    pub(crate) resets: Option<&'a Tensor>,
    pub(crate) initial: &'a [&'a Tensor],
    pub(crate) y: &'a Tensor,
    pub(crate) steps: LoopSteps<'a>,
    pub(crate) last: &'a [&'a Tensor],
}

/// Where the loop's backward pass begins, and where it writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoopGradients<'a> {
    pub(crate) y: Option<&'a Tensor>,
    pub(crate) last: &'a [Option<&'a Tensor>],
    pub(crate) x: &'a Tensor,
    pub(crate) recurrent: &'a Tensor,
    pub(crate) bias: &'a Tensor,
    pub(crate) initial: &'a [&'a Tensor],
}

impl Loop<'_> {
    /// Fills `y`, `steps` and `last`.
    pub(crate) fn forward(&self, kind: Kind) {
        call!(kind, slstm_forward_f32, slstm_forward_f64, &self.problem());
    }

    /// Fills the gradients of inputs, weights and the initial state.
    pub(crate) fn backward(&self, kind: Kind, gradients: &LoopGradients<'_>) {
        call!(kind, slstm_backward_f32, slstm_backward_f64, &self.problem(), &gradients.addresses());
    }

    fn problem<T: Precision>(&self) -> SlstmProblem<T> {
        let Sizes { batch, time, heads, width } = self.sizes;
        let input = |tensor: &Tensor| address::<T>(tensor).cast_const();
        let (lstm, exponential_forget) = match self.cell {
            LoopCell::Lstm => (1, 0),
            LoopCell::Slstm { exponential_forget } => (0, i64::from(exponential_forget)),
        };
        let LoopSteps { input: i, forget, z, o, cell, normalizer, maximum } = self.steps;
        SlstmProblem {
            batch,
            time,
            heads,
            width,
            exponential_forget,
            lstm,
            clip: T::from_f64(self.clip),
            x: input(self.x),
            recurrent: input(self.recurrent),
            bias: input(self.bias),
            resets: optional_address::<c_void>(self.resets).cast(),
            initial: four(self.initial.iter().map(|tensor| input(tensor)), null()),
            y: address(self.y),
            saved: SlstmSaved {
                input: address(i),
                forget: address(forget),
                z: address(z),
                o: address(o),
                cell: address(cell),
                normalizer: address(normalizer),
                maximum: maximum.map_or(null_mut(), address),
            },
            last: four(self.last.iter().map(|tensor| address(tensor)), null_mut()),
        }
    }
}

impl LoopGradients<'_> {
    fn addresses<T>(&self) -> SlstmGradients<T> {
        let given = |tensor: Option<&Tensor>| optional_address::<T>(tensor).cast_const();
        SlstmGradients {
            y: given(self.y),
            last: four(self.last.iter().map(|tensor| given(*tensor)), null()),
            x: address(self.x),
            recurrent: address(self.recurrent),
            bias: address(self.bias),
            initial: four(self.initial.iter().map(|tensor| address(tensor)), null_mut()),
        }
    }
}

/// The parts of a state as the kernel takes them: four, of which an LSTM lacks two.
fn four<P: Copy>(found: impl Iterator<Item = P>, none: P) -> [P; 4] {
    let mut all = [none; 4];
    all.iter_mut().zip(found).for_each(|(place, one)| *place = one);
    all
}
