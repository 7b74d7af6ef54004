//! GPT-2's part of a recipe, and its arithmetic: what the paper calls GPT-3, a Transformer with learned positions.
//!
//! ```text
//! block: two norms 4d · q, k, v 3d² + 3d · output d² + d · feed-forward 2dF + F + d          F = 4d unless stated
//! model: token embedding Vd, also the output · positions Pd · last norm 2d
//! ```
//! With the defaults 355,919,872 parameters: the paper's "356M" (table 1).

use serde::{Deserialize, Serialize};

use super::{ActivationSetup, Architecture, Checker, Mixing, ModelSize, stated_or};
use crate::recipe::{ComputePath, Result};

/// A GPT-2: layer norms and linear maps with biases, learned positions, full causal attention, GELU, tied embeddings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gpt2Config {
    /// Rows of the embedding, which is the output projection too.
    pub vocabulary_size: u64,
    /// Width of the residual.
    pub embedding_dim: u64,
    /// Blocks, each attention and feed-forward.
    pub blocks: u64,
    /// Attention heads.
    pub heads: u64,
    /// Width of the feed-forward; 0: four times the residual's.
    pub feed_forward_dim: u64,
    /// Learned positions: no context can be longer.
    pub positions: u64,
    /// Form of the GELU.
    pub gelu: Gelu,
}

/// Forms of the GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gelu {
    /// By tanh, as GPT-2's code has it.
    Tanh,
    /// By the error function.
    Erf,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            vocabulary_size: 50304,
            embedding_dim: 1024,
            blocks: 24,
            heads: 16,
            feed_forward_dim: 0,
            positions: 2048,
            gelu: Gelu::Tanh,
        }
    }
}

impl Gpt2Config {
    /// Width of the feed-forward, derived where it is not stated.
    #[must_use]
    pub fn feed_forward(&self) -> u64 {
        stated_or(self.feed_forward_dim, 4 * self.embedding_dim)
    }
}

impl Architecture for Gpt2Config {
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
        checker.heads("model.heads", self.heads, self.embedding_dim)?;
        checker.range("model.feed_forward_dim", self.feed_forward_dim, 0, 1 << 20)?;
        checker.range("model.positions", self.positions, 1, 1 << 24)
    }

    /// `GPT-3 (as GPT-2), 24 blocks, 16 heads, width 1024`.
    fn label(&self) -> String {
        format!(
            "GPT-3 (as GPT-2), {} blocks, {} heads, width {}",
            self.blocks, self.heads, self.embedding_dim
        )
    }

    fn size(&self) -> ModelSize {
        let (d, v, f) = (self.embedding_dim, self.vocabulary_size, self.feed_forward());
        let products = v * d + self.blocks * (4 * d * d + 2 * d * f);
        let biases = self.blocks * (9 * d + f);
        ModelSize { parameters: products + self.positions * d + 2 * d + biases, product_parameters: products }
    }

    fn mixing(&self) -> Mixing {
        Mixing::Attention
    }

    fn longest_context(&self) -> Option<u64> {
        Some(self.positions)
    }

    /// In float32: two residual sums and two norms; in the products' type: inputs of the products, q, k, v, attention's
    /// output, and three tensors of the feed-forward.
    fn activation_bytes(&self, _index: u64, setup: &ActivationSetup) -> u64 {
        let (d, f) = (self.embedding_dim, self.feed_forward());
        if setup.path == ComputePath::GpuKernels {
            // Two residual sums in float32; what the products and attention read, and the feed-forward on both sides of its GELU.
            return 8 * d + 2 * (6 * d + 2 * f);
        }
        4 * 4 * d + setup.element_bytes * (8 * d + 3 * f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_size_to_the_parameter() {
        assert_eq!(Gpt2Config::default().size().parameters, 355_919_872);
    }

    #[test]
    fn contradictions_are_named() {
        super::super::assert_refused(
            "gpt2",
            &[("model.heads=3", "model.heads"), ("model.positions=1024", "training.context_length")],
        );
    }
}
