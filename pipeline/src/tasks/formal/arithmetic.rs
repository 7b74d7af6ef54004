//! Arithmetic modulo 5: without brackets, with brackets, and equations.
//!
//! Bracketed expressions of e tokens (paper, Appendix B.1.1; the grammar of Delétang et al., 2022):
//!
//! ```text
//! e = 1  d        e = 2  -d        e = 3  (d)        e = 4  (-d)        e >= 5  (L op R)
//! ```
//! with L of 1 to e − 4 tokens, uniform, and R the rest. Every operation has its own brackets, so nothing needs
//! precedence. L's length is drawn first, then all of L, all of R, and the operator.

use super::{Language, Sample};
use crate::tasks::Ties;
use crate::tasks::random::Draws;

const MODULUS: u32 = 5;
const PLUS: u16 = 1;
const MINUS: u16 = 2;
const TIMES: u16 = 3;
const EQUALS: u16 = 4;
const OPEN: u16 = 5;
const CLOSE: u16 = 6;

/// First number without brackets; with them; in equations, after x and ACT.
const PLAIN_ZERO: u16 = 5;
const BRACKETS_ZERO: u16 = 7;
const X: u16 = 7;
const ACT: u16 = 8;
const EQUATION_ZERO: u16 = 9;

/// Ids of these tasks: 0 PAD, 1 +, 2 −, 3 ×, 4 =, then 5 ( and 6 ) where there are brackets, 7 x and 8 ACT in
/// equations, and the numbers 0 to 4.
pub(super) static LANGUAGES: &[Language] = &[
    Language {
        name: "mod_arithmetic",
        vocabulary_size: 10,
        step: 2,
        draw: without_brackets,
        prompts: |n| 5f64 * 15f64.powi((n as i32 - 1) / 2 - 1),
        symbol: |id| if id >= PLAIN_ZERO { (id - PLAIN_ZERO).to_string() } else { sign(id) },
        ..BRACKETS
    },
    BRACKETS,
    Language {
        name: "mod_arithmetic_brackets_nomult",
        draw: |n, draws, _, sample| with_brackets(n, 2, draws, sample),
        prompts: |n| expressions(n - 2, 2).0,
        ..BRACKETS
    },
    Language {
        name: "solve_equation",
        vocabulary_size: 14,
        shortest: 5,
        draw: solve_equation,
        prompts: |n| f64::from(MODULUS) * expressions(n - 4, 2).1,
        symbol: |id| match id {
            X => "x".into(),
            ACT => "ACT".into(),
            EQUATION_ZERO.. => (id - EQUATION_ZERO).to_string(),
            _ => sign(id),
        },
        ..BRACKETS
    },
];

const BRACKETS: Language = Language {
    name: "mod_arithmetic_brackets",
    vocabulary_size: 12,
    guesses: MODULUS,
    shortest: 3,
    step: 1,
    draw: |n, draws, _, sample| with_brackets(n, 3, draws, sample),
    prompts: |n| expressions(n - 2, 3).0,
    symbol: |id| if id >= BRACKETS_ZERO { (id - BRACKETS_ZERO).to_string() } else { sign(id) },
};

fn sign(id: u16) -> String {
    ["PAD", "+", "-", "*", "=", "(", ")"]
        .get(usize::from(id))
        .map_or_else(|| id.to_string(), |&sign| sign.into())
}

/// `left operator right`, modulo 5 and never negative.
fn apply(left: u32, operator: u16, right: u32) -> u32 {
    match operator {
        PLUS => (left + right) % MODULUS,
        MINUS => (left + MODULUS - right) % MODULUS,
        _ => (left * right) % MODULUS,
    }
}

/// Numbers with operators between them, `=`. Products before sums, sums from the left.
fn without_brackets(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    let mut term = draws.below(MODULUS);
    sample.prompt.push(PLAIN_ZERO + term as u16);
    let (mut sum, mut before) = (0, PLUS);
    for _ in 1..(n - 1) / 2 {
        let operator = draws.id(PLUS, 3);
        let number = draws.below(MODULUS);
        sample.prompt.extend([operator, PLAIN_ZERO + number as u16]);
        if operator == TIMES {
            term = apply(term, TIMES, number);
        } else {
            sum = apply(sum, before, term);
            (term, before) = (number, operator);
        }
    }
    sample.prompt.push(EQUALS);
    sample.answer.push(PLAIN_ZERO + apply(sum, before, term) as u16);
}

/// Draws an expression of `tokens` tokens behind what `out` holds, and says its value. `operators` of + − × are used.
fn expression(tokens: usize, zero: u16, operators: u16, draws: &mut Draws, out: &mut Vec<u16>) -> u32 {
    if tokens >= 5 {
        out.push(OPEN);
        let left_tokens = 1 + draws.below(tokens as u32 - 4) as usize;
        let left = expression(left_tokens, zero, operators, draws, out);
        let place = out.len();
        out.push(PLUS);
        let right = expression(tokens - 3 - left_tokens, zero, operators, draws, out);
        out[place] = draws.id(PLUS, operators);
        out.push(CLOSE);
        return apply(left, out[place], right);
    }
    let number = draws.below(MODULUS);
    let (bracketed, negative) = (tokens >= 3, tokens.is_multiple_of(2));
    out.extend(bracketed.then_some(OPEN));
    out.extend(negative.then_some(MINUS));
    out.push(zero + number as u16);
    out.extend(bracketed.then_some(CLOSE));
    if negative { apply(0, MINUS, number) } else { number }
}

/// An expression, `=`.
fn with_brackets(n: usize, operators: u16, draws: &mut Draws, sample: &mut Sample) {
    let value = expression(n - 2, BRACKETS_ZERO, operators, draws, &mut sample.prompt);
    sample.prompt.push(EQUALS);
    sample.answer.push(BRACKETS_ZERO + value as u16);
}

/// An expression without products in which one number is x, `=`, its value, ACT. Answer: that number.
fn solve_equation(n: usize, draws: &mut Draws, _: Ties, sample: &mut Sample) {
    let value = expression(n - 4, EQUATION_ZERO, 2, draws, &mut sample.prompt);
    let numbers = sample.prompt.iter().filter(|&&id| id >= EQUATION_ZERO).count();
    let chosen = draws.below(numbers as u32) as usize;
    let unknown = sample.prompt.iter_mut().filter(|id| **id >= EQUATION_ZERO).nth(chosen);
    sample.answer.extend(unknown.map(|id| std::mem::replace(id, X)));
    sample.prompt.extend([EQUALS, EQUATION_ZERO + value as u16, ACT]);
}

/// How many expressions of `tokens` tokens there are, and how many with one number replaced by x.
fn expressions(tokens: u32, operators: u32) -> (f64, f64) {
    // Beyond this there are more than can ever be drawn.
    let tokens = tokens.min(64) as usize;
    let (mut all, mut with_x) = (vec![0.0, 5.0, 5.0, 5.0, 5.0], vec![0.0, 1.0, 1.0, 1.0, 1.0]);
    for length in 5..=tokens {
        let pairs = || (1..=length - 4).map(|left| (left, length - 3 - left));
        let count: f64 = pairs().map(|(l, r)| all[l] * all[r]).sum();
        let count_x: f64 = pairs().map(|(l, r)| all[l] * with_x[r] + with_x[l] * all[r]).sum();
        all.push(f64::from(operators) * count);
        with_x.push(f64::from(operators) * count_x);
    }
    (all[tokens], with_x[tokens])
}
