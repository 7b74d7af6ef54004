//! How the mixes of tokens with those before them are called: `token_shift.cu`.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::{Architecture, Specialization};

/// Threads of a block: `THREADS` of the source. Each has four channels.
const THREADS: u32 = 128;
/// Tokens that a thread walks over.
const RUN: u32 = 32;

/// Most mixes of a launch.
pub const MOST_MIXES: usize = 5;

/// What is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenShiftForm {
    /// Mixes, 1 to 5.
    pub mixes: u32,
    /// Whether each token adds to the shares.
    pub own: bool,
    /// Whether outputs are float32, rather than bf16.
    pub float32: bool,
}

impl TokenShiftForm {
    /// What `token_shift.cu` is compiled with.
    pub(crate) fn defines(self) -> Vec<(&'static str, u32)> {
        vec![("MIXES", self.mixes), ("OWN", self.own.into()), ("FLOAT32", self.float32.into())]
    }

    /// What to compile.
    #[must_use]
    pub fn specialization(self, architecture: Architecture) -> Specialization {
        Specialization::token_shift(architecture, self)
    }

    /// The forward or the backward pass over `batch` sequences of `tokens` tokens and `width` channels. A row of the backward pass's
    /// partial sums holds all mixes' weights.
    #[must_use]
    pub fn launch(self, batch: u32, tokens: u32, width: u32, backward: bool) -> LayerLaunch {
        let grid = [width.div_ceil(4 * THREADS), tokens.div_ceil(RUN), batch];
        let shape = LaunchShape { grid, threads: THREADS, shared_bytes: 0 };
        let (kernel, parts) =
            if backward { ("token_shift_backward", grid[1] * batch) } else { ("token_shift", 0) };
        LayerLaunch { kernel, shape, parts }
    }

    /// `run` of the parameters.
    #[must_use]
    pub fn run() -> i64 {
        RUN.into()
    }
}

/// `TokenShiftParameters` of `token_shift.cu`, field by field; addresses are device addresses, 0 for null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "token_shift.cu says it")]
pub struct TokenShiftParameters {
    pub batch: i32,
    pub tokens: i32,
    pub width: i32,
    pub run: i32,
    pub resets: u64,
    pub y: u64,
    pub first: u64,
    pub weight: u64,
    pub own: u64,
    pub output: [u64; MOST_MIXES],
    pub output_gradient: [u64; MOST_MIXES],
    pub y_gradient: u64,
    pub first_gradient: u64,
    pub own_gradient: u64,
    pub partial: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_cover_all_channels_and_tokens() {
        assert_eq!(size_of::<TokenShiftParameters>(), 16 + 19 * 8);
        let form = TokenShiftForm { mixes: 4, own: false, float32: false };
        let forward = form.launch(3, 65, 1000, false);
        assert_eq!((forward.shape.grid, forward.parts), ([2, 3, 3], 0));
        assert_eq!(form.launch(3, 65, 1000, true).parts, 9);
        let kernels = form.specialization(Architecture::Sm80).source.kernels();
        assert!([false, true].iter().all(|&way| kernels.contains(&form.launch(1, 1, 4, way).kernel)));
    }
}
