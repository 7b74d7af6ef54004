//! How much memory training takes, by part.
//!
//! Parameters, gradients and moments are exact. Activations are an estimate: the tensors that each block keeps for the
//! backward pass, which the architecture knows for each way to compute it.

use super::architecture::ActivationSetup;
use super::{ComputePath, ModelSize, Precision, Recipe};

/// Memory of training, in bytes, by part. Activations are an estimate from the tensors that each block keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Parameters in float32.
    pub parameters: u64,
    /// Their gradients.
    pub gradients: u64,
    /// First and second moments.
    pub optimizer: u64,
    /// What the backward pass needs of one micro-batch.
    pub activations: u64,
    /// The largest piece of the output projection's logits that is alive at a time.
    pub logits: u64,
}

/// Rows of hidden states whose logits are computed at a time.
const LOGIT_CHUNK: u64 = 1024;
/// Bytes of logits at a time in the fused kernels.
const FUSED_LOGITS: u64 = 768 << 20;

impl MemoryEstimate {
    /// The memory of one rank for a micro-batch of `tokens` tokens that `path` computes.
    #[must_use]
    pub fn of(recipe: &Recipe, tokens: u64, path: ComputePath) -> Self {
        let parameters = 4 * ModelSize::of(&recipe.model).parameters;
        Self {
            parameters,
            gradients: parameters,
            optimizer: 2 * parameters,
            activations: activations(recipe, tokens, path),
            logits: logits(recipe, tokens, path),
        }
    }

    /// All parts together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.parameters + self.gradients + self.optimizer + self.activations + self.logits
    }
}

fn activations(recipe: &Recipe, tokens: u64, path: ComputePath) -> u64 {
    let (model, training) = (&recipe.model, &recipe.training);
    let element_bytes = match training.precision {
        Precision::Float32 => 4,
        Precision::Bfloat16 => 2,
    };
    let setup = ActivationSetup { path, element_bytes, context_length: training.context_length };
    let (d, fused) = (model.embedding_dim(), path == ComputePath::FusedGpu);
    let block = |index| model.activation_bytes(index, &setup);
    let kept = if training.activation_checkpointing {
        // A block's input: the residual sum in fp32, and with fused kernels what is yet to be added to it, in bf16.
        let input = if fused { 6 * d } else { 4 * d };
        input * model.blocks() + (0..model.blocks()).map(block).max().unwrap_or(0)
    } else {
        (0..model.blocks()).map(block).sum()
    };
    let (around, copies) = if fused {
        // bf16 copies of the matrices.
        (8 * d, 2 * model.size().product_parameters)
    } else {
        (16 * d, 0)
    };
    tokens * (kept + model.backward_bytes(&setup) + around) + copies
}

fn logits(recipe: &Recipe, tokens: u64, path: ComputePath) -> u64 {
    let (vocabulary, width) = (recipe.model.vocabulary_size(), recipe.model.embedding_dim());
    if path == ComputePath::FusedGpu {
        // A chunk in bf16; the output projection's copy and gradient.
        FUSED_LOGITS.min(2 * tokens * vocabulary) + 8 * vocabulary * width
    } else {
        2 * 4 * LOGIT_CHUNK.min(tokens) * vocabulary
    }
}

#[cfg(test)]
mod tests {
    use super::super::load;
    use super::*;

    #[test]
    fn fused_kernels_take_what_was_measured() {
        // docs/benchmarks/cuda-training.md: peaks in GiB on an H200.
        for (name, rows, measured) in [
            ("125m-1to0", 32, 59.2),
            ("125m-7to1", 32, 59.3),
            ("350m-1to0", 24, 115.8),
            ("350m-7to1", 16, 79.4),
            ("1300m-1to0", 11, 123.8),
        ] {
            let kept = ["training.activation_checkpointing=false".to_owned()];
            let recipe = load(&format!("figure6-scaling-15b/{name}"), &kept).unwrap();
            let estimate = MemoryEstimate::of(&recipe, rows * 2048, ComputePath::FusedGpu);
            let planned = estimate.total() as f64 / f64::from(1 << 30);
            assert!((0.98..1.15).contains(&(planned / measured)), "{name}: {planned}");
        }
    }
}
