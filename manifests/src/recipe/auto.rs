//! The default recipe: the largest model that the device can train on this corpus in reasonable time.

use super::{Precision, Recipe, Result, load};

/// What a recipe is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// No GPU.
    Cpu,
    /// A GPU with this much memory that computes in bfloat16.
    Gpu {
        /// Bytes of memory.
        memory: u64,
    },
}

/// Passes over a small corpus after which further training only memorizes.
const MAX_EPOCHS: u64 = 4;

/// The recipe for a device and a corpus of `tokens` tokens in rows of `row_length`.
///
/// On a CPU: `small-cpu`. On a GPU: the largest `[7:1]` model of the paper whose parameters, gradients and moments fit into
/// a third of the memory and which sees at least 20 tokens per parameter in four passes, or else the 125M model. A run
/// makes at most four passes over the corpus.
///
/// # Errors
/// Never in practice: all built-in recipes resolve.
pub fn choose(accelerator: Accelerator, tokens: u64, row_length: u64) -> Result<Recipe> {
    let mut recipe = match accelerator {
        Accelerator::Cpu => load("small-cpu", &[])?,
        Accelerator::Gpu { memory } => {
            let mut chosen = load("figure6-scaling-15b/125m-7to1", &[])?;
            for size in ["350m", "760m", "1300m"] {
                let recipe = load(&format!("figure6-scaling-15b/{size}-7to1"), &[])?;
                let parameters = super::ModelSize::of(&recipe.model).parameters;
                if parameters * 16 * 3 <= memory && parameters * 20 <= tokens.saturating_mul(MAX_EPOCHS) {
                    chosen = recipe;
                }
            }
            chosen.training.precision = Precision::Bfloat16;
            chosen
        }
    };
    recipe.name = format!("auto ({})", recipe.name);
    fit(&mut recipe, tokens, row_length);
    super::validate::check(&recipe)?;
    Ok(recipe)
}

/// Makes context, batch and length fit the corpus.
fn fit(recipe: &mut Recipe, tokens: u64, row_length: u64) {
    let row_length = row_length.max(1);
    let training = &mut recipe.training;
    if !row_length.is_multiple_of(training.context_length) {
        training.context_length = row_length;
    }
    let rows = (training.tokens_per_step / row_length).max(1).min(tokens.div_ceil(row_length).max(1));
    training.tokens_per_step = rows * row_length;
    let most = tokens.saturating_mul(MAX_EPOCHS).div_ceil(training.tokens_per_step).max(1);
    if most < training.steps {
        training.steps = most;
        recipe.schedule.decay_steps = 0;
        recipe.schedule.warmup_steps = recipe.schedule.warmup_steps.min(most / 10);
        recipe.validation.every_steps = recipe.validation.every_steps.min(most.div_ceil(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_follows_device_and_corpus() {
        let cpu = choose(Accelerator::Cpu, 10_000_000, 2048).unwrap();
        assert_eq!(cpu.name, "auto (small-cpu)");
        let gpu = |tokens| choose(Accelerator::Gpu { memory: 80 << 30 }, tokens, 2048).unwrap();
        assert!(gpu(1_000_000_000).name.contains("125m-7to1"));
        assert!(gpu(15_000_000_000).name.contains("1300m-7to1"));
        assert_eq!(gpu(15_000_000_000).training.steps, 28_170);
    }

    #[test]
    fn a_tiny_corpus_is_not_read_for_ever() {
        let recipe = choose(Accelerator::Cpu, 5000, 2048).unwrap();
        assert!(recipe.training.steps * recipe.training.tokens_per_step <= 4 * 5000 + 3 * 2048);
        assert!(recipe.schedule.warmup_steps <= recipe.training.steps);
        assert!(choose(Accelerator::Cpu, 1, 16).is_ok());
    }
}
