//! Mamba in a recipe, and its arithmetic.
//!
//! ```text
//! D = 2d inner channels, N = 16 states a channel, R = ⌈d/16⌉, 4 taps
//! block: norm d · in 2Dd · conv 5D · x (R + 2N) D · dt RD + D · A DN · D · out Dd         = 6.25d² + 111d
//! model: token embedding Vd · output Vd · last norm d
//! ```
//! The paper's five sizes (tables 3 and 7) are reproduced to the parameter with a vocabulary of 50304.

use serde::{Deserialize, Serialize};

use super::{ActivationSetup, Architecture, Checker, Mixing, ModelSize};
use crate::recipe::{ComputePath, Result};

/// Taps of the convolution.
pub const MAMBA_TAPS: u64 = 4;

/// A Mamba: RMS norms, one selective scan in each block, no feed-forward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MambaConfig {
    /// Rows of the embedding and of the output projection.
    pub vocabulary_size: u64,
    /// Width of the residual.
    pub embedding_dim: u64,
    /// Blocks.
    pub blocks: u64,
    /// Whether the output projection is the token embedding (weight tying); neither then decays.
    pub tied_embedding: bool,
    /// States of each inner channel.
    pub state_dim: u64,
    /// Inner channels for each of the residual's.
    pub expansion: u64,
    /// Added to the mean square in the norms.
    pub norm_epsilon: f64,
}

impl Default for MambaConfig {
    fn default() -> Self {
        Self {
            vocabulary_size: 50304,
            embedding_dim: 1024,
            blocks: 48,
            tied_embedding: false,
            state_dim: 16,
            expansion: 2,
            norm_epsilon: 1e-5,
        }
    }
}

impl MambaConfig {
    /// Inner channels.
    #[must_use]
    pub fn inner(&self) -> u64 {
        self.expansion * self.embedding_dim
    }

    /// Width of what the step size is made of.
    #[must_use]
    pub fn step_rank(&self) -> u64 {
        self.embedding_dim.div_ceil(16)
    }
}

impl Architecture for MambaConfig {
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
        checker.range("model.state_dim", self.state_dim, 1, 256)?;
        checker.range("model.expansion", self.expansion, 1, 8)?;
        checker.not_negative("model.norm_epsilon", self.norm_epsilon)
    }

    /// `Mamba, 48 blocks, 16 states, width 1024`.
    fn label(&self) -> String {
        format!("Mamba, {} blocks, {} states, width {}", self.blocks, self.state_dim, self.embedding_dim)
    }

    fn size(&self) -> ModelSize {
        let (d, v, inner, n, r) =
            (self.embedding_dim, self.vocabulary_size, self.inner(), self.state_dim, self.step_rank());
        let products = self.blocks * (3 * inner * d + (2 * r + 2 * n) * inner) + v * d;
        let others = self.blocks * (inner * (MAMBA_TAPS + 1 + 1 + n + 1) + d) + d;
        ModelSize { parameters: products + v * d + others, product_parameters: products }
    }

    fn mixing(&self) -> Mixing {
        Mixing::States(self.blocks * self.inner() * self.state_dim)
    }

    /// In float32: the residual, its norm, what goes into and out of the scan with its gates, and saved states; in the
    /// products' type: inputs and results of the products.
    fn activation_bytes(&self, _index: u64, setup: &ActivationSetup) -> u64 {
        let (d, inner) = (self.embedding_dim, self.inner());
        if setup.path == ComputePath::GpuKernels {
            // The residual in float32 and its norm; both halves, the convolution's result, step sizes, the scan's output and its
            // states, one of sixteen; B and C.
            return 6 * d + 10 * inner + 4 * inner * self.state_dim / 16 + 16 * self.state_dim;
        }
        4 * (3 * d + 10 * inner) + setup.element_bytes * (d + 6 * inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_to_the_parameter() {
        let sizes = [(768, 24), (1024, 48), (1536, 48), (2048, 48), (2560, 64)];
        let found = sizes.map(|(embedding_dim, blocks)| {
            MambaConfig { embedding_dim, blocks, ..MambaConfig::default() }.size().parameters
        });
        assert_eq!(found[1], 423_052_288);
        // Table 3 and 7, in millions.
        let millions = found.map(|parameters| (parameters as f64 / 1e4).round() / 100.0);
        assert_eq!(millions, [167.79, 423.05, 870.51, 1475.25, 2897.19]);
    }

    #[test]
    fn contradictions_are_named() {
        super::super::assert_refused(
            "mamba",
            &[("model.state_dim=0", "model.state_dim"), ("model.expansion=9", "model.expansion")],
        );
    }
}
