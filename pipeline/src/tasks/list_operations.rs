//! ListOps of the Long Range Arena (paper, Tables 5 and 6; generator of Tay et al., 2020).
//!
//! ```text
//! tree(depth), from depth 1:  depth < 10 and with probability 1/4 an operator, else a digit 0..9, both uniform
//! operator: 2..10 arguments by tree(depth + 1), then MIN, MAX, MED or SM        [MAX 4 3 [MIN 2 3 ] 1 0 ]  → 4
//! ```
//! A tree is kept if it has more than 500 and fewer than 2000 tokens (operator and `]` are one each). SM is the sum
//! modulo 10; MED is the median, of an even number of arguments the mean of the two middle ones, cut to an integer.
//! The class, 0 to 9, is the target at the last token. Most trees are a single digit and some have tens of
//! thousands of tokens: a tree is given up as soon as it is too long.

use serde_json::{Value, json};

use super::random::{Draws, Keys, first_digest_byte};
use super::{Example, Parameters, Range, Split, Task, TaskError};

/// The task's name.
pub(super) const NAME: &str = "listops";
const VERSION: u32 = 1;
const MAX_DEPTH: u32 = 10;
const MAX_ARGUMENTS: u32 = 10;
/// About one tree in twenty is kept with the published lengths; a narrow range keeps far fewer.
const ATTEMPTS: u32 = 1 << 22;
const MAX_LENGTH: u32 = 1 << 15;

/// Digit d is id 1 + d.
const DIGIT: u16 = 1;
const MIN: u16 = 11;
const MAX: u16 = 12;
const MEDIAN: u16 = 13;
const CLOSE: u16 = 15;
const VOCABULARY: u32 = 16;

/// ListOps with its lengths.
pub(super) struct ListOperations {
    length: Range,
    row_length: u32,
    seed: u64,
    keys: Keys,
}

impl ListOperations {
    pub(super) fn new(seed: u64, given: &Parameters) -> Result<Self, TaskError> {
        given.only(NAME, &["length", "row_length"])?;
        let length = given.length.unwrap_or(Range { min: 501, max: 1999 });
        let row_length = given.row_length.unwrap_or_else(|| length.max.saturating_add(1).next_power_of_two());
        length.check(NAME, "length")?;
        if length.min < 4 || length.max > MAX_LENGTH || row_length < length.max || row_length > 2 * MAX_LENGTH
        {
            return Err(TaskError::Parameter(format!(
                "{NAME}: expected lengths of 4 to {MAX_LENGTH} tokens (an operator, two digits and a bracket are 4) and \
                 rows at least as long, found length {length} and row_length {row_length}"
            )));
        }
        // Half of the longest length: a narrower range is met too rarely.
        if u64::from(length.max - length.min) * 8 < u64::from(length.max) {
            return Err(TaskError::Parameter(format!(
                "{NAME}: length {length} is so narrow that nearly every tree misses it: let it span an eighth of its end \
                 at least"
            )));
        }
        let mut task = Self { length, row_length, seed, keys: Keys::of(&Value::Null)? };
        task.keys = Keys::of(&task.spec())?;
        Ok(task)
    }

    /// Draws a tree to the end of `tokens`: its value, or nothing as soon as it is too long.
    fn tree(&self, depth: u32, draws: &mut Draws, tokens: &mut Vec<u16>) -> Option<u16> {
        if depth == MAX_DEPTH || draws.below(4) != 0 {
            let digit = draws.below(10) as u16;
            tokens.push(DIGIT + digit);
            return (tokens.len() <= self.length.max as usize).then_some(digit);
        }
        let place = tokens.len();
        tokens.push(CLOSE);
        let count = 2 + draws.below(MAX_ARGUMENTS - 1) as usize;
        let mut arguments = [0; MAX_ARGUMENTS as usize];
        for argument in &mut arguments[..count] {
            *argument = self.tree(depth + 1, draws, tokens)?;
        }
        tokens[place] = draws.id(MIN, 4);
        tokens.push(CLOSE);
        (tokens.len() <= self.length.max as usize).then(|| value(tokens[place], &mut arguments[..count]))
    }
}

/// What `operator` makes of its arguments.
fn value(operator: u16, arguments: &mut [u16]) -> u16 {
    arguments.sort_unstable();
    let (count, last) = (arguments.len(), arguments.len() - 1);
    match operator {
        MIN => arguments[0],
        MAX => arguments[last],
        // With an odd number both are the middle one.
        MEDIAN => (arguments[last / 2] + arguments[count / 2]) / 2,
        _ => arguments.iter().sum::<u16>() % 10,
    }
}

impl Task for ListOperations {
    fn spec(&self) -> Value {
        json!({"task": NAME, "version": VERSION, "seed": self.seed, "parameters": {
            "length": [self.length.min, self.length.max], "row_length": self.row_length,
        }})
    }

    fn vocabulary_size(&self) -> u32 {
        VOCABULARY
    }

    fn row_length(&self) -> u32 {
        self.row_length
    }

    fn random_accuracy(&self) -> (u32, u32) {
        (1, 10)
    }

    fn symbol(&self, id: u16) -> String {
        match id {
            0 => "PAD".into(),
            DIGIT..MIN => (id - DIGIT).to_string(),
            CLOSE => "]".into(),
            _ => format!("[{}", ["MIN", "MAX", "MED", "SM"][usize::from((id - MIN).min(3))]),
        }
    }

    /// A lower bound: a tree of n tokens has at least (n + 2)/3 digits.
    fn distinct(&self, split: Split) -> f64 {
        let share = if split == Split::Train { 0.5 } else { 0.25 };
        share * 4.0 * 10f64.powi((self.length.max as i32 + 2) / 3)
    }

    /// Of the published lengths, measured; of others the middle.
    fn mean_length(&self, _: Split) -> f64 {
        if (self.length.min, self.length.max) == (501, 1999) {
            return 1030.0;
        }
        f64::from(self.length.min + self.length.max) / 2.0
    }

    fn example(&self, split: Split, number: u64, out: &mut Example) -> Result<(), TaskError> {
        let mut draws = self.keys.draws(split, number);
        let mut tokens = Vec::with_capacity(self.length.max as usize + 1);
        for _ in 0..ATTEMPTS {
            tokens.clear();
            let class = self.tree(1, &mut draws, &mut tokens);
            let long_enough = tokens.len() >= self.length.min as usize;
            if let Some(class) = class.filter(|_| long_enough)
                && split.holds(first_digest_byte(&tokens))
            {
                out.clear(self.row_length as usize);
                out.input_ids[..tokens.len()].copy_from_slice(&tokens);
                out.targets[tokens.len() - 1] = Some(class);
                out.length = tokens.len();
                return Ok(());
            }
        }
        Err(TaskError::NoPrompt { task: NAME.into(), split, number, attempts: u64::from(ATTEMPTS) })
    }
}
