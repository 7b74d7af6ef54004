//! A prompt with what was generated after it.

use serde_json::{Value, json};
use xlstm_manifests::END_OF_TEXT;

use super::texts::{Spelling, Texts};

/// A prompt with what was generated after it.
pub(super) struct Completion {
    pub(super) ids: Vec<i64>,
    pub(super) prompt: usize,
    /// The generated text, cut at the first stop.
    spelling: Spelling,
    pub(super) reason: &'static str,
}

impl Completion {
    pub(super) fn new(ids: Vec<i64>) -> Self {
        Self { prompt: ids.len(), ids, spelling: Spelling::default(), reason: "length" }
    }

    pub(super) fn text(&self) -> &str {
        self.spelling.text()
    }

    pub(super) fn ended(&self) -> bool {
        self.reason == "stop"
    }

    /// Takes a token in; it ends with the separator or with a text that stops it.
    pub(super) fn push(&mut self, texts: &Texts, token: i64, stops: &[String]) {
        self.ids.push(token);
        if token == i64::from(END_OF_TEXT) {
            self.reason = "stop";
            return;
        }
        let new = self.spelling.push(texts.bytes(token));
        let text = self.spelling.text();
        // What is old was looked through, but for what a stop may begin with.
        let ends = stops.iter().filter_map(|stop| {
            let from = text.floor_char_boundary((new + 1).saturating_sub(stop.len()));
            text.get(from..)?.find(stop.as_str()).map(|found| from + found)
        });
        if let Some(end) = ends.min() {
            self.spelling.truncate(end);
            self.reason = "stop";
        }
    }
}

/// Numbers of tokens, as the protocol has them.
pub(super) fn usage(completions: &[Completion]) -> Value {
    let prompt: usize = completions.iter().map(|one| one.prompt).sum();
    let all: usize = completions.iter().map(|one| one.ids.len()).sum();
    json!({"prompt_tokens": prompt, "completion_tokens": all - prompt, "total_tokens": all})
}

/// How much of a text that goes on no later token changes: not its last character where that may be half of one, and not
/// what a text that stops it may begin with.
pub(super) fn settled(text: &str, stops: &[String]) -> usize {
    let whole = text.trim_end_matches('\u{fffd}');
    let held = |stop: &String| {
        let starts = stop.char_indices().map(|(index, _)| index).skip(1).chain([stop.len()]);
        starts.filter(|&end| end < stop.len() && whole.ends_with(&stop[..end])).max().unwrap_or(0)
    };
    whole.len() - stops.iter().map(held).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_token_may_change_is_held_back() {
        let stops = ["\n\n".to_owned(), "END".to_owned(), "é!".to_owned()];
        for (text, expected) in
            [("a", 1), ("a\n", 1), ("aE", 1), ("aEN", 1), ("aENx", 4), ("aé", 1), ("ab\u{fffd}", 2), ("", 0)]
        {
            assert_eq!(settled(text, &stops), expected, "{text:?}");
        }
        assert_eq!(settled("aEN", &[]), 3);
    }
}
