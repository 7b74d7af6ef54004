//! Every key of a recipe, in one table: what it means, its unit, what 0 means, and where counting starts.
//!
//! ```text
//! table ─► parser: which keys there are, and what was meant by one that there is not
//!       ├► recipes --keys, docs/recipes.md
//!       └► --print-config: a comment above each key
//! ```
//! Defaults are not in the table: they are what [`Recipe::default`] and [`ModelConfig::default_of`](super::ModelConfig::default_of) say. A test compares
//! the table with the keys that the recipe's structures read, for every architecture.

mod model;
mod page;
mod run;

pub use page::page;

use toml::{Table, Value};

use super::{Recipe, Result};

/// One key of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The dotted name, as `--set` takes it.
    pub name: &'static str,
    /// The architectures whose `[model]` has it; empty: all.
    pub architectures: &'static [&'static str],
    /// What it decides.
    pub meaning: &'static str,
    /// What its value counts; empty where it has no unit.
    pub unit: &'static str,
    /// What 0 means, where it is not the number itself.
    pub zero: &'static str,
    /// Where counting starts, for keys that name a step, a block or a row.
    pub counted_from: &'static str,
    /// The words that it can be, for keys that are one of several words.
    pub words: &'static [&'static str],
}

impl Key {
    const fn new(name: &'static str, meaning: &'static str) -> Self {
        Self { name, architectures: &[], meaning, unit: "", zero: "", counted_from: "", words: &[] }
    }

    const fn unit(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }

    const fn zero(self, zero: &'static str) -> Self {
        Self { zero, ..self }
    }

    const fn counted_from(self, counted_from: &'static str) -> Self {
        Self { counted_from, ..self }
    }

    const fn words(self, words: &'static [&'static str]) -> Self {
        Self { words, ..self }
    }

    const fn only(self, architectures: &'static [&'static str]) -> Self {
        Self { architectures, ..self }
    }

    /// Whether the recipes of an architecture have this key.
    #[must_use]
    pub fn belongs_to(&self, architecture: &str) -> bool {
        self.architectures.is_empty() || self.architectures.contains(&architecture)
    }

    /// The key in a sentence: `Optimizer steps of the run. Unit: steps.`
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut text = self.meaning.to_owned();
        if !self.words.is_empty() {
            text.push_str(&format!(" One of {}.", self.words.join(", ")));
        }
        for (label, value) in [("Unit", self.unit), ("0", self.zero), ("Counted from", self.counted_from)] {
            if !value.is_empty() {
                text.push_str(&format!(" {label}: {value}."));
            }
        }
        text
    }
}

/// All keys, section by section.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    run::NAMES.iter().chain(model::KEYS).chain(run::KEYS)
}

/// The dotted keys that a recipe of this architecture can have.
pub(super) fn known(architecture: &str) -> Vec<&'static str> {
    keys().filter(|key| key.belongs_to(architecture)).map(|key| key.name).collect()
}

/// The key of this name for this architecture.
#[must_use]
pub fn find(architecture: &str, name: &str) -> Option<&'static Key> {
    keys().find(|key| key.name == name && key.belongs_to(architecture))
}

/// All values of a table by their dotted keys.
pub(super) fn dotted(table: &Table) -> Vec<(String, &Value)> {
    fn collect<'a>(table: &'a Table, prefix: &str, into: &mut Vec<(String, &'a Value)>) {
        for (key, value) in table {
            let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(inner) => collect(inner, &name, into),
                _ => into.push((name, value)),
            }
        }
    }
    let mut all = Vec::new();
    collect(table, "", &mut all);
    all
}

impl Recipe {
    /// The recipe as TOML, every key spelled out under a comment that says what it means.
    ///
    /// # Errors
    /// Never in practice: every recipe has a TOML form.
    pub fn to_commented_toml(&self) -> Result<String> {
        let (text, architecture) = (self.to_toml()?, self.model.architecture_name());
        let (mut section, mut commented) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = format!("{name}.");
            } else if let Some((key, _)) = line.split_once(" = ")
                && let Some(key) = find(architecture, &format!("{section}{key}"))
            {
                commented.push_str(&format!("# {}\n", key.sentence()));
            }
            commented.push_str(line);
            commented.push('\n');
        }
        Ok(commented)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{ModelConfig, load, resolve};
    use super::*;

    fn default_of(architecture: &str) -> Recipe {
        resolve(&Recipe::default(), &[format!("model.architecture={architecture}")]).unwrap()
    }

    #[test]
    fn the_table_and_the_structures_have_the_same_keys() {
        for &architecture in ModelConfig::ARCHITECTURES {
            let table = Table::try_from(default_of(architecture)).unwrap();
            let read: BTreeSet<String> = dotted(&table).into_iter().map(|(name, _)| name).collect();
            let listed: BTreeSet<String> = known(architecture).into_iter().map(str::to_owned).collect();
            assert_eq!(read, listed, "{architecture}");
            assert_eq!(listed.len(), known(architecture).len(), "{architecture}: no key twice");
        }
    }

    #[test]
    fn every_key_belongs_to_an_architecture_and_says_what_it_means() {
        for key in keys() {
            for architecture in key.architectures {
                assert!(ModelConfig::ARCHITECTURES.contains(architecture), "{}: {architecture}", key.name);
            }
            assert!(key.meaning.ends_with('.') && key.meaning.len() > 8, "{}", key.name);
            assert!(!key.sentence().contains(".."), "{}", key.sentence());
        }
    }

    #[test]
    fn every_word_of_a_key_is_taken_and_no_other() {
        for key in keys().filter(|key| !key.words.is_empty()) {
            let architecture = key.architectures.first().unwrap_or(&"xlstm");
            let set = |word: &str| {
                resolve(&default_of(architecture), &[format!("{}={word}", key.name)])
                    .map_err(|e| e.to_string())
            };
            for word in key.words {
                // A word may ask for another value beside it; it must not be an unknown one.
                let refused = set(word).err().unwrap_or_default();
                assert!(!refused.contains("unknown variant"), "{refused}");
            }
            assert!(set("zzz").is_err(), "{}", key.name);
        }
    }

    #[test]
    fn a_commented_recipe_is_the_same_recipe() {
        for name in ["demo", "table1-15b/llama", "figure2-rare/lstm-block"] {
            let recipe = load(name, &[]).unwrap();
            let text = recipe.to_commented_toml().unwrap();
            assert_eq!(toml::from_str::<Recipe>(&text).unwrap(), recipe);
            let keys = text.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).count();
            let comments = text.lines().filter(|line| line.starts_with("# ")).count();
            assert_eq!(comments, keys, "{name}: every key has its comment");
        }
    }

    #[test]
    fn the_page_is_the_one_in_docs() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/recipes.md");
        let found = fs_err::read_to_string(&path).unwrap_or_default();
        assert!(
            found == page().unwrap(),
            "docs/recipes.md differs: write it anew with `xlstm-train recipes --keys > docs/recipes.md`"
        );
    }
}
