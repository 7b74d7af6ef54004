//! An Arrow file: whoever reads it gets rows or an error.

use xlstm_manifests::arrow_file::ArrowFile;
use xlstm_manifests::documents::{self, DocumentShard};
use xlstm_manifests::examples::{self, ExampleShard};
use xlstm_manifests::packed::{self, PackedShard};
use xlstm_manifests::spans::{self, SpansFile};
use xlstm_manifests::stored::StoredRow;
use xlstm_manifests::vectors::{self, VectorShape, VectorShard};

/// Tokens in a row of the shards.
pub(crate) const ROW: u16 = 16;

pub(crate) fn run(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("file.arrow");
    fs_err::write(&path, data).expect("written");
    let rows = |schemas: &[_]| ArrowFile::open(&path, schemas).map(|file| file.rows()).ok();
    if let Some(rows) = rows(&[packed::schema(ROW)])
        && let Ok(shard) = PackedShard::open(&path, usize::from(ROW), rows)
    {
        (0..=shard.rows()).filter_map(|index| shard.row(index)).for_each(|row| {
            let _ = packed::tokens_leaf(row.tokens());
        });
    }
    if let Some(rows) = rows(&[examples::schema(ROW)])
        && let Ok(shard) = ExampleShard::open(&path, ROW, rows)
    {
        (0..=shard.rows()).filter_map(|index| shard.row(index)).for_each(|row| {
            let _ = (row.leaf(), row.digest(), row.scored(), row.complaint(ROW, 9));
        });
    }
    let shape = VectorShape { row_length: ROW, width: 3 };
    if let Some(rows) = rows(&[vectors::schema(shape)])
        && let Ok(shard) = VectorShard::open(&path, shape, rows)
    {
        (0..=shard.rows()).filter_map(|index| shard.row(index)).for_each(|row| {
            let _ = (StoredRow::Numbers(row).leaf(), row.targets().count(), row.complaint(shape));
        });
    }
    if let Some(rows) = rows(&[spans::schema(), spans::schema_with_provenance()])
        && let Ok(spans) = SpansFile::open(&path, rows)
    {
        assert_eq!(spans.iter().count(), spans.len());
    }
    if let Some(rows) = rows(&[documents::schema()])
        && let Ok(shard) = DocumentShard::open(&path, rows)
    {
        assert_eq!(shard.iter().count(), shard.len());
    }
    let _ = documents::read_windows(&path, 3);
}
