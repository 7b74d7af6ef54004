//! From the bytes of a record batch to its columns.
//!
//! A batch describes itself (offsets, lengths, counts), and that can say anything. So each column is gone through as its
//! type has it: a node for each array, and for each of its buffers the least size that its values need, compared with the
//! bytes that are there before anything is decoded or allocated; then the values themselves are validated (UTF-8, offsets
//! of lists, counts of nulls). What pyarrow refuses is refused here, and what pyarrow does not look at is not looked at:
//! the bitmap of a column without nulls, the place of a buffer without bytes, the magic at the head.

use std::ops::Range;

use arrow_array::{ArrayRef, RecordBatch, make_array};
use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_ipc::{Block, CompressionType, FieldNode, Message, MetadataVersion, root_as_message};
use arrow_schema::{DataType, Field, SchemaRef};

/// Rows of a batch, or values of a column in it, that no file of ours comes near.
const MAX_ROWS: i64 = 1 << 40;
/// All offsets in an Arrow file are multiples of it.
const ALIGNMENT: i64 = 8;
/// Stands for a length before a buffer that is not compressed in a compressed batch.
const NOT_COMPRESSED: i64 = -1;
/// Bytes of that length.
const PREFIX: usize = 8;

type Found<T> = std::result::Result<T, String>;

fn refuse<T>(found: impl Into<String>) -> Found<T> {
    Err(found.into())
}

/// Refuses blocks whose descriptions share bytes: thousands of them would be decoded from one.
pub(crate) fn check_blocks(blocks: &[Block]) -> Found<()> {
    let mut ranges: Vec<(i64, i64)> =
        blocks.iter().map(|block| (block.offset(), i64::from(block.metaDataLength()))).collect();
    ranges.sort_unstable();
    let apart = |pair: &[(i64, i64)]| pair[0].0.checked_add(pair[0].1).is_some_and(|end| end <= pair[1].0);
    if ranges.windows(2).all(apart) { Ok(()) } else { refuse("two that share bytes") }
}

/// A batch whose place in the file is known.
#[derive(Debug)]
pub(crate) struct Batch {
    description: Range<usize>,
    body: Buffer,
}

/// The batch at `block` of a file, which is given up to its footer.
pub(crate) fn locate(file: &Buffer, block: &Block) -> Found<Batch> {
    let (offset, metadata) = (block.offset(), i64::from(block.metaDataLength()));
    if [offset, metadata, block.bodyLength()].iter().any(|size| size % ALIGNMENT != 0) {
        return refuse("a record batch that is not aligned");
    }
    let whole = metadata.checked_add(block.bodyLength()).and_then(|length| range(offset, length, file.len()));
    let Some(description) =
        range(offset, metadata, file.len()).filter(|_| block.bodyLength() >= 0 && whole.is_some())
    else {
        return refuse("a record batch that leaves the file");
    };
    let message = message(&file[description.clone()])?;
    if message.version() < MetadataVersion::V4 {
        return refuse("a record batch of a version before 4");
    }
    // Never written here. An offset of 0 to it is nothing to one verifier and damage to another.
    if message.custom_metadata().is_some() {
        return refuse("a record batch with metadata of its own");
    }
    let end = i64::try_from(description.end).unwrap_or(i64::MAX);
    let Some(body) = range(end, message.bodyLength(), file.len()) else {
        return refuse("a record batch that leaves the file");
    };
    Ok(Batch { description, body: file.slice_with_length(body.start, body.len()) })
}

impl Batch {
    /// Bytes that its columns take once they are unpacked; 0 where nothing is compressed.
    pub(crate) fn unpacked(&self, file: &[u8], schema: &SchemaRef) -> Found<u64> {
        let message = message(&file[self.description.clone()])?;
        let mut walk = Walk::new(&message, &self.body, false)?;
        walk.columns(schema)?;
        Ok(walk.unpacked)
    }

    /// Its columns.
    pub(crate) fn decode(&self, file: &[u8], schema: &SchemaRef) -> Found<RecordBatch> {
        let message = message(&file[self.description.clone()])?;
        let mut walk = Walk::new(&message, &self.body, true)?;
        let columns = walk.columns(schema)?;
        RecordBatch::try_new(SchemaRef::clone(schema), columns).map_err(|error| error.to_string())
    }
}

/// `offset .. offset + length` where that lies below `end`.
fn range(offset: i64, length: i64, end: usize) -> Option<std::ops::Range<usize>> {
    let (offset, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
    let stop = offset.checked_add(length)?;
    (stop <= end).then_some(offset..stop)
}

/// A continuation marker and a length, or in old files the length alone, stand before the message.
fn message(description: &[u8]) -> Found<Message<'_>> {
    let (length, rest) = match description {
        [0xff, 0xff, 0xff, 0xff, a, b, c, d, rest @ ..] | [a, b, c, d, rest @ ..] => {
            (i32::from_le_bytes([*a, *b, *c, *d]), rest)
        }
        _ => return refuse("a record batch without a description"),
    };
    match usize::try_from(length) {
        Ok(length) if 0 < length && length <= rest.len() => {
            root_as_message(&rest[..length]).map_err(|error| error.to_string())
        }
        _ => refuse("a description longer than its place"),
    }
}

/// Goes through the nodes and buffers of a batch as its columns use them up.
struct Walk<'a> {
    rows: i64,
    nodes: Box<dyn Iterator<Item = &'a FieldNode> + 'a>,
    buffers: Box<dyn Iterator<Item = &'a arrow_ipc::Buffer> + 'a>,
    body: &'a Buffer,
    compressed: bool,
    /// Whether arrays are made, or sizes compared only.
    decode: bool,
    unpacked: u64,
}

impl<'a> Walk<'a> {
    fn new(message: &Message<'a>, body: &'a Buffer, decode: bool) -> Found<Self> {
        let Some(batch) = message.header_as_record_batch() else {
            return refuse("a message of another kind than a record batch");
        };
        let (Some(nodes), Some(buffers)) = (batch.nodes(), batch.buffers()) else {
            return refuse("a record batch without columns");
        };
        if !(0..=MAX_ROWS).contains(&batch.length()) {
            return refuse("a number of rows that cannot be");
        }
        if batch.variadicBufferCounts().is_some_and(|counts| !counts.is_empty()) {
            return refuse("columns of another type");
        }
        let compressed = batch.compression().map(|compression| compression.codec());
        if compressed.is_some_and(|codec| codec != CompressionType::ZSTD) {
            return refuse("values compressed otherwise than by zstd");
        }
        Ok(Self {
            rows: batch.length(),
            nodes: Box::new(nodes.into_iter()),
            buffers: Box::new(buffers.into_iter()),
            body,
            compressed: compressed.is_some(),
            decode,
            unpacked: 0,
        })
    }

    fn columns(&mut self, schema: &SchemaRef) -> Found<Vec<ArrayRef>> {
        let mut columns = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            let column = self.column(field, Some(self.rows))?;
            columns.extend(column.map(make_array));
        }
        Ok(columns)
    }

    /// One array, with those inside it; `rows` is how many values it must have, where that is known.
    fn column(&mut self, field: &Field, rows: Option<i64>) -> Found<Option<ArrayData>> {
        let name = field.name();
        let Some(node) = self.nodes.next() else { return refuse(format!("no column `{name}`")) };
        let (length, nulls) = (node.length(), node.null_count());
        if !(0..=MAX_ROWS).contains(&length) || rows.is_some_and(|rows| rows != length) {
            return refuse(format!("{length} values in column `{name}`"));
        }
        if !(0..=length).contains(&nulls) || (nulls > 0 && !field.is_nullable()) {
            return refuse(format!("{nulls} nulls among {length} values of column `{name}`"));
        }
        let validity = if nulls > 0 {
            Some(self.buffer(name, bits(length))?)
        } else {
            // Nobody looks at it.
            self.next_buffer(name)?;
            None
        };
        let mut buffers = Vec::new();
        let mut inside = None;
        match field.data_type() {
            DataType::Boolean => buffers.push(self.buffer(name, bits(length))?),
            DataType::Utf8 => {
                buffers.push(self.buffer(name, offsets(length))?);
                // How many bytes of text there are, only the offsets say: they are compared below.
                buffers.push(self.at_least(name, 0)?);
            }
            DataType::FixedSizeBinary(width) => {
                buffers.push(self.buffer(name, times(length, i64::from(*width)))?);
            }
            DataType::List(item) => {
                buffers.push(self.buffer(name, offsets(length))?);
                inside = self.column(item, None)?;
            }
            DataType::FixedSizeList(item, width) => {
                let Some(count) = length.checked_mul(i64::from(*width)) else {
                    return refuse(format!("{length} values in column `{name}`"));
                };
                inside = self.column(item, Some(count))?;
            }
            other => match other.primitive_width() {
                Some(width) => buffers.push(self.buffer(name, times(length, width as i64))?),
                None => return refuse(format!("column `{name}` of type {other}")),
            },
        }
        if !self.decode {
            return Ok(None);
        }
        let count = |number: i64| usize::try_from(number).unwrap_or(0);
        ArrayData::builder(field.data_type().clone())
            .len(count(length))
            .null_count(count(nulls))
            .null_bit_buffer(validity)
            .buffers(buffers)
            .child_data(inside.into_iter().collect())
            .align_buffers(true)
            .build()
            .map(Some)
            .map_err(|error| format!("column `{name}`: {error}"))
    }

    fn next_buffer(&mut self, name: &str) -> Found<&'a arrow_ipc::Buffer> {
        self.buffers.next().ok_or_else(|| format!("no bytes of column `{name}`"))
    }

    /// The first `needed` bytes of the next buffer: the decoder takes no part of a value behind them.
    fn buffer(&mut self, name: &str, needed: u64) -> Found<Buffer> {
        let bytes = self.at_least(name, needed)?;
        let needed = usize::try_from(needed).unwrap_or(usize::MAX);
        // Where nothing is decoded, what is compressed is empty here.
        Ok(if bytes.len() > needed { bytes.slice_with_length(0, needed) } else { bytes })
    }

    /// The next buffer, which must hold `needed` bytes; unpacked where arrays are made.
    fn at_least(&mut self, name: &str, needed: u64) -> Found<Buffer> {
        let place = self.next_buffer(name)?;
        let bytes = match place.length() {
            0 => Buffer::default(),
            length => {
                let Some(range) = range(place.offset(), length, self.body.len()) else {
                    return refuse(format!("bytes of column `{name}` outside their record batch"));
                };
                if place.offset() % ALIGNMENT != 0 {
                    return refuse(format!("bytes of column `{name}` that are not aligned"));
                }
                self.body.slice_with_length(range.start, range.len())
            }
        };
        let too_few = |found: u64| format!("{found} bytes of column `{name}`, which needs {needed}");
        if !self.compressed || bytes.is_empty() {
            return if bytes.len() as u64 >= needed { Ok(bytes) } else { Err(too_few(bytes.len() as u64)) };
        }
        let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
            return refuse(format!("compressed bytes of column `{name}` without their length"));
        };
        let found = match i64::from_le_bytes(*prefix) {
            NOT_COMPRESSED if rest.len() as u64 >= needed => return Ok(bytes.slice(PREFIX)),
            NOT_COMPRESSED => return Err(too_few(rest.len() as u64)),
            length => {
                u64::try_from(length).map_err(|_| format!("{length} compressed bytes of column `{name}`"))?
            }
        };
        if found < needed {
            return Err(too_few(found));
        }
        self.unpacked = self.unpacked.saturating_add(found);
        if self.decode { unpack(rest, found, name) } else { Ok(Buffer::default()) }
    }
}

/// Unpacks what says that it has `length` bytes; the sum of all lengths was found small enough.
fn unpack(bytes: &[u8], length: u64, name: &str) -> Found<Buffer> {
    let capacity = usize::try_from(length).map_err(|error| error.to_string())?;
    let values = zstd::bulk::decompress(bytes, capacity)
        .map_err(|error| format!("compressed bytes of column `{name}`: {error}"))?;
    if values.len() == capacity {
        return Ok(Buffer::from_vec(values));
    }
    refuse(format!("{} bytes of column `{name}` where {length} were compressed", values.len()))
}

/// Bytes of one bit for each value.
fn bits(length: i64) -> u64 {
    length.unsigned_abs().div_ceil(8)
}

/// Bytes of the offsets before, between and behind values; of none there need not be any.
fn offsets(length: i64) -> u64 {
    if length == 0 { 0 } else { times(length + 1, 4) }
}

fn times(length: i64, width: i64) -> u64 {
    length.unsigned_abs().saturating_mul(width.unsigned_abs())
}
