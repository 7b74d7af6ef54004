//! How the next token is drawn from logits: on the host for one row, or by libtorch's operations for a batch where it lies.
//!
//! Both draw the same token for the same number: tokens are put in order by their logits, ties by the smaller id, and the
//! number says how far to go in it. So a seed means one text on every machine, up to the rounding of the logits themselves.

use tch::{Device, Kind, Tensor};

use super::signed;
use crate::error::{Result, TrainError};

/// How the next token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only the most likely tokens, this many; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability; 1: all.
    pub top_p: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Refuses options that mean nothing.
    pub(super) fn check(&self) -> Result<()> {
        if self.temperature.is_nan() || self.temperature < 0.0 {
            let found = self.temperature;
            return Err(TrainError::Usage(format!("expected a temperature of 0 or more, found {found}")));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let found = self.top_p;
            return Err(TrainError::Usage(format!("expected top-p above 0 and at most 1, found {found}")));
        }
        Ok(())
    }

    /// Whether the most likely token is always taken, so that no number decides.
    pub(super) fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

/// SplitMix64: small, seedable anywhere, the same on every machine.
#[derive(Debug, Clone)]
pub(super) struct Draws(u64);

impl Draws {
    /// Of the sequence with this number in its batch.
    pub(super) fn new(sampling: &Sampling, sequence: u64) -> Self {
        Self(sampling.seed ^ (sequence << 40))
    }

    /// From 0 to below 1.
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((value ^ (value >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Tokens that are put in order at first: nearly always the draw is among them.
const FIRST_SORTED: usize = 256;

/// One token from a row of logits.
pub(super) fn draw(logits: &[f32], sampling: &Sampling, draws: &mut Draws) -> i64 {
    if sampling.is_greedy() {
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
        return signed(best.unwrap_or(0) as u64);
    }
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |id: usize| ((f64::from(logits[id]) - highest) / sampling.temperature).exp();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let by_logit = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    if sampling.top_k > 0 && sampling.top_k < order.len() {
        order.select_nth_unstable_by(sampling.top_k - 1, by_logit);
        order.truncate(sampling.top_k);
    }
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let share = draws.next();
    // The first tokens in order decide nearly every draw; where they do not, more are sorted.
    let mut sorted = FIRST_SORTED;
    loop {
        let whole = sorted >= order.len();
        if !whole {
            order.select_nth_unstable_by(sorted - 1, by_logit);
        }
        let end = sorted.min(order.len());
        let first = &mut order[..end];
        first.sort_unstable_by(by_logit);
        if let Some(id) = draw_in_order(first, weight, [total, sampling.top_p], share, whole) {
            return signed(id as u64);
        }
        sorted *= 8;
    }
}

/// The token at `share` of the kept ones, in order; `None` where it is not among these and they are not `whole`.
fn draw_in_order(
    order: &[usize],
    weight: impl Fn(usize) -> f64,
    [total, top_p]: [f64; 2],
    share: f64,
    whole: bool,
) -> Option<usize> {
    let mut sums = Vec::with_capacity(order.len());
    let mut sum = 0.0;
    for &id in order {
        sum += weight(id);
        sums.push(sum);
        if sum >= top_p * total {
            break;
        }
    }
    let reached = sum >= top_p * total || whole;
    // Without a bound on the probability, everything is kept whether it was put in order or not.
    let kept = if reached {
        sum
    } else if top_p >= 1.0 {
        total
    } else {
        return None;
    };
    match sums.iter().position(|&sum| sum > share * kept) {
        Some(place) => Some(order[place]),
        None if reached => order.get(sums.len() - 1).copied(),
        None => None,
    }
}

/// One token a row of `logits_BV`, `(B, 1)` (Int64), on their device, and without waiting for it. `shares_B` (float64) has the
/// number of each row that [`draw`] would take from its own draws; a greedy choice takes none.
pub(super) fn draw_on_device(logits_BV: &Tensor, sampling: &Sampling, shares_B: &Tensor) -> Result<Tensor> {
    if sampling.is_greedy() {
        return Ok(logits_BV.f_argmax(-1, true)?);
    }
    let (sorted_BV, order_BV) = logits_BV.f_to_kind(Kind::Float)?.f_sort_stable(true, -1, true)?;
    let vocabulary = logits_BV.size()[1];
    let kept = match i64::try_from(sampling.top_k).unwrap_or(vocabulary) {
        0 => vocabulary,
        top => top.min(vocabulary),
    };
    let sorted_BK = sorted_BV.f_narrow(1, 0, kept)?.f_to_kind(Kind::Double)?;
    let highest_B1 = sorted_BK.f_narrow(1, 0, 1)?;
    let weights_BK = sorted_BK.f_sub(&highest_B1)?.f_div_scalar(sampling.temperature)?.f_exp()?;
    let sums_BK = weights_BK.f_cumsum(1, Kind::Double)?;
    let total_B1 = sums_BK.f_narrow(1, kept - 1, 1)?;
    let place_of = |bound_B1: &Tensor, inclusive: bool| -> Result<Tensor> {
        let below_BK =
            if inclusive { sums_BK.f_le_tensor(bound_B1)? } else { sums_BK.f_lt_tensor(bound_B1)? };
        Ok(below_BK.f_sum_dim_intlist(1, true, Kind::Int64)?)
    };
    // The last that is kept: the first whose sum reaches the share.
    let last_B1 = place_of(&total_B1.f_mul_scalar(sampling.top_p)?, false)?.f_clamp_max(kept - 1)?;
    let kept_B1 = sums_BK.f_gather(1, &last_B1, false)?;
    let chosen_B1 = place_of(&kept_B1.f_mul(&shares_B.f_unsqueeze(1)?)?, true)?.f_minimum(&last_B1)?;
    Ok(order_BV.f_gather(1, &chosen_B1, false)?)
}

/// Rows of logits on the host.
pub(super) fn rows_on_host(logits_BV: &Tensor) -> Result<Vec<Vec<f32>>> {
    let logits_BV = logits_BV.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
    let rows = 0..logits_BV.size()[0];
    rows.map(|row| Ok(Vec::<f32>::try_from(logits_BV.f_get(row)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut draws = Draws(sampling.seed);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..4000 {
            counts[usize::try_from(draw(logits, &sampling, &mut draws)).unwrap()] += 1.0 / 4000.0;
        }
        counts
    }

    #[test]
    fn draws_follow_temperature_top_k_and_top_p() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let plain = Sampling { seed: 3, ..Sampling::default() };
        let close = |found: &[f64], expected: &[f64]| {
            found.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 0.04, "{found:?}"));
        };
        close(&share(plain, &logits), &[0.5, 0.3, 0.2]);
        close(&share(Sampling { top_k: 2, ..plain }, &logits), &[0.625, 0.375, 0.0]);
        close(&share(Sampling { top_p: 0.6, ..plain }, &logits), &[0.625, 0.375, 0.0]);
        close(&share(Sampling { temperature: 0.0, ..plain }, &logits), &[1.0, 0.0, 0.0]);
        close(&share(Sampling { temperature: 0.5, ..plain }, &logits), &[0.658, 0.237, 0.105]);
    }

    /// What a seed has meant from the start: everything in order, then as far as the number says.
    fn draw_sorting_everything(logits: &[f32], sampling: &Sampling, draws: &mut Draws) -> i64 {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_unstable_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k);
        }
        let highest = f64::from(logits[order[0]]);
        let weights: Vec<f64> = order
            .iter()
            .map(|&id| ((f64::from(logits[id]) - highest) / sampling.temperature).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0.0;
        let enough = weights.iter().position(|weight| {
            kept += weight;
            kept >= sampling.top_p * total
        });
        let weights = &weights[..enough.map_or(weights.len(), |last| last + 1)];
        let mut point = draws.next() * weights.iter().sum::<f64>();
        for (&id, weight) in order.iter().zip(weights) {
            point -= weight;
            if point < 0.0 {
                return signed(id as u64);
            }
        }
        signed(order[weights.len() - 1] as u64)
    }

    #[test]
    fn every_way_to_draw_takes_the_same_token() {
        tch::manual_seed(11);
        let options =
            [(1.0, 0, 1.0), (0.7, 40, 1.0), (1.3, 0, 0.9), (3.0, 0, 0.999), (1.0, 1, 1.0), (0.9, 700, 0.5)];
        for (case, (temperature, top_k, top_p)) in options.into_iter().enumerate() {
            let sampling = Sampling { temperature, top_k, top_p, seed: case as u64 };
            for spread in [0.01, 1.0, 6.0] {
                // Rounded, so that there are ties.
                let logits_BV = (Tensor::randn([24, 3000], (Kind::Float, Device::Cpu)) * spread)
                    .to_kind(Kind::BFloat16)
                    .to_kind(Kind::Float);
                let mut shares = Vec::new();
                let mut expected = Vec::new();
                for (index, row) in rows_on_host(&logits_BV).unwrap().iter().enumerate() {
                    let mut draws = Draws::new(&sampling, index as u64);
                    shares.push(draws.clone().next());
                    expected.push(draw_sorting_everything(row, &sampling, &mut draws.clone()));
                    assert_eq!(
                        draw(row, &sampling, &mut draws),
                        expected[index],
                        "{sampling:?}, spread {spread}"
                    );
                }
                let found = draw_on_device(&logits_BV, &sampling, &Tensor::from_slice(&shares)).unwrap();
                let found = Vec::<i64>::try_from(found.view([-1])).unwrap();
                assert_eq!(found, expected, "{sampling:?}, spread {spread}");
            }
        }
    }

    #[test]
    fn the_greedy_token_is_the_first_of_the_largest() {
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let rows = Tensor::from_slice(&[1.0_f32, 3.0, 3.0, 2.0, -1.0, -2.0, -1.0, -1.0]).view([2, 4]);
        let on_device =
            draw_on_device(&rows, &sampling, &Tensor::zeros([2], (Kind::Double, Device::Cpu))).unwrap();
        assert_eq!(Vec::<i64>::try_from(on_device.view([-1])).unwrap(), [1, 0]);
        for (row, expected) in rows_on_host(&rows).unwrap().iter().zip([1, 0]) {
            assert_eq!(draw(row, &sampling, &mut Draws::new(&sampling, 0)), expected);
        }
    }
}
