//! JSON lines: documents, and examples.

use xlstm_pipeline::sources::{Compression, Fields, Format, open, read_share};

pub(crate) fn run(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("file.jsonl");
    fs_err::write(&path, data).expect("written");
    let fields = Fields {
        text: "text".into(),
        set: Some("meta.set".into()),
        id: Some("id".into()),
        license: Some("license".into()),
        source: Some("source".into()),
        ..Fields::default()
    };
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        for format in [Format::JsonLines { compression }, Format::Text { compression }] {
            let Ok(mut reader) = open(&path, format, &fields, 0) else { continue };
            while let Some(Ok(_)) = reader.next_entry() {}
            let _ = read_share(&path, format, &fields, 100, &|| Box::new(|| {}), &mut |_| {});
        }
    }
}
