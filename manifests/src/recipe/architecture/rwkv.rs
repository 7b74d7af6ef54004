//! RWKV-4, RWKV-5 and RWKV-6 in a recipe, and their arithmetic.
//!
//! ```text
//! block: RWKV-4 13d² + 11d · RWKV-5 14d² + 14d · RWKV-6 6d² + 2dF + 464d      F = 4d, RWKV-6 32·⌊3.5d/32⌋
//! model: token embedding Vd · output Vd · first and last norm 4d
//! ```
//! As the authors' repository (RWKV-LM) has them, with the feed-forward widths that the paper's counts fix. The paper's
//! five sizes of each (tables 3 and 7) are reproduced to the parameter with a vocabulary of 50304.

use std::fmt::Debug;
use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use super::{ActivationSetup, Architecture, Checker, Mixing, ModelSize, stated_or};
use crate::recipe::{ComputePath, Result};

/// What a version brings.
pub trait RwkvVersion: Debug + Clone + PartialEq + Default + 'static {
    /// 4, 5 or 6.
    const NUMBER: u64;
}

/// RWKV-4: element-wise states.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Four;

/// RWKV-5: matrix states, decays that are learned.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Five;

/// RWKV-6: mixes and decays that the token chooses.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Six;

impl RwkvVersion for Four {
    const NUMBER: u64 = 4;
}

impl RwkvVersion for Five {
    const NUMBER: u64 = 5;
}

impl RwkvVersion for Six {
    const NUMBER: u64 = 6;
}

/// Width of each of RWKV-6's five mixes between its two matrices.
pub const RWKV_MIX_RANK: u64 = 32;
/// Width of RWKV-6's decay between its two matrices.
pub const RWKV_DECAY_RANK: u64 = 64;

/// An RWKV.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, bound = "")]
pub struct RwkvConfig<N: RwkvVersion> {
    /// Rows of the embedding and of the output projection.
    pub vocabulary_size: u64,
    /// Width of the residual.
    pub embedding_dim: u64,
    /// Blocks, each a time mix and a channel mix.
    pub blocks: u64,
    /// Whether the output projection is the token embedding (weight tying); neither then decays.
    pub tied_embedding: bool,
    /// Width of a head; RWKV-4 has none.
    pub head_dim: u64,
    /// Width of the channel mix; 0: 4 times the residual's, RWKV-6 3.5 times, rounded down to a multiple of 32.
    pub feed_forward_dim: u64,
    #[serde(skip)]
    version: PhantomData<N>,
}

/// RWKV-4.
pub type Rwkv4Config = RwkvConfig<Four>;
/// RWKV-5.
pub type Rwkv5Config = RwkvConfig<Five>;
/// RWKV-6.
pub type Rwkv6Config = RwkvConfig<Six>;

impl<N: RwkvVersion> Default for RwkvConfig<N> {
    fn default() -> Self {
        Self {
            vocabulary_size: 50304,
            embedding_dim: 1024,
            blocks: 24,
            tied_embedding: false,
            head_dim: 64,
            feed_forward_dim: 0,
            version: PhantomData,
        }
    }
}

impl<N: RwkvVersion> RwkvConfig<N> {
    /// Width of the channel mix, derived where it is not stated.
    #[must_use]
    pub fn feed_forward(&self) -> u64 {
        let derived = if N::NUMBER == 6 { 7 * self.embedding_dim / 64 * 32 } else { 4 * self.embedding_dim };
        stated_or(self.feed_forward_dim, derived)
    }

    /// Matrices of a block, and what is beside them.
    fn block(&self) -> (u64, u64) {
        let (d, f) = (self.embedding_dim, self.feed_forward());
        let channel = d * d + 2 * d * f;
        // Two norms, and two mixes of the channel mix.
        let shared = 4 * d + 2 * d;
        match N::NUMBER {
            4 => (4 * d * d + channel, shared + 5 * d),
            5 => (5 * d * d + channel, shared + 8 * d),
            _ => {
                let ranks = 10 * RWKV_MIX_RANK * d + 2 * RWKV_DECAY_RANK * d;
                (5 * d * d + channel + ranks, shared + 10 * d)
            }
        }
    }

    fn memory(&self) -> u64 {
        if N::NUMBER == 4 { 2 * self.embedding_dim } else { self.embedding_dim * self.head_dim }
    }
}

impl<N: RwkvVersion> Architecture for RwkvConfig<N> {
    fn tied_embedding(&self) -> bool {
        self.tied_embedding
    }

    fn vocabulary_size(&self) -> u64 {
        self.vocabulary_size
    }

    fn embedding_dim(&self) -> u64 {
        self.embedding_dim
    }

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn check(&self, checker: &Checker<'_>) -> Result<()> {
        let d = self.embedding_dim;
        checker.positive("model.head_dim", self.head_dim)?;
        if N::NUMBER > 4 {
            let expected = format!("a divisor of model.embedding_dim = {d}");
            checker.require(d.is_multiple_of(self.head_dim), "model.head_dim", &expected, self.head_dim)?;
        }
        checker.range("model.feed_forward_dim", self.feed_forward_dim, 0, 1 << 20)
    }

    /// `RWKV-6, 24 blocks, width 1024`.
    fn label(&self) -> String {
        format!("RWKV-{}, {} blocks, width {}", N::NUMBER, self.blocks, self.embedding_dim)
    }

    fn size(&self) -> ModelSize {
        let (d, v) = (self.embedding_dim, self.vocabulary_size);
        let (matrices, others) = self.block();
        let products = self.blocks * matrices + v * d;
        ModelSize {
            parameters: products + v * d + self.blocks * others + 4 * d,
            product_parameters: products,
        }
    }

    fn mixing(&self) -> Mixing {
        Mixing::States(self.blocks * self.memory())
    }

    /// In float32: residual sums, norms, shifts and mixes, the cell's inputs and its result; in the products' type: inputs
    /// and results of the products.
    fn activation_bytes(&self, _index: u64, setup: &ActivationSetup) -> u64 {
        let (d, f) = (self.embedding_dim, self.feed_forward());
        if setup.path == ComputePath::GpuKernels {
            // Of both mixes the residual sum and its norm in float32, mixes, products' results and inputs; the cell's inputs and
            // result, in float32 for RWKV-4; what RWKV-6 chooses by the token; of the feed-forward its inner values twice.
            let width = match N::NUMBER {
                4 => 47,
                5 => 50,
                _ => 71,
            };
            return width * d + 4 * f;
        }
        let mixes = if N::NUMBER == 6 { 34 } else { 24 };
        4 * (mixes * d + 2 * f) + setup.element_bytes * (16 * d + 2 * f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [(u64, u64); 5] = [(768, 12), (1024, 24), (1536, 24), (2048, 24), (2560, 32)];

    fn millions<N: RwkvVersion>() -> [f64; 5] {
        SIZES.map(|(embedding_dim, blocks)| {
            let model = RwkvConfig::<N> { embedding_dim, blocks, ..RwkvConfig::default() };
            (model.size().parameters as f64 / 1e4).round() / 100.0
        })
    }

    #[test]
    fn published_sizes_to_the_parameter() {
        assert_eq!(Rwkv4Config::default().size().parameters, 430_452_736);
        assert_eq!(Rwkv5Config::default().size().parameters, 455_692_288);
        assert_eq!(Rwkv6Config::default().size().parameters, 441_585_664);
        // Table 3 and 7, in millions.
        assert_eq!(millions::<Four>(), [169.38, 430.45, 891.05, 1515.22, 2984.77]);
        assert_eq!(millions::<Five>(), [176.49, 455.69, 947.78, 1616.03, 3194.73]);
        assert_eq!(millions::<Six>(), [173.56, 441.59, 907.75, 1537.48, 3021.88]);
    }

    #[test]
    fn contradictions_are_named() {
        let wrong = [("model.head_dim=0", "model.head_dim"), ("model.head_dim=100", "model.head_dim")];
        super::super::assert_refused("rwkv5", &wrong);
        super::super::assert_refused("rwkv6", &wrong);
        super::super::assert_refused("rwkv4", &wrong[..1]);
    }
}
