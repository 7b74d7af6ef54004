//! Which columns of a Parquet file hold the wanted fields, and why a column cannot be read.
//!
//! Columns are the leaves of a tree of groups. A group may say of its leaves that they are no values of their own: a list
//! or map repeats them, a VARIANT has an encoding that spans several of them. Such columns are refused by name.

use std::path::Path;

use parquet::basic::{ConvertedType, LogicalType};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor, Type};

use super::error::SourceError;
use super::fields::Fields;
use super::parquet_value::{Meaning, meaning};

/// Columns and fields that a message shows.
const SHOWN: usize = 20;

/// The column of each wanted field.
pub(super) struct Places {
    pub(super) text: usize,
    pub(super) set: Option<usize>,
    pub(super) set_fallback: Option<usize>,
    pub(super) id: Option<usize>,
    pub(super) truncated: Option<usize>,
    pub(super) license: Option<usize>,
    pub(super) source: Option<usize>,
}

impl Places {
    /// # Errors
    /// When there is no text, a column that is needed is absent, or one is of a type that cannot be read.
    pub(super) fn find(path: &Path, schema: &SchemaDescriptor, fields: &Fields) -> Result<Self, SourceError> {
        let absent = |column: &str, option| absent(path, schema, column, option);
        let text = place(path, schema, &fields.text, true)?;
        let text = text.ok_or_else(|| absent(&fields.text, "--text-field"))?;
        let optional = |field: &Option<String>| -> Result<Option<usize>, SourceError> {
            field.as_deref().map_or(Ok(None), |column| place(path, schema, column, false))
        };
        let (set, set_fallback) = (optional(&fields.set)?, optional(&fields.set_fallback)?);
        if let (Some(column), None, None) = (&fields.set, set, set_fallback) {
            return Err(absent(column, "--set-field"));
        }
        let (id, truncated) = (optional(&fields.id)?, optional(&fields.truncated)?);
        let (license, source) = (optional(&fields.license)?, optional(&fields.source)?);
        Ok(Self { text, set, set_fallback, id, truncated, license, source })
    }
}

/// The leaf column of this path, if there is one; an error if its values are no text (`text`) or name nothing.
fn place(
    path: &Path,
    schema: &SchemaDescriptor,
    column: &str,
    text: bool,
) -> Result<Option<usize>, SourceError> {
    let expected = if text { "a string column" } else { "a column of strings, numbers, dates or times" };
    let wrong =
        |found| SourceError::Column { path: path.to_owned(), column: column.to_owned(), expected, found };
    let mut here = schema.columns().iter().enumerate().filter(|(_, leaf)| leaf.path().string() == column);
    let Some((index, leaf)) = here.next() else {
        let group = column.split('.').try_fold(schema.root_schema(), |group, name| field(group, name));
        return group.map_or(Ok(None), |group| Err(wrong(described_group(group, column))));
    };
    if here.next().is_some() {
        return Err(wrong("two or more columns of that name: leave one, or rename them".to_owned()));
    }
    if is_in_variant(schema.root_schema(), leaf) {
        return Err(wrong("a part of a VARIANT, whose bytes mean something only together".to_owned()));
    }
    if leaf.max_rep_level() > 0 {
        return Err(wrong(format!("a list of {}", leaf.physical_type())));
    }
    match meaning(leaf) {
        // A column of nothing but nulls says so instead of its type: its rows have no text, as any null has none.
        Ok(Meaning::Text | Meaning::Null) => Ok(Some(index)),
        Ok(_) if !text => Ok(Some(index)),
        Ok(_) => Err(wrong(format!("values of type {}", described(leaf)))),
        Err(found) => Err(wrong(found)),
    }
}

fn field<'a>(group: &'a Type, name: &str) -> Option<&'a Type> {
    let fields = if group.is_group() { group.get_fields() } else { return None };
    fields.iter().find(|field| field.name() == name).map(AsRef::as_ref)
}

fn is_variant(group: &Type) -> bool {
    matches!(group.get_basic_info().logical_type_ref(), Some(LogicalType::Variant(_)))
}

/// Whether a group around `leaf` is a VARIANT.
fn is_in_variant(root: &Type, leaf: &ColumnDescriptor) -> bool {
    let mut group = Some(root);
    leaf.path().parts().iter().any(|name| {
        group = group.and_then(|group| field(group, name));
        group.is_some_and(is_variant)
    })
}

/// A group that was named where a column is wanted.
fn described_group(group: &Type, column: &str) -> String {
    let info = group.get_basic_info();
    match (info.logical_type_ref(), info.converted_type()) {
        (Some(LogicalType::Variant(_)), _) => "a VARIANT".to_owned(),
        (Some(LogicalType::List), _) | (None, ConvertedType::LIST) => "a list".to_owned(),
        (Some(LogicalType::Map), _) | (None, ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE) => {
            "a map".to_owned()
        }
        (logical, _) => {
            let kind = if logical == Some(&LogicalType::File) { "a FILE" } else { "a struct" };
            let fields = group.get_fields().iter().take(SHOWN);
            let fields: Vec<String> = fields.map(|field| format!("`{column}.{}`", field.name())).collect();
            format!("{kind}; name one of its fields: {}", fields.join(", "))
        }
    }
}

/// The logical type, else the physical one.
fn described(leaf: &ColumnDescriptor) -> String {
    match (leaf.logical_type_ref(), leaf.converted_type()) {
        (Some(logical), _) => format!("{logical:?} ({})", leaf.physical_type()),
        (None, ConvertedType::NONE) => leaf.physical_type().to_string(),
        (None, converted) => format!("{converted} ({})", leaf.physical_type()),
    }
}

fn absent(path: &Path, schema: &SchemaDescriptor, column: &str, option: &str) -> SourceError {
    let present: Vec<String> = schema.columns().iter().take(SHOWN).map(|leaf| leaf.path().string()).collect();
    let present = if present.is_empty() {
        "no column at all".to_owned()
    } else {
        format!("the columns {}", present.join(", "))
    };
    SourceError::Column {
        path: path.to_owned(),
        column: column.to_owned(),
        expected: "a column of that name",
        found: format!("{present}; name the right one with {option}"),
    }
}
