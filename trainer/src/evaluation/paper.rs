//! Figures that the paper printed, to stand beside ours: `assets/paper` has them as data, with their source.

use std::collections::BTreeMap;

/// Table 10 (arXiv 2405.04517v2): 571 domains of PALOMA, validation split, 1.3B models on 300B tokens.
const DOMAINS: &str = include_str!("../../assets/paper/paloma_domains.csv");

/// Models of Table 10, in the order of [`DomainRow::perplexities`].
pub const DOMAIN_MODELS: [&str; 5] =
    ["RWKV-4 1.3B", "Llama 1.3B", "Mamba 1.3B", "xLSTM[7:1] 1.3B", "xLSTM[1:0] 1.3B"];

/// A row of Table 10.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DomainRow {
    /// PALOMA's folder: `c4_en`.
    pub source: &'static str,
    /// The domain as the paper prints it.
    pub domain: &'static str,
    /// Perplexity of each of [`DOMAIN_MODELS`].
    pub perplexities: [f64; 5],
}

/// Table 10 by source and domain, whatever case, signs and leading number a domain's name is written with.
#[derive(Debug)]
pub struct DomainTable(BTreeMap<(&'static str, String), DomainRow>);

impl DomainTable {
    /// All rows.
    #[must_use]
    pub fn new() -> Self {
        let rows = domain_rows().into_iter();
        Self(rows.map(|row| ((row.source, plain_domain(row.domain)), row)).collect())
    }

    /// The row of a source's domain.
    #[must_use]
    pub fn find(&self, source: &str, domain: &str) -> Option<&DomainRow> {
        let (source, _) = SOURCES.iter().find(|(folder, _)| *folder == source)?;
        self.0.get(&(*source, plain_domain(domain)))
    }
}

impl Default for DomainTable {
    fn default() -> Self {
        Self::new()
    }
}

/// A domain's name without case, signs and a leading number: `00_AskReddit` is `askreddit`.
fn plain_domain(name: &str) -> String {
    let name = match name.split_once('_') {
        Some((number, rest)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => name,
    };
    // C++ and C# are not C.
    name.chars().filter(|c| c.is_alphanumeric() || "+#".contains(*c)).flat_map(char::to_lowercase).collect()
}

/// All rows of Table 10, as printed and in its order.
#[must_use]
pub fn domain_rows() -> Vec<DomainRow> {
    DOMAINS.lines().skip(1).filter_map(parse).collect()
}

fn parse(line: &'static str) -> Option<DomainRow> {
    let mut fields = line.split(',');
    let (source, domain) = (fields.next()?, fields.next()?);
    let mut perplexities = [0.0; 5];
    for perplexity in &mut perplexities {
        *perplexity = fields.next()?.parse().ok()?;
    }
    fields.next().is_none().then_some(DomainRow { source, domain, perplexities })
}

/// The sixteen sources of PALOMA, folder and name, in the order of the paper's Table 4 (twelve), then Table 9 (four).
pub const SOURCES: [(&str, &str); 16] = [
    ("c4_en", "C4"),
    ("mc4", "MC4"),
    ("wikitext_103", "WikiText-103"),
    ("ptb", "Penn Treebank"),
    ("redpajama", "RedPajama"),
    ("falcon-refinedweb", "Refined Web"),
    ("dolma-v1_5", "Dolma"),
    ("m2d2_s2orc_unsplit", "M2D2 S2ORC"),
    ("m2d2_wikipedia_unsplit", "M2D2 Wikipedia"),
    ("c4_100_domains", "C4 Domains"),
    ("dolma_100_subreddits", "Dolma Subreddits"),
    ("dolma_100_programing_languages", "Dolma Coding"),
    ("twitterAAE_HELM_fixed", "Twitter AAE"),
    ("manosphere_meta_sep", "Manosphere"),
    ("4chan_meta_sep", "4CHAN"),
    ("gab", "GAB"),
];
/// How many of [`SOURCES`] are in Table 4 and so in the paper's average.
pub const TABLE_4_SOURCES: usize = 12;

/// Perplexities of the 1.3B models on [`SOURCES`] (Tables 4 and 9), in the order of [`DOMAIN_MODELS`].
pub const SOURCE_PERPLEXITIES: [[f64; 5]; 16] = [
    [14.51, 13.93, 13.35, 13.31, 13.13],
    [12.04, 10.44, 10.40, 10.21, 10.09],
    [13.73, 11.74, 11.76, 11.32, 11.41],
    [19.37, 15.92, 16.65, 16.00, 15.92],
    [5.62, 5.29, 5.21, 5.16, 5.10],
    [18.25, 17.03, 16.50, 16.48, 16.25],
    [10.11, 9.35, 9.17, 9.11, 9.01],
    [13.46, 11.61, 11.73, 11.61, 11.43],
    [12.10, 11.53, 11.18, 11.10, 10.95],
    [12.87, 12.24, 11.83, 11.76, 11.60],
    [22.85, 22.63, 21.43, 21.50, 21.29],
    [3.25, 2.74, 2.83, 2.75, 2.73],
    [174.87, 192.52, 171.38, 171.36, 166.16],
    [23.51, 20.67, 20.37, 20.28, 19.94],
    [11.34, 9.67, 9.80, 9.64, 9.64],
    [33.18, 34.84, 32.01, 32.17, 31.90],
];

/// Perplexities of the 1.3B models at a context of 16384 tokens (Figure 7), in the order of [`DOMAIN_MODELS`].
pub const EXTRAPOLATION_16384: [f64; 5] = [13.75, 337.83, 14.00, 8.92, 9.01];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_agree_but_for_numbers_and_signs() {
        assert_eq!(plain_domain("00_AskReddit"), "askreddit");
        assert_eq!(plain_domain("100_www.ign.com"), plain_domain("www.ign.com"));
        assert_eq!(plain_domain("astro-ph.CO"), "astrophco");
        assert_eq!(plain_domain("reddit_uniform"), "reddituniform");
    }

    #[test]
    fn no_two_rows_of_table_10_have_one_name() {
        assert_eq!(DomainTable::new().0.len(), domain_rows().len());
    }

    #[test]
    fn the_tables_are_whole() {
        let rows = domain_rows();
        assert_eq!(rows.len(), 571);
        assert!(rows.iter().all(|row| SOURCES.iter().any(|(source, _)| *source == row.source)));
        // The paper's own last column of Table 4 is the plain mean of the twelve before.
        let averages: [f64; 5] = [13.18, 12.04, 11.84, 11.69, 11.58];
        for (model, average) in averages.into_iter().enumerate() {
            let sum: f64 = SOURCE_PERPLEXITIES[..TABLE_4_SOURCES].iter().map(|row| row[model]).sum();
            assert!((sum / TABLE_4_SOURCES as f64 - average).abs() < 0.0051, "{}", DOMAIN_MODELS[model]);
        }
    }
}
