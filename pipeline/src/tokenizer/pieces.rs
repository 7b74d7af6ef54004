//! Where a document may be cut without changing its tokens.
//!
//! GPT-2 splits text with
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` and encodes each match by
//! itself, so text may be cut wherever a match always ends. Two kinds of place are certain:
//!
//! * between a character that is not white space and white space: no alternative holds white space after
//!   anything else, and `\s+(?!\S)`, the only one that looks ahead, looks ahead from white space alone;
//! * between two of {letter, digit, punctuation}: no alternative mixes them, but for the contractions,
//!   which are an apostrophe and letters; so not between an apostrophe and a letter.
//!
//! Only characters whose class is the same in every version of Unicode are used. Text without any such
//! place (a run of one class that never ends) stays in one piece.

/// What a character certainly is, in every version of Unicode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Digit,
    Punctuation,
    WhiteSpace,
    /// Not worth knowing: never next to a cut.
    Unsure,
}

fn class(character: char) -> Class {
    match character {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Digit,
        ' ' | '\t' | '\n' | '\r' | '\u{3000}' => Class::WhiteSpace,
        '!'..='/' | ':'..='@' | '['..='`' | '{'..='~' => Class::Punctuation,
        // Latin-1, Cyrillic, Hiragana, Katakana, unified ideographs of Unicode 1.1, Hangul syllables.
        'À'..='Ö' | 'Ø'..='ö' | 'ø'..='ÿ' | 'А'..='я' => Class::Letter,
        'ぁ'..='ゔ' | 'ァ'..='ヺ' | '一'..='\u{9fa5}' | '가'..='힣' => Class::Letter,
        // Dashes, quotation marks, the ellipsis; ideographic and full-width punctuation.
        '–' | '—' | '‘'..='‟' | '…' | '、' | '。' | '「'..='】' => Class::Punctuation,
        '！' | '（' | '）' | '，' | '．' | '：' | '；' | '？' => Class::Punctuation,
        _ => Class::Unsure,
    }
}

/// Whether a match of the splitting pattern always ends between these two neighbours.
fn is_boundary(previous: char, next: char) -> bool {
    match (class(previous), class(next)) {
        (Class::Unsure | Class::WhiteSpace, _) | (_, Class::Unsure) => false,
        (Class::Punctuation, Class::Letter) => previous != '\'',
        (before, after) => before != after,
    }
}

/// The pieces of `text`: each at least `target` bytes (but the last), ending at the first certain boundary
/// from there. Together they are `text`.
pub(super) fn pieces(text: &str, target: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = rest.split_at(first_cut(rest, target));
        rest = after;
        Some(piece)
    })
}

/// The first place at or after byte `target` where `text` may be cut; its end if there is none.
fn first_cut(text: &str, target: usize) -> usize {
    if text.len() <= target {
        return text.len();
    }
    let start = text.floor_char_boundary(target.saturating_sub(1));
    let mut characters = text[start..].char_indices();
    let Some((_, mut previous)) = characters.next() else { return text.len() };
    for (offset, next) in characters {
        if is_boundary(previous, next) {
            return start + offset;
        }
        previous = next;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_lie_only_at_certain_boundaries() {
        let cut = |text| pieces(text, 1).collect::<Vec<_>>();
        assert_eq!(cut("don't stop"), ["don", "'t", " stop"]);
        assert_eq!(cut("a  b\n\nc1,2"), ["a", "  b", "\n\nc", "1", ",", "2"]);
        assert_eq!(cut("日本語、です。"), ["日本語", "、", "です", "。"]);
        // A combining mark, an emoji and a rare letter might be of any class.
        assert_eq!(cut("e\u{301}x😀y"), ["e\u{301}x😀y"]);
        assert_eq!(cut(""), Vec::<&str>::new());
    }

    #[test]
    fn a_piece_without_a_boundary_grows_to_the_end() {
        let text = "x".repeat(10_000);
        assert_eq!(pieces(&text, 100).count(), 1);
    }
}
