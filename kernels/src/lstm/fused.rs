//! LSTM with the whole loop over time in one call, on the CPU (`cpu/slstm.h`, `cpu/lstm.h`), backward by hand.
//!
//! The loop is sLSTM's: a head of a few sequences runs through time on a core of its own. Backward, with d· for gradients:
//!
//! ```text
//! dc += dh·o·(1−tanh²(c))        do~ = dh·tanh(c)·o(1−o)        di~ = dc·z·i(1−i)
//! df~ = dc·c_{t−1}·f(1−f)        dz~ = dc·i·(1−z²)              dc_{t−1} = dc·f
//! dh_{t−1} = R (di~, df~, dz~, do~)        dR = Σ_t h_{t−1} (di~, df~, dz~, do~)ᵀ
//! ```

use super::{LstmInput, LstmOutput, LstmState};
use crate::KernelError;
use crate::cpu::empty;
use crate::recurrent::{Loop, LoopCell, LoopGradients, LoopSteps, Sizes};
use tch::Tensor;
use xlstm_bridge::autograd::node;
use xlstm_bridge::named::Named;
use xlstm_bridge::{BoxError, named_tensors};

named_tensors! {
    struct Inputs<T> { x_BTGHE: T, recurrent_HEGE: T, bias_GHE: T, hidden: T, cell: T }

    struct Outputs<T> { h_BTHE: T, hidden: T, cell: T }

    /// Values of each step, `(B, T, H, E)`: the gates after their activation, the cell and its tanh.
    struct Steps<T> { input: T, forget: T, z: T, o: T, cell: T, bounded: T }

    struct Saved {
        inputs: Inputs<Tensor>,
        resets_BT: Option<Tensor>,
        outputs: Outputs<Tensor>,
        steps: Steps<Tensor>,
    }
}

pub(super) fn lstm(
    input: &LstmInput<'_>,
    initial: &LstmState,
    sizes: Sizes,
) -> Result<LstmOutput, KernelError> {
    let resets_BT = input.resets_BT.map(Tensor::contiguous);
    let inputs = Inputs {
        x_BTGHE: input.x_BTGHE,
        recurrent_HEGE: input.recurrent_HEGE,
        bias_GHE: input.bias_GHE,
        hidden: &initial.hidden,
        cell: &initial.cell,
    };
    let Outputs { h_BTHE, hidden, cell } = node(
        "lstm_fused",
        inputs.map(Some),
        |_| Ok(forward(inputs, resets_BT, sizes)),
        move |saved, upstream, _| backward(&saved, upstream, sizes),
    )?;
    Ok(LstmOutput { h_BTHE, state: LstmState { hidden, cell } })
}

fn forward(inputs: Inputs<&Tensor>, resets_BT: Option<Tensor>, sizes: Sizes) -> (Outputs<Tensor>, Saved) {
    let Sizes { batch, time, heads, width } = sizes;
    let kind = inputs.x_BTGHE.kind();
    let sequence = || empty(&[batch, time, heads, width], kind);
    let state = || empty(&[batch, heads, width], kind);
    let outputs = Outputs { h_BTHE: sequence(), hidden: state(), cell: state() };
    let steps = Steps {
        input: sequence(),
        forget: sequence(),
        z: sequence(),
        o: sequence(),
        cell: sequence(),
        bounded: sequence(),
    };
    // A dense input is saved as it is, so that a change in place is noticed.
    let inputs = inputs.map(Tensor::contiguous);
    let Outputs { h_BTHE, hidden, cell } = &outputs;
    let returned = Outputs { h_BTHE, hidden, cell }.map(Tensor::shallow_clone);
    let saved = Saved { inputs, resets_BT, outputs, steps };
    run(&saved, sizes, |call| call.forward(kind));
    (returned, saved)
}

/// The call of the loop that these tensors make up.
fn run(saved: &Saved, sizes: Sizes, then: impl FnOnce(&Loop<'_>)) {
    let Saved { inputs, resets_BT, outputs, steps } = saved;
    then(&Loop {
        sizes,
        cell: LoopCell::Lstm,
        clip: 0.0,
        x: &inputs.x_BTGHE,
        recurrent: &inputs.recurrent_HEGE,
        bias: &inputs.bias_GHE,
        resets: resets_BT.as_ref(),
        initial: &[&inputs.hidden, &inputs.cell],
        y: &outputs.h_BTHE,
        steps: LoopSteps {
            input: &steps.input,
            forget: &steps.forget,
            z: &steps.z,
            o: &steps.o,
            cell: &steps.cell,
            normalizer: &steps.bounded,
            maximum: None,
        },
        last: &[&outputs.hidden, &outputs.cell],
    });
}

fn backward(
    saved: &Saved,
    upstream: Outputs<Option<Tensor>>,
    sizes: Sizes,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let kind = saved.outputs.h_BTHE.kind();
    let upstream = upstream.map(|gradient| gradient.map(|gradient| gradient.contiguous()));
    let Inputs { x_BTGHE, recurrent_HEGE, bias_GHE, hidden, cell } = &saved.inputs;
    let results =
        Inputs { x_BTGHE, recurrent_HEGE, bias_GHE, hidden, cell }.map(|input| empty(&input.size(), kind));
    let gradients = LoopGradients {
        y: upstream.h_BTHE.as_ref(),
        last: &[upstream.hidden.as_ref(), upstream.cell.as_ref()],
        x: &results.x_BTGHE,
        recurrent: &results.recurrent_HEGE,
        bias: &results.bias_GHE,
        initial: &[&results.hidden, &results.cell],
    };
    run(saved, sizes, |call| call.backward(kind, &gradients));
    Ok(results.map(Some))
}
