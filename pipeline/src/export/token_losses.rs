//! A table of losses by token, as a model's evaluation writes it: one record a scored token, in stream order.
//!
//! ```text
//! document UInt64 · position UInt64 · context UInt32 · token UInt16 · loss Float64
//! alternatives FixedSizeList<Struct<token UInt16, loss Float64>, K>      likeliest first; left out where K is 0
//! ```
//! What the losses are of stands in the file's own metadata.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, Float64Array, RecordBatch, StructArray, UInt16Array, UInt32Array,
    UInt64Array,
};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};

use super::ExportedFile;
use super::tables::{field, internal};
use super::write::TableWriter;
use crate::report::CommandError;

/// Columns of some tokens, equally long but for the alternatives, of which each token has as many as the table says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenLosses {
    /// Number of the token's document in the split, from 0.
    pub document: Vec<u64>,
    /// Its place in the document, from 0.
    pub position: Vec<u64>,
    /// How many tokens the model had read of its context before.
    pub context: Vec<u32>,
    /// Its id.
    pub token: Vec<u16>,
    /// Its negative log-likelihood, nats.
    pub loss: Vec<f64>,
    /// The likeliest ids in its place, likeliest first.
    pub alternatives: Vec<u16>,
    /// Their negative log-likelihoods, nats.
    pub alternative_losses: Vec<f64>,
}

/// A table under construction; nothing of it is seen before it is finished.
pub struct TokenLossTable {
    schema: SchemaRef,
    alternatives: i32,
    writer: TableWriter,
}

impl TokenLossTable {
    /// Begins the Parquet file `path`, with so many alternatives for each token.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(
        path: &Path,
        alternatives: usize,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self, CommandError> {
        let alternatives = i32::try_from(alternatives).map_err(internal)?;
        let mut fields = vec![
            field("document", DataType::UInt64),
            field("position", DataType::UInt64),
            field("context", DataType::UInt32),
            field("token", DataType::UInt16),
            field("loss", DataType::Float64),
        ];
        if alternatives > 0 {
            fields.push(field("alternatives", DataType::FixedSizeList(alternative(), alternatives)));
        }
        let metadata: HashMap<String, String> = metadata.into_iter().collect();
        let schema = Arc::new(Schema::new(fields).with_metadata(metadata));
        let writer = TableWriter::parquet(path.into(), schema.clone())?;
        Ok(Self { schema, alternatives, writer })
    }

    /// Appends tokens.
    ///
    /// # Errors
    /// When the disk is full, or columns differ in length.
    pub fn write(&mut self, tokens: TokenLosses) -> Result<(), CommandError> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(tokens.document)),
            Arc::new(UInt64Array::from(tokens.position)),
            Arc::new(UInt32Array::from(tokens.context)),
            Arc::new(UInt16Array::from(tokens.token)),
            Arc::new(Float64Array::from(tokens.loss)),
        ];
        if self.alternatives > 0 {
            let parts: Vec<ArrayRef> = vec![
                Arc::new(UInt16Array::from(tokens.alternatives)),
                Arc::new(Float64Array::from(tokens.alternative_losses)),
            ];
            let values: Arc<dyn Array> =
                Arc::new(StructArray::try_new(alternative_fields(), parts, None).map_err(internal)?);
            let list = FixedSizeListArray::try_new(alternative(), self.alternatives, values, None);
            columns.push(Arc::new(list.map_err(internal)?));
        }
        self.writer.write(&RecordBatch::try_new(self.schema.clone(), columns).map_err(internal)?)
    }

    /// Makes the file durable and visible.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn finish(self) -> Result<ExportedFile, CommandError> {
        self.writer.finish()
    }
}

fn alternative_fields() -> Fields {
    Fields::from(vec![field("token", DataType::UInt16), field("loss", DataType::Float64)])
}

fn alternative() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(alternative_fields()), false))
}
