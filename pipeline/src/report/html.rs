//! Self-contained pages: one file, readable in a browser, on paper, by keyboard and by a screen reader.
//!
//! A page holds its styles and plots, names no other address, and follows the reader's choice of dark or
//! light. Everything a plot shows stands in a table too.

use std::fmt::Write as _;

const STYLE: &str = include_str!("style.css");

/// Text as HTML: the five characters that mean something are spelled out.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A page under construction.
#[derive(Debug)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page whose title and main heading is `title`.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self { title: escape(title), body: String::new() }
    }

    /// A section's heading, level 2.
    pub fn heading(&mut self, text: &str) {
        self.push(&format!("<h2>{}</h2>\n", escape(text)));
    }

    /// A smaller heading, level 3.
    pub fn subheading(&mut self, text: &str) {
        self.push(&format!("<h3>{}</h3>\n", escape(text)));
    }

    /// A paragraph of plain text.
    pub fn paragraph(&mut self, text: &str) {
        self.push(&format!("<p>{}</p>\n", escape(text)));
    }

    /// A verdict in a word or two, coloured, with its sentence.
    pub fn verdict(&mut self, good: bool, word: &str, sentence: &str) {
        let class = if good { "good" } else { "bad" };
        let sign = if good { "✓" } else { "✗" };
        self.push(&format!(
            "<p class=\"verdict {class}\"><strong><span aria-hidden=\"true\">{sign}</span> {}</strong> {}</p>\n",
            escape(word),
            escape(sentence)
        ));
    }

    /// Names with their values.
    pub fn facts(&mut self, facts: &[(&str, String)]) {
        self.body.push_str("<dl>\n");
        for (name, value) in facts {
            // Writing to a String cannot fail.
            let _ = writeln!(self.body, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
        }
        self.body.push_str("</dl>\n");
    }

    /// A table.
    pub fn table(&mut self, table: &Table) {
        self.push(&table.render());
    }

    /// Markup that is complete in itself, such as a plot.
    pub fn push(&mut self, markup: &str) {
        self.body.push_str(markup);
    }

    /// The whole page.
    #[must_use]
    pub fn render(&self) -> String {
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n\
             </head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n",
            title = self.title,
            body = self.body
        )
    }
}

/// A table under construction: the first column names each row, the others hold numbers or text.
#[derive(Debug)]
pub struct Table {
    caption: String,
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose caption says what it shows. Columns whose name starts with `#` hold numbers.
    #[must_use]
    pub fn new(caption: &str, columns: &[&str]) -> Self {
        let columns = columns
            .iter()
            .map(|name| (escape(name.trim_start_matches('#')), name.starts_with('#')))
            .collect();
        Self { caption: escape(caption), columns, rows: Vec::new() }
    }

    /// Appends a row.
    pub fn row(&mut self, cells: &[&str]) {
        self.rows.push(cells.iter().map(|cell| escape(cell)).collect());
    }

    /// Whether it has no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn render(&self) -> String {
        let class = |number: bool| if number { " class=\"number\"" } else { "" };
        // Wide tables scroll by themselves; a focusable region lets the keyboard do it.
        let mut text = format!(
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{0}\"><table>\n<caption>{0}</caption>\n<thead><tr>",
            self.caption
        );
        for (name, number) in &self.columns {
            // Writing to a String cannot fail.
            let _ = write!(text, "<th scope=\"col\"{}>{name}</th>", class(*number));
        }
        text.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            text.push_str("<tr>");
            for (index, cell) in row.iter().enumerate() {
                let number = self.columns.get(index).is_some_and(|column| column.1);
                let _ = match index {
                    0 => write!(text, "<th scope=\"row\"{}>{cell}</th>", class(number)),
                    _ => write!(text, "<td{}>{cell}</td>", class(number)),
                };
            }
            text.push_str("</tr>\n");
        }
        text.push_str("</tbody></table></div>\n");
        text
    }
}
