//! Tasks over strings of uniform symbols: sorting, copying, counting.

use super::{Language, Sample};
use crate::tasks::Ties;
use crate::tasks::random::Draws;

const ACT: u16 = 1;
const MIS: u16 = 1;

/// Ids of these tasks are in the tables of each function below.
pub(super) static LANGUAGES: &[Language] = &[
    Language {
        name: "bucket_sort",
        vocabulary_size: 11,
        guesses: 10,
        shortest: 4,
        step: 2,
        draw: bucket_sort,
        prompts: |n| 10f64.powi((n / 2) as i32),
        symbol: |id| (id - 1).to_string(),
    },
    Language {
        name: "majority",
        vocabulary_size: 64,
        guesses: 63,
        shortest: 3,
        step: 1,
        draw: majority,
        prompts: |n| 63f64.powi(n as i32 - 1),
        symbol: |id| id.to_string(),
    },
    Language {
        name: "majority_count",
        vocabulary_size: 64,
        guesses: 63,
        shortest: 3,
        step: 1,
        draw: majority_count,
        prompts: |n| 63f64.powi(n as i32 - 1),
        symbol: |id| id.to_string(),
    },
    Language {
        name: "missing_duplicate",
        vocabulary_size: 11,
        guesses: 9,
        shortest: 3,
        step: 2,
        draw: missing_duplicate,
        prompts: |n| f64::from((n - 1) / 2) * 9f64.powi((n as i32 - 1) / 2),
        symbol: |id| if id == MIS { "MIS".into() } else { (id - 1).to_string() },
    },
    Language { name: "odds_first", draw: odds_first, ..TEN_SYMBOLS },
    Language { name: "repetition", draw: repetition, ..TEN_SYMBOLS },
    Language { name: "reverse_string", draw: reverse_string, ..TEN_SYMBOLS },
    Language {
        name: "set",
        vocabulary_size: 128,
        guesses: 126,
        draw: set,
        prompts: |n| 126f64.powi((n as i32 - 1) / 2),
        ..TEN_SYMBOLS
    },
];

/// 1 ACT, then ten symbols; the answer is as long as the string.
const TEN_SYMBOLS: Language = Language {
    name: "",
    vocabulary_size: 12,
    guesses: 10,
    shortest: 3,
    step: 2,
    draw: repetition,
    prompts: |n| 10f64.powi((n as i32 - 1) / 2),
    symbol: |id| if id == ACT { "ACT".into() } else { (id - 2).to_string() },
};

/// `count` uniform ids from `first` on, one of `symbols`, to the end of the prompt.
fn string(count: usize, first: u16, symbols: u16, draws: &mut Draws, sample: &mut Sample) {
    sample.prompt.extend((0..count).map(|_| draws.id(first, symbols)));
}

/// Ids 1..=10 in their order, no ACT. Answer: the same ascending.
fn bucket_sort(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    string(n / 2, 1, 10, draws, sample);
    let mut counts = [0usize; 11];
    sample.prompt.iter().for_each(|&id| counts[usize::from(id)] += 1);
    for (id, &count) in (0..).zip(&counts) {
        sample.answer.extend(std::iter::repeat_n(id, count));
    }
}

/// How often each of the 64 ids stands in `ids`.
fn count_ids(ids: &[u16]) -> [u32; 64] {
    let mut counts = [0; 64];
    ids.iter().for_each(|&id| counts[usize::from(id)] += 1);
    counts
}

/// Ids 1..=63. Answer: the most frequent one; of several the smallest, or the first to occur.
fn majority(n: usize, draws: &mut Draws, ties: Ties, sample: &mut Sample) {
    string(n - 1, 1, 63, draws, sample);
    let counts = count_ids(&sample.prompt);
    let most = counts.iter().copied().max().unwrap_or(0);
    let is_most = |id: &u16| counts[usize::from(*id)] == most;
    let answer = match ties {
        Ties::Smallest => (1..64).find(is_most),
        Ties::First => sample.prompt.iter().copied().find(is_most),
    };
    sample.answer.extend(answer);
}

/// Ids 1..=63. Answer: the largest count as an id, at most 63.
fn majority_count(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    string(n - 1, 1, 63, draws, sample);
    sample.answer.push(largest_count(&sample.prompt));
}

fn largest_count(ids: &[u16]) -> u16 {
    count_ids(ids).iter().copied().max().map_or(0, |count| count.min(63) as u16)
}

/// 1 MIS, 2..=10 symbols. A string and the same again with one token replaced by MIS. Answer: that token.
fn missing_duplicate(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    let half = (n - 1) / 2;
    string(half, 2, 9, draws, sample);
    sample.prompt.extend_from_within(..half);
    let place = half + draws.below(half as u32) as usize;
    sample.answer.push(std::mem::replace(&mut sample.prompt[place], MIS));
}

/// A string, then ACT.
fn string_and_act(n: usize, symbols: u16, draws: &mut Draws, sample: &mut Sample) -> usize {
    let count = (n - 1) / 2;
    string(count, 2, symbols, draws, sample);
    sample.prompt.push(ACT);
    count
}

/// Answer: the tokens at odd places, counted from 1, then those at even places.
fn odds_first(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    let count = string_and_act(n, 10, draws, sample);
    let tokens = &sample.prompt[..count];
    sample.answer.extend(tokens.iter().step_by(2).chain(tokens.iter().skip(1).step_by(2)));
}

/// Answer: the same string.
fn repetition(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    let count = string_and_act(n, 10, draws, sample);
    sample.answer.extend_from_slice(&sample.prompt[..count]);
}

/// Answer: the string from its end to its start.
fn reverse_string(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    let count = string_and_act(n, 10, draws, sample);
    sample.answer.extend(sample.prompt[..count].iter().rev());
}

/// 1 ACT, 2..=127 symbols. Answer: each different symbol once, in order of first occurrence.
fn set(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    let count = string_and_act(n, 126, draws, sample);
    let mut seen = 0u128;
    for &id in &sample.prompt[..count] {
        if seen & (1 << id) == 0 {
            seen |= 1 << id;
            sample.answer.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_above_the_vocabulary_are_the_highest_token() {
        assert_eq!(largest_count(&[7; 70]), 63);
        assert_eq!(largest_count(&[1, 7, 6, 4, 4, 8, 1, 7, 2]), 2);
    }
}
