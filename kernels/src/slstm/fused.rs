//! sLSTM with the whole loop over time in one call, on the CPU (`cpu/slstm.h`), with a backward pass by hand.
//!
//! Why it is faster than the loop of libtorch calls: a step of that loop is a dozen operations of a few microseconds
//! each on a few hundred numbers; here it is one pass over them. R is block-diagonal, so each head runs through time
//! on a core of its own, with its block of R in that core's cache and no barrier between steps.
//!
//! Backward (paper eq. 41–51), with d· for gradients and everything divided by exp(m) as in the forward pass:
//!
//! ```text
//! dc += dy·o / n        dn −= dy·o·c / n²
//! do~ = dy·(c/n)·o(1−o)        dz~ = dc·i·(1−z²)        di~ = (dc·z + dn)·i
//! d log σ(f~) = (dc·c_{t−1} + dn·n_{t−1})·f        dc_{t−1} = dc·f        dn_{t−1} = dn·f
//! dy_{t−1} = R (di~, df~, dz~, do~), clamped if so asked for        dR = Σ_t y_{t−1} (di~, df~, dz~, do~)ᵀ
//! ```
//!
//! dR is one matrix product over all steps at the end. The stabilizer m has a gradient only where the final state
//! has one; it runs back to whichever of i~ and log σ(f~) + m_{t−1} it was taken from.

use super::{SlstmInput, SlstmOptions, SlstmOutput, SlstmState};
use crate::KernelError;
use crate::cpu::empty;
use crate::recurrent::{Loop, LoopCell, LoopGradients, LoopSteps, Sizes};
use tch::Tensor;
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Named;
use xlstm_bridge::{BoxError, named_tensors};

named_tensors! {
    struct Inputs<T> {
        x_BTGHE: T,
        recurrent_HEGE: T,
        bias_GHE: T,
        hidden: T,
        cell: T,
        normalizer: T,
        maximum: T,
    }

    struct Outputs<T> { y_BTHE: T, hidden: T, cell: T, normalizer: T, maximum: T }

    /// Values of each step, `(B, T, H, E)`: the gates after their activation, and the state.
    struct Steps<T> { input: T, forget: T, z: T, o: T, cell: T, normalizer: T, maximum: T }

    struct Saved {
        inputs: Inputs<Tensor>,
        resets_BT: Option<Tensor>,
        outputs: Outputs<Tensor>,
        steps: Steps<Tensor>,
    }
}

pub(super) fn slstm(
    input: &SlstmInput<'_>,
    initial: &SlstmState,
    sizes: Sizes,
    options: &SlstmOptions,
) -> Result<SlstmOutput, KernelError> {
    let resets_BT = input.resets_BT.map(Tensor::contiguous);
    let inputs = Inputs {
        x_BTGHE: input.x_BTGHE,
        recurrent_HEGE: input.recurrent_HEGE,
        bias_GHE: input.bias_GHE,
        hidden: &initial.hidden,
        cell: &initial.cell,
        normalizer: &initial.normalizer,
        maximum: &initial.maximum,
    };
    let options = *options;
    let Outputs { y_BTHE, hidden, cell, normalizer, maximum } = node(
        "slstm_fused",
        inputs.map(Some),
        |_| Ok(forward(inputs, resets_BT, sizes, options)),
        move |saved, upstream, _| backward(&saved, upstream, sizes, options),
    )?;
    Ok(SlstmOutput { y_BTHE, state: SlstmState { hidden, cell, normalizer, maximum } })
}

fn forward(
    inputs: Inputs<&Tensor>,
    resets_BT: Option<Tensor>,
    sizes: Sizes,
    options: SlstmOptions,
) -> (Outputs<Tensor>, Saved) {
    let Sizes { batch, time, heads, width } = sizes;
    let kind = inputs.x_BTGHE.kind();
    let sequence = || empty(&[batch, time, heads, width], kind);
    let state = || empty(&[batch, heads, width], kind);
    let outputs =
        Outputs { y_BTHE: sequence(), hidden: state(), cell: state(), normalizer: state(), maximum: state() };
    let steps = Steps {
        input: sequence(),
        forget: sequence(),
        z: sequence(),
        o: sequence(),
        cell: sequence(),
        normalizer: sequence(),
        maximum: sequence(),
    };
    // A dense input is saved as it is, so that a change in place is noticed.
    let inputs = inputs.map(Tensor::contiguous);
    let saved = Saved { inputs, resets_BT, outputs: outputs.shallow_clone(), steps };
    run(&saved, sizes, options, |call| call.forward(kind));
    (outputs, saved)
}

impl Outputs<Tensor> {
    fn shallow_clone(&self) -> Self {
        let Self { y_BTHE, hidden, cell, normalizer, maximum } = self;
        Outputs { y_BTHE, hidden, cell, normalizer, maximum }.map(Tensor::shallow_clone)
    }
}

/// The call of the loop that these tensors make up. The forward pass reads no limit of gradients.
fn run(saved: &Saved, sizes: Sizes, options: SlstmOptions, then: impl FnOnce(&Loop<'_>)) {
    let Saved { inputs, resets_BT, outputs, steps } = saved;
    then(&Loop {
        sizes,
        cell: LoopCell::Slstm { exponential_forget: options.exponential_forget },
        clip: options.gradient_clip.unwrap_or(0.0),
        x: &inputs.x_BTGHE,
        recurrent: &inputs.recurrent_HEGE,
        bias: &inputs.bias_GHE,
        resets: resets_BT.as_ref(),
        initial: &[&inputs.hidden, &inputs.cell, &inputs.normalizer, &inputs.maximum],
        y: &outputs.y_BTHE,
        steps: LoopSteps {
            input: &steps.input,
            forget: &steps.forget,
            z: &steps.z,
            o: &steps.o,
            cell: &steps.cell,
            normalizer: &steps.normalizer,
            maximum: Some(&steps.maximum),
        },
        last: &[&outputs.hidden, &outputs.cell, &outputs.normalizer, &outputs.maximum],
    });
}

fn backward(
    saved: &Saved,
    upstream: Outputs<Option<Tensor>>,
    sizes: Sizes,
    options: SlstmOptions,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let kind = saved.outputs.y_BTHE.kind();
    let upstream = upstream.map(|gradient| gradient.map(|gradient| gradient.contiguous()));
    let Inputs { x_BTGHE, recurrent_HEGE, bias_GHE, hidden, cell, normalizer, maximum } = &saved.inputs;
    let results = Inputs { x_BTGHE, recurrent_HEGE, bias_GHE, hidden, cell, normalizer, maximum }
        .map(|input| empty(&input.size(), kind));
    let last = [&upstream.hidden, &upstream.cell, &upstream.normalizer, &upstream.maximum];
    let gradients = LoopGradients {
        y: upstream.y_BTHE.as_ref(),
        last: &last.map(Option::as_ref),
        x: &results.x_BTGHE,
        recurrent: &results.recurrent_HEGE,
        bias: &results.bias_GHE,
        initial: &[&results.hidden, &results.cell, &results.normalizer, &results.maximum],
    };
    run(saved, sizes, options, |call| call.backward(kind, &gradients));
    Ok(results.map(Some))
}
