//! LSTM with the whole loop over time in one call, on the CPU (`cpu/slstm.h`, `cpu/lstm.h`), backward by hand.
//!
//! The loop is sLSTM's: a head of a few sequences runs through time on a core of its own. Backward, with d· for gradients:
//!
//! ```text
//! dc += dh·o·(1−tanh²(c))        do~ = dh·tanh(c)·o(1−o)        di~ = dc·z·i(1−i)
//! df~ = dc·c_{t−1}·f(1−f)        dz~ = dc·i·(1−z²)              dc_{t−1} = dc·f
//! dh_{t−1} = R (di~, df~, dz~, do~)        dR = Σ_t h_{t−1} (di~, df~, dz~, do~)ᵀ
//! ```

use super::{LstmInput, LstmOutput, LstmState, Sizes};
use crate::KernelError;
use crate::cpu::{
    Precision, SlstmGradients, SlstmProblem, SlstmSaved, address, call, empty, optional_address,
};
use std::ffi::c_void;
use std::ptr::{null, null_mut};
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
    call!(kind, slstm_forward_f32, slstm_forward_f64, &problem(&saved, sizes));
    (returned, saved)
}

fn problem<T: Precision>(saved: &Saved, sizes: Sizes) -> SlstmProblem<T> {
    let Saved { inputs, resets_BT, outputs, steps } = saved;
    let input = |tensor: &Tensor| address::<T>(tensor).cast_const();
    SlstmProblem {
        batch: sizes.batch,
        time: sizes.time,
        heads: sizes.heads,
        width: sizes.width,
        exponential_forget: 0,
        lstm: 1,
        clip: T::from_f64(0.0),
        x: input(&inputs.x_BTGHE),
        recurrent: input(&inputs.recurrent_HEGE),
        bias: input(&inputs.bias_GHE),
        resets: optional_address::<c_void>(resets_BT.as_ref()).cast(),
        initial: [input(&inputs.hidden), input(&inputs.cell), null(), null()],
        y: address(&outputs.h_BTHE),
        saved: SlstmSaved {
            input: address(&steps.input),
            forget: address(&steps.forget),
            z: address(&steps.z),
            o: address(&steps.o),
            cell: address(&steps.cell),
            normalizer: address(&steps.bounded),
            maximum: null_mut(),
        },
        last: [address(&outputs.hidden), address(&outputs.cell), null_mut(), null_mut()],
    }
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
    call!(
        kind,
        slstm_backward_f32,
        slstm_backward_f64,
        &problem(saved, sizes),
        &gradients(&upstream, &results)
    );
    Ok(results.map(Some))
}

fn gradients<T>(upstream: &Outputs<Option<Tensor>>, results: &Inputs<Tensor>) -> SlstmGradients<T> {
    let given = |tensor: &Option<Tensor>| optional_address::<T>(tensor.as_ref()).cast_const();
    SlstmGradients {
        y: given(&upstream.h_BTHE),
        last: [given(&upstream.hidden), given(&upstream.cell), null(), null()],
        x: address(&results.x_BTGHE),
        recurrent: address(&results.recurrent_HEGE),
        bias: address(&results.bias_GHE),
        initial: [address(&results.hidden), address(&results.cell), null_mut(), null_mut()],
    }
}
