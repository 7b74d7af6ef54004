//! `xlstm-train recipes`: which recipes there are, and what their keys mean.

use clap::Args;
use xlstm_manifests::recipe::{self, keys};

use super::print;

/// Which recipes there are.
#[derive(Debug, Args)]
pub(super) struct RecipesArguments {
    /// Print every key of a recipe: what it means, its unit, its default, what 0 means, where counting starts
    #[arg(long)]
    keys: bool,
}

/// Prints names, or keys; returns the exit code.
pub(super) fn run(arguments: &RecipesArguments) -> anyhow::Result<u8> {
    if arguments.keys {
        print(&keys::page()?)?;
        return Ok(0);
    }
    for builtin in recipe::builtins() {
        for name in builtin.full_names() {
            let recipe = recipe::load(&name, &[])?;
            print(&format!("{name:<45} {}\n", recipe.paper))?;
        }
    }
    Ok(0)
}
