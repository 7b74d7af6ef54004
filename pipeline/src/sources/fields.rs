//! Which fields of a record are wanted, and what they become.
//!
//! Names are paths of keys joined by dots: `meta.redpajama_set_name` is the key `redpajama_set_name` of the
//! object (or struct column) `meta`, or the key `meta.redpajama_set_name` itself. Only `text` must be there; the rest may
//! be absent from any record.

use xlstm_manifests::printable;

use super::json::{self, Flaw, Paths, Value};
use crate::record::{BadRecord, Entry, Record};

/// The fields to read. The default reads `text` alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// The document's text.
    pub text: String,
    /// The set that the document counts towards.
    pub set: Option<String>,
    /// Counts as the set where `set` is absent or null.
    pub set_fallback: Option<String>,
    /// The document's own name: a string, or a number, which is kept as it is written.
    pub id: Option<String>,
    /// A field that is present and not empty where the source cut the document. Of this field and the two below, the
    /// parent may also be a string that holds the object as JSON.
    pub truncated: Option<String>,
    /// The license that the document carries itself.
    pub license: Option<String>,
    /// Where the document says that it is from.
    pub source: Option<String>,
}

/// Where records in SlimPajama's layout hold a license of their own, if they do; the original's do not.
pub const SLIMPAJAMA_LICENSE: &str = "meta.license";
/// Likewise their source.
pub const SLIMPAJAMA_SOURCE: &str = "meta.source";

/// Where PALOMA's records hold a license of their own, if they do.
pub const PALOMA_LICENSE: &str = "metadata.license";
/// Likewise their source.
pub const PALOMA_SOURCE: &str = "metadata.source";

impl Default for Fields {
    fn default() -> Self {
        Self {
            text: "text".to_owned(),
            set: None,
            set_fallback: None,
            id: None,
            truncated: None,
            license: None,
            source: None,
        }
    }
}

impl Fields {
    /// SlimPajama: `text` and `meta.redpajama_set_name`.
    #[must_use]
    pub fn slimpajama() -> Self {
        Self {
            set: Some("meta.redpajama_set_name".to_owned()),
            license: Some(SLIMPAJAMA_LICENSE.to_owned()),
            source: Some(SLIMPAJAMA_SOURCE.to_owned()),
            ..Self::default()
        }
    }

    /// PALOMA: the domain is `subdomain`, or `source` where there is none; ids are strings or numbers. A record's own
    /// license and source are in its metadata, as in all files of dolma's layout.
    #[must_use]
    pub fn paloma() -> Self {
        Self {
            text: "text".to_owned(),
            set: Some("subdomain".to_owned()),
            set_fallback: Some("source".to_owned()),
            id: Some("id".to_owned()),
            truncated: Some("metadata.truncated_portion".to_owned()),
            license: Some(PALOMA_LICENSE.to_owned()),
            source: Some(PALOMA_SOURCE.to_owned()),
        }
    }
}

/// What to do about JSON that is not one object a line.
const ONE_OBJECT_A_LINE: &str = "; write one object a line, as with `jq -c '.[]'` for an array";
const OVER_SEVERAL_LINES: &str = "a document over several lines; write one object a line, as with `jq -c '.[]'` for an array, `jq -c .` for objects";

/// Keys of a record that a message shows.
const MAX_KEYS: usize = 20;

/// [`Fields`] made ready for lines of JSON.
pub(super) struct JsonFields {
    paths: Paths,
    /// Where the text is looked for, for messages.
    text: String,
    /// The path inside the parent, for [`TRUNCATED`], [`LICENSE`] and [`SOURCE`] in turn: a parent may be JSON in a string.
    inside_parents: [Option<Paths>; 3],
}

/// Places in [`JsonFields::paths`]. A field that is not wanted has the empty path, which no key has.
const TEXT: usize = 0;
const SET: usize = 1;
const SET_FALLBACK: usize = 2;
const ID: usize = 3;
const TRUNCATED: usize = 4;
const LICENSE: usize = 5;
const SOURCE: usize = 6;
/// The parents of [`TRUNCATED`], [`LICENSE`] and [`SOURCE`].
const PARENTS: usize = 7;

impl JsonFields {
    pub(super) fn new(fields: &Fields) -> Self {
        let nested = [&fields.truncated, &fields.license, &fields.source];
        let nested = nested.map(|path| path.as_deref().and_then(|path| path.split_once('.')));
        let [truncated, license, source] = nested.map(|path| path.map(|(parent, _)| parent));
        let paths = Paths::new([
            Some(fields.text.as_str()),
            fields.set.as_deref(),
            fields.set_fallback.as_deref(),
            fields.id.as_deref(),
            fields.truncated.as_deref(),
            fields.license.as_deref(),
            fields.source.as_deref(),
            truncated,
            license,
            source,
        ]);
        Self {
            paths,
            text: fields.text.clone(),
            inside_parents: nested.map(|path| path.map(|(_, inside)| Paths::new([Some(inside)]))),
        }
    }

    /// Makes the record `number` out of one line.
    pub(super) fn read(&self, line: &[u8], number: u64) -> Entry {
        let bad = |reason, found| Entry::Bad { number, reason, found };
        let mut values = match json::extract(line, &self.paths) {
            Ok(values) => values,
            Err(flaw) => {
                let (reason, found) = match &flaw {
                    // The first line of a document that somebody laid out over several.
                    Flaw::Syntax { .. } if matches!(line.trim_ascii(), b"{" | b"[") => {
                        (BadRecord::InvalidJson, OVER_SEVERAL_LINES.to_owned())
                    }
                    Flaw::Syntax { .. } => (BadRecord::InvalidJson, flaw.to_string()),
                    Flaw::NotUtf8 { .. } => (BadRecord::InvalidUtf8, flaw.to_string()),
                    Flaw::NotAnObject { .. } => {
                        (BadRecord::MissingText, format!("{flaw}{ONE_OBJECT_A_LINE}"))
                    }
                };
                return bad(reason, found);
            }
        };
        let mut take = |index: usize| std::mem::take(&mut values[index]);
        let text = match take(TEXT) {
            Value::String(text) => text,
            Value::Absent => return bad(BadRecord::MissingText, self.absent(line)),
            Value::Null => return bad(BadRecord::MissingText, format!("null in field `{}`", self.text)),
            other => {
                let found = format!("{} in field `{}`", other.describe(), self.text);
                return bad(BadRecord::TextNotString, found);
            }
        };
        let set = take(SET).into_name(line).or(take(SET_FALLBACK).into_name(line));
        let id = take(ID).into_name(line);
        let truncated = self.is_truncated(&take(TRUNCATED), &take(PARENTS));
        let license = self.name_below(1, take(LICENSE), take(PARENTS + 1), line);
        let source = self.name_below(2, take(SOURCE), take(PARENTS + 2), line);
        Entry::Record(Record { number, text, id, set, license, source, truncated })
    }

    /// What a record without text has instead.
    fn absent(&self, line: &[u8]) -> String {
        let keys = json::keys(line, MAX_KEYS).unwrap_or_default();
        let keys: Vec<_> = keys.iter().map(|key| format!("`{}`", printable::text(key))).collect();
        let there = if keys.is_empty() { "no key at all".to_owned() } else { keys.join(", ") };
        format!("no field `{}` among {there}", printable::text(&self.text))
    }

    /// The name in `value`, or in `parent` where that is a string which holds the object as JSON.
    fn name_below(&self, index: usize, value: Value, parent: Value, line: &[u8]) -> Option<String> {
        match (parent, &self.inside_parents[index]) {
            (Value::String(object), Some(inside)) => {
                let value = json::extract(object.as_bytes(), inside).ok()?.pop()?;
                value.into_name(object.as_bytes())
            }
            _ => value.into_name(line),
        }
    }

    fn is_truncated(&self, mark: &Value, parent: &Value) -> bool {
        let says_so = |value: &Value| match value {
            Value::Absent | Value::Null | Value::Bool(false) => false,
            Value::String(portion) => !portion.is_empty(),
            _ => true,
        };
        if let (Value::String(object), Some(inside)) = (parent, &self.inside_parents[0]) {
            // Metadata that is not JSON is somebody's free text, and says nothing.
            return json::extract(object.as_bytes(), inside).is_ok_and(|values| says_so(&values[0]));
        }
        says_so(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paloma(line: &str) -> Record {
        match JsonFields::new(&Fields::paloma()).read(line.as_bytes(), 7) {
            Entry::Record(record) => record,
            bad => panic!("{line}: {bad:?}"),
        }
    }

    fn reason(line: &str) -> BadRecord {
        match JsonFields::new(&Fields::slimpajama()).read(line.as_bytes(), 0) {
            Entry::Bad { reason, .. } => reason,
            record => panic!("{line}: {record:?}"),
        }
    }

    #[test]
    fn slimpajama_has_its_set_below_meta() {
        let line = r#"{"text":"a\nb","meta":{"redpajama_set_name":"RedPajamaC4"}}"#;
        let step = JsonFields::new(&Fields::slimpajama()).read(line.as_bytes(), 3);
        let set = Some("RedPajamaC4".to_owned());
        let record = Record { number: 3, text: "a\nb".to_owned(), set, ..Record::default() };
        assert_eq!(step, Entry::Record(record));
    }

    #[test]
    fn palomas_domain_is_the_subdomain_or_the_source() {
        let record = paloma(r#"{"text":"t","id":"x1","source":"s","subdomain":"d"}"#);
        assert_eq!((record.set.as_deref(), record.id.as_deref()), (Some("d"), Some("x1")));
        let record = paloma(r#"{"text":"t","id":17,"source":"s","subdomain":null}"#);
        assert_eq!((record.set.as_deref(), record.id.as_deref()), (Some("s"), Some("17")));
        assert_eq!(paloma(r#"{"text":"t"}"#).set, None);
    }

    #[test]
    fn truncation_is_found_in_a_struct_and_in_a_string() {
        for (metadata, truncated) in [
            (r#"{"truncated_portion":"tail","x":1}"#, true),
            (r#"{"truncated_portion":null}"#, false),
            (r#"{"x":1}"#, false),
            (r#""{\"truncated_portion\": \"tail\"}""#, true),
            (r#""{\"other\": 1}""#, false),
            (r#""free text""#, false),
            ("null", false),
            ("[]", false),
        ] {
            let line = format!(r#"{{"text":"t","metadata":{metadata}}}"#);
            assert_eq!(paloma(&line).truncated, truncated, "{metadata}");
        }
    }

    #[test]
    fn licenses_are_found_in_a_struct_and_in_a_string_and_lists_are_kept_as_written() {
        for (metadata, license, source) in [
            (r#"{"license":"MIT","source":"a"}"#, Some("MIT"), Some("a")),
            (r#""{\"license\": \"MIT\", \"source\": 7}""#, Some("MIT"), Some("7")),
            (r#"{"license":["MIT", "Apache-2.0"],"source":null}"#, Some(r#"["MIT", "Apache-2.0"]"#), None),
            (r#""{\"license\":[\"MIT\"]}""#, Some(r#"["MIT"]"#), None),
            (r#"{"license":{"spdx":"MIT"}}"#, Some(r#"{"spdx":"MIT"}"#), None),
            (r#""license MIT""#, None, None),
            ("[]", None, None),
        ] {
            let record = paloma(&format!(r#"{{"text":"t","metadata":{metadata}}}"#));
            assert_eq!(
                (record.license.as_deref(), record.source.as_deref()),
                (license, source),
                "{metadata}"
            );
        }
    }

    #[test]
    fn bad_lines_have_their_reason() {
        assert_eq!(reason(r#"{"meta":{}}"#), BadRecord::MissingText);
        assert_eq!(reason(r#"{"text":null}"#), BadRecord::MissingText);
        assert_eq!(reason(r#"["text"]"#), BadRecord::MissingText);
        assert_eq!(reason(r#"{"text":["a"]}"#), BadRecord::TextNotString);
        assert_eq!(reason(r#"{"text":5}"#), BadRecord::TextNotString);
        assert_eq!(reason(r#"{"text":"a""#), BadRecord::InvalidJson);
        assert_eq!(reason(r#"{"text":"\ud800"}"#), BadRecord::InvalidJson);
    }
}
