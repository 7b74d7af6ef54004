//! Parquet: the record number is the row's, counted across row groups.
//!
//! A Parquet file is cut into row groups, each of which holds every column as pages of compressed values;
//! the directory of all of it stands at the file's end. Only the wanted columns are read, a page at a time
//! and a row at a time, so a file of 6 GB costs the memory of a page and a row. Strings are read as the
//! bytes that they are (whether the writer called them Utf8, LargeUtf8, a view, a dictionary or Binary, the
//! file holds the same `BYTE_ARRAY`) and checked as UTF-8 row by row, so that one bad row is one bad record.
//! Nulls, also of a surrounding struct, are in the definition levels: a value is there only at the maximum.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::SchemaDescriptor;

use super::error::SourceError;
use super::fields::Fields;
use super::{Record, RecordReader, Step};
use crate::record::BadRecord;

const WHAT: &str = "Parquet file";

/// Where in the file each wanted field lies.
struct Places {
    text: usize,
    set: Option<usize>,
    set_fallback: Option<usize>,
    id: Option<usize>,
    truncated: Option<usize>,
}

pub(super) struct ParquetRows {
    path: PathBuf,
    file: SerializedFileReader<File>,
    places: Places,
    /// The row group that comes after the current one.
    next_group: usize,
    /// Rows left in the current row group.
    rows_left: u64,
    columns: Option<Columns>,
    /// The number of the row that comes next.
    next: u64,
    finished: bool,
}

/// The wanted columns of one row group, each standing before the same row.
struct Columns {
    text: Column,
    set: Option<Column>,
    set_fallback: Option<Column>,
    id: Option<Column>,
    truncated: Option<Column>,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, fields: &Fields, from_record: u64) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(|error| SourceError::io(path, error))?;
        let file = guarded(|| SerializedFileReader::new(file))
            .map_err(|error| corrupt(path, "in its directory at the end".to_owned(), error))?;
        let places = Places::find(path, file.metadata().file_metadata().schema_descr(), fields)?;
        let mut reader = Self {
            path: path.to_owned(),
            file,
            places,
            next_group: 0,
            rows_left: 0,
            columns: None,
            next: 0,
            finished: false,
        };
        reader.skip(from_record)?;
        Ok(reader)
    }

    fn group_rows(&self, group: usize) -> u64 {
        self.file.metadata().row_groups().get(group).map_or(0, |group| group.num_rows().unsigned_abs())
    }

    /// Passes over whole row groups by the directory, and over the rest of the skipped rows page by page.
    fn skip(&mut self, rows: u64) -> Result<(), SourceError> {
        while self.next_group < self.file.num_row_groups()
            && self.next + self.group_rows(self.next_group) <= rows
        {
            self.next += self.group_rows(self.next_group);
            self.next_group += 1;
        }
        if self.next < rows && self.open_group()? {
            let within = rows - self.next;
            self.next = rows;
            self.rows_left -= within;
            let skipped = self.columns.as_mut().map_or(Ok(()), |columns| guarded(|| columns.skip(within)));
            skipped.map_err(|error| self.damage(error))?;
        }
        Ok(())
    }

    /// Opens the next row group that has rows; `false` if there is none.
    fn open_group(&mut self) -> Result<bool, SourceError> {
        while self.next_group < self.file.num_row_groups() {
            let group = self.next_group;
            self.next_group += 1;
            self.rows_left = self.group_rows(group);
            if self.rows_left > 0 {
                let columns = guarded(|| Columns::open(&self.file, group, &self.places));
                self.columns = Some(columns.map_err(|error| self.damage(error))?);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn damage(&self, error: ParquetError) -> SourceError {
        corrupt(&self.path, format!("at row {} (from 0)", self.next), error)
    }

    fn read_row(&mut self) -> Result<Option<Step>, SourceError> {
        if self.rows_left == 0 && !self.open_group()? {
            return Ok(None);
        }
        let number = self.next;
        let Some(columns) = &mut self.columns else { return Ok(None) };
        match guarded(|| columns.read(number)) {
            Ok(step) => {
                self.rows_left -= 1;
                self.next += 1;
                Ok(Some(step))
            }
            Err(error) => Err(self.damage(error)),
        }
    }
}

impl RecordReader for ParquetRows {
    fn next_step(&mut self) -> Option<Result<Step, SourceError>> {
        if self.finished {
            return None;
        }
        let step = self.read_row().transpose();
        self.finished = !matches!(step, Some(Ok(_)));
        step
    }
}

impl Columns {
    fn open(file: &SerializedFileReader<File>, group: usize, places: &Places) -> Result<Self, ParquetError> {
        let group = file.get_row_group(group)?;
        let schema = file.metadata().file_metadata().schema_descr();
        let column = |place: usize| -> Result<Column, ParquetError> {
            Column::new(group.get_column_reader(place)?, schema.column(place).max_def_level())
        };
        let optional = |place: Option<usize>| place.map(column).transpose();
        Ok(Self {
            text: column(places.text)?,
            set: optional(places.set)?,
            set_fallback: optional(places.set_fallback)?,
            id: optional(places.id)?,
            truncated: optional(places.truncated)?,
        })
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Column> {
        let optional = [&mut self.set, &mut self.set_fallback, &mut self.id, &mut self.truncated];
        std::iter::once(&mut self.text).chain(optional.into_iter().flatten())
    }

    fn skip(&mut self, rows: u64) -> Result<(), ParquetError> {
        self.all().try_for_each(|column| column.skip(rows))
    }

    fn read(&mut self, number: u64) -> Result<Step, ParquetError> {
        fn name(column: &mut Option<Column>) -> Result<Option<String>, ParquetError> {
            let value = column.as_mut().map(Column::read).transpose()?.flatten();
            Ok(value.map(|bytes| String::from_utf8_lossy(bytes.data()).into_owned()))
        }
        let text = self.text.read()?;
        let set = name(&mut self.set)?;
        let set = set.or(name(&mut self.set_fallback)?);
        let id = name(&mut self.id)?;
        let truncated = name(&mut self.truncated)?.is_some_and(|portion| !portion.is_empty());
        let bad = |reason, found| Step::Bad { number, reason, found };
        let Some(text) = text else { return Ok(bad(BadRecord::MissingText, "null".to_owned())) };
        Ok(match std::str::from_utf8(text.data()) {
            Ok(text) => Step::Record(Record { number, text: text.to_owned(), id, set, truncated }),
            Err(error) => {
                bad(BadRecord::InvalidUtf8, format!("byte {} of the text is not UTF-8", error.valid_up_to()))
            }
        })
    }
}

/// One column of one row group.
struct Column {
    values: Values,
    /// The definition level at which a value is there and not null.
    present: i16,
    levels: Vec<i16>,
}

/// A column reader by the physical type of its values, with room for one.
enum Values {
    Bytes(Box<ColumnReaderImpl<ByteArrayType>>, Vec<ByteArray>),
    Int32(Box<ColumnReaderImpl<Int32Type>>, Vec<i32>),
    Int64(Box<ColumnReaderImpl<Int64Type>>, Vec<i64>),
}

impl Column {
    fn new(reader: ColumnReader, present: i16) -> Result<Self, ParquetError> {
        let values = match reader {
            ColumnReader::ByteArrayColumnReader(reader) => Values::Bytes(Box::new(reader), Vec::new()),
            ColumnReader::Int32ColumnReader(reader) => Values::Int32(Box::new(reader), Vec::new()),
            ColumnReader::Int64ColumnReader(reader) => Values::Int64(Box::new(reader), Vec::new()),
            _ => return Err(ParquetError::General("a column changed its type".to_owned())),
        };
        Ok(Self { values, present, levels: Vec::new() })
    }

    fn skip(&mut self, rows: u64) -> Result<(), ParquetError> {
        let rows = usize::try_from(rows).unwrap_or(usize::MAX);
        let skipped = match &mut self.values {
            Values::Bytes(reader, _) => reader.skip_records(rows)?,
            Values::Int32(reader, _) => reader.skip_records(rows)?,
            Values::Int64(reader, _) => reader.skip_records(rows)?,
        };
        if skipped == rows { Ok(()) } else { Err(too_few_rows()) }
    }

    /// The next row's value; `None` for null. Integers come as their digits.
    fn read(&mut self) -> Result<Option<ByteArray>, ParquetError> {
        self.levels.clear();
        let levels = (self.present > 0).then_some(&mut self.levels);
        let (rows, value) = match &mut self.values {
            Values::Bytes(reader, room) => (reader.read_records(1, levels, None, room)?.0, room.pop()),
            Values::Int32(reader, room) => {
                (reader.read_records(1, levels, None, room)?.0, room.pop().map(digits))
            }
            Values::Int64(reader, room) => {
                (reader.read_records(1, levels, None, room)?.0, room.pop().map(digits))
            }
        };
        if rows == 1 { Ok(value) } else { Err(too_few_rows()) }
    }
}

fn digits(number: impl ToString) -> ByteArray {
    ByteArray::from(number.to_string().into_bytes())
}

fn too_few_rows() -> ParquetError {
    ParquetError::EOF("a column has fewer rows than the directory says".to_owned())
}

/// Runs a step of the decoder, which meets some damage with a panic, and makes an error of that. The reader
/// is not used again after an error, so no half-changed state is seen.
fn guarded<T>(step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(ParquetError::General(format!("the decoder gave up: {message}")))
    })
}

fn corrupt(path: &Path, place: String, error: ParquetError) -> SourceError {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(error) => SourceError::decoding(path, WHAT, place, *error),
            Err(other) => {
                SourceError::Corrupt { path: path.to_owned(), what: WHAT, place, detail: other.to_string() }
            }
        },
        error => SourceError::Corrupt { path: path.to_owned(), what: WHAT, place, detail: error.to_string() },
    }
}

impl Places {
    fn find(path: &Path, schema: &SchemaDescriptor, fields: &Fields) -> Result<Self, SourceError> {
        let place = |column: &str, types: &'static [PhysicalType]| place(path, schema, column, types);
        let strings: &[PhysicalType] = &[PhysicalType::BYTE_ARRAY];
        let names: &[PhysicalType] = &[PhysicalType::BYTE_ARRAY, PhysicalType::INT32, PhysicalType::INT64];
        let text = place(&fields.text, strings)?.ok_or_else(|| absent(path, schema, &fields.text))?;
        let optional = |field: &Option<String>| -> Result<Option<usize>, SourceError> {
            field.as_deref().map_or(Ok(None), |column| place(column, names))
        };
        let (set, set_fallback) = (optional(&fields.set)?, optional(&fields.set_fallback)?);
        if let (Some(column), None, None) = (&fields.set, set, set_fallback) {
            return Err(absent(path, schema, column));
        }
        let (id, truncated) = (optional(&fields.id)?, optional(&fields.truncated)?);
        Ok(Self { text, set, set_fallback, id, truncated })
    }
}

/// The leaf column of this path, if there is one; an error if it is of none of `types`.
fn place(
    path: &Path,
    schema: &SchemaDescriptor,
    column: &str,
    types: &'static [PhysicalType],
) -> Result<Option<usize>, SourceError> {
    let expected = if types.len() == 1 { "a string column" } else { "a string or integer column" };
    let wrong =
        |found| SourceError::Column { path: path.to_owned(), column: column.to_owned(), expected, found };
    let position = schema.columns().iter().position(|leaf| leaf.path().string() == column);
    let Some(index) = position else {
        let below = format!("{column}.");
        let group = schema.columns().iter().any(|leaf| leaf.path().string().starts_with(&below));
        return if group { Err(wrong("a struct or list".to_owned())) } else { Ok(None) };
    };
    let leaf = schema.column(index);
    if leaf.max_rep_level() > 0 {
        return Err(wrong(format!("a list of {}", leaf.physical_type())));
    }
    if !types.contains(&leaf.physical_type()) {
        return Err(wrong(format!("values of type {}", leaf.physical_type())));
    }
    Ok(Some(index))
}

fn absent(path: &Path, schema: &SchemaDescriptor, column: &str) -> SourceError {
    let present: Vec<String> = schema.columns().iter().take(20).map(|leaf| leaf.path().string()).collect();
    SourceError::Column {
        path: path.to_owned(),
        column: column.to_owned(),
        expected: "a column of that name",
        found: format!("the columns {}", present.join(", ")),
    }
}
