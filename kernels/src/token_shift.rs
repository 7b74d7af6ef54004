//! Each token mixed with the one before it, in several proportions: what stands in front of RWKV's products.
//!
//! ```text
//! out_i = y + (before − y) ⊙ (share_i + own_i)
//! ```
//! `before` is the token before: zeros where a document begins, what came before the sequence at its first token. RWKV-4 and -5
//! have shares alone, RWKV-6 adds what each token chooses (`ddlerp`). On a GPU, for y in fp32, one kernel each way
//! (`cuda/token_shift.cu`), which writes the type of the products that read it; elsewhere libtorch's operations.

use tch::{Kind, Tensor};
use xlstm_bridge::autograd::node;
use xlstm_bridge::{BoxError, named_tensors};
use xlstm_cuda::layers::LayerLaunch;
use xlstm_cuda::token_shift::{MOST_MIXES, TokenShiftForm, TokenShiftParameters};

use crate::cuda::layout;
use crate::shape::{computing_kind, dimensions, expect_device, expect_resets, expect_shape};
use crate::{KernelError, cuda};

const NAME: &str = "token_shift";

/// Arguments of [`token_shift`].
#[derive(Debug, Clone, Copy)]
pub struct TokenShiftInput<'a> {
    /// The tokens, `(B, T, C)`.
    pub y_BTC: &'a Tensor,
    /// What stands before the first, `(B, C)`; `None` is zeros.
    pub first_BC: Option<&'a Tensor>,
    /// What each token adds to the shares, `(M, B, T, C)`.
    pub own_MBTC: Option<&'a Tensor>,
    /// Steps before which everything is forgotten, `(B, T)`, boolean.
    pub resets_BT: Option<&'a Tensor>,
    /// The type of the mixes.
    pub kind: Kind,
}

/// M mixes `(B, T, C)`, of the token before by M shares of C numbers each. Gradients flow to every floating-point argument.
///
/// # Errors
/// [`KernelError`] names the first argument whose shape, type or device does not fit.
pub fn token_shift<const M: usize>(
    input: &TokenShiftInput<'_>,
    shares: [&Tensor; M],
) -> Result<[Tensor; M], KernelError> {
    let size = dimensions::<3>(NAME, "y_BTC", input.y_BTC)?;
    let [batch, time, width] = size;
    for share in shares {
        expect_shape(NAME, "shares", &share.f_flatten(0, -1)?, &[width])?;
        expect_device(NAME, "shares", share, input.y_BTC)?;
    }
    if let Some(first_BC) = input.first_BC {
        expect_shape(NAME, "first_BC", first_BC, &[batch, width])?;
        expect_device(NAME, "first_BC", first_BC, input.y_BTC)?;
    }
    if let Some(own_MBTC) = input.own_MBTC {
        let mixes = i64::try_from(M).unwrap_or(i64::MAX);
        expect_shape(NAME, "own_MBTC", own_MBTC, &[mixes, batch, time, width])?;
        expect_device(NAME, "own_MBTC", own_MBTC, input.y_BTC)?;
    }
    expect_resets(NAME, input.resets_BT, input.y_BTC, [batch, time])?;
    computing_kind(NAME, "y_BTC", input.y_BTC)?;
    if batch * time * width == 0 {
        let (found, expected) = (size.to_vec(), "sizes of at least 1".to_owned());
        return Err(KernelError::Shape { function: NAME, argument: "y_BTC", expected, found });
    }
    let form = TokenShiftForm {
        mixes: u32::try_from(M).unwrap_or(u32::MAX),
        own: input.own_MBTC.is_some(),
        float32: input.kind == Kind::Float,
    };
    if fits::<M>(input, &shares, size) { fused(input, shares, form) } else { composed(input, shares) }
}

/// Whether there is a kernel: y and shares in fp32 on a GPU, mixes in fp32 or bf16, and what tokens add in the same type.
fn fits<const M: usize>(
    input: &TokenShiftInput<'_>,
    shares: &[&Tensor; M],
    [batch, time, width]: [i64; 3],
) -> bool {
    let in_float =
        input.y_BTC.kind() == Kind::Float && shares.iter().all(|share| share.kind() == Kind::Float);
    let outputs = matches!(input.kind, Kind::Float | Kind::BFloat16);
    let own = input.own_MBTC.is_none_or(|own| own.kind() == input.kind);
    let sizes =
        width % 4 == 0 && batch <= layout::MAX_GRID && time / TokenShiftForm::run() < layout::MAX_GRID;
    (1..=MOST_MIXES).contains(&M)
        && in_float
        && outputs
        && own
        && sizes
        && cuda::enabled(input.y_BTC.device())
}

/// By libtorch's operations, on any device; the arguments have been checked.
fn composed<const M: usize>(
    input: &TokenShiftInput<'_>,
    shares: [&Tensor; M],
) -> Result<[Tensor; M], KernelError> {
    let y_BTC = input.y_BTC;
    let time = y_BTC.size()[1];
    let first_BC = match input.first_BC {
        Some(first_BC) => first_BC.f_to_kind(y_BTC.kind())?,
        None => y_BTC.f_select(1, 0)?.f_zeros_like()?,
    };
    let mut before_BTC = Tensor::f_cat(&[first_BC.f_unsqueeze(1)?, y_BTC.f_narrow(1, 0, time - 1)?], 1)?;
    if let Some(resets_BT) = input.resets_BT {
        before_BTC = before_BTC.f_masked_fill(&resets_BT.f_unsqueeze(-1)?, 0.0)?;
    }
    let change_BTC = before_BTC - y_BTC;
    let mut mixes = Vec::with_capacity(M);
    for (index, share) in (0_i64..).zip(shares) {
        let share_C = share.f_flatten(0, -1)?;
        let weight = match input.own_MBTC {
            Some(own_MBTC) => share_C + own_MBTC.f_select(0, index)?.f_to_kind(y_BTC.kind())?,
            None => share_C,
        };
        mixes.push((y_BTC + &change_BTC * weight).f_to_kind(input.kind)?);
    }
    Ok(mixes.try_into().map_err(|_| xlstm_bridge::BridgeError::Contract {
        name: NAME,
        expected: format!("{M} mixes"),
        found: "another number".into(),
    })?)
}

named_tensors! {
    struct Inputs<T> { y_BTC: T, first_BC: T, weight_MC: T, own_MBTC: T }

    struct Saved {
        inputs: Inputs<Option<Tensor>>,
        resets_BT: Option<Tensor>,
    }
}

fn fused<const M: usize>(
    input: &TokenShiftInput<'_>,
    shares: [&Tensor; M],
    form: TokenShiftForm,
) -> Result<[Tensor; M], KernelError> {
    let flat: Vec<Tensor> = shares.iter().map(|share| share.f_flatten(0, -1)).collect::<Result<_, _>>()?;
    let weight_MC = Tensor::f_stack(&flat, 0)?;
    let first_BC = input.first_BC.map(|first_BC| first_BC.f_to_kind(Kind::Float)).transpose()?;
    let inputs = Inputs {
        y_BTC: Some(input.y_BTC),
        first_BC: first_BC.as_ref(),
        weight_MC: Some(&weight_MC),
        own_MBTC: input.own_MBTC,
    };
    let resets_BT = input.resets_BT.map(Tensor::f_contiguous).transpose()?;
    let kind = input.kind;
    Ok(node(
        NAME,
        inputs,
        |_| forward::<M>(inputs, resets_BT, form, kind),
        move |saved, upstream, _| backward::<M>(&saved, upstream, form, kind),
    )?)
}

impl Saved {
    fn y_BTC(&self) -> Result<&Tensor, BoxError> {
        self.inputs.y_BTC.as_ref().ok_or_else(|| "no tokens".into())
    }

    fn launch(&self, form: TokenShiftForm, backward: bool) -> Result<LayerLaunch, BoxError> {
        let [batch, tokens, width] = dimensions(NAME, "y_BTC", self.y_BTC()?)?;
        Ok(form.launch(u32::try_from(batch)?, u32::try_from(tokens)?, u32::try_from(width)?, backward))
    }

    fn parameters(&self) -> Result<TokenShiftParameters, BoxError> {
        let [batch, tokens, width] = dimensions(NAME, "y_BTC", self.y_BTC()?)?;
        let Inputs { y_BTC, first_BC, weight_MC, own_MBTC } = &self.inputs;
        let to = |tensor: &Option<Tensor>| cuda::optional_address(tensor.as_ref());
        Ok(TokenShiftParameters {
            batch: i32::try_from(batch)?,
            tokens: i32::try_from(tokens)?,
            width: i32::try_from(width)?,
            run: i32::try_from(TokenShiftForm::run())?,
            resets: to(&self.resets_BT),
            y: to(y_BTC),
            first: to(first_BC),
            weight: to(weight_MC),
            own: to(own_MBTC),
            ..TokenShiftParameters::default()
        })
    }
}

/// The addresses of M tensors, 0 for those that are not there.
fn addresses<const M: usize>(tensors: &[Option<Tensor>; M]) -> [u64; MOST_MIXES] {
    let mut all = [0; MOST_MIXES];
    for (address, tensor) in all.iter_mut().zip(tensors) {
        *address = cuda::optional_address(tensor.as_ref());
    }
    all
}

fn forward<const M: usize>(
    inputs: Inputs<Option<&Tensor>>,
    resets_BT: Option<Tensor>,
    form: TokenShiftForm,
    kind: Kind,
) -> Result<([Tensor; M], Saved), BoxError> {
    let dense = |tensor: Option<&Tensor>| tensor.map(layout::dense).transpose();
    let saved = Saved {
        inputs: Inputs {
            y_BTC: dense(inputs.y_BTC)?,
            first_BC: dense(inputs.first_BC)?,
            weight_MC: dense(inputs.weight_MC)?,
            own_MBTC: dense(inputs.own_MBTC)?,
        },
        resets_BT,
    };
    let y_BTC = saved.y_BTC()?;
    let launch = saved.launch(form, false)?;
    let outputs = std::array::from_fn(|_| Tensor::f_empty(y_BTC.size(), (kind, y_BTC.device())));
    let outputs = collected(outputs)?;
    let there = outputs.each_ref().map(|output| Some(output.shallow_clone()));
    let parameters = TokenShiftParameters { output: addresses(&there), ..saved.parameters()? };
    // SAFETY: all tensors are dense, of the types of `form` and of the sizes that `parameters` states.
    unsafe { cuda::launch_on(y_BTC, |gpu| form.specialization(gpu), launch, &parameters)? };
    Ok((outputs, saved))
}

fn collected<const M: usize>(tensors: [Result<Tensor, tch::TchError>; M]) -> Result<[Tensor; M], BoxError> {
    let all: Vec<Tensor> = tensors.into_iter().collect::<Result<_, _>>()?;
    all.try_into().map_err(|_| "another number of tensors".into())
}

fn backward<const M: usize>(
    saved: &Saved,
    upstream: [Option<Tensor>; M],
    form: TokenShiftForm,
    kind: Kind,
) -> Result<Inputs<Option<Tensor>>, BoxError> {
    let dense = |gradient: Option<Tensor>| {
        gradient.map(|gradient| layout::dense(&gradient.f_to_kind(kind)?)).transpose()
    };
    let upstream: Vec<Option<Tensor>> = upstream.into_iter().map(dense).collect::<Result<_, _>>()?;
    let upstream: [Option<Tensor>; M] =
        upstream.try_into().map_err(|_| "another number of gradients".to_owned())?;
    let y_BTC = saved.y_BTC()?;
    let [_, _, width] = dimensions(NAME, "y_BTC", y_BTC)?;
    let launch = saved.launch(form, true)?;
    let mixes = i64::try_from(M)?;
    let partial = Tensor::f_empty([launch.parts.into(), mixes * width], (Kind::Float, y_BTC.device()))?;
    let like = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::f_empty_like).transpose();
    let (y, first, own) =
        (y_BTC.f_empty_like()?, like(&saved.inputs.first_BC)?, like(&saved.inputs.own_MBTC)?);
    let parameters = TokenShiftParameters {
        output_gradient: addresses(&upstream),
        y_gradient: cuda::address(&y),
        first_gradient: cuda::optional_address(first.as_ref()),
        own_gradient: cuda::optional_address(own.as_ref()),
        partial: cuda::address(&partial),
        ..saved.parameters()?
    };
    // SAFETY: as in `forward`; `partial` has the rows that the launch states.
    unsafe { cuda::launch_on(y_BTC, |gpu| form.specialization(gpu), launch, &parameters)? };
    let weight_MC = cuda::launch::sum_of_rows(&partial)?.f_view([mixes, width])?;
    Ok(Inputs { y_BTC: Some(y), first_BC: first, weight_MC: Some(weight_MC), own_MBTC: own })
}
