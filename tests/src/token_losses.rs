//! Reads the table that `xlstm-eval losses` writes, with the library's own reader.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::collections::HashMap;
use std::path::Path;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float64Type, UInt16Type, UInt32Type, UInt64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// A record of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLoss {
    /// Number of its document.
    pub document: u64,
    /// Its place in the document.
    pub position: u64,
    /// Tokens of context before it.
    pub context: u32,
    /// Its id.
    pub token: u16,
    /// Its loss.
    pub loss: f64,
    /// Ids with their losses.
    pub alternatives: Vec<(u16, f64)>,
}

/// All records, and the file's metadata.
///
/// # Panics
/// When the file is no such table.
#[must_use]
pub fn read(path: &Path) -> (Vec<TokenLoss>, HashMap<String, String>) {
    let file = fs_err::File::open(path).unwrap().into_parts().0;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let metadata = builder.schema().metadata().clone().into();
    let mut records = Vec::new();
    for batch in builder.build().unwrap().map(Result::unwrap) {
        let column = |name: &str| batch.column_by_name(name).unwrap();
        for row in 0..batch.num_rows() {
            let alternatives = batch.column_by_name("alternatives").map(|lists| {
                let list = lists.as_fixed_size_list().value(row);
                let parts = list.as_struct();
                let tokens = parts.column(0).as_primitive::<UInt16Type>().values().to_vec();
                let losses = parts.column(1).as_primitive::<Float64Type>().values().to_vec();
                tokens.into_iter().zip(losses).collect()
            });
            records.push(TokenLoss {
                document: column("document").as_primitive::<UInt64Type>().value(row),
                position: column("position").as_primitive::<UInt64Type>().value(row),
                context: column("context").as_primitive::<UInt32Type>().value(row),
                token: column("token").as_primitive::<UInt16Type>().value(row),
                loss: column("loss").as_primitive::<Float64Type>().value(row),
                alternatives: alternatives.unwrap_or_default(),
            });
        }
    }
    (records, metadata)
}
