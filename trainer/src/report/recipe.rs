//! Recipes side by side: which keys differ from the defaults, and which between runs.

use std::collections::{BTreeMap, BTreeSet};

use xlstm_manifests::recipe::Recipe;
use xlstm_pipeline::report::{Cell, Page, Table};

use super::RunView;
use crate::error::{Result, TrainError};

/// Keys that say what a recipe is, not what it does.
const NAMES: [&str; 3] = ["name", "description", "paper"];

/// A key, its default, and its value in each run; empty where a recipe's architecture does not have the key.
type Row<'a> = (&'a String, String, Vec<String>);

/// Every key of a recipe by its dotted name.
fn keys(recipe: &Recipe) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let table: toml::Table = recipe.to_toml()?.parse().map_err(TrainError::internal)?;
    flatten(&table, "", &mut found);
    Ok(found)
}

fn flatten(table: &toml::Table, prefix: &str, found: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let dotted = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(inner, &dotted, found),
            toml::Value::String(text) => {
                found.insert(dotted, text.clone());
            }
            other => {
                found.insert(dotted, other.to_string());
            }
        }
    }
}

/// The section on recipes.
pub(super) fn write(page: &mut Page, runs: &[RunView]) -> Result<()> {
    page.section("recipe", "Recipe");
    let same = runs.iter().all(|run| run.recipe.description == runs[0].recipe.description);
    for run in &runs[..if same { runs.len().min(1) } else { runs.len() }] {
        let recipe = &run.recipe;
        let name = if same { recipe.name.clone() } else { format!("{}: {}", run.name, recipe.name) };
        page.paragraph(&format!("{name}. {}. Place in the paper: {}.", recipe.description, recipe.paper));
    }
    let defaults = keys(&Recipe::default())?;
    let recipes = runs.iter().map(|run| keys(&run.recipe)).collect::<Result<Vec<_>>>()?;
    let value = |keys: &BTreeMap<String, String>, key: &str| keys.get(key).cloned().unwrap_or_default();
    // Each architecture has keys of its own.
    let all: BTreeSet<&String> = defaults.keys().chain(recipes.iter().flat_map(BTreeMap::keys)).collect();
    let rows: Vec<Row<'_>> = all
        .into_iter()
        .filter(|key| !NAMES.contains(&key.as_str()))
        .map(|key| (key, value(&defaults, key), recipes.iter().map(|keys| value(keys, key)).collect()))
        .collect();
    let differs = |row: &&Row<'_>| row.2.iter().any(|value| *value != row.1);
    table(
        page,
        "What differs from the defaults, which are the paper's 350M set-up on 15B tokens",
        runs,
        rows.iter().filter(differs),
    );
    page.details("The whole recipe", |page| table(page, "Every key of the recipe", runs, rows.iter()));
    Ok(())
}

fn table<'a>(page: &mut Page, caption: &str, runs: &[RunView], rows: impl Iterator<Item = &'a Row<'a>>) {
    let several = runs.len() > 1;
    let mut columns = vec!["Key", "Default"];
    columns.extend(runs.iter().map(|run| run.name.as_str()));
    columns.extend(several.then_some("Between runs"));
    let mut table = Table::new(caption, &columns);
    table = if several { table.sortable() } else { table };
    for (key, default, values) in rows {
        let mut cells = vec![Cell::code(key), Cell::text(default)];
        cells.extend(values.iter().map(|value| Cell::text(value)));
        if several {
            let same = values.iter().all(|value| *value == values[0]);
            cells.push(if same { Cell::text("same") } else { Cell::text("differ").warn() });
        }
        table.cells(cells);
    }
    if table.is_empty() {
        page.paragraph("Nothing differs from the defaults.");
    } else {
        page.table(&table);
    }
}
