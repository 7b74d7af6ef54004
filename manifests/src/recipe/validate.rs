//! Contradictions inside a recipe, before anything is built.

use super::architecture::Checker;
use super::{ModelConfig, Recipe, Result, SHARED_SEED, ScheduleShape};
use crate::vectors::MAX_WIDTH;

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
    checker.range("model.input_width", model.input_width(), 0, u64::from(MAX_WIDTH))?;
    let vocabulary = model.vocabulary_size();
    if model.input_width() == 0 {
        checker.range("model.vocabulary_size", vocabulary, 2, 1 << 20)?;
    } else {
        let expected = "1, the number that a position predicts, beside model.input_width above 0";
        checker.require(vocabulary == 1, "model.vocabulary_size", expected, vocabulary)?;
    }
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
    checker.range("training.steps", training.steps, 0, 1 << 31)?;
    checker.positive("checkpoint.keep_last", recipe.checkpoint.keep_last)?;
    checker.positive("logging.every_steps", recipe.logging.every_steps)?;
    checker.require(training.seed <= 1 << 53, "training.seed", "at most 2^53", training.seed)?;
    for (key, seed) in [
        ("training.initialization_seed", training.initialization_seed),
        ("training.order_seed", training.order_seed),
        ("training.dropout_seed", training.dropout_seed),
    ] {
        let holds = (SHARED_SEED..=1 << 53).contains(&seed);
        checker.require(holds, key, "-1 for training.seed, or 0 to 2^53", seed)?;
    }
    let fraction =
        |key: &str, value: f64| checker.require((0.0..1.0).contains(&value), key, "0 up to below 1", value);
    fraction("optimizer.beta1", optimizer.beta1)?;
    fraction("optimizer.beta2", optimizer.beta2)?;
    checker.not_negative("optimizer.learning_rate", optimizer.learning_rate)?;
    checker.not_negative("optimizer.epsilon", optimizer.epsilon)?;
    checker.not_negative("optimizer.weight_decay", optimizer.weight_decay)?;
    checker.not_negative("optimizer.clip_norm", optimizer.clip_norm)?;
    check_dropout(checker, recipe)?;
    let accuracy = recipe.validation.stop_at_accuracy;
    checker.require((0.0..=1.0).contains(&accuracy), "validation.stop_at_accuracy", "0 to 1", accuracy)?;
    let counts_right = accuracy == 0.0 || recipe.model.input_width() == 0;
    let expected = "0 with model.input_width above 0: numbers are not right or wrong";
    checker.require(counts_right, "validation.stop_at_accuracy", expected, accuracy)?;
    let end = recipe.schedule.final_fraction;
    checker.require((0.0..=1.0).contains(&end), "schedule.final_fraction", "0 to 1", end)?;
    fraction("training.embedding_dropout", training.embedding_dropout)?;
    checker.not_negative("training.z_loss", training.z_loss)?;
    checker.not_negative("checkpoint.every_minutes", recipe.checkpoint.every_minutes)?;
    check_schedule(checker, recipe)
}

fn check_schedule(checker: &Checker<'_>, recipe: &Recipe) -> Result<()> {
    let schedule = &recipe.schedule;
    let (warmup, decay, until) = (schedule.warmup_steps, recipe.decay_steps(), schedule.stable_until);
    if recipe.training.steps == 0 {
        // Nothing is trained, so no rate is asked for.
        return Ok(());
    }
    let what = if schedule.shape == ScheduleShape::Cosine { "cosine" } else { "decay" };
    let expected =
        format!("at most {decay}, where the {what} ends (schedule.decay_steps, or training.steps)");
    checker.require(warmup <= decay, "schedule.warmup_steps", &expected, warmup)?;
    if schedule.shape == ScheduleShape::WarmupStableDecay {
        let expected = format!("0, or {warmup} (the end of the warm-up) to {decay} (the end of the decay)");
        let holds = until == 0 || (warmup..=decay).contains(&until);
        return checker.require(holds, "schedule.stable_until", &expected, until);
    }
    let expected = "0: only schedule.shape = \"warmup-stable-decay\" has a stable part";
    checker.require(until == 0, "schedule.stable_until", expected, until)
}

/// Dropout, and what models of numbers do not have.
fn check_dropout(checker: &Checker<'_>, recipe: &Recipe) -> Result<()> {
    let (dropout, z_loss) = (recipe.training.dropout, recipe.training.z_loss);
    checker.require((0.0..1.0).contains(&dropout), "training.dropout", "0 up to below 1", dropout)?;
    let tokens = recipe.model.input_width() == 0;
    let tied = recipe.model.tied_embedding();
    let expected = "false with model.input_width, whose inputs have no embedding";
    checker.require(tokens || !tied, "model.tied_embedding", expected, tied)?;
    let expected = "0 with model.input_width, whose loss is no cross-entropy";
    checker.require(tokens || z_loss == 0.0, "training.z_loss", expected, z_loss)
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
                ("model.input_width=5000", "model.input_width"),
                ("model.input_width=3", "model.vocabulary_size"),
                ("model.vocabulary_size=1", "model.vocabulary_size"),
                ("training.dropout=1.0", "training.dropout"),
                ("training.embedding_dropout=-0.1", "training.embedding_dropout"),
                ("training.z_loss=-1", "training.z_loss"),
                ("training.order_seed=-2", "training.order_seed"),
                ("checkpoint.every_minutes=-1", "checkpoint.every_minutes"),
                ("schedule.stable_until=5", "schedule.stable_until"),
            ],
        );
    }
}
