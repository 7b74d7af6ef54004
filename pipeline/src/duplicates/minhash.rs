//! Shingles of a text, and the bands by which near texts find each other.
//!
//! ```text
//! word      white space apart, lower case; its hash: FNV-1a of its UTF-8, 64 bits, then mixed
//! shingle   five words in a row (a text of fewer is one shingle): h = mix(h·31 + word), from h = 0
//! minimum i min over shingles of mix(shingle XOR mix(i + 1)), i below 125
//! band b    the minima 5b .. 5b + 5, hashed as a shingle of them
//! mix       the finalizer of SplitMix64; sums and products are modulo 2^64
//! ```
//! Two texts of similarity s share a band with probability 1 - (1 - s^5)^25: 0.9999 at 0.8, 0.55 at 0.5, 0.06 at 0.3.

/// Words of a shingle.
const SHINGLE: usize = 5;
/// Minima of a band.
const BAND: usize = 5;
/// Bands of a document.
pub(super) const BANDS: usize = 25;

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

fn join(values: impl IntoIterator<Item = u64>) -> u64 {
    values.into_iter().fold(0, |hash: u64, value| mix(hash.wrapping_mul(31).wrapping_add(value)))
}

fn word(text: &str) -> u64 {
    const BASIS: u64 = 0xCBF2_9CE4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01B3;
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(PRIME);
    mix(text.to_lowercase().bytes().fold(BASIS, fnv))
}

/// The different shingles of a text, ascending; none of a text without words.
pub(super) fn shingles(text: &str) -> Vec<u64> {
    let words: Vec<u64> = text.split_whitespace().map(word).collect();
    let mut shingles: Vec<u64> = match words.len() {
        0 => Vec::new(),
        1..SHINGLE => vec![join(words)],
        _ => words.windows(SHINGLE).map(|window| join(window.iter().copied())).collect(),
    };
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

/// The bands of a text with these shingles; `None` where there are none.
pub(super) fn bands(shingles: &[u64]) -> Option<[u64; BANDS]> {
    if shingles.is_empty() {
        return None;
    }
    let minimum = |index: usize| {
        let seed = mix(index as u64 + 1);
        shingles.iter().map(|shingle| mix(shingle ^ seed)).min().unwrap_or(u64::MAX)
    };
    Some(std::array::from_fn(|band| join((band * BAND..(band + 1) * BAND).map(minimum))))
}

/// Jaccard similarity of two ascending lists without repeats: what both have over what either has.
pub(super) fn similarity(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        both += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    let either = a.len() + b.len() - both;
    if either == 0 { 0.0 } else { both as f64 / either as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shingles_do_not_see_case_or_white_space_and_see_order() {
        let plain = shingles("one two three four five six");
        assert_eq!(plain.len(), 2);
        assert_eq!(shingles("  ONE two\nthree\tfour five  Six "), plain);
        assert_eq!(similarity(&shingles("two one three four five six"), &plain), 0.0);
        assert_eq!(shingles("one two").len(), 1);
        assert!(shingles(" \n").is_empty() && bands(&[]).is_none());
        assert_eq!(similarity(&plain, &plain), 1.0);
        assert_eq!(similarity(&[1, 2, 3, 4], &[2, 3, 5]), 0.4);
    }

    #[test]
    fn bands_are_shared_as_often_as_the_formula_says() {
        for shared in [30_u64, 50, 80] {
            let mut met = 0;
            for trial in 0..400 {
                // Two sets with so many of 100 shingles in common: similarity `shared` percent.
                let number = |index: u64| mix(trial * 1000 + index);
                let half = (100 - shared) / 2;
                let set = |own: std::ops::Range<u64>| {
                    let mut set: Vec<u64> = (0..shared).chain(own).map(number).collect();
                    set.sort_unstable();
                    set
                };
                let (a, b) = (set(200..200 + half), set(400..400 + half));
                let (a, b) = (bands(&a).unwrap(), bands(&b).unwrap());
                met += u32::from(a.iter().zip(&b).any(|(a, b)| a == b));
            }
            let s = shared as f64 / 100.0;
            let expected = 1.0 - (1.0 - s.powi(5)).powi(25);
            let found = f64::from(met) / 400.0;
            assert!((found - expected).abs() < 0.08, "{s}: {found}, expected {expected}");
        }
    }
}
