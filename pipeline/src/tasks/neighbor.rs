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
use super::{Parameters, Range, Split, TaskError};

/// The task's name.
pub const NAME: &str = "nearest_neighbor";
const VERSION: u32 = 1;
/// Numbers a position: two of the feature, one value.
pub const WIDTH: usize = 3;
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
pub struct NearestNeighbor {
    length: Range,
    seed: u64,
    keys: Keys,
}

impl NearestNeighbor {
    /// The task with `seed` and the parameters `length` (default 2 to 64).
    ///
    /// # Errors
    /// When a parameter is not this task's, or lengths are below 2 or above 2^15.
    pub fn new(seed: u64, given: &Parameters) -> Result<Self, TaskError> {
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

    /// Name, generator version, parameters and seed.
    #[must_use]
    pub fn spec(&self) -> Value {
        json!({"task": NAME, "version": VERSION, "seed": self.seed, "parameters": {
            "length": [self.length.min, self.length.max],
        }})
    }

    /// Positions in a row.
    #[must_use]
    pub fn row_length(&self) -> u32 {
        self.length.max
    }

    /// Makes sample `number` of `split`, in place of what `out` holds.
    ///
    /// # Errors
    /// When no sequence falls to the split (never, in practice).
    pub fn example(&self, split: Split, number: u64, out: &mut VectorExample) -> Result<(), TaskError> {
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

    /// Targets of the drawn inputs, and the row's padding.
    fn solve(&self, length: usize, out: &mut VectorExample) {
        let row = self.length.max as usize;
        out.inputs.resize(row * WIDTH, 0.0);
        out.targets.clear();
        out.targets.resize(row, None);
        out.length = length;
        let wide = |at: usize| f64::from(out.inputs[at]);
        let (mut nearest, mut best) = (0.0, f64::NEG_INFINITY);
        for t in 1..length {
            let product = wide(0) * wide(WIDTH * t) + wide(1) * wide(WIDTH * t + 1);
            if product > best {
                (nearest, best) = (out.inputs[WIDTH * t + 2], product);
            }
            out.targets[t] = Some(nearest);
        }
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
