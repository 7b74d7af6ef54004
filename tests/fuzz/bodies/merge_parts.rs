//! A file of a part, put in the place of a sound one, its digest written anew; then both parts are merged. What is merged
//! although a byte differs is a part whose content is the same.

use std::path::Path;

use xlstm_manifests::manifest::MANIFEST_NAME;
use xlstm_manifests::{Manifest, Sha256Digest};
use xlstm_pipeline::merge::merge;

const PARTS: [[(&str, &[u8]); 3]; 2] = [
    [
        (MANIFEST_NAME, include_bytes!("../seeds/part-1/manifest.json")),
        ("shard-00000.arrow", include_bytes!("../seeds/part-1/shard-00000.arrow")),
        ("spans-00000.arrow", include_bytes!("../seeds/part-1/spans-00000.arrow")),
    ],
    [
        (MANIFEST_NAME, include_bytes!("../seeds/part-2/manifest.json")),
        ("shard-00000.arrow", include_bytes!("../seeds/part-2/shard-00000.arrow")),
        ("spans-00000.arrow", include_bytes!("../seeds/part-2/spans-00000.arrow")),
    ],
];

/// The sound file that `which` stands for.
#[allow(dead_code, reason = "the deterministic run begins with it")]
pub(crate) fn sound(which: u8) -> Vec<u8> {
    let mut data = vec![which];
    data.extend_from_slice(PARTS[0][usize::from(which) % 3].1);
    data
}

pub(crate) fn run(data: &[u8]) {
    let Some((&which, content)) = data.split_first() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folders = [folder.path().join("1"), folder.path().join("2")];
    for (folder, files) in folders.iter().zip(PARTS) {
        fs_err::create_dir_all(folder).expect("made");
        for (name, content) in files {
            fs_err::write(folder.join(name), content).expect("written");
        }
    }
    let (name, sound) = PARTS[0][usize::from(which) % 3];
    fs_err::write(folders[0].join(name), content).expect("written");
    if name != MANIFEST_NAME {
        seal(&folders[0], name, content);
    }
    let out = folder.path().join("out");
    if let Ok(merged) = merge(&folders, &out, false) {
        assert!(
            name == MANIFEST_NAME || merged.totals.documents == 6,
            "{} bytes were {}",
            content.len(),
            sound.len()
        );
    }
}

/// Writes the digest and size of a file into the part's manifest; its roots stay.
fn seal(folder: &Path, name: &str, content: &[u8]) {
    let path = folder.join(MANIFEST_NAME);
    let mut manifest = Manifest::load(&path).expect("a sound manifest");
    for shard in &mut manifest.shards {
        for file in [&mut shard.file, &mut shard.companion] {
            if file.path.as_str() == name {
                (file.size, file.sha256) = (content.len() as u64, Sha256Digest::of(content));
            }
        }
    }
    fs_err::write(path, manifest.to_bytes().expect("written anew")).expect("written");
}
