//! JSON strings: find the end, and unescape on the way.
//!
//! Eight bytes are looked at in one step. In a 64-bit word, `(x - 0x01…01) & !x & 0x80…80` marks the bytes
//! of `x` that are zero (and maybe some above the first such byte, so only the lowest mark is used); with the
//! word first compared with a byte by exclusive or, that finds the byte. Three such tests find what may not
//! be copied: a quotation mark, a backslash, a control character.

/// Bytes looked at in one step.
const WORD: usize = 8;

/// Strings up to this length are measured before they are copied.
const SHORT: usize = 128;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Where in the string something is wrong, and what was expected.
pub(super) type Wrong = (usize, &'static str);

const NO_END: &str = "`\"` at the end of a string";
const BAD_ESCAPE: &str = "a valid escape after `\\`";
const CONTROL: &str = "no bare control character in a string";
const LONE_SURROGATE: &str = "a pair of surrogates (a lone one is no character)";

/// A mark in each byte of `word` that is `"`, `\` or below 0x20; exact for the lowest marked byte.
#[inline]
fn special(word: u64) -> u64 {
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let marks = (quote.wrapping_sub(ONES) & !quote)
        | (backslash.wrapping_sub(ONES) & !backslash)
        | (word.wrapping_sub(ONES * 0x20) & !word);
    marks & HIGHS
}

/// How many bytes at the head of `bytes` are neither `"`, `\` nor control characters.
#[inline]
fn plain(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk::<WORD>() {
        let marks = special(u64::from_le_bytes(*word));
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += WORD;
    }
    at + bytes[at..].iter().take_while(|&&byte| byte >= 0x20 && byte != b'"' && byte != b'\\').count()
}

/// `body` starts after an opening quotation mark: the length of the string, and whether it holds escapes.
pub(super) fn end(body: &[u8]) -> Result<(usize, bool), Wrong> {
    let (mut at, mut escaped) = (0, false);
    loop {
        at += plain(&body[at..]);
        match body.get(at) {
            Some(b'"') => return Ok((at, escaped)),
            Some(b'\\') => {
                escaped = true;
                at += match body.get(at + 1) {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
                    Some(b'u') if four_digits(body, at + 2).is_some() => 6,
                    _ => return Err((at, BAD_ESCAPE)),
                };
            }
            Some(_) => return Err((at, CONTROL)),
            None => return Err((at, NO_END)),
        }
    }
}

/// `body` starts after an opening quotation mark: the unescaped string and its length in `body`.
pub(super) fn take(body: &[u8]) -> Result<(Vec<u8>, usize), Wrong> {
    // No escape is longer unescaped. A long string gets room for all that follows, of which only what is
    // used becomes resident: looking for its end first would be a second pass.
    let short = &body[..body.len().min(SHORT)];
    let mut out = vec![0u8; end(short).map_or(body.len(), |(length, _)| length + WORD)];
    let (mut from, mut to) = (0, 0);
    loop {
        // Copy as it comes, look afterwards: what should not have been copied is overwritten.
        while let (Some(word), Some(room)) = (chunk(body, from), chunk_mut(&mut out, to)) {
            *room = *word;
            let marks = special(u64::from_le_bytes(*word));
            if marks != 0 {
                let plain = marks.trailing_zeros() as usize / 8;
                (from, to) = (from + plain, to + plain);
                break;
            }
            (from, to) = (from + WORD, to + WORD);
        }
        match body.get(from) {
            Some(b'"') => break,
            Some(b'\\') => from += escape(body, from, &mut out, &mut to)?,
            Some(0..0x20) => return Err((from, CONTROL)),
            Some(&byte) => {
                out[to] = byte;
                (from, to) = (from + 1, to + 1);
            }
            None => return Err((from, NO_END)),
        }
    }
    out.truncate(to);
    // The rest of the line may be long (and then the room is mostly unused): give it back.
    if out.capacity() > 2 * to + 64 {
        out.shrink_to_fit();
    }
    Ok((out, from))
}

/// The string whose inside is `raw`; `None` if it has a lone surrogate. Its syntax was checked.
pub(super) fn unescape(raw: &[u8]) -> Option<Vec<u8>> {
    take(&[raw, b"\""].concat()).ok().map(|(bytes, _)| bytes)
}

#[inline]
fn chunk(bytes: &[u8], at: usize) -> Option<&[u8; WORD]> {
    bytes.get(at..)?.first_chunk()
}

#[inline]
fn chunk_mut(bytes: &mut [u8], at: usize) -> Option<&mut [u8; WORD]> {
    bytes.get_mut(at..)?.first_chunk_mut()
}

/// Unescapes the escape at `body[from]` to `out[*to]`; its length in `body`.
#[inline]
fn escape(body: &[u8], from: usize, out: &mut [u8], to: &mut usize) -> Result<usize, Wrong> {
    let simple = match body.get(from + 1) {
        Some(b'n') => b'\n',
        Some(&byte @ (b'"' | b'\\' | b'/')) => byte,
        Some(b't') => b'\t',
        Some(b'r') => b'\r',
        Some(b'b') => 0x08,
        Some(b'f') => 0x0c,
        Some(b'u') => return unicode_escape(body, from, out, to),
        _ => return Err((from, BAD_ESCAPE)),
    };
    out[*to] = simple;
    *to += 1;
    Ok(2)
}

/// `\uXXXX`, or two of them for a character above U+FFFF (RFC 8259, section 7).
fn unicode_escape(body: &[u8], from: usize, out: &mut [u8], to: &mut usize) -> Result<usize, Wrong> {
    let first = four_digits(body, from + 2).ok_or((from, BAD_ESCAPE))?;
    let (code, length) = if (0xd800..0xdc00).contains(&first) {
        let second = match body.get(from + 6..from + 8) {
            Some(b"\\u") => four_digits(body, from + 8).filter(|second| (0xdc00..0xe000).contains(second)),
            _ => None,
        };
        let second = second.ok_or((from, LONE_SURROGATE))?;
        (0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00), 12)
    } else {
        (first, 6)
    };
    let character = char::from_u32(code).ok_or((from, LONE_SURROGATE))?;
    *to += character.encode_utf8(&mut out[*to..]).len();
    Ok(length)
}

fn four_digits(body: &[u8], at: usize) -> Option<u32> {
    body.get(at..at + 4)?
        .iter()
        .try_fold(0, |number, &byte| Some(number << 4 | char::from(byte).to_digit(16)?))
}
