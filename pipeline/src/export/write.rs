//! Files that are there whole or not at all, in three formats.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use xlstm_manifests::atomic::{AtomicFile, write_atomic};

use super::ExportedFile;
use crate::report::CommandError;

/// Writes a text file.
pub(super) fn text(path: &Path, text: &str) -> Result<ExportedFile, CommandError> {
    let written = write_atomic(path, text.as_bytes())?;
    Ok(ExportedFile { path: path.into(), size: written.size, sha256: written.sha256, records: None })
}

/// A table under construction.
pub(super) struct TableWriter {
    path: PathBuf,
    records: u64,
    writer: Writer,
}

enum Writer {
    Parquet(Box<ArrowWriter<AtomicFile>>),
    Stream(Box<StreamWriter<AtomicFile>>),
}

impl TableWriter {
    /// Starts a Parquet file, compressed with zstd.
    pub(super) fn parquet(path: PathBuf, schema: SchemaRef) -> Result<Self, CommandError> {
        let level = ZstdLevel::try_new(3).map_err(|error| parquet_error(&path, error))?;
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
        let writer = ArrowWriter::try_new(AtomicFile::create(&path)?, schema, Some(properties))
            .map_err(|error| parquet_error(&path, error))?;
        Ok(Self { path, records: 0, writer: Writer::Parquet(Box::new(writer)) })
    }

    /// Starts an Arrow stream, uncompressed, so that it can be mapped.
    pub(super) fn stream(path: PathBuf, schema: &SchemaRef) -> Result<Self, CommandError> {
        let writer = StreamWriter::try_new(AtomicFile::create(&path)?, schema)
            .map_err(|error| arrow_error(&path, error))?;
        Ok(Self { path, records: 0, writer: Writer::Stream(Box::new(writer)) })
    }

    /// Appends a batch.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), CommandError> {
        self.records += batch.num_rows() as u64;
        match &mut self.writer {
            Writer::Parquet(writer) => writer.write(batch).map_err(|error| parquet_error(&self.path, error)),
            Writer::Stream(writer) => writer.write(batch).map_err(|error| arrow_error(&self.path, error)),
        }
    }

    /// Makes the file durable and visible.
    pub(super) fn finish(self) -> Result<ExportedFile, CommandError> {
        let path = self.path;
        let mut file = match self.writer {
            Writer::Parquet(writer) => writer.into_inner().map_err(|error| parquet_error(&path, error))?,
            Writer::Stream(writer) => writer.into_inner().map_err(|error| arrow_error(&path, error))?,
        };
        file.flush()?;
        let written = file.commit()?;
        Ok(ExportedFile { path, size: written.size, sha256: written.sha256, records: Some(self.records) })
    }
}

fn arrow_error(path: &Path, error: ArrowError) -> CommandError {
    match error {
        ArrowError::IoError(_, io) => {
            let text = format!("cannot write `{}`: {io}", path.display());
            CommandError::Io(std::io::Error::new(io.kind(), text))
        }
        other => CommandError::Internal(format!("`{}`: {other}", path.display())),
    }
}

fn parquet_error(path: &Path, error: ParquetError) -> CommandError {
    match error {
        // Wraps what the file said, a full disk for one.
        ParquetError::External(source) => {
            CommandError::Io(std::io::Error::other(format!("cannot write `{}`: {source}", path.display())))
        }
        other => CommandError::Internal(format!("`{}`: {other}", path.display())),
    }
}
