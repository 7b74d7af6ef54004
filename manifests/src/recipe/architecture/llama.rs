//! Llama's part of a recipe, and its arithmetic: the paper's main Transformer baseline.
//!
//! ```text
//! block: two norms 2d · q, k, v, o 4d² · gate, up, down 3dF         F = 64·⌈⌊8d/3⌋ / 64⌉ unless stated
//! model: token embedding Vd · output Vd · last norm d
//! ```
//! The paper's five sizes (tables 3 and 7) are reproduced to the parameter with a vocabulary of 50304. What the paper does
//! not say (epsilon, initial values) is a key here, with the choice and its reason in `docs/decisions.md`.

use serde::{Deserialize, Serialize};

use super::{ActivationSetup, Architecture, Checker, Mixing, ModelSize, ends, input_label, stated_or};
use crate::recipe::{ComputePath, Result};

/// A Llama: RMS norms, rotary positions, full causal attention, SwiGLU, no biases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlamaConfig {
    /// Rows of the embedding and of the output projection.
    pub vocabulary_size: u64,
    /// Numbers of a position where inputs are numbers and not tokens: a linear map takes them in place of the embedding,
    /// and the head is one linear unit. 0: tokens.
    pub input_width: u64,
    /// Width of the residual.
    pub embedding_dim: u64,
    /// Blocks, each attention and feed-forward.
    pub blocks: u64,
    /// Whether the output projection is the token embedding (weight tying); neither then decays.
    pub tied_embedding: bool,
    /// Attention heads; each has its own keys and values.
    pub heads: u64,
    /// Width of the feed-forward; 0: 8/3 of the residual's, rounded up to a multiple of 64.
    pub feed_forward_dim: u64,
    /// Base of the rotary angles.
    pub rotary_base: f64,
    /// Added to the mean square in the norms.
    pub norm_epsilon: f64,
    /// First values of the matrices.
    pub weight_init: LlamaInit,
}

/// First values of a Llama's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LlamaInit {
    /// As the xLSTM: normal, √(2 / (5·d)); matrices at the end of a residual branch 2 / (2·blocks·√d).
    Small,
    /// Normal with standard deviation 0.02 everywhere.
    Normal,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            vocabulary_size: 50304,
            input_width: 0,
            embedding_dim: 1024,
            blocks: 24,
            tied_embedding: false,
            heads: 16,
            feed_forward_dim: 0,
            rotary_base: 10_000.0,
            norm_epsilon: 1e-6,
            weight_init: LlamaInit::Small,
        }
    }
}

impl LlamaConfig {
    /// Width of the feed-forward, derived where it is not stated.
    #[must_use]
    pub fn feed_forward(&self) -> u64 {
        stated_or(self.feed_forward_dim, (8 * self.embedding_dim / 3).div_ceil(64) * 64)
    }
}

impl Architecture for LlamaConfig {
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

    fn input_width(&self) -> u64 {
        self.input_width
    }

    fn check(&self, checker: &Checker<'_>) -> Result<()> {
        let d = self.embedding_dim;
        checker.heads("model.heads", self.heads, d)?;
        let head = d / self.heads;
        let expected = format!("heads of an even width (model.embedding_dim = {d}), for rotary pairs");
        checker.require(head.is_multiple_of(2), "model.heads", &expected, self.heads)?;
        checker.range("model.feed_forward_dim", self.feed_forward_dim, 0, 1 << 20)?;
        let base = self.rotary_base;
        checker.require(base > 1.0 && base.is_finite(), "model.rotary_base", "above 1", base)?;
        checker.not_negative("model.norm_epsilon", self.norm_epsilon)
    }

    /// `Llama, 24 blocks, 16 heads, width 1024`.
    fn label(&self) -> String {
        format!(
            "Llama, {} blocks, {} heads, width {}{}",
            self.blocks,
            self.heads,
            self.embedding_dim,
            input_label(self.input_width)
        )
    }

    fn size(&self) -> ModelSize {
        let (d, f, ends) = (self.embedding_dim, self.feed_forward(), ends(self));
        let products = self.blocks * (4 * d * d + 3 * d * f);
        ModelSize {
            parameters: products + ends.parameters + d + self.blocks * 2 * d,
            product_parameters: products + ends.product_parameters,
        }
    }

    fn mixing(&self) -> Mixing {
        Mixing::Attention
    }

    /// In float32: two residual sums, two norms and their inputs, queries and keys before and after the rotation; in the
    /// products' type: inputs of the products, q, k, v, attention's output, and four tensors of the feed-forward.
    fn activation_bytes(&self, _index: u64, setup: &ActivationSetup) -> u64 {
        let (d, f) = (self.embedding_dim, self.feed_forward());
        if setup.path == ComputePath::GpuKernels {
            // Two residual sums in float32; two norms, q, k, v and attention's output; gate, up and their product.
            return 8 * d + 2 * (6 * d + 3 * f);
        }
        4 * 12 * d + setup.element_bytes * (8 * d + 5 * f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_published_sizes_to_the_parameter() {
        for (embedding_dim, blocks, heads, parameters) in [
            (768, 12, 12, 162_220_800),
            (1024, 24, 16, 406_635_520),
            (1536, 24, 16, 834_086_400),
            (2048, 24, 16, 1_420_396_544),
            (2560, 32, 32, 2_779_548_160),
        ] {
            let model = LlamaConfig { embedding_dim, blocks, heads, ..LlamaConfig::default() };
            assert_eq!(model.size().parameters, parameters, "width {embedding_dim}");
        }
    }

    #[test]
    fn attention_costs_by_the_context() {
        let model = LlamaConfig::default();
        let cost = |context| model.operations_per_token(context) - 6 * model.size().product_parameters;
        assert_eq!(cost(2048), 6 * 24 * 1024 * 2048);
        assert_eq!(cost(4096), 2 * cost(2048));
    }

    #[test]
    fn contradictions_are_named() {
        super::super::assert_refused(
            "llama",
            &[
                ("model.heads=3", "model.heads"),
                ("model.heads=1024", "model.heads"),
                ("model.heads=0", "model.heads"),
                ("model.rotary_base=0.5", "model.rotary_base"),
                ("model.norm_epsilon=-1.0", "model.norm_epsilon"),
            ],
        );
    }
}
