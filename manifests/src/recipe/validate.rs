//! Contradictions inside a recipe, before anything is built.

use super::{BlockKind, Recipe, RecipeError, Result};

/// Refuses values out of range and values that contradict each other.
pub(super) fn check(recipe: &Recipe) -> Result<()> {
    check_model(recipe)?;
    check_training(recipe)
}

struct Checker<'a>(&'a Recipe);

impl Checker<'_> {
    fn require(&self, holds: bool, key: &str, expected: &str, found: impl std::fmt::Display) -> Result<()> {
        if holds {
            return Ok(());
        }
        Err(RecipeError::Value {
            name: self.0.name.clone(),
            key: key.into(),
            expected: expected.into(),
            found: found.to_string(),
        })
    }
}

fn check_model(recipe: &Recipe) -> Result<()> {
    let (checker, model) = (Checker(recipe), &recipe.model);
    let range = |key: &str, value: u64, low: u64, high: u64| {
        checker.require((low..=high).contains(&value), key, &format!("{low} to {high}"), value)
    };
    range("model.vocabulary_size", model.vocabulary_size, 2, 1 << 20)?;
    range("model.embedding_dim", model.embedding_dim, 1, 1 << 16)?;
    range("model.blocks", model.blocks, 1, 1024)?;
    range("model.mlstm.heads", model.mlstm.heads, 1, 1024)?;
    range("model.slstm.heads", model.slstm.heads, 1, 1024)?;
    range("model.mlstm.convolution", model.mlstm.convolution, 0, 64)?;
    range("model.slstm.convolution", model.slstm.convolution, 0, 64)?;
    range("model.mlstm.qkv_block_size", model.mlstm.qkv_block_size, 1, 1 << 16)?;
    for &index in &model.slstm_at {
        let expected = format!("block numbers below model.blocks = {}", model.blocks);
        checker.require(index < model.blocks, "model.slstm_at", &expected, index)?;
        let twice = model.slstm_at.iter().filter(|&&other| other == index).count() > 1;
        checker.require(!twice, "model.slstm_at", "each block once", index)?;
    }
    let factor = |key: &str, value: f64| {
        checker.require(value > 0.0 && value <= 64.0, key, "above 0, at most 64", value)
    };
    factor("model.mlstm.projection_factor", model.mlstm.projection_factor)?;
    factor("model.mlstm.feed_forward_factor", model.mlstm.feed_forward_factor)?;
    factor("model.slstm.feed_forward_factor", model.slstm.feed_forward_factor)?;
    let clip = model.slstm.recurrent_gradient_clip;
    checker.require(
        clip >= 0.0 && clip.is_finite(),
        "model.slstm.recurrent_gradient_clip",
        "0 or more",
        clip,
    )?;
    check_divisions(recipe)?;
    let bias = model.mlstm.forget_gate_bias;
    let known = bias.iter().all(|value| value.is_finite()) || bias == [f64::INFINITY; 2];
    checker.require(
        known,
        "model.mlstm.forget_gate_bias",
        "two finite numbers, or `[inf, inf]`",
        format!("{bias:?}"),
    )?;
    let learns_infinity = bias[0].is_infinite() && model.mlstm.forget_gate_bias_learnable;
    let key = "model.mlstm.forget_gate_bias_learnable";
    checker.require(!learns_infinity, key, "false, with an infinite bias", true)
}

fn check_divisions(recipe: &Recipe) -> Result<()> {
    let (checker, model) = (Checker(recipe), &recipe.model);
    if model.slstm_at.len() as u64 != model.blocks {
        let (inner, heads, block) = (model.inner_dim(), model.mlstm.heads, model.mlstm.qkv_block_size);
        checker.require(
            inner.is_multiple_of(heads),
            "model.mlstm.heads",
            &format!("a divisor of the inner width {inner}"),
            heads,
        )?;
        let blockwise = model.mlstm.block == BlockKind::PreUpProjection;
        checker.require(
            !blockwise || inner.is_multiple_of(block),
            "model.mlstm.qkv_block_size",
            &format!("a divisor of the inner width {inner}"),
            block,
        )?;
    }
    let (width, heads) = (model.embedding_dim, model.slstm.heads);
    checker.require(
        model.slstm_at.is_empty() || width.is_multiple_of(heads),
        "model.slstm.heads",
        &format!("a divisor of model.embedding_dim = {width}"),
        heads,
    )
}

fn check_training(recipe: &Recipe) -> Result<()> {
    let (checker, training, optimizer) = (Checker(recipe), &recipe.training, &recipe.optimizer);
    let positive = |key: &str, value: u64| checker.require(value > 0, key, "1 or more", value);
    positive("training.context_length", training.context_length)?;
    positive("training.tokens_per_step", training.tokens_per_step)?;
    positive("training.steps", training.steps)?;
    positive("checkpoint.keep_last", recipe.checkpoint.keep_last)?;
    positive("logging.every_steps", recipe.logging.every_steps)?;
    checker.require(training.seed <= 1 << 53, "training.seed", "at most 2^53", training.seed)?;
    let fraction =
        |key: &str, value: f64| checker.require((0.0..1.0).contains(&value), key, "0 up to below 1", value);
    fraction("optimizer.beta1", optimizer.beta1)?;
    fraction("optimizer.beta2", optimizer.beta2)?;
    let not_negative =
        |key: &str, value: f64| checker.require(value >= 0.0 && value.is_finite(), key, "0 or more", value);
    not_negative("optimizer.learning_rate", optimizer.learning_rate)?;
    not_negative("optimizer.epsilon", optimizer.epsilon)?;
    not_negative("optimizer.weight_decay", optimizer.weight_decay)?;
    not_negative("optimizer.clip_norm", optimizer.clip_norm)?;
    let end = recipe.schedule.final_fraction;
    checker.require((0.0..=1.0).contains(&end), "schedule.final_fraction", "0 to 1", end)?;
    let (warmup, decay) = (recipe.schedule.warmup_steps, recipe.decay_steps());
    let expected =
        format!("at most {decay}, where the cosine ends (schedule.decay_steps, or training.steps)");
    checker.require(warmup <= decay, "schedule.warmup_steps", &expected, warmup)
}

#[cfg(test)]
mod tests {
    use super::super::resolve;
    use super::*;

    #[test]
    fn contradictions_are_named() {
        for (overrides, key) in [
            (vec!["model.slstm_at=[48]"], "model.slstm_at"),
            (vec!["model.slstm_at=[1, 1]"], "model.slstm_at"),
            (vec!["model.mlstm.heads=3"], "model.mlstm.heads"),
            (vec!["model.slstm.heads=3"], "model.slstm.heads"),
            (vec!["training.steps=100"], "schedule.warmup_steps"),
            (vec!["optimizer.beta1=1.0"], "optimizer.beta1"),
            (vec!["optimizer.learning_rate=-1"], "optimizer.learning_rate"),
            (vec!["model.mlstm.forget_gate_bias=[inf, inf]"], "model.mlstm.forget_gate_bias_learnable"),
            (vec!["checkpoint.keep_last=0"], "checkpoint.keep_last"),
        ] {
            let overrides: Vec<String> = overrides.into_iter().map(str::to_owned).collect();
            let error = resolve(&Recipe::default(), &overrides).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` expected")), "{overrides:?}: {error}");
        }
    }
}
