//! Gated linear attention in chunks, by libtorch's operations: for GPUs.
//!
//! With b the running sum of log decays inside a chunk (b' = b, or the sum before the step where the state is read before
//! the update), all exponents are of the form b'_i − b_j with j before i, at most 0. A product of matrices wants them as
//! (b'_i − n) + (n − b_j), both at most 0: n must lie between j and i. So pairs are taken by halves: the later half of a
//! chunk reads the earlier one with n at the border, then each half likewise, down to single steps. log₂ C products
//! cover all pairs, and nothing overflows, however fast the decay. A decay that is the same for all keys needs no
//! halves: it multiplies the product.
//!
//! N is the number of chunks, C the steps in one. Nothing is kept for the backward pass but the inputs.

use super::{LinearAttentionInput, LinearAttentionOutput, LogDecay, Sizes};
use crate::KernelError;
use tch::{Kind, Tensor};
use xlstm_bridge::BoxError;
use xlstm_bridge::autograd::checkpoint;

/// Steps in a chunk.
const CHUNK: i64 = 64;

pub(super) fn linear_attention(
    input: &LinearAttentionInput<'_>,
    sizes: Sizes,
    product_kind: Kind,
    chunk: Option<usize>,
) -> Result<LinearAttentionOutput, KernelError> {
    let chosen = chunk.and_then(|chunk| i64::try_from(chunk).ok()).unwrap_or(CHUNK).clamp(1, 1 << 20);
    let chunk = power_of_two(chosen.min(sizes.time));
    let layout = Layout { sizes, chunk, product_kind, scale: input.scale };
    let mut tensors = vec![input.q_BTHK, input.k_BTHK, input.v_BTHV, input.log_decay.tensor()];
    tensors.extend(input.bonus_HK);
    tensors.extend(input.state_BHKV);
    let (bonus, state) = (input.bonus_HK.is_some(), input.state_BHKV.is_some());
    let resets_BT = input.resets_BT.map(Tensor::shallow_clone);
    let layout_of_decay = match input.log_decay {
        LogDecay::Head(_) => DecayLayout::Head,
        LogDecay::Key(_) => DecayLayout::Key,
        LogDecay::Token(_) => DecayLayout::Token,
    };
    let outputs = checkpoint("linear_attention", &tensors, move |tensors| {
        let [q_BTHK, k_BTHK, v_BTHV, decay, rest @ ..] = tensors else {
            return Err("fewer than four tensors".into());
        };
        let mut rest = rest.iter();
        let input = LinearAttentionInput {
            q_BTHK,
            k_BTHK,
            v_BTHV,
            log_decay: layout_of_decay.with(decay),
            bonus_HK: if bonus { rest.next() } else { None },
            scale: layout.scale,
            state_BHKV: if state { rest.next() } else { None },
            resets_BT: resets_BT.as_ref(),
        };
        let (o_BTHV, state_BHKV) = layout.run(&input)?;
        Ok(vec![o_BTHV, state_BHKV])
    })?;
    let found = outputs.len();
    let [o_BTHV, state_BHKV] =
        <[Tensor; 2]>::try_from(outputs).map_err(|_| xlstm_bridge::BridgeError::Contract {
            name: "linear_attention",
            expected: "2 outputs".into(),
            found: found.to_string(),
        })?;
    Ok(LinearAttentionOutput { o_BTHV, state_BHKV })
}

#[derive(Clone, Copy)]
enum DecayLayout {
    Head,
    Key,
    Token,
}

impl DecayLayout {
    fn with(self, decay: &Tensor) -> LogDecay<'_> {
        match self {
            Self::Head => LogDecay::Head(decay),
            Self::Key => LogDecay::Key(decay),
            Self::Token => LogDecay::Token(decay),
        }
    }
}

fn power_of_two(at_least: i64) -> i64 {
    let mut power = 1;
    while power < at_least {
        power *= 2;
    }
    power
}

#[derive(Clone, Copy)]
struct Layout {
    sizes: Sizes,
    chunk: i64,
    product_kind: Kind,
    scale: f64,
}

/// One call, in chunks.
struct Chunks {
    q_BHNCK: Tensor,
    k_BHNCK: Tensor,
    v_BHNCV: Tensor,
    /// Sum of log decays up to and including a step, in fp64: a slow decay after a fast one is a small difference of large
    /// sums. Dimensions have size 1 where the decay is shared.
    sums_BHNCK: Tensor,
    /// The same as a query sees it.
    read_sums_BHNCK: Tensor,
    /// How many resets happened in the chunk up to and including a step, `(B, 1, N, C)`.
    resets_B1NC: Option<Tensor>,
}

impl Chunks {
    /// What is left, from a difference of sums.
    fn power(&self, difference: &Tensor) -> Result<Tensor, BoxError> {
        Ok(difference.f_to_kind(self.q_BHNCK.kind())?.f_exp()?)
    }
}

impl Layout {
    fn run(self, input: &LinearAttentionInput<'_>) -> Result<(Tensor, Tensor), BoxError> {
        let chunks = self.cut(input)?;
        let own_BHNC = match input.bonus_HK {
            Some(bonus_HK) => &chunks.q_BHNCK * &chunks.k_BHNCK * bonus_HK.unsqueeze(1).unsqueeze(1),
            None => &chunks.q_BHNCK * &chunks.k_BHNCK,
        }
        .f_sum_dim_intlist(-1, true, None::<Kind>)?;
        let mut o_BHNCV = own_BHNC * &chunks.v_BHNCV;
        o_BHNCV += match input.log_decay {
            LogDecay::Head(_) => self.pairs_of_scalar_decay(&chunks)?,
            LogDecay::Key(_) | LogDecay::Token(_) => self.pairs_by_halves(&chunks)?,
        };
        let (before_BHNKV, last_BHKV) = self.states(&chunks, input.state_BHKV)?;
        let mut read_BHNCK = &chunks.q_BHNCK * chunks.power(&chunks.read_sums_BHNCK)?;
        if let Some(resets_B1NC) = &chunks.resets_B1NC {
            read_BHNCK *= resets_B1NC.eq(0).unsqueeze(-1).to_kind(read_BHNCK.kind());
        }
        o_BHNCV += self.product(&read_BHNCK, &before_BHNKV)?;
        let Sizes { batch, time, heads, value, .. } = self.sizes;
        let o_BTHV = o_BHNCV.permute([0, 2, 3, 1, 4]).f_reshape([batch, -1, heads, value])?;
        Ok((o_BTHV.narrow(1, 0, time), last_BHKV))
    }

    fn product(self, a: &Tensor, b: &Tensor) -> Result<Tensor, BoxError> {
        let kind = a.kind();
        Ok(a.to_kind(self.product_kind).f_matmul(&b.to_kind(self.product_kind))?.to_kind(kind))
    }

    /// Pads time with steps that change nothing, and cuts it.
    fn cut(self, input: &LinearAttentionInput<'_>) -> Result<Chunks, BoxError> {
        let Sizes { batch, time, .. } = self.sizes;
        let missing = (self.chunk - time % self.chunk) % self.chunk;
        let cut = |tensor: &Tensor| -> Result<Tensor, BoxError> {
            let padded = tensor.f_constant_pad_nd([0, 0, 0, 0, 0, missing])?;
            let (size, count) = (padded.size(), (time + missing) / self.chunk);
            let parts = padded.f_reshape([size[0], count, self.chunk, size[2], size[3]])?;
            Ok(parts.permute([0, 3, 1, 2, 4]))
        };
        let mut decay = input.log_decay.broadcast();
        if !matches!(input.log_decay, LogDecay::Token(_)) {
            let size = decay.size();
            decay = decay.f_expand([1, time, size[2], size[3]], false)?;
        }
        if let Some(resets_BT) = input.resets_BT {
            // No pair that counts lies across a reset, so its decay may be anything: 0 keeps the sums small.
            decay = &decay * resets_BT.logical_not().unsqueeze(-1).unsqueeze(-1).to_kind(decay.kind());
        }
        let decay_BHNCK = cut(&decay)?;
        let sums_BHNCK = decay_BHNCK.f_cumsum(3, Kind::Double)?;
        let read_sums_BHNCK = match input.bonus_HK {
            Some(_) => &sums_BHNCK - &decay_BHNCK,
            None => sums_BHNCK.shallow_clone(),
        };
        let resets_B1NC = match input.resets_BT {
            Some(resets_BT) => {
                let padded = resets_BT.to_kind(Kind::Int64).f_constant_pad_nd([0, missing])?;
                Some(padded.f_view([batch, 1, -1, self.chunk])?.f_cumsum(-1, None::<Kind>)?)
            }
            None => None,
        };
        Ok(Chunks {
            q_BHNCK: cut(input.q_BTHK)? * self.scale,
            k_BHNCK: cut(input.k_BTHK)?,
            v_BHNCV: cut(input.v_BTHV)?,
            sums_BHNCK,
            read_sums_BHNCK,
            resets_B1NC,
        })
    }

    /// What steps read of earlier ones in the chunk, without themselves.
    fn pairs_by_halves(self, chunks: &Chunks) -> Result<Tensor, BoxError> {
        let power = |difference: &Tensor| chunks.power(difference);
        let mut sum: Option<Tensor> = None;
        let mut half = self.chunk / 2;
        while half > 0 {
            let parts = self.chunk / (2 * half);
            // (B, H, N, parts, 2, half, ·): of each part the earlier and the later half.
            let halves = |tensor: &Tensor, which: i64| -> Result<Tensor, BoxError> {
                let size = tensor.size();
                let shape = [size[0], size[1], size[2], parts, 2, half, size[4]];
                Ok(tensor.f_reshape(shape)?.f_select(4, which)?)
            };
            let border = halves(&chunks.sums_BHNCK, 0)?.narrow(-2, half - 1, 1);
            let q = halves(&chunks.q_BHNCK, 1)? * power(&(halves(&chunks.read_sums_BHNCK, 1)? - &border))?;
            let k = halves(&chunks.k_BHNCK, 0)? * power(&(border - halves(&chunks.sums_BHNCK, 0)?))?;
            let mut weights = self.product(&q, &k.transpose(-2, -1))?;
            if let Some(resets) = &chunks.resets_B1NC {
                let column = resets.unsqueeze(-1);
                let same = halves(&column, 1)?.eq_tensor(&halves(&column, 0)?.transpose(-2, -1));
                weights *= same.to_kind(weights.kind());
            }
            let later = self.product(&weights, &halves(&chunks.v_BHNCV, 0)?)?;
            let both = Tensor::f_stack(&[later.zeros_like(), later], 4)?;
            let level = both.f_reshape(chunks.v_BHNCV.size())?;
            sum = Some(match sum {
                Some(sum) => sum + level,
                None => level,
            });
            half /= 2;
        }
        Ok(sum.unwrap_or_else(|| chunks.v_BHNCV.zeros_like()))
    }

    /// The same where all keys of a head decay alike.
    fn pairs_of_scalar_decay(self, chunks: &Chunks) -> Result<Tensor, BoxError> {
        let read = chunks.read_sums_BHNCK.f_select(-1, 0)?.unsqueeze(-1);
        let written = chunks.sums_BHNCK.f_select(-1, 0)?.unsqueeze(-2);
        let options = (Kind::Bool, read.device());
        let earlier_CC = Tensor::f_ones([self.chunk, self.chunk], options)?.f_tril(-1)?;
        let hidden = earlier_CC.logical_not();
        let mut decay = chunks.power(&(read - written).f_masked_fill(&hidden, f64::NEG_INFINITY)?)?;
        if let Some(resets_B1NC) = &chunks.resets_B1NC {
            let same = resets_B1NC.unsqueeze(-1).eq_tensor(&resets_B1NC.unsqueeze(-2));
            decay = &decay * same.to_kind(decay.kind());
        }
        let weights = self.product(&chunks.q_BHNCK, &chunks.k_BHNCK.transpose(-2, -1))? * decay;
        self.product(&weights, &chunks.v_BHNCV)
    }

    /// The state before each chunk, and after the last.
    fn states(self, chunks: &Chunks, initial: Option<&Tensor>) -> Result<(Tensor, Tensor), BoxError> {
        let Sizes { batch, heads, key, value, .. } = self.sizes;
        let total_BHN1K = chunks.sums_BHNCK.narrow(3, self.chunk - 1, 1);
        let mut written_BHNCK = &chunks.k_BHNCK * chunks.power(&(&total_BHN1K - &chunks.sums_BHNCK))?;
        let mut left_BHNK1 = chunks.power(&total_BHN1K.transpose(-2, -1))?;
        if let Some(resets_B1NC) = &chunks.resets_B1NC {
            let last = resets_B1NC.narrow(-1, self.chunk - 1, 1);
            let kind = written_BHNCK.kind();
            written_BHNCK *= resets_B1NC.eq_tensor(&last).unsqueeze(-1).to_kind(kind);
            left_BHNK1 = last.eq(0).unsqueeze(-1).to_kind(kind) * &left_BHNK1;
        }
        let written_BHNKV = self.product(&written_BHNCK.transpose(-2, -1), &chunks.v_BHNCV)?;
        let mut state = match initial {
            Some(initial) => initial.shallow_clone(),
            None => {
                let options = (written_BHNKV.kind(), written_BHNKV.device());
                Tensor::f_zeros([batch, heads, key, value], options)?
            }
        };
        let mut before = Vec::new();
        for index in 0..written_BHNKV.size()[2] {
            before.push(state.shallow_clone());
            state = state * left_BHNK1.f_select(2, index)? + written_BHNKV.f_select(2, index)?;
        }
        Ok((Tensor::f_stack(&before, 2)?, state))
    }
}
