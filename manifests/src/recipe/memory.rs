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
    /// The most that is there at once: less than the sum where gradients come while activations go.
    pub peak: u64,
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
        let (gradients, optimizer) = (parameters, 2 * parameters);
        let all = activations(recipe, tokens, path);
        let logits = logits(recipe, tokens, path);
        // Gradients are dropped before a step, and come while activations go; those of earlier micro-batches stay.
        let before = if tokens < recipe.training.tokens_per_step { gradients } else { 0 };
        let output_gradient = 4 * recipe.model.vocabulary_size() * recipe.model.embedding_dim();
        let moving = if by_gpu_kernels(path) {
            let loss = before + all.kept + logits;
            let first_block = before.max(output_gradient) + all.kept + all.backward;
            let last_block = gradients + all.one + all.backward;
            loss.max(first_block).max(last_block)
        } else {
            gradients + all.kept + all.backward + logits
        };
        let activations = all.kept + all.backward;
        Self { parameters, gradients, optimizer, activations, logits, peak: parameters + optimizer + moving }
    }

    /// The most that is there at once.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.peak
    }
}

/// Whether products are in bf16, with kernels between them and for the loss.
fn by_gpu_kernels(path: ComputePath) -> bool {
    matches!(path, ComputePath::FusedGpu | ComputePath::GpuKernels)
}

/// What one block more than the kept ones takes in the backward pass, and what all keep.
fn activations(recipe: &Recipe, tokens: u64, path: ComputePath) -> Activations {
    let (model, training) = (&recipe.model, &recipe.training);
    let element_bytes = match training.precision {
        Precision::Float32 | Precision::Tf32 => 4,
        Precision::Bfloat16 => 2,
    };
    let setup = ActivationSetup { path, element_bytes, context_length: training.context_length };
    let (d, fused) = (model.embedding_dim(), by_gpu_kernels(path));
    let block = |index| model.activation_bytes(index, &setup);
    let one = (0..model.blocks()).map(block).max().unwrap_or(0);
    let kept = if training.activation_checkpointing {
        // A block's input: the residual sum in fp32, and with fused kernels what is yet to be added to it, in bf16.
        let input = if path == ComputePath::FusedGpu { 6 * d } else { 4 * d };
        input * model.blocks() + one
    } else {
        // A mask in float32 for each of the two branches that most blocks have; the GPU's kernel keeps none.
        let masks = if training.dropout > 0.0 && !fused { 8 * d * model.blocks() } else { 0 };
        (0..model.blocks()).map(block).sum::<u64>() + masks
    };
    let output = 2 * model.vocabulary_size() * d;
    let products = 2 * model.size().product_parameters;
    let (around, copies) = match (fused, training.activation_checkpointing) {
        (false, _) => (16 * d, 0),
        // bf16 copies of the matrices: of all blocks, or of the one at hand.
        (true, false) => (8 * d, products),
        (true, true) => (8 * d, output + products.saturating_sub(output) / model.blocks().max(1)),
    };
    Activations {
        kept: tokens * (kept + around) + copies,
        one: tokens * one,
        backward: tokens * model.backward_bytes(&setup),
    }
}

/// Bytes of a micro-batch.
struct Activations {
    /// What the forward pass leaves.
    kept: u64,
    /// One block of it.
    one: u64,
    /// Gradients of activations alive at once.
    backward: u64,
}

fn logits(recipe: &Recipe, tokens: u64, path: ComputePath) -> u64 {
    let (vocabulary, width) = (recipe.model.vocabulary_size(), recipe.model.embedding_dim());
    if by_gpu_kernels(path) {
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
    fn the_other_methods_take_what_was_measured() {
        // docs/benchmarks/gpu/methods.md: peaks in GiB on an H100 at Table 1's size.
        for (name, rows, measured) in [
            ("gpt3", 32, 60.70),
            ("llama", 32, 61.47),
            ("hgrn", 16, 47.69),
            ("hgrn2", 16, 48.55),
            ("gla", 22, 51.46),
            ("retnet", 22, 50.43),
            ("retnet-block", 22, 49.57),
            ("rwkv4", 6, 24.58),
            ("rwkv5", 6, 24.54),
            ("rwkv6", 13, 57.53),
            ("mamba", 16, 58.57),
            ("h3", 11, 54.44),
        ] {
            let kept = [
                "training.activation_checkpointing=false".to_owned(),
                format!("training.tokens_per_step={}", rows * 2048),
            ];
            let recipe = load(&format!("table1-15b/{name}"), &kept).unwrap();
            let estimate = MemoryEstimate::of(&recipe, rows * 2048, ComputePath::GpuKernels);
            let ratio = estimate.total() as f64 / (1u64 << 30) as f64 / measured;
            assert!((0.95..1.05).contains(&ratio), "{name}: {ratio:.3} of what was measured");
        }
    }

    #[test]
    fn fused_kernels_take_what_was_measured() {
        // docs/benchmarks/gpu/training.md: peaks in GiB on an H200.
        for (name, rows, measured) in [
            ("125m-1to0", 32, 59.2),
            ("125m-7to1", 32, 59.3),
            ("350m-1to0", 24, 115.8),
            ("350m-7to1", 16, 79.4),
            ("1300m-1to0", 11, 123.8),
            // On an H100; the last as its recipe is, with checkpointing.
            ("125m-1to0", 22, 41.44),
            ("350m-1to0", 11, 56.42),
            ("2700m-1to0", 4, 43.19),
        ] {
            let checkpointing = name == "2700m-1to0";
            let kept = [
                format!("training.activation_checkpointing={checkpointing}"),
                format!("training.tokens_per_step={}", rows * 2048),
            ];
            let recipe = load(&format!("figure6-scaling-15b/{name}"), &kept).unwrap();
            let estimate = MemoryEstimate::of(&recipe, rows * 2048, ComputePath::FusedGpu);
            let planned = estimate.total() as f64 / f64::from(1 << 30);
            assert!((0.98..1.05).contains(&(planned / measured)), "{name}: {planned}");
        }
    }
}
