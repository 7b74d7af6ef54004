//! RetNet, GLA, HGRN and HGRN2 in a recipe: one shell, four mixers, and their arithmetic.
//!
//! ```text
//! block: two norms 2d · mixer · gate, up, down 3dF            F = 256·⌈⌊8d/3⌋ / 256⌉, RetNet 256·⌈⌊4d/3⌋ / 256⌉
//! mixer: GLA 4d² + 24.5d + d/4 (four heads) · HGRN 4d² + d · HGRN2 4d² + d · RetNet 8d² + 2d/H
//! model: token embedding Vd · output Vd · last norm d · HGRN, HGRN2: lower bounds Ld
//! ```
//! As flash-linear-attention has them. The counts of GLA, HGRN and HGRN2 at Table 1's size are the paper's; RetNet's is
//! 417.65 million where the paper prints 431, which the block of [`RetnetBlockConfig`](super::RetnetBlockConfig) fits.

use std::fmt::Debug;
use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use super::{ActivationSetup, Architecture, Checker, Mixing, ModelSize, stated_or};
use crate::recipe::{ComputePath, Result};

/// What a mixer of the shell brings.
pub trait RecurrentMixer: Debug + Clone + PartialEq + Default + 'static {
    /// As people write it.
    const LABEL: &'static str;
    /// Heads at width 1024; 0: one for every 128 of the width.
    const HEADS: u64;
    /// How many times wider the feed-forward would be without a gate.
    const FEED_RATIO: u64;
    /// Numbers in matrices of one mixer.
    fn matrices(width: u64, heads: u64) -> u64;
    /// Numbers beside them.
    fn vectors(width: u64, heads: u64) -> u64;
    /// Numbers of the state of one layer.
    fn memory(width: u64, heads: u64) -> u64;
    /// Bytes that a mixer keeps for its backward pass, for a token and a number of the width, with GPU kernels between products in bf16.
    const KEPT_BYTES: u64;
    /// Whether the model has lower bounds of its forget gates.
    const LOWER_BOUNDS: bool = false;
    /// Whether there are two orders of the norm and the gate behind the cell.
    const TWO_ORDERS: bool = false;
}

/// Gated linear attention.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Gla;

/// HGRN2: matrix states, keys are what is not forgotten.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hgrn2;

/// HGRN: element-wise states.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hgrn;

/// RetNet: a fixed decay for each head, rotary positions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Retnet;

/// Width of GLA's gate between its two matrices.
pub const GLA_GATE_RANK: u64 = 16;

impl RecurrentMixer for Gla {
    const LABEL: &'static str = "GLA";
    // q, k, v, gate, output and what is gated; decays and what they came from; states at borders.
    const KEPT_BYTES: u64 = 16;
    const HEADS: u64 = 4;
    const FEED_RATIO: u64 = 4;

    fn matrices(d: u64, _heads: u64) -> u64 {
        // q and k to d/2, v, gate and output d; the decay's two.
        4 * d * d + GLA_GATE_RANK * (d + d / 2)
    }

    fn vectors(d: u64, heads: u64) -> u64 {
        d / 2 + d / heads
    }

    fn memory(d: u64, heads: u64) -> u64 {
        d / 2 * (d / heads)
    }
}

impl RecurrentMixer for Hgrn2 {
    const LABEL: &'static str = "HGRN2";
    // In float32 the sigmoid, the forget gate, the decay and the norm's input; q before and after its SiLU, k, v, output, norm.
    const KEPT_BYTES: u64 = 30;
    const HEADS: u64 = 0;
    const FEED_RATIO: u64 = 4;
    const LOWER_BOUNDS: bool = true;

    fn matrices(d: u64, _heads: u64) -> u64 {
        4 * d * d
    }

    fn vectors(d: u64, _heads: u64) -> u64 {
        d
    }

    fn memory(d: u64, heads: u64) -> u64 {
        d * (d / heads)
    }
}

impl RecurrentMixer for Hgrn {
    const LABEL: &'static str = "HGRN";
    // In float32 the sigmoid, the forget gate, one less it, the input's SiLU and the state; input, gate and output.
    const KEPT_BYTES: u64 = 26;
    const HEADS: u64 = 1;
    const FEED_RATIO: u64 = 4;
    const LOWER_BOUNDS: bool = true;
    const TWO_ORDERS: bool = true;

    fn matrices(d: u64, _heads: u64) -> u64 {
        4 * d * d
    }

    fn vectors(d: u64, _heads: u64) -> u64 {
        d
    }

    fn memory(d: u64, _heads: u64) -> u64 {
        d
    }
}

impl RecurrentMixer for Retnet {
    const LABEL: &'static str = "RetNet";
    // q and k; v, gate, output and what is gated at twice the width; states at borders.
    const KEPT_BYTES: u64 = 21;
    const HEADS: u64 = 8;
    const FEED_RATIO: u64 = 2;

    fn matrices(d: u64, _heads: u64) -> u64 {
        8 * d * d
    }

    fn vectors(d: u64, heads: u64) -> u64 {
        2 * d / heads
    }

    fn memory(d: u64, heads: u64) -> u64 {
        d * (2 * d / heads)
    }
}

/// A model of the shell with one of the mixers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, bound = "")]
pub struct RecurrentConfig<M: RecurrentMixer> {
    /// Rows of the embedding and of the output projection.
    pub vocabulary_size: u64,
    /// Width of the residual.
    pub embedding_dim: u64,
    /// Blocks, each a mixer and a feed-forward.
    pub blocks: u64,
    /// Whether the output projection is the token embedding (weight tying); neither then decays.
    pub tied_embedding: bool,
    /// Heads of the mixer; 0: one for every 128 of the width.
    pub heads: u64,
    /// Width of the feed-forward; 0: derived from the width, see the head of the file.
    pub feed_forward_dim: u64,
    /// Added to the mean square in the norms.
    pub norm_epsilon: f64,
    /// HGRN alone: normalize the gate's input and activate the cell's output, `RMS(W_g y) ⊙ SiLU(h)`, as
    /// flash-linear-attention did until July 2024, in place of `RMS(h) ⊙ SiLU(W_g y)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swapped_norm: Option<bool>,
    #[serde(skip)]
    mixer: PhantomData<M>,
}

/// GLA.
pub type GlaConfig = RecurrentConfig<Gla>;
/// HGRN2.
pub type Hgrn2Config = RecurrentConfig<Hgrn2>;
/// HGRN.
pub type HgrnConfig = RecurrentConfig<Hgrn>;
/// RetNet.
pub type RetnetConfig = RecurrentConfig<Retnet>;

impl<M: RecurrentMixer> Default for RecurrentConfig<M> {
    fn default() -> Self {
        Self {
            vocabulary_size: 50304,
            embedding_dim: 1024,
            blocks: 24,
            tied_embedding: false,
            heads: M::HEADS,
            feed_forward_dim: 0,
            norm_epsilon: 1e-6,
            swapped_norm: M::TWO_ORDERS.then_some(false),
            mixer: PhantomData,
        }
    }
}

impl<M: RecurrentMixer> RecurrentConfig<M> {
    /// Width of the feed-forward, derived where it is not stated.
    #[must_use]
    pub fn feed_forward(&self) -> u64 {
        stated_or(self.feed_forward_dim, (self.embedding_dim * M::FEED_RATIO * 2 / 3).div_ceil(256) * 256)
    }

    /// Heads of the mixer, derived where they are not stated.
    #[must_use]
    pub fn mixer_heads(&self) -> u64 {
        match self.heads {
            0 => (self.embedding_dim / 128).max(1),
            stated => stated,
        }
    }
}

impl<M: RecurrentMixer> Architecture for RecurrentConfig<M> {
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
        let (d, heads) = (self.embedding_dim, self.mixer_heads());
        checker.heads("model.heads", heads, d)?;
        let expected = format!("heads of a width that is a multiple of 4 (model.embedding_dim = {d})");
        checker.require((d / heads).is_multiple_of(4), "model.heads", &expected, heads)?;
        checker.range("model.feed_forward_dim", self.feed_forward_dim, 0, 1 << 20)?;
        let holds = M::TWO_ORDERS || self.swapped_norm.is_none();
        checker.require(holds, "model.swapped_norm", "no such key but in HGRN", M::LABEL)?;
        checker.not_negative("model.norm_epsilon", self.norm_epsilon)
    }

    /// `GLA, 24 blocks, 4 heads, width 1024`.
    fn label(&self) -> String {
        let (label, heads) = (M::LABEL, self.mixer_heads());
        format!("{label}, {} blocks, {heads} heads, width {}", self.blocks, self.embedding_dim)
    }

    fn size(&self) -> ModelSize {
        let (d, v, f, heads) =
            (self.embedding_dim, self.vocabulary_size, self.feed_forward(), self.mixer_heads());
        let products = self.blocks * (M::matrices(d, heads) + 3 * d * f) + v * d;
        let bounds = if M::LOWER_BOUNDS { self.blocks * d } else { 0 };
        let vectors = self.blocks * (M::vectors(d, heads) + 2 * d) + bounds + d;
        ModelSize { parameters: products + v * d + vectors, product_parameters: products }
    }

    fn mixing(&self) -> Mixing {
        Mixing::States(self.blocks * M::memory(self.embedding_dim, self.mixer_heads()))
    }

    /// In float32: residual sums, norms, the mixer's gates and its result before and after the norm; in the products'
    /// type: inputs and results of the products.
    fn activation_bytes(&self, _index: u64, setup: &ActivationSetup) -> u64 {
        let (d, f) = (self.embedding_dim, self.feed_forward());
        if setup.path == ComputePath::GpuKernels {
            // Two residual sums in float32; two norms; gate, up and their product; the mixer.
            return 8 * d + 2 * (2 * d + 3 * f) + M::KEPT_BYTES * d;
        }
        4 * 16 * d + setup.element_bytes * (12 * d + 5 * f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_to_the_parameter() {
        let sizes = [(768, 12), (1024, 24), (1536, 24), (2048, 24), (2560, 32)];
        let found = sizes.map(|(embedding_dim, blocks)| {
            Hgrn2Config { embedding_dim, blocks, ..Hgrn2Config::default() }.size().parameters
        });
        // Table 3 and 7, in millions: 162.2, 411.4, 834.2, 1439.4, 2795.4.
        let millions = found.map(|parameters| (parameters as f64 / 1e5).round() / 10.0);
        assert_eq!(millions, [162.2, 411.4, 834.2, 1439.4, 2795.4]);
        assert_eq!(found[1], 411_403_264);
        assert_eq!(HgrnConfig::default().size().parameters, 411_403_264);
        assert_eq!(GlaConfig::default().size().parameters, 411_962_368);
        assert_eq!(RetnetConfig::default().size().parameters, 417_651_712);
    }

    #[test]
    fn contradictions_are_named() {
        for architecture in ["gla", "hgrn", "hgrn2", "retnet"] {
            super::super::assert_refused(
                architecture,
                &[
                    ("model.heads=3", "model.heads"),
                    ("model.heads=1024", "model.heads"),
                    ("model.norm_epsilon=-1.0", "model.norm_epsilon"),
                ],
            );
        }
    }
}
