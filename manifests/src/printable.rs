//! Text that came from data, made safe to print.
//!
//! An id, a set or a file name can hold anything: a terminal obeys escape sequences in it (colors, the window's
//! title, moving the cursor over earlier lines), and a newline in it forges a line of a report. So:
//!
//! - [`text`] is for every string from data that is printed: one line, in which each character that a terminal would
//!   obey is spelled out (`\u{1b}`, `\n`);
//! - [`Filter`] stands before standard output and error as a net: it spells out the same characters, but newline and
//!   tab, which our own lines need;
//! - [`json`] does it for JSON text, where `\u001b` means the character itself, so that nothing is lost.
//!
//! None of them lets a secret through ([`keep_secret`]).
//!
//! Spelled out are the control characters (C0, DEL, C1), the line and paragraph separators, and the marks that change
//! the direction of text, which can show a name backwards. Backslashes stay as they are: what is printed is for people,
//! `--json` is for programs.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

/// Whether a terminal, or whoever reads the line, could be misled by `character`.
#[must_use]
pub fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// What is never printed.
static SECRETS: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Stands for a secret.
const HIDDEN: &str = "(secret, not shown)";

/// Keeps `secret` (a token, say) out of everything that is printed from now on: a server can repeat in an error what it
/// was sent. Texts of fewer than eight characters are no secrets: they would be found in innocent words.
pub fn keep_secret(secret: &str) {
    let mut secrets = SECRETS.write().unwrap_or_else(PoisonError::into_inner);
    if secret.len() >= 8 && !secrets.iter().any(|other| other == secret) {
        secrets.push(secret.to_owned());
    }
}

/// `text` without the secrets of [`keep_secret`].
#[must_use]
pub fn redacted(text: &str) -> Cow<'_, str> {
    let secrets = SECRETS.read().unwrap_or_else(PoisonError::into_inner);
    let mut shown = Cow::Borrowed(text);
    for secret in secrets.iter() {
        if shown.contains(secret.as_str()) {
            shown = Cow::Owned(shown.replace(secret.as_str(), HIDDEN));
        }
    }
    shown
}

/// `text` on one line, with every character of [`is_unsafe`] spelled out.
#[must_use]
pub fn text(text: &str) -> Cow<'_, str> {
    let redacted = redacted(text);
    if !redacted.chars().any(is_unsafe) {
        return redacted;
    }
    let mut shown = String::with_capacity(text.len() + 16);
    redacted.chars().for_each(|character| spell(character, &mut shown));
    Cow::Owned(shown)
}

/// The path as [`text`]; bytes that are not UTF-8 are shown as U+FFFD.
#[must_use]
pub fn path(path: &Path) -> String {
    text(&path.to_string_lossy()).into_owned()
}

/// Text of several lines, with everything but newlines and tabs spelled out.
#[must_use]
pub fn lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in redacted(text).chars() {
        if matches!(character, '\n' | '\t') { shown.push(character) } else { spell(character, &mut shown) }
    }
    shown
}

/// JSON text with the same meaning and none of those characters but newline and tab between its tokens.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    // Outside strings JSON has no other control characters, and inside them none of the first 32 as themselves.
    let kept = |character: char| matches!(character, '\n' | '\t' | '\r') || !is_unsafe(character);
    let text = redacted(text);
    if text.chars().all(kept) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if kept(character) {
            escaped.push(character);
        } else {
            escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
        }
    }
    Cow::Owned(escaped)
}

fn spell(character: char, shown: &mut String) {
    match character {
        '\n' => shown.push_str("\\n"),
        '\r' => shown.push_str("\\r"),
        '\t' => shown.push_str("\\t"),
        _ if is_unsafe(character) => shown.extend(character.escape_unicode()),
        _ => shown.push(character),
    }
}

/// A writer of text that passes [`lines`] of it on.
#[derive(Debug)]
pub struct Filter<W: Write> {
    inner: W,
    /// The head of a character whose other bytes are still to come.
    pending: Vec<u8>,
}

impl<W: Write> Filter<W> {
    /// Filters what is written to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, pending: Vec::new() }
    }
}

impl<W: Write> Write for Filter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        let mut shown = String::new();
        let mut at = 0;
        for chunk in self.pending.utf8_chunks() {
            let (valid, invalid) = (chunk.valid(), chunk.invalid());
            shown.push_str(&lines(valid));
            at += valid.len();
            let ends_here = at + invalid.len() == self.pending.len();
            // The head of a character, at the end of what was written so far.
            let cut = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if ends_here && cut {
                break;
            }
            if !invalid.is_empty() {
                shown.push(char::REPLACEMENT_CHARACTER);
                at += invalid.len();
            }
        }
        self.pending.drain(..at);
        self.inner.write_all(shown.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_spelled_out() {
        assert!(matches!(text("plain, größer, 東京 a\\b"), Cow::Borrowed(_)));
        assert_eq!(text("\u{1b}]0;title\u{7}id\nnext"), "\\u{1b}]0;title\\u{7}id\\nnext");
        assert_eq!(text("a\u{9b}31m\u{7f}\u{202e}txt\u{2028}"), "a\\u{9b}31m\\u{7f}\\u{202e}txt\\u{2028}");
        assert_eq!(lines("a\n\tb\u{1b}[2J\r"), "a\n\tb\\u{1b}[2J\\r");
    }

    #[test]
    fn json_means_the_same_afterwards() {
        let value = serde_json::json!({"id": "a\u{9b}2J\u{7f}\u{202e}\u{1b}\n\"\\"});
        let written = serde_json::to_string_pretty(&value).unwrap();
        let shown = json(&written);
        assert!(!shown.chars().any(|c| is_unsafe(c) && c != '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn a_filter_may_be_written_to_in_any_pieces() {
        let whole = "größe \u{9b}1m 東京\n\u{1b}[2J\u{202e}x".as_bytes();
        for size in 1..=whole.len() {
            let mut shown = Vec::new();
            let mut filter = Filter::new(&mut shown);
            whole.chunks(size).for_each(|piece| filter.write_all(piece).unwrap());
            assert_eq!(String::from_utf8(shown).unwrap(), lines("größe \u{9b}1m 東京\n\u{1b}[2J\u{202e}x"));
        }
        let mut shown = Vec::new();
        Filter::new(&mut shown).write_all(b"a\xff\x1bb").unwrap();
        assert_eq!(String::from_utf8(shown).unwrap(), "a\u{fffd}\\u{1b}b");
    }
}
