//! Self-contained pages: one file, readable in a browser, on paper, by keyboard and by a screen reader.
//!
//! A page holds its styles, plots and script, names no other address, and follows the reader's choice of dark or
//! light. Everything a plot shows stands in a table too. The script sorts, filters and reads out what is there
//! anyway; the page's content policy lets a browser run that script and load nothing.

use std::fmt::Write as _;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use xlstm_manifests::printable;

use super::Cell;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");

/// Text as HTML: the five characters that mean something are spelled out, and those that a terminal would obey where somebody
/// reads the page's source (`xlstm_manifests::printable`).
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in printable::lines(text).chars() {
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
    /// Id and title of each section that the contents name.
    sections: Vec<(String, String)>,
}

impl Page {
    /// A page whose title and main heading is `title`.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self { title: escape(title), body: String::new(), sections: Vec::new() }
    }

    /// A section's heading, level 2.
    pub fn heading(&mut self, text: &str) {
        self.push(&format!("<h2>{}</h2>\n", escape(text)));
    }

    /// A section's heading, level 2, that the contents at the head of the page lead to.
    pub fn section(&mut self, id: &str, text: &str) {
        let (id, text) = (escape(id), escape(text));
        self.push(&format!("<h2 id=\"{id}\">{text}</h2>\n"));
        self.sections.push((id, text));
    }

    /// A smaller heading, level 3.
    pub fn subheading(&mut self, text: &str) {
        self.push(&format!("<h3>{}</h3>\n", escape(text)));
    }

    /// A paragraph of plain text.
    pub fn paragraph(&mut self, text: &str) {
        self.push(&format!("<p>{}</p>\n", escape(text)));
    }

    /// Something that the reader must know before using what follows.
    pub fn warning(&mut self, text: &str) {
        self.push(&format!("<p class=\"verdict warning\"><strong>⚠ Note.</strong> {}</p>\n", escape(text)));
    }

    /// Commands to copy, each on its line.
    pub fn commands(&mut self, lines: &[String]) {
        self.push(&format!("<pre tabindex=\"0\"><code>{}</code></pre>\n", escape(&lines.join("\n"))));
    }

    /// Content that opens under its summary.
    pub fn details(&mut self, summary: &str, write: impl FnOnce(&mut Self)) {
        self.push(&format!("<details><summary>{}</summary>\n", escape(summary)));
        write(self);
        self.push("</details>\n");
    }

    /// A verdict in a word or two, colored, with its sentence.
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
        let cells: Vec<_> = facts.iter().map(|(name, value)| (*name, Cell::text(value))).collect();
        self.fact_cells(&cells);
    }

    /// Names with their values, which may be digests or links.
    pub fn fact_cells(&mut self, facts: &[(&str, Cell)]) {
        self.body.push_str("<dl>\n");
        for (name, value) in facts {
            // Writing to a String cannot fail.
            let _ = writeln!(self.body, "<dt>{}</dt><dd>{}</dd>", escape(name), value.html);
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

    /// The sections of another page, after those that are there.
    pub fn append(&mut self, other: Self) {
        self.body.push_str(&other.body);
        self.sections.extend(other.sections);
    }

    /// The whole page.
    #[must_use]
    pub fn render(&self) -> String {
        let contents = self.contents();
        let script = self.script();
        let policy = script.as_ref().map(|(digest, _)| format!("; script-src 'sha256-{digest}'"));
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
             base-uri 'none'; form-action 'none'{policy}\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n\
             </head>\n<body>\n{skip}<main id=\"content\" tabindex=\"-1\">\n<h1>{title}</h1>\n{contents}{body}</main>\n\
             {script}</body>\n</html>\n",
            policy = policy.unwrap_or_default(),
            title = self.title,
            skip = if contents.is_empty() {
                ""
            } else {
                "<a class=\"skip\" href=\"#after-contents\">Skip to the content</a>\n"
            },
            body = self.body,
            script = script.map(|(_, element)| element).unwrap_or_default(),
        )
    }

    fn contents(&self) -> String {
        if self.sections.is_empty() {
            return String::new();
        }
        let links = self.sections.iter().map(|(id, text)| format!("<li><a href=\"#{id}\">{text}</a></li>"));
        let links: String = links.collect();
        format!(
            "<nav aria-label=\"Contents\"><ul>{links}</ul></nav>\n<div id=\"after-contents\" tabindex=\"-1\"></div>\n"
        )
    }

    /// The script with its digest, where the page has something for it to do.
    fn script(&self) -> Option<(String, String)> {
        let wanted = ["data-sortable", "data-points"].iter().any(|name| self.body.contains(name));
        let digest = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(SCRIPT));
        wanted.then(|| (digest, format!("<script>{SCRIPT}</script>\n")))
    }
}

/// A table under construction: the first column names each row, the others hold numbers or text.
#[derive(Debug)]
pub struct Table {
    caption: String,
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<Cell>>,
    sortable: bool,
    filterable: bool,
    facet: Option<usize>,
}

impl Table {
    /// A table whose caption says what it shows. Columns whose name starts with `#` hold numbers.
    #[must_use]
    pub fn new(caption: &str, columns: &[&str]) -> Self {
        let columns = columns
            .iter()
            .map(|name| (escape(name.trim_start_matches('#')), name.starts_with('#')))
            .collect();
        Self {
            caption: escape(caption),
            columns,
            rows: Vec::new(),
            sortable: false,
            filterable: false,
            facet: None,
        }
    }

    /// Lets the reader sort by any column.
    #[must_use]
    pub fn sortable(mut self) -> Self {
        self.sortable = true;
        self
    }

    /// Lets the reader sort, search, and choose among the values of the column `facet`.
    #[must_use]
    pub fn filterable(mut self, facet: Option<usize>) -> Self {
        (self.sortable, self.filterable, self.facet) = (true, true, facet);
        self
    }

    /// Appends a row of texts.
    pub fn row(&mut self, cells: &[&str]) {
        self.rows.push(cells.iter().map(|cell| Cell::text(cell)).collect());
    }

    /// Appends a row of cells.
    pub fn cells(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Whether it has no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn render(&self) -> String {
        let class = |number: bool| if number { " class=\"number\"" } else { "" };
        let mark = |on: bool, name: &str| if on { format!(" {name}") } else { String::new() };
        // Wide tables scroll by themselves; a focusable region lets the keyboard do it.
        let mut text = format!(
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{0}\"><table{1}{2}>\n<caption>{0}</caption>\n<thead><tr>",
            self.caption,
            mark(self.sortable, "data-sortable"),
            mark(self.filterable, "data-filterable"),
        );
        for (index, (name, number)) in self.columns.iter().enumerate() {
            let facet = mark(self.facet == Some(index), "data-facet");
            // Writing to a String cannot fail.
            let _ = write!(text, "<th scope=\"col\"{}{facet}>{name}</th>", class(*number));
        }
        text.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            text.push_str("<tr>");
            for (index, cell) in row.iter().enumerate() {
                let number = self.columns.get(index).is_some_and(|column| column.1);
                let value = cell.value.filter(|_| self.sortable).map(|value| format!(" data-v=\"{value}\""));
                let (class, value, html) = (class(number), value.unwrap_or_default(), &cell.html);
                let _ = match index {
                    0 => write!(text, "<th scope=\"row\"{class}{value}>{html}</th>"),
                    _ => write!(text, "<td{class}{value}>{html}</td>"),
                };
            }
            text.push_str("</tr>\n");
        }
        text.push_str("</tbody></table></div>\n");
        text
    }
}
