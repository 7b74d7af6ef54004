//! Parquet: the record number is the row's, counted across row groups.
//!
//! A Parquet file is cut into row groups, each of which holds every column as pages of compressed values;
//! the directory of all of it stands at the file's end. Only the wanted columns are read, a page at a time
//! and a row at a time, so a file of 6 GB costs the memory of a page and a row. Strings are read as the
//! bytes that they are (whether the writer called them Utf8, LargeUtf8, a view, a dictionary or Binary, the
//! file holds the same `BYTE_ARRAY`) and checked as UTF-8 row by row, so that one bad row is one bad record.
//! What names a document or a set is read as what its logical type says ([`super::parquet_value`]). The checksum
//! of a page, where the writer left one, is compared before the page is used.
//! Nulls, also of a surrounding struct, are in the definition levels: a value is there only at the maximum.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, FloatType,
    Int32Type, Int64Type, Int96, Int96Type,
};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use super::decompress::{ALWAYS_ALLOWED, MAX_RATIO};
use super::error::SourceError;
use super::fields::Fields;
use super::format::open_regular;
use super::guard::guarded;
use super::parquet_columns::Places;
use super::parquet_footer;
use super::parquet_value::{self, Meaning, Stored, meaning};
use super::{Entry, Record, RecordReader};
use crate::record::BadRecord;

const WHAT: &str = "Parquet file";

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
    /// Bytes of the file, and of the text that came of it: a dictionary can repeat a long text a million times.
    size: u64,
    produced: u64,
}

/// The wanted columns of one row group, each standing before the same row.
struct Columns {
    text: Column,
    set: Option<Column>,
    set_fallback: Option<Column>,
    id: Option<Column>,
    truncated: Option<Column>,
    license: Option<Column>,
    source: Option<Column>,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, fields: &Fields, from_record: u64) -> Result<Self, SourceError> {
        if let Some(found) = parquet_footer::obstacle(path) {
            let (what, place) = (WHAT, "in its directory at the end".to_owned());
            return Err(SourceError::Corrupt { path: path.to_owned(), what, place, detail: found });
        }
        let file = open_regular(path)?;
        let size = file.metadata().map_err(|error| SourceError::io(path, error))?.len();
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
            size,
            produced: 0,
        };
        reader.skip(from_record)?;
        Ok(reader)
    }

    /// Rows of the file.
    pub(super) fn rows(&self) -> u64 {
        (0..self.file.num_row_groups()).fold(0, |sum, group| sum.saturating_add(self.group_rows(group)))
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
        if parquet_footer::is_encrypted(&self.path) {
            return SourceError::WrongFormat {
                path: self.path.clone(),
                expected: "a Parquet file",
                found: "one with encrypted columns".to_owned(),
                hint: "decrypt it with its keys first: encrypted columns cannot be read here",
            };
        }
        corrupt(&self.path, format!("at row {} (from 0)", self.next), error)
    }

    fn read_row(&mut self) -> Result<Option<Entry>, SourceError> {
        if self.rows_left == 0 && !self.open_group()? {
            return Ok(None);
        }
        let number = self.next;
        let Some(columns) = &mut self.columns else { return Ok(None) };
        match guarded(|| columns.read(number)) {
            Ok(step) => {
                self.rows_left -= 1;
                self.next += 1;
                // A row without text costs as much as a few bytes.
                self.produced +=
                    if let Entry::Record(record) = &step { record.text.len() as u64 } else { 0 } + 8;
                self.check_amount()?;
                Ok(Some(step))
            }
            Err(error) => Err(self.damage(error)),
        }
    }
}

impl ParquetRows {
    /// As for compressed streams: a few bytes that become far more than any text does would be read for days.
    fn check_amount(&self) -> Result<(), SourceError> {
        let (size, produced) = (self.size, self.produced);
        if produced <= ALWAYS_ALLOWED || produced / MAX_RATIO <= size {
            return Ok(());
        }
        let detail = format!("{size} bytes became {produced} of text, more than {MAX_RATIO} times as many");
        let (path, place) = (self.path.clone(), format!("at row {} (from 0)", self.next));
        Err(SourceError::Corrupt { path, what: WHAT, place, detail })
    }
}

impl RecordReader for ParquetRows {
    fn next_entry(&mut self) -> Option<Result<Entry, SourceError>> {
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
            Column::new(group.get_column_reader(place)?, &schema.column(place))
        };
        let optional = |place: Option<usize>| place.map(column).transpose();
        Ok(Self {
            text: column(places.text)?,
            set: optional(places.set)?,
            set_fallback: optional(places.set_fallback)?,
            id: optional(places.id)?,
            truncated: optional(places.truncated)?,
            license: optional(places.license)?,
            source: optional(places.source)?,
        })
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Column> {
        let Self { set, set_fallback, id, truncated, license, source, .. } = self;
        let optional = [set, set_fallback, id, truncated, license, source];
        std::iter::once(&mut self.text).chain(optional.into_iter().flatten())
    }

    fn skip(&mut self, rows: u64) -> Result<(), ParquetError> {
        self.all().try_for_each(|column| column.skip(rows))
    }

    fn read(&mut self, number: u64) -> Result<Entry, ParquetError> {
        let bad = |reason, found| Ok(Entry::Bad { number, reason, found });
        // Every column moves on by a row, whatever becomes of the record.
        let text = self.text.read()?;
        let set = self.set.as_mut().map_or(Ok(Ok(None)), Column::read)?;
        let fallback = self.set_fallback.as_mut().map_or(Ok(Ok(None)), Column::read)?;
        let mut others = [const { None }; 4];
        let columns = [&mut self.id, &mut self.truncated, &mut self.license, &mut self.source];
        let mut flaw = None;
        for (value, column) in others.iter_mut().zip(columns) {
            let Some(column) = column else { continue };
            match column.read()? {
                Ok(read) => *value = read,
                Err(found) => flaw = Some(format!("column `{}`: {found}", column.name)),
            }
        }
        let set = match (set, fallback) {
            (Ok(set), Ok(fallback)) => set.or(fallback),
            (Err(found), _) | (_, Err(found)) => {
                flaw = Some(format!("the set's column: {found}"));
                None
            }
        };
        if let Some(flaw) = flaw {
            return bad(BadRecord::InvalidUtf8, flaw);
        }
        let [id, truncated, license, source] = others;
        let truncated = truncated.is_some_and(|portion| !portion.is_empty());
        match text {
            Ok(Some(text)) => Ok(Entry::Record(Record { number, text, id, set, license, source, truncated })),
            Ok(None) => bad(BadRecord::MissingText, "null".to_owned()),
            Err(found) => bad(BadRecord::InvalidUtf8, format!("the text: {found}")),
        }
    }
}

/// One column of one row group.
struct Column {
    name: String,
    values: Values,
    meaning: Meaning,
    /// The definition level at which a value is there and not null.
    present: i16,
    levels: Vec<i16>,
}

/// A column reader by the physical type of its values, with room for one.
enum Values {
    Boolean(Box<ColumnReaderImpl<BoolType>>, Vec<bool>),
    Int32(Box<ColumnReaderImpl<Int32Type>>, Vec<i32>),
    Int64(Box<ColumnReaderImpl<Int64Type>>, Vec<i64>),
    Int96(Box<ColumnReaderImpl<Int96Type>>, Vec<Int96>),
    Float(Box<ColumnReaderImpl<FloatType>>, Vec<f32>),
    Double(Box<ColumnReaderImpl<DoubleType>>, Vec<f64>),
    Bytes(Box<ColumnReaderImpl<ByteArrayType>>, Vec<ByteArray>),
    Fixed(Box<ColumnReaderImpl<FixedLenByteArrayType>>, Vec<FixedLenByteArray>),
}

/// Does `$body` with the reader and the room of whichever kind of `$values`.
macro_rules! with_values {
    ($values:expr, $reader:ident, $room:ident => $body:expr) => {
        match $values {
            Values::Boolean($reader, $room) => $body,
            Values::Int32($reader, $room) => $body,
            Values::Int64($reader, $room) => $body,
            Values::Int96($reader, $room) => $body,
            Values::Float($reader, $room) => $body,
            Values::Double($reader, $room) => $body,
            Values::Bytes($reader, $room) => $body,
            Values::Fixed($reader, $room) => $body,
        }
    };
}

impl Values {
    fn new(reader: ColumnReader) -> Self {
        match reader {
            ColumnReader::BoolColumnReader(reader) => Self::Boolean(Box::new(reader), Vec::new()),
            ColumnReader::Int32ColumnReader(reader) => Self::Int32(Box::new(reader), Vec::new()),
            ColumnReader::Int64ColumnReader(reader) => Self::Int64(Box::new(reader), Vec::new()),
            ColumnReader::Int96ColumnReader(reader) => Self::Int96(Box::new(reader), Vec::new()),
            ColumnReader::FloatColumnReader(reader) => Self::Float(Box::new(reader), Vec::new()),
            ColumnReader::DoubleColumnReader(reader) => Self::Double(Box::new(reader), Vec::new()),
            ColumnReader::ByteArrayColumnReader(reader) => Self::Bytes(Box::new(reader), Vec::new()),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => Self::Fixed(Box::new(reader), Vec::new()),
        }
    }
}

impl Column {
    fn new(reader: ColumnReader, descriptor: &ColumnDescriptor) -> Result<Self, ParquetError> {
        Ok(Self {
            name: descriptor.path().string(),
            values: Values::new(reader),
            meaning: meaning(descriptor).map_err(ParquetError::General)?,
            present: descriptor.max_def_level(),
            levels: Vec::new(),
        })
    }

    fn skip(&mut self, rows: u64) -> Result<(), ParquetError> {
        let rows = usize::try_from(rows).map_err(|_| too_few_rows())?;
        let skipped = with_values!(&mut self.values, reader, _room => reader.skip_records(rows)?);
        if skipped == rows { Ok(()) } else { Err(too_few_rows()) }
    }

    /// The next row's value as text; `None` for null. The inner error is a value that its type does not allow.
    fn read(&mut self) -> Result<Result<Option<String>, String>, ParquetError> {
        self.levels.clear();
        let levels = (self.present > 0).then_some(&mut self.levels);
        let rows = with_values!(&mut self.values, reader, room => {
            room.clear();
            reader.read_records(1, levels, None, room)?.0
        });
        if rows != 1 {
            return Err(too_few_rows());
        }
        let stored = match &self.values {
            Values::Boolean(_, room) => room.last().map(|&value| Stored::Boolean(value)),
            Values::Int32(_, room) => room.last().map(|&value| Stored::Int32(value)),
            Values::Int64(_, room) => room.last().map(|&value| Stored::Int64(value)),
            Values::Int96(_, room) => match room.last().map(Int96::data) {
                Some(&[low, high, day]) => Some(Stored::Int96([low, high, day])),
                _ => None,
            },
            Values::Float(_, room) => room.last().map(|&value| Stored::Float(value)),
            Values::Double(_, room) => room.last().map(|&value| Stored::Double(value)),
            Values::Bytes(_, room) => room.last().map(|value| Stored::Bytes(value.data())),
            Values::Fixed(_, room) => room.last().map(|value| Stored::Bytes(value.data())),
        };
        Ok(stored.map(|stored| parquet_value::text(self.meaning, stored)).transpose())
    }
}

fn too_few_rows() -> ParquetError {
    ParquetError::EOF("a column has fewer rows than the directory says".to_owned())
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
