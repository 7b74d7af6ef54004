//! Contradictions inside a recipe, before anything is built.

use super::architecture::Checker;
use super::{ModelConfig, Recipe, Result};

/// Refuses values out of range and values that contradict each other.
pub(super) fn check(recipe: &Recipe) -> Result<()> {
    let checker = Checker::new(&recipe.name);
    check_context(&checker, recipe)?;
    check_training(&checker, recipe)
}

/// Refuses sizes out of range and options in contradiction; `name` is where the model stands. What has passed can be
/// computed with: no count of parameters, operations or bytes overflows.
///
/// # Errors
/// Naming the key, what it can be, and what it is.
pub fn check_model(name: &str, model: &ModelConfig) -> Result<()> {
    check_sizes(&Checker::new(name), model)
}

fn check_sizes(checker: &Checker<'_>, model: &ModelConfig) -> Result<()> {
    checker.range("model.vocabulary_size", model.vocabulary_size(), 2, 1 << 20)?;
    checker.range("model.embedding_dim", model.embedding_dim(), 1, 1 << 16)?;
    checker.range("model.blocks", model.blocks(), 1, 1024)?;
    model.check(checker)
}

fn check_context(checker: &Checker<'_>, recipe: &Recipe) -> Result<()> {
    let model = &recipe.model;
    check_sizes(checker, model)?;
    let (context, longest) = (recipe.training.context_length, model.longest_context().unwrap_or(u64::MAX));
    let expected = format!("at most {longest}, the positions of the model");
    checker.require(context <= longest, "training.context_length", &expected, context)
}

fn check_training(checker: &Checker<'_>, recipe: &Recipe) -> Result<()> {
    let (training, optimizer) = (&recipe.training, &recipe.optimizer);
    checker.range("training.context_length", training.context_length, 1, 1 << 24)?;
    checker.range("training.tokens_per_step", training.tokens_per_step, 1, 1 << 32)?;
    checker.range("training.steps", training.steps, 1, 1 << 31)?;
    checker.positive("checkpoint.keep_last", recipe.checkpoint.keep_last)?;
    checker.positive("logging.every_steps", recipe.logging.every_steps)?;
    checker.require(training.seed <= 1 << 53, "training.seed", "at most 2^53", training.seed)?;
    let fraction =
        |key: &str, value: f64| checker.require((0.0..1.0).contains(&value), key, "0 up to below 1", value);
    fraction("optimizer.beta1", optimizer.beta1)?;
    fraction("optimizer.beta2", optimizer.beta2)?;
    checker.not_negative("optimizer.learning_rate", optimizer.learning_rate)?;
    checker.not_negative("optimizer.epsilon", optimizer.epsilon)?;
    checker.not_negative("optimizer.weight_decay", optimizer.weight_decay)?;
    checker.not_negative("optimizer.clip_norm", optimizer.clip_norm)?;
    let accuracy = recipe.validation.stop_at_accuracy;
    checker.require((0.0..=1.0).contains(&accuracy), "validation.stop_at_accuracy", "0 to 1", accuracy)?;
    let end = recipe.schedule.final_fraction;
    checker.require((0.0..=1.0).contains(&end), "schedule.final_fraction", "0 to 1", end)?;
    let (warmup, decay) = (recipe.schedule.warmup_steps, recipe.decay_steps());
    let expected =
        format!("at most {decay}, where the cosine ends (schedule.decay_steps, or training.steps)");
    checker.require(warmup <= decay, "schedule.warmup_steps", &expected, warmup)
}

#[cfg(test)]
mod tests {
    #[test]
    fn contradictions_are_named() {
        crate::recipe::architecture::assert_refused(
            "xlstm",
            &[
                ("training.steps=100", "schedule.warmup_steps"),
                ("optimizer.beta1=1.0", "optimizer.beta1"),
                ("optimizer.learning_rate=-1", "optimizer.learning_rate"),
                ("checkpoint.keep_last=0", "checkpoint.keep_last"),
                ("validation.stop_at_accuracy=95", "validation.stop_at_accuracy"),
                ("model.blocks=0", "model.blocks"),
            ],
        );
    }
}
