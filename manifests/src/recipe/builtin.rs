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
        "table1-cpu",
        "table2-small",
        "figure6-scaling-15b",
        "figure6-small",
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

    /// Tables 3 and 7 print the sizes in millions to one decimal.
    #[test]
    fn the_other_methods_of_tables_3_and_7_have_the_printed_sizes() {
        let sizes = ["125m", "350m", "760m", "1300m", "2700m"];
        let printed = [
            ("llama", [162.2, 406.6, 834.1, 1420.4, 2779.5]),
            ("mamba", [167.8, 423.1, 870.5, 1475.3, 2897.2]),
            ("rwkv4", [169.4, 430.5, 891.0, 1515.2, 2984.8]),
            ("rwkv5", [176.5, 455.7, 947.8, 1616.0, 3194.7]),
            ("rwkv6", [173.6, 441.6, 907.7, 1537.5, 3021.9]),
            ("hgrn2", [162.2, 411.4, 834.2, 1439.4, 2795.4]),
        ];
        let mut checked = 0;
        for (method, millions) in printed {
            for (size, expected) in sizes.into_iter().zip(millions) {
                for file in ["figure6-scaling-15b", "table3-300b"] {
                    let Ok(recipe) = load(&format!("{file}/{size}-{method}"), &[]) else { continue };
                    let found = recipe.model.size().parameters as f64 / 1e6;
                    assert!(
                        (found - expected).abs() < 0.0601,
                        "{file}/{size}-{method}: {found} is not {expected}"
                    );
                    checked += 1;
                }
            }
        }
        assert_eq!(checked, 6 * 5 + 3 * 4, "figure 6 has all, table 3 four sizes of Llama, Mamba and RWKV-4");
    }

    #[test]
    fn a_misspelled_name_suggests_the_nearest() {
        let error = load("table1-15b/7to2", &[]).unwrap_err().to_string();
        assert!(error.contains("did you mean `table1-15b/7to1`?"), "{error}");
        assert!(load("dmeo", &[]).unwrap_err().to_string().contains("did you mean `demo`?"));
    }
}
