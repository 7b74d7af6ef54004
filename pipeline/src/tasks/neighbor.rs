//! Nearest-neighbor search (paper, Section 4.1 and Figure 2, left; Appendix B.1.2).
//!
//! ```text
//! row t = 1..T:  f_t (2 numbers, unit norm), v_t in [0, 1)        target at t ≥ 2:  v_j, j = nearest of 2..t to f_1
//! ```
//! The first vector is the key; its value is there and means nothing. Numbers are drawn as integers, and only
//! operations that every machine rounds alike make floats of them: the same bits everywhere. Nearest is the largest
//! product with the key, of several the earliest, computed in float64 from the stored float32 numbers, whose products
//! are exact. Splits are told apart by the first byte of SHA-256 over the inputs as little-endian float32.

use serde_json::{Value, json};
use xlstm_manifests::Sha256Digest;

use super::random::{Draws, Keys};
use super::{Example, Parameters, Range, Split, Task, TaskError};

/// The task's name.
pub(super) const NAME: &str = "nearest-neighbor-search";
const VERSION: u32 = 1;
/// Numbers of a position: two of the feature, one value.
const WIDTH: usize = 3;
const ATTEMPTS: u32 = 4096;
const MAX_LENGTH: u32 = 1 << 15;
/// Coordinates are integers up to this; one is 2^23.
const COORDINATE_ONE: i64 = 1 << 23;

/// One sequence, in vectors as long as a row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VectorExample {
    /// `[row_length, 3]`, float32, zeros from `length` on.
    pub inputs: Vec<f32>,
    /// `[row_length]`; `None` is not scored.
    pub targets: Vec<Option<f32>>,
    /// Positions that count.
    pub length: usize,
}

/// Nearest-neighbor search with its lengths.
pub(super) struct NearestNeighbor {
    length: Range,
    seed: u64,
    keys: Keys,
}

impl NearestNeighbor {
    /// The task with `seed` and the parameters `length` (default 2 to 64).
    ///
    /// # Errors
    /// When a parameter is not this task's, or lengths are below 2 or above 2^15.
    pub(super) fn new(seed: u64, given: &Parameters) -> Result<Self, TaskError> {
        given.only(NAME, &["length"])?;
        let length = given.length.unwrap_or(Range { min: 2, max: 64 });
        length.check(NAME, "length")?;
        if length.min < 2 || length.max > MAX_LENGTH {
            return Err(TaskError::Parameter(format!(
                "{NAME}: expected lengths of 2 (a key and a candidate) to {MAX_LENGTH}, found length {length}"
            )));
        }
        let mut task = Self { length, seed, keys: Keys::of(&Value::Null)? };
        task.keys = Keys::of(&task.spec())?;
        Ok(task)
    }
}

/// Position, from 1 on, of the nearest of the candidates 1 to `last`: the largest product with the key, of several the
/// earliest.
fn nearest(inputs: &[f32], last: usize) -> usize {
    let (mut nearest, mut best) = (1, f64::NEG_INFINITY);
    for t in 1..=last {
        let product = product(inputs, t);
        if product > best {
            (nearest, best) = (t, product);
        }
    }
    nearest
}

/// The key's feature times that of position `t`: products of float32 numbers are exact in float64, so the sum is rounded
/// once, whether or not a processor adds while it multiplies.
fn product(inputs: &[f32], t: usize) -> f64 {
    let wide = |at: usize| f64::from(inputs[at]);
    wide(0) * wide(WIDTH * t) + wide(1) * wide(WIDTH * t + 1)
}

impl NearestNeighbor {
    /// Targets of the drawn inputs, and the row's padding.
    fn solve(&self, length: usize, out: &mut VectorExample) {
        let row = self.length.max as usize;
        out.inputs.resize(row * WIDTH, 0.0);
        out.targets.clear();
        out.targets.resize(row, None);
        out.length = length;
        let (mut nearest, mut best) = (0.0, f64::NEG_INFINITY);
        for t in 1..length {
            let product = product(&out.inputs, t);
            if product > best {
                (nearest, best) = (out.inputs[WIDTH * t + 2], product);
            }
            out.targets[t] = Some(nearest);
        }
    }
}

impl Task for NearestNeighbor {
    fn spec(&self) -> Value {
        json!({"task": NAME, "version": VERSION, "seed": self.seed, "parameters": {
            "length": [self.length.min, self.length.max],
        }})
    }

    /// One number is predicted at a position.
    fn vocabulary_size(&self) -> u32 {
        1
    }

    fn input_width(&self) -> Option<u32> {
        Some(WIDTH as u32)
    }

    fn row_length(&self) -> u32 {
        self.length.max
    }

    fn random_accuracy(&self) -> (u32, u32) {
        (0, 1)
    }

    fn symbol(&self, id: u16) -> String {
        id.to_string()
    }

    /// `value of 7`: where the nearest vector stands.
    fn reason(&self, example: &VectorExample, at: usize) -> Option<String> {
        let is_scored = example.targets.get(at).is_some_and(Option::is_some);
        is_scored.then(|| format!("the value at {}", nearest(&example.inputs, at)))
    }

    /// Of the shortest sequences alone: two points of about 2^46 and two values of 2^24.
    fn distinct(&self, _split: Split) -> f64 {
        2f64.powi(2 * 40 + 2 * 24)
    }

    fn mean_length(&self, _split: Split) -> f64 {
        f64::midpoint(f64::from(self.length.min), f64::from(self.length.max))
    }

    fn example(&self, _split: Split, _number: u64, _out: &mut Example) -> Result<(), TaskError> {
        Err(TaskError::Kind { task: NAME.into(), made_of: "numbers" })
    }

    fn vectors(&self, split: Split, number: u64, out: &mut VectorExample) -> Result<(), TaskError> {
        let mut draws = self.keys.draws(split, number);
        let length = (self.length.min + draws.below(self.length.max - self.length.min + 1)) as usize;
        for _ in 0..ATTEMPTS {
            out.inputs.clear();
            for _ in 0..length {
                let (x, y) = point(&mut draws);
                out.inputs.extend([x, y, draws.below(1 << 24) as f32 / (1u32 << 24) as f32]);
            }
            let bytes: Vec<u8> = out.inputs.iter().flat_map(|number| number.to_le_bytes()).collect();
            if split.holds(Sha256Digest::of(&bytes).0[0]) {
                self.solve(length, out);
                return Ok(());
            }
        }
        Err(TaskError::NoPrompt { task: NAME.into(), split, number, attempts: u64::from(ATTEMPTS) })
    }
}

/// A uniform point on the circle: a uniform point of the disk, made as long as one.
fn point(draws: &mut Draws) -> (f32, f32) {
    loop {
        let mut coordinate = || i64::from(draws.below((1 << 24) + 1)) - COORDINATE_ONE;
        let (a, b) = (coordinate(), coordinate());
        let square = a * a + b * b;
        // Between 2^-20 and 1, where the square of one is 2^46.
        if (1 << 26..=1 << 46).contains(&square) {
            let norm = (square as f64).sqrt();
            return ((a as f64 / norm) as f32, (b as f64 / norm) as f32);
        }
    }
}
