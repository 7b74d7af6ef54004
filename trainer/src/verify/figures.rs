//! Numbers that decide each other: lines of metrics.

use xlstm_manifests::order::Order;
use xlstm_manifests::recipe::Recipe;

use crate::metrics::Line;

/// Whether two numbers are the same but for rounding.
pub(super) fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-300) || (!a.is_finite() && !b.is_finite())
}

/// What in a line of metrics contradicts the line itself, the recipe, the order of rows, or the tokens of the steps so far.
pub(super) fn contradictions(line: &Line, recipe: &Recipe, order: &Order, so_far: &[u64]) -> Vec<String> {
    let mut wrong = Vec::new();
    if line.kind == "validation" && line.tokens == Some(0) {
        wrong.push(format!(
            "validation of step {}: expected a loss over at least one token, found none",
            line.step
        ));
    }
    if let Some(found) = &line.rows_by_dataset {
        let expected = order.rows_by_dataset(line.step);
        if *found != expected {
            wrong.push(format!(
                "rows by dataset of step {}: expected {expected:?}, found {found:?}",
                line.step
            ));
        }
    }
    let mut check = |what: &str, expected: f64, found: f64| {
        if !close(expected, found) {
            wrong.push(format!(
                "{} of step {}, {what}: expected {expected}, found {found}",
                line.kind, line.step
            ));
        }
    };
    if let (Some(loss), Some(perplexity)) = (line.loss, line.perplexity) {
        check("perplexity, exp of the loss,", loss.exp(), perplexity);
    }
    if line.kind == "train" {
        if let Some(rate) = line.learning_rate {
            check("learning rate of the recipe", recipe.learning_rate(line.step), rate);
        }
        let expected = usize::try_from(line.step).ok().and_then(|step| so_far.get(step));
        if let (Some(&expected), Some(tokens)) = (expected, line.tokens) {
            check("tokens so far", expected as f64, tokens as f64);
        }
    }
    wrong
}
