//! A JSON file that says it is a manifest of some kind.

use xlstm_manifests::Manifest;
use xlstm_manifests::run_manifest::RunManifest;

pub(crate) fn run(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("manifest.json");
    fs_err::write(&path, data).expect("written");
    if let Ok(manifest) = Manifest::load(&path) {
        let bytes = manifest.to_bytes().expect("what was read can be written");
        assert!(serde_json::from_slice::<Manifest>(&bytes).is_ok_and(|again| again == manifest));
        let _ = (manifest.duplicate_inputs(), manifest.data_files().count());
    }
    let _ = RunManifest::load(&path);
}
