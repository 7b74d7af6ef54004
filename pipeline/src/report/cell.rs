//! What a cell of a table or the value of a fact holds: text, a number with the value it sorts by, a link within
//! the page or to a file beside it.

use super::html::escape;

/// Content of a cell; made from text, which is escaped.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cell {
    pub(super) html: String,
    pub(super) value: Option<f64>,
}

impl Cell {
    /// Text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self { html: escape(text), value: None }
    }

    /// A number as people read it, and the value that it sorts by.
    #[must_use]
    pub fn number(value: f64, shown: &str) -> Self {
        Self { html: escape(shown), value: Some(value).filter(|value| value.is_finite()) }
    }

    /// A number with this many decimals.
    #[must_use]
    pub fn decimals(value: f64, decimals: usize) -> Self {
        Self::number(value, &format!("{value:.decimals$}"))
    }

    /// A whole number, its thousands in groups.
    #[must_use]
    pub fn count(number: u64) -> Self {
        Self::number(number as f64, &super::count(number))
    }

    /// Nothing was measured: a dash, which sorts last.
    #[must_use]
    pub fn missing() -> Self {
        Self::text("–")
    }

    /// `show` of a value that may be missing.
    #[must_use]
    pub fn of<T>(value: Option<T>, show: impl FnOnce(T) -> Self) -> Self {
        value.map_or_else(Self::missing, show)
    }

    /// A digest, a command, a path: in letters of equal width.
    #[must_use]
    pub fn code(text: &str) -> Self {
        Self { html: format!("<code>{}</code>", escape(text)), value: None }
    }

    /// The same content as a link to the part of the page with this id.
    #[must_use]
    pub fn link(self, id: &str) -> Self {
        Self { html: format!("<a href=\"#{}\">{}</a>", escape(id), self.html), ..self }
    }

    /// The same content as a link to a file, whose path is relative to the page.
    #[must_use]
    pub fn file(self, path: &str) -> Self {
        Self { html: format!("<a href=\"{}\">{}</a>", escape(&address(path)), self.html), ..self }
    }

    /// This content and then another one's.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { html: format!("{}, {}", self.html, other.html), ..self }
    }

    /// The same content, marked as the target of links to this id.
    #[must_use]
    pub fn id(self, id: &str) -> Self {
        Self { html: format!("<span id=\"{}\">{}</span>", escape(id), self.html), ..self }
    }

    /// The same content, as something that deserves attention, with a sign that needs no color.
    #[must_use]
    pub fn warn(self) -> Self {
        Self { html: format!("<strong class=\"warn\">⚠ {}</strong>", self.html), ..self }
    }

    /// The same content with more text after it, in a quieter tone.
    #[must_use]
    pub fn note(self, text: &str) -> Self {
        Self { html: format!("{} <span class=\"quiet\">{}</span>", self.html, escape(text)), ..self }
    }
}

/// A relative path as an address: letters that would end it or make it another one's are spelled out. One that could be
/// read as a scheme begins with `./`.
fn address(path: &str) -> String {
    let mut address = String::from("./");
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                address.push(char::from(byte));
            }
            other => address.push_str(&format!("%{other:02X}")),
        }
    }
    address
}
