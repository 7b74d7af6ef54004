//! A Parquet file, with every kind of field asked for.

use xlstm_pipeline::sources::{Fields, Format, open};

pub(crate) fn run(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("file.parquet");
    fs_err::write(&path, data).expect("written");
    let fields = Fields {
        text: "text".into(),
        set: Some("set".into()),
        id: Some("id".into()),
        license: Some("license".into()),
        ..Fields::default()
    };
    for from in [0, 3] {
        let Ok(mut reader) = open(&path, Format::Parquet, &fields, from) else { continue };
        // A file can say that it has any number of rows; each costs something.
        for _ in 0..100_000 {
            if !matches!(reader.next_entry(), Some(Ok(_))) {
                break;
            }
        }
    }
}
