//! The keys as a page for people: what `xlstm-train recipes --keys` prints, and `docs/recipes.md`.

use std::collections::BTreeMap;

use toml::Table;

use super::{Key, dotted, keys};
use crate::recipe::{ModelConfig, Recipe, RecipeError, Result, resolve};

const HEAD: &str = "\
# Keys of a recipe

Written by `xlstm-train recipes --keys`; do not edit. A recipe is a TOML file; what it leaves out has the value behind the equals sign
here. `--set KEY=VALUE` changes one value. `xlstm-train --print-config --recipe NAME` prints a whole recipe with these sentences as
comments.

The file may hold variants, `[variant.NAME]` with any of the keys, which are chosen as `FILE.toml/NAME`.
";

/// The page.
///
/// # Errors
/// Never in practice: every default recipe resolves.
pub fn page() -> Result<String> {
    let defaults = defaults()?;
    let (mut text, mut section) = (HEAD.to_owned(), "");
    for key in keys() {
        let own = key.name.rsplit_once('.').map_or("", |(section, _)| section);
        let heading = if own.starts_with("model") { "model" } else { own };
        if heading != section || text.len() == HEAD.len() {
            let shown =
                if heading.is_empty() { "The recipe itself".into() } else { format!("`[{heading}]`") };
            text.push_str(&format!("\n## {shown}\n\n"));
            section = heading;
        }
        text.push_str(&line(key, &defaults));
    }
    Ok(text)
}

/// Default values by architecture and dotted key.
type Defaults = BTreeMap<&'static str, BTreeMap<String, String>>;

fn defaults() -> Result<Defaults> {
    let mut all = Defaults::new();
    for &architecture in ModelConfig::ARCHITECTURES {
        let recipe = resolve(&Recipe::default(), &[format!("model.architecture={architecture}")])?;
        let table = Table::try_from(&recipe)
            .map_err(|error| RecipeError::Syntax { name: recipe.name.clone(), reason: error.to_string() })?;
        let values = dotted(&table).into_iter().map(|(name, value)| (name, value.to_string()));
        all.insert(architecture, values.collect());
    }
    Ok(all)
}

/// ``- `training.steps` = 28170. Length of the run. …``
fn line(key: &Key, defaults: &Defaults) -> String {
    let mut values: Vec<(String, Vec<&str>)> = Vec::new();
    for &architecture in ModelConfig::ARCHITECTURES.iter().filter(|name| key.belongs_to(name)) {
        let Some(value) = defaults.get(architecture).and_then(|keys| keys.get(key.name)) else { continue };
        match values.iter_mut().find(|(other, _)| other == value) {
            Some((_, names)) => names.push(architecture),
            None => values.push((value.clone(), vec![architecture])),
        }
    }
    // The name of an architecture is no default of a key.
    let values = match (key.name, values.as_slice()) {
        ("model.architecture", _) => "\"xlstm\"".to_owned(),
        (_, [(value, _)]) => value.clone(),
        (_, several) => {
            let shown = several.iter().map(|(value, names)| format!("{value} ({})", names.join(", ")));
            shown.collect::<Vec<_>>().join(", ")
        }
    };
    let of = if key.architectures.is_empty() {
        String::new()
    } else {
        format!(" Of {}:", key.architectures.join(", "))
    };
    format!("- `{} = {values}`{of} {}\n", key.name, key.sentence())
}
