//! Multi-query associative recall (MQAR; paper, Section 4.1 and Figure 5; generator of Arora et al., 2023).
//!
//! ```text
//! position  0   1   2   3  …  2·KV−1 │ slots of two tokens: key, 0 │ or 0, 0
//!           k1  v1  k2  v2 …         │ target v_j at the key's own position
//! ```
//! Keys are different ids of 1..V/2−1, values different ids of V/2..V−1; 0 is the filler. The j-th slot drawn belongs
//! to the j-th pair; slots are drawn without replacement with weight (i + 1)^(a − 1), a = 0.01, i from the left, so
//! gaps follow a power law and early pairs tend to be asked early. Weights are integers made by a `pow` that is part of
//! the program: no platform's libm decides a sample. Where there are more pairs than slots (756 tokens, 256 pairs),
//! all slots are asked and a uniformly random subset of the pairs fills them, in random order.

use serde_json::{Value, json};

use super::random::{Draws, Keys, first_digest_byte};
use super::{Example, Parameters, Split, Task, TaskError};

/// The task's name.
pub(super) const NAME: &str = "mqar";
const VERSION: u32 = 1;
/// The power `a` of the gaps' law.
const POWER: f64 = 0.01;
/// Weight of the first slot: the others are this times (i + 1)^(a − 1), rounded.
const UNIT: f64 = (1u64 << 40) as f64;
/// Ids are u16, and the row of the longest experiment has 8192 tokens.
const MAX_VOCABULARY: u32 = 1 << 16;
const MAX_CONTEXT: u32 = 1 << 16;
const ATTEMPTS: u32 = 4096;

/// MQAR with its sizes.
pub(super) struct Recall {
    vocabulary: u32,
    context: u32,
    pairs: u32,
    seed: u64,
    keys: Keys,
    slots: Weights,
}

impl Recall {
    pub(super) fn new(seed: u64, given: &Parameters) -> Result<Self, TaskError> {
        given.only(NAME, &["vocabulary", "context_length", "pairs"])?;
        let vocabulary = given.vocabulary.unwrap_or(8192);
        let context = given.context_length.unwrap_or(64);
        let pairs = given.pairs.unwrap_or(4);
        check(vocabulary, context, pairs)?;
        let slots = Weights::of((context - 2 * pairs) / 2);
        let mut task = Self { vocabulary, context, pairs, seed, keys: Keys::of(&Value::Null)?, slots };
        task.keys = Keys::of(&task.spec())?;
        Ok(task)
    }

    /// How many keys are asked for.
    fn queries(&self) -> usize {
        (self.pairs as usize).min(self.slots.len())
    }

    /// Draws one prompt with its targets.
    fn draw(&self, draws: &mut Draws, out: &mut Example) {
        out.clear(self.context as usize);
        let (half, pairs) = (self.vocabulary / 2, self.pairs as usize);
        let keys = different(pairs, 1, half - 1, draws);
        let values = different(pairs, half as u16, self.vocabulary - half, draws);
        for (place, (&key, &value)) in out.input_ids.chunks_exact_mut(2).zip(keys.iter().zip(&values)) {
            place.copy_from_slice(&[key, value]);
        }
        let mut ask = |pair: usize, slot: usize| {
            let position = 2 * (pairs + slot);
            out.input_ids[position] = keys[pair];
            out.targets[position] = Some(values[pair]);
        };
        if self.queries() < pairs {
            let mut order: Vec<usize> = (0..pairs).collect();
            for slot in 0..self.queries() {
                order.swap(slot, slot + draws.below((pairs - slot) as u32) as usize);
                ask(order[slot], slot);
            }
        } else {
            let mut slots = self.slots.clone();
            (0..pairs).for_each(|pair| ask(pair, slots.take(draws)));
        }
        out.length = self.context as usize;
    }
}

fn check(vocabulary: u32, context: u32, pairs: u32) -> Result<(), TaskError> {
    let fail = |text: String| Err(TaskError::Parameter(format!("{NAME}: {text}")));
    if pairs == 0 || context % 2 == 1 || context > MAX_CONTEXT {
        return fail(format!(
            "expected at least one pair and an even context_length of at most {MAX_CONTEXT}, found pairs {pairs} and \
             context_length {context}"
        ));
    }
    if 2 * u64::from(pairs) + 2 > u64::from(context) {
        return fail(format!(
            "{pairs} pairs and one query need {} tokens, more than context_length {context}: ask for fewer pairs",
            2 * u64::from(pairs) + 2
        ));
    }
    if vocabulary > MAX_VOCABULARY || vocabulary / 2 < pairs + 1 {
        return fail(format!(
            "{pairs} different keys below half the vocabulary need a vocabulary of at least {} (and at most \
             {MAX_VOCABULARY}), found {vocabulary}",
            2 * (u64::from(pairs) + 1)
        ));
    }
    Ok(())
}

/// `count` different uniform ids of `first..first + among`, in random order.
fn different(count: usize, first: u16, among: u32, draws: &mut Draws) -> Vec<u16> {
    // Past half of the ids most draws would be repetitions: then a shuffle's beginning is taken.
    if count as u32 > among / 2 {
        let mut ids: Vec<u16> = (0..among).map(|id| first + id as u16).collect();
        for i in 0..count {
            ids.swap(i, i + draws.below(among - i as u32) as usize);
        }
        ids.truncate(count);
        return ids;
    }
    let mut seen = vec![0u64; (among as usize).div_ceil(64)];
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        let id = draws.below(among);
        let (word, bit) = (id as usize / 64, 1u64 << (id % 64));
        if seen[word] & bit == 0 {
            seen[word] |= bit;
            ids.push(first + id as u16);
        }
    }
    ids
}

/// Integer weights of slots in a Fenwick tree: drawing one and taking it away are logarithmic.
#[derive(Clone)]
struct Weights {
    weights: Vec<u64>,
    /// Node i (from 1) holds the sum of the `i & −i` weights that end at it.
    tree: Vec<u64>,
    total: u64,
}

impl Weights {
    fn of(slots: u32) -> Self {
        let weights: Vec<u64> =
            (0..slots).map(|i| libm::round(UNIT * libm::pow(f64::from(i + 1), POWER - 1.0)) as u64).collect();
        let mut tree = vec![0u64; weights.len() + 1];
        for (i, weight) in (1..).zip(&weights) {
            tree[i] += weight;
            let parent = i + (i & i.wrapping_neg());
            if parent < tree.len() {
                tree[parent] += tree[i];
            }
        }
        let total = weights.iter().sum();
        Self { weights, tree, total }
    }

    fn len(&self) -> usize {
        self.weights.len()
    }

    /// Draws a slot that is still there, by weight, and takes it away.
    fn take(&mut self, draws: &mut Draws) -> usize {
        let mut rest = draws.below_u64(self.total);
        let mut slot = 0;
        let mut step = self.len().next_power_of_two();
        while step > 0 {
            if let Some(&sum) = self.tree.get(slot + step)
                && sum <= rest
            {
                rest -= sum;
                slot += step;
            }
            step /= 2;
        }
        let weight = self.weights[slot];
        self.total -= weight;
        let mut node = slot + 1;
        while node < self.tree.len() {
            self.tree[node] -= weight;
            node += node & node.wrapping_neg();
        }
        slot
    }
}

impl Task for Recall {
    fn spec(&self) -> Value {
        json!({"task": NAME, "version": VERSION, "seed": self.seed, "parameters": {
            "vocabulary": self.vocabulary, "context_length": self.context, "pairs": self.pairs,
        }})
    }

    fn vocabulary_size(&self) -> u32 {
        self.vocabulary
    }

    fn row_length(&self) -> u32 {
        self.context
    }

    fn random_accuracy(&self) -> (u32, u32) {
        (1, self.vocabulary - self.vocabulary / 2)
    }

    fn symbol(&self, id: u16) -> String {
        match u32::from(id) {
            0 => ".".into(),
            key if key < self.vocabulary / 2 => format!("k{key}"),
            value => format!("v{value}"),
        }
    }

    /// Only the keys and values are counted: a lower bound.
    fn distinct(&self, split: Split) -> f64 {
        let half = f64::from(self.vocabulary / 2);
        let ways = |from: f64| (0..self.pairs).map(|i| from - f64::from(i)).product::<f64>();
        let share = if split == Split::Train { 0.5 } else { 0.25 };
        share * ways(half - 1.0) * ways(f64::from(self.vocabulary) - half)
    }

    fn mean_length(&self, _: Split) -> f64 {
        f64::from(self.context)
    }

    fn example(&self, split: Split, number: u64, out: &mut Example) -> Result<(), TaskError> {
        let mut draws = self.keys.draws(split, number);
        for _ in 0..ATTEMPTS {
            self.draw(&mut draws, out);
            if split.holds(first_digest_byte(&out.input_ids)) {
                return Ok(());
            }
        }
        Err(TaskError::NoPrompt { task: NAME.into(), split, number, attempts: u64::from(ATTEMPTS) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_the_same_on_every_machine() {
        let weights = Weights::of(4096);
        let expected = [1u64 << 40, 553_579_667_970, 370_552_531_337];
        assert_eq!(weights.weights[..3], expected);
        assert_eq!(weights.total, weights.weights.iter().sum::<u64>());
    }

    #[test]
    fn every_slot_is_taken_once_and_the_first_as_often_as_its_weight_says() {
        let keys = Keys::of(&json!({"slots": 1})).unwrap();
        let all = Weights::of(28);
        let mut first = 0;
        for number in 0..4000 {
            let mut slots = all.clone();
            let mut draws = keys.draws(Split::Train, number);
            let mut taken: Vec<_> = (0..28).map(|_| slots.take(&mut draws)).collect();
            first += u32::from(taken[0] == 0);
            taken.sort_unstable();
            assert!(taken.iter().copied().eq(0..28));
            assert_eq!(slots.total, 0);
        }
        // 25 % (28 slots of MQAR (64, 4)), within five standard deviations.
        assert!((f64::from(first) / 4000.0 - 0.2511).abs() < 0.034, "{first}");
    }
}
