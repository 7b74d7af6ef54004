//! RetNet as a Transformer's block with retention in place of attention, and its arithmetic.
//!
//! ```text
//! block: two norms 4d · q, k, v, gate, output 5d² + 5d · norm of heads d · feed-forward 2dF + F + d        F = 4d unless stated
//! model: token embedding Vd · output Vd · last norm 2d
//! ```
//! With the defaults 430,548,992 parameters: the paper's "431M" (Table 1), which flash-linear-attention's form
//! ([`RetnetConfig`](super::RetnetConfig)) does not have.

use serde::{Deserialize, Serialize};

use super::{ActivationSetup, Architecture, Checker, Mixing, ModelSize, stated_or};
use crate::recipe::{ComputePath, Result};

/// A RetNet of GPT-like blocks: layer norms and linear maps with biases, rotary positions, GELU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetnetBlockConfig {
    /// Rows of the embedding and of the output projection.
    pub vocabulary_size: u64,
    /// Width of the residual.
    pub embedding_dim: u64,
    /// Blocks, each retention and feed-forward.
    pub blocks: u64,
    /// Whether the output projection is the token embedding (weight tying); neither then decays.
    pub tied_embedding: bool,
    /// Heads of retention.
    pub heads: u64,
    /// Width of the feed-forward; 0: four times the residual's.
    pub feed_forward_dim: u64,
}

impl Default for RetnetBlockConfig {
    fn default() -> Self {
        Self {
            vocabulary_size: 50304,
            embedding_dim: 1024,
            blocks: 24,
            tied_embedding: false,
            heads: 8,
            feed_forward_dim: 0,
        }
    }
}

impl RetnetBlockConfig {
    /// Width of the feed-forward, derived where it is not stated.
    #[must_use]
    pub fn feed_forward(&self) -> u64 {
        stated_or(self.feed_forward_dim, 4 * self.embedding_dim)
    }
}

impl Architecture for RetnetBlockConfig {
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
        let (d, heads) = (self.embedding_dim, self.heads);
        checker.heads("model.heads", heads, d)?;
        let expected = format!("heads of an even width (model.embedding_dim = {d})");
        checker.require((d / heads).is_multiple_of(2), "model.heads", &expected, heads)?;
        checker.range("model.feed_forward_dim", self.feed_forward_dim, 0, 1 << 20)
    }

    /// `RetNet (GPT-like blocks), 24 blocks, 8 heads, width 1024`.
    fn label(&self) -> String {
        let (blocks, heads, d) = (self.blocks, self.heads, self.embedding_dim);
        format!("RetNet (GPT-like blocks), {blocks} blocks, {heads} heads, width {d}")
    }

    fn size(&self) -> ModelSize {
        let (d, v, f) = (self.embedding_dim, self.vocabulary_size, self.feed_forward());
        let products = v * d + self.blocks * (5 * d * d + 2 * d * f);
        let vectors = self.blocks * (4 * d + 5 * d + d + f + d) + 2 * d;
        ModelSize { parameters: products + v * d + vectors, product_parameters: products }
    }

    fn mixing(&self) -> Mixing {
        Mixing::States(self.blocks * self.embedding_dim * (self.embedding_dim / self.heads.max(1)))
    }

    /// In float32: residual sums, norms, queries and keys as they were turned, retention's result before and after its
    /// norm; in the products' type: inputs and results of the products.
    fn activation_bytes(&self, _index: u64, setup: &ActivationSetup) -> u64 {
        let (d, f) = (self.embedding_dim, self.feed_forward());
        if setup.path == ComputePath::GpuKernels {
            // As Llama, with the gate, and retention's result on both sides of its norm.
            return 8 * d + 2 * (9 * d + 2 * f);
        }
        4 * 12 * d + setup.element_bytes * (9 * d + 3 * f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_that_prints_as_the_papers_to_the_parameter() {
        assert_eq!(RetnetBlockConfig::default().size().parameters, 430_548_992);
    }

    #[test]
    fn contradictions_are_named() {
        super::super::assert_refused(
            "retnet-block",
            &[("model.heads=3", "model.heads"), ("model.heads=1024", "model.heads")],
        );
    }
}
