//! The recipes that come with the program: `manifests/recipes/*.toml`, one for each experiment of the paper.

/// A recipe file inside the program.
#[derive(Debug, Clone, Copy)]
pub struct Builtin {
    /// The name for `--recipe`.
    pub name: &'static str,
    /// The file's text.
    pub text: &'static str,
}

macro_rules! include_recipes {
    ($($name:literal),* $(,)?) => {
        &[$(Builtin { name: $name, text: include_str!(concat!("../../recipes/", $name, ".toml")) }),*]
    };
}

/// All built-in recipes.
#[must_use]
pub fn builtins() -> &'static [Builtin] {
    include_recipes!(
        "demo",
        "small-cpu",
        "figure2-nearest",
        "figure2-nearest-small",
        "figure2-rare",
        "table1-15b",
        "table1-small",
        "table2-small",
        "figure6-scaling-15b",
        "table2-lstm-to-xlstm",
        "table2-gating",
        "table8-matrix-memory",
        "table3-300b",
        "tasks-formal",
        "tasks-listops",
        "tasks-mqar",
        "tasks-small",
    )
}

impl Builtin {
    /// `name` where the file is a recipe by itself, and `name/variant` for each variant.
    #[must_use]
    pub fn full_names(&self) -> Vec<String> {
        let table: toml::Table = self.text.parse().unwrap_or_default();
        let variants = table.get("variant").and_then(toml::Value::as_table);
        match variants {
            Some(variants) => variants.keys().map(|variant| format!("{}/{variant}", self.name)).collect(),
            None => vec![self.name.to_owned()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::load;
    use super::*;

    #[test]
    fn every_recipe_and_variant_resolves_and_says_what_it_is() {
        for name in builtins().iter().flat_map(Builtin::full_names) {
            let recipe = load(&name, &[]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(recipe.name, name);
            assert!(!recipe.description.is_empty() && !recipe.paper.is_empty(), "{name}");
            // Rows of numbers are as long as a context; text is packed into rows of 2048.
            let numbers = recipe.model.input_width() > 0;
            recipe.rows_per_step(if numbers { recipe.training.context_length } else { 2048 }).unwrap();
        }
    }

    #[test]
    fn a_misspelled_name_suggests_the_nearest() {
        let error = load("table1-15b/7to2", &[]).unwrap_err().to_string();
        assert!(error.contains("did you mean `table1-15b/7to1`?"), "{error}");
        assert!(load("dmeo", &[]).unwrap_err().to_string().contains("did you mean `demo`?"));
    }
}
