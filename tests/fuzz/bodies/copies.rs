//! A list of copies, as `prepare --drop-duplicates` and `audit --duplicates` read it.

use xlstm_pipeline::duplicates::Copies;

pub(crate) fn run(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("copies.jsonl");
    fs_err::write(&path, data).expect("written");
    let Ok(copies) = Copies::load(&path) else { return };
    let digest = copies.selection().list_sha256;
    assert_eq!(digest, xlstm_manifests::Sha256Digest::of(data));
    let (others, _) = copies.of_other_inputs(&std::collections::BTreeSet::from(["a.jsonl"]));
    assert!(others <= copies.documents());
    let _ = copies.of_input("a.jsonl", &digest);
}
