//! Tasks that a finite automaton or a stack solves: parity, even pairs, cycle navigation, stack manipulation.

use super::{Language, Sample};
use crate::tasks::Ties;
use crate::tasks::random::Draws;

/// Ids of these tasks are in the tables of each function below.
pub(super) static LANGUAGES: &[Language] = &[
    Language {
        name: "cycle_nav",
        vocabulary_size: 9,
        guesses: 5,
        draw: cycle_nav,
        prompts: |n| 3f64.powi(n as i32 - 1),
        symbol: cycle_symbol,
        ..TWO_SYMBOLS
    },
    Language { name: "even_pairs", draw: even_pairs, ..TWO_SYMBOLS },
    Language { name: "parity", draw: parity, ..TWO_SYMBOLS },
    Language {
        name: "stack_manipulation",
        vocabulary_size: 11,
        guesses: 4,
        shortest: 5,
        step: 2,
        draw: stack_manipulation,
        prompts: stack_prompts,
        symbol: stack_symbol,
    },
];

const TWO_SYMBOLS: Language = Language {
    name: "",
    vocabulary_size: 3,
    guesses: 2,
    shortest: 3,
    step: 1,
    draw: parity,
    prompts: |n| 2f64.powi(n as i32 - 1),
    symbol: |id| if id == A { "a".into() } else { "b".into() },
};

const A: u16 = 1;
const B: u16 = 2;

/// `count` of `a` and `b`.
fn letters(count: usize, draws: &mut Draws, sample: &mut Sample) {
    sample.prompt.extend((0..count).map(|_| draws.id(A, 2)));
}

/// 1 a, 2 b. Answer: b if the number of b's is odd.
fn parity(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    letters(n - 1, draws, sample);
    let odd = sample.prompt.iter().filter(|&&id| id == B).count() % 2 == 1;
    sample.answer.push(if odd { B } else { A });
}

/// 1 a, 2 b. Answer: a if `ab` and `ba` together occur an even number of times.
fn even_pairs(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    letters(n - 1, draws, sample);
    let changes = sample.prompt.windows(2).filter(|pair| pair[0] != pair[1]).count();
    sample.answer.push(if changes % 2 == 0 { A } else { B });
}

/// 1 STAY, 2 +1, 3 −1, 4..=8 positions 0 to 4. Answer: the position after all moves on a cycle of 5, from 0.
fn cycle_nav(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    sample.prompt.extend((0..n - 1).map(|_| draws.id(1, 3)));
    // −1 is +4 on the cycle.
    let sum: usize = sample.prompt.iter().map(|&id| [0, 1, 4][usize::from(id) - 1]).sum();
    sample.answer.push(4 + (sum % 5) as u16);
}

fn cycle_symbol(id: u16) -> String {
    match id {
        1 => "STAY".into(),
        2 => "+1".into(),
        3 => "-1".into(),
        _ => format!("P{}", id - 4),
    }
}

const STACK_ACT: u16 = 1;
const POP: u16 = 2;
/// ST1 to ST4, on the stack.
const STACKED: u16 = 3;
/// PS1 to PS4, which push ST1 to ST4.
const PUSH: u16 = 7;

/// 1 ACT, 2 POP, 3..=6 ST1..ST4, 7..=10 PS1..PS4. A stack from bottom to top, operations, ACT. Answer: the stack
/// after them, from bottom to top. POP on an empty stack does nothing; a sample whose stack ends empty is drawn again.
fn stack_manipulation(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    let tokens = (n - 1) / 2;
    while sample.answer.is_empty() {
        sample.prompt.clear();
        let stacked = 1 + draws.below(tokens as u32 - 1) as usize;
        for _ in 0..stacked {
            let id = draws.id(STACKED, 4);
            sample.prompt.push(id);
            sample.answer.push(id);
        }
        for _ in stacked..tokens {
            let operation = draws.id(POP, 5);
            if operation == POP {
                sample.prompt.push(POP);
                sample.answer.pop();
            } else {
                sample.prompt.push(PUSH + operation - POP - 1);
                sample.answer.push(STACKED + operation - POP - 1);
            }
        }
    }
    sample.prompt.push(STACK_ACT);
}

/// Those that end empty are counted too: they are few.
fn stack_prompts(n: u32) -> f64 {
    let tokens = (n as i32 - 1) / 2;
    (1..tokens).map(|stacked| 4f64.powi(stacked) * 5f64.powi(tokens - stacked)).sum()
}

fn stack_symbol(id: u16) -> String {
    match id {
        STACK_ACT => "ACT".into(),
        POP => "POP".into(),
        STACKED..PUSH => format!("ST{}", id - STACKED + 1),
        _ => format!("PS{}", id - PUSH + 1),
    }
}
