//! JSON strings: find the end, and unescape on the way.
//!
//! 64 bytes are looked at in one step: for the first that may not be copied, which is a quotation mark, a
//! backslash or a control character. Text has one of them in 35 bytes or so, so most steps end at one, and the
//! processor guesses right.

use std::mem::MaybeUninit;

/// Bytes looked at in one step.
const STEP: usize = 64;

/// Strings up to this length are measured before they are copied.
const SHORT: usize = 128;

/// Where in the string something is wrong, and what was expected.
pub(super) type Wrong = (usize, &'static str);

const NO_END: &str = "`\"` at the end of a string";
const BAD_ESCAPE: &str = "a valid escape after `\\`";
const CONTROL: &str = "no bare control character in a string";
const LONE_SURROGATE: &str = "a pair of surrogates (a lone one is no character)";

/// What the character behind a backslash stands for, where that is one byte; else 0, which no escape is.
const SIMPLE: [u8; 256] = {
    let mut simple = [0; 256];
    let pairs = *b"\"\"\\\\//b\x08f\x0cn\nr\rt\t";
    let mut at = 0;
    while at < pairs.len() {
        simple[pairs[at] as usize] = pairs[at + 1];
        at += 2;
    }
    simple
};

/// The place of the first `"`, `\` or control character; [`STEP`] if there is none.
///
/// In a 64-bit word, `(x - 0x01…01) & !x & 0x80…80` marks the bytes of `x` that are zero (and maybe some above the
/// first such byte, so only the lowest mark is used); with the word first compared with a byte by exclusive or, that
/// finds the byte.
#[inline]
fn first_special(bytes: &[u8; STEP]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    for (at, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quote = word ^ (ONES * b'"' as u64);
        let backslash = word ^ (ONES * b'\\' as u64);
        let marks = (quote.wrapping_sub(ONES) & !quote)
            | (backslash.wrapping_sub(ONES) & !backslash)
            | (word.wrapping_sub(ONES * 0x20) & !word);
        if marks & HIGHS != 0 {
            return 8 * at + (marks & HIGHS).trailing_zeros() as usize / 8;
        }
    }
    STEP
}

/// As [`first_special`], in registers of 32 bytes.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,bmi1")]
fn first_special_by_avx2(bytes: &[u8; STEP]) -> usize {
    use std::arch::x86_64::{
        _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8, _mm256_or_si256,
        _mm256_set1_epi8,
    };
    let mut marks = 0;
    for (half, bytes) in bytes.as_chunks::<32>().0.iter().enumerate() {
        // SAFETY: 32 bytes, and no alignment is asked for.
        let bytes = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        let quote = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'"'.cast_signed()));
        let backslash = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'\\'.cast_signed()));
        let control = _mm256_cmpeq_epi8(bytes, _mm256_min_epu8(bytes, _mm256_set1_epi8(0x1f)));
        // 32 bits, one a byte.
        let found = _mm256_movemask_epi8(_mm256_or_si256(_mm256_or_si256(quote, backslash), control));
        marks |= u64::from(found.cast_unsigned()) << (32 * half);
    }
    marks.trailing_zeros() as usize
}

/// How many bytes at the head of `bytes` are neither `"`, `\` nor control characters.
#[inline]
fn plain(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(step) = chunk(bytes, at) {
        let length = first_special(step);
        at += length;
        if length < STEP {
            return at;
        }
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
                    Some(&byte) if SIMPLE[usize::from(byte)] != 0 => 2,
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
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") {
        // SAFETY: the processor has the instructions.
        return unsafe { take_by_avx2(body) };
    }
    take_by(body, first_special)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1")]
fn take_by_avx2(body: &[u8]) -> Result<(Vec<u8>, usize), Wrong> {
    take_by(body, |bytes| first_special_by_avx2(bytes))
}

/// Inlined into each of its callers, so that it is compiled for the instructions of each.
#[inline(always)]
fn take_by(body: &[u8], first_special: impl Fn(&[u8; STEP]) -> usize) -> Result<(Vec<u8>, usize), Wrong> {
    // No escape is longer unescaped. A long string gets room for all that follows, of which only what is
    // used becomes resident: looking for its end first would be a second pass.
    let short = &body[..body.len().min(SHORT)];
    let mut out = Vec::with_capacity(end(short).map_or(body.len(), |(length, _)| length) + STEP);
    let room = out.spare_capacity_mut();
    let (mut from, mut to) = (0, 0);
    loop {
        // Copy as it comes, look afterwards: what should not have been copied is overwritten.
        while let (Some(step), Some(place)) = (chunk(body, from), room.get_mut(to..to + STEP)) {
            place.write_copy_of_slice(step);
            let plain = first_special(step);
            (from, to) = (from + plain, to + plain);
            if plain < STEP {
                break;
            }
        }
        match body.get(from) {
            Some(b'"') => break,
            Some(b'\\') => from += escape(body, from, room, &mut to)?,
            Some(0..0x20) => return Err((from, CONTROL)),
            Some(&byte) => {
                room[to].write(byte);
                (from, to) = (from + 1, to + 1);
            }
            None => return Err((from, NO_END)),
        }
    }
    // SAFETY: everything before `to` was written, and is inside the spare capacity, which slices check.
    unsafe { out.set_len(to) };
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
fn chunk(bytes: &[u8], at: usize) -> Option<&[u8; STEP]> {
    bytes.get(at..)?.first_chunk()
}

/// Unescapes the escape at `body[from]` to `out[*to]`; its length in `body`.
#[inline(always)]
fn escape(body: &[u8], from: usize, out: &mut [MaybeUninit<u8>], to: &mut usize) -> Result<usize, Wrong> {
    let byte = *body.get(from + 1).ok_or((from, BAD_ESCAPE))?;
    let simple = SIMPLE[usize::from(byte)];
    if simple == 0 {
        return if byte == b'u' { unicode_escape(body, from, out, to) } else { Err((from, BAD_ESCAPE)) };
    }
    out[*to].write(simple);
    *to += 1;
    Ok(2)
}

/// `\uXXXX`, or two of them for a character above U+FFFF (RFC 8259, section 7).
fn unicode_escape(
    body: &[u8],
    from: usize,
    out: &mut [MaybeUninit<u8>],
    to: &mut usize,
) -> Result<usize, Wrong> {
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
    let mut bytes = [0; 4];
    let bytes = character.encode_utf8(&mut bytes).as_bytes();
    out[*to..*to + bytes.len()].write_copy_of_slice(bytes);
    *to += bytes.len();
    Ok(length)
}

fn four_digits(body: &[u8], at: usize) -> Option<u32> {
    body.get(at..at + 4)?
        .iter()
        .try_fold(0, |number, &byte| Some(number << 4 | char::from(byte).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_the_first_special_byte() {
        let assert_first = |bytes: &[u8; STEP], expected| {
            assert_eq!(first_special(bytes), expected, "{bytes:?}");
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") {
                // SAFETY: the processor has the instructions.
                assert_eq!(unsafe { first_special_by_avx2(bytes) }, expected, "{bytes:?}");
            }
        };
        for byte in 0..=u8::MAX {
            for at in 0..STEP {
                for around in [b' ', b'~', 0x80, 0xff, b'!', b'#', b'[', b']'] {
                    let mut bytes = [around; STEP];
                    bytes[at] = byte;
                    let special = byte < 0x20 || byte == b'"' || byte == b'\\';
                    assert_first(&bytes, if special { at } else { STEP });
                    bytes[STEP - 1] = b'"';
                    assert_first(&bytes, if special { at } else { STEP - 1 });
                }
            }
        }
    }
}
