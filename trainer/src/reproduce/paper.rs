//! What the paper has for a recipe, read from the recipe's own words on its place in the paper.

use xlstm_manifests::recipe::Recipe;

/// Before the figure in a recipe's `paper`.
const PERPLEXITY: &str = "validation perplexity ";
/// Figure 7's perplexities at 16,384 tokens. The paper prints none of them: they are those of public notes on the figure.
pub(super) const AT_16384: [(&str, f64); 5] =
    [("xLSTM[7:1]", 8.92), ("xLSTM[1:0]", 9.01), ("RWKV-4", 13.75), ("Mamba", 14.00), ("Llama", 337.83)];

/// A row of one of the paper's tables of perplexities.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PaperRow {
    /// As the paper names it; the recipe's variant where it has no name.
    pub(super) label: String,
    /// The perplexity; infinite where the paper has NaN.
    pub(super) perplexity: f64,
}

impl PaperRow {
    /// The row that `recipe` stands for; `None` where the paper prints no perplexity.
    pub(super) fn of(recipe: &Recipe) -> Option<Self> {
        let (before, after) = recipe.paper.split_once(PERPLEXITY)?;
        let number = after.split([';', ' ']).next()?;
        let perplexity = if number == "NaN" { f64::INFINITY } else { number.parse().ok()? };
        let (_, name) = before.split_once(": ")?;
        let name = name.trim_end_matches(", ");
        // `xLSTM[7:1], 408M parameters`.
        let name = match name.rsplit_once(", ") {
            Some((name, size)) if size.ends_with(" parameters") => name,
            _ => name,
        };
        let label = if name.is_empty() { variant(&recipe.name).replace('-', " ") } else { name.into() };
        Some(Self { label, perplexity })
    }

    /// The perplexity in words.
    pub(super) fn shown(&self) -> String {
        if self.perplexity.is_finite() { format!("{:.2}", self.perplexity) } else { "NaN".into() }
    }
}

/// The part of a recipe's name after the stroke; all of one that has none.
pub(super) fn variant(name: &str) -> &str {
    name.split_once('/').map_or(name, |(_, variant)| variant)
}

#[cfg(test)]
mod tests {
    use xlstm_manifests::recipe::{self, Builtin, builtins};

    use super::*;

    fn row(name: &str) -> Option<PaperRow> {
        PaperRow::of(&recipe::load(name, &[]).unwrap())
    }

    #[test]
    fn every_row_of_the_tables_of_perplexities_is_read() {
        let expected = |label: &str, perplexity| Some(PaperRow { label: label.into(), perplexity });
        assert_eq!(row("table1-15b/7to1"), expected("xLSTM[7:1]", 13.48));
        assert_eq!(row("table1-15b/h3"), expected("H3", 18.23));
        assert_eq!(row("table2-gating/no-gates-infinity"), expected("no gates infinity", f64::INFINITY));
        assert_eq!(
            row("table8-matrix-memory/post-up-projection"),
            expected("post up-projection, squared ReLU", 13.90)
        );
        assert_eq!(row("figure6-scaling-15b/125m-7to1"), None);
        for name in builtins().iter().flat_map(Builtin::full_names) {
            let table = ["table1-15b", "table2-gating", "table2-lstm", "table8", "table3"];
            if table.iter().any(|prefix| name.starts_with(prefix)) {
                assert!(row(&name).is_some(), "{name}: its `paper` has no perplexity");
            }
        }
    }
}
