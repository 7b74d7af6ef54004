//! Files that are missing, empty, extra, exchanged or damaged.

use super::*;

#[test]
fn every_deleted_file_is_missed() {
    let count = build(&Recipe::packed()).files().len();
    for index in 0..count {
        let built = build(&Recipe::packed());
        let path = built.files()[index].clone();
        fs_err::remove_file(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(findings(&built).iter().any(|finding| finding.file == name), "{name}");
    }
}

#[test]
fn empty_files_are_as_wrong_as_missing_ones() {
    let count = build(&Recipe::packed()).files().len();
    for index in 0..count {
        let built = build(&Recipe::packed());
        let path = built.files()[index].clone();
        fs_err::write(&path, "").unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(findings(&built).iter().any(|finding| finding.file == name), "{name}");
    }
}

#[test]
fn extra_files_are_named_but_for_the_pointer_to_the_inputs() {
    let built = build(&Recipe::packed());
    fs_err::write(built.split().join(".inputs"), "somewhere\n").unwrap();
    assert_eq!(findings(&built), []);
    fs_err::create_dir(built.split().join("sub")).unwrap();
    fs_err::write(built.split().join("sub/notes.txt"), "x").unwrap();
    fs_err::write(built.split().join("shard-00009.arrow.partial"), "x").unwrap();
    fs_err::create_dir(built.split().join(".work")).unwrap();
    fs_err::write(built.split().join(".work/journal"), "x").unwrap();
    assert_found(&built, ".work", Check::Extra);
    assert_found(&built, "sub/notes.txt", Check::Extra);
    assert_found(&built, "shard-00009.arrow.partial", Check::Extra);
}

#[test]
fn swapped_shards_are_both_named() {
    let built = build(&Recipe::packed());
    let [a, b, c] = ["shard-00000.arrow", "shard-00001.arrow", "c"].map(|name| built.split().join(name));
    for (from, to) in [(&a, &c), (&b, &a), (&c, &b)] {
        fs_err::rename(from, to).unwrap();
    }
    assert_found(&built, "shard-00000.arrow", Check::Digest);
    assert_found(&built, "shard-00001.arrow", Check::Digest);
    // Also when the manifest is made to agree with the swap.
    let mut manifest = built.manifest();
    let (first, second) = (manifest.shards[0].tokens_root, manifest.shards[1].tokens_root);
    (manifest.shards[0].tokens_root, manifest.shards[1].tokens_root) = (second, first);
    built.seal(manifest);
    assert_found(&built, MANIFEST_NAME, Check::TokensRoot);
    assert_found(&built, "shard-00000.arrow", Check::Separators);
}

/// Rewrites the spans of shard `number` and hides it: digests, counts and `documents_root` are made anew.

#[test]
fn damage_in_one_file_is_blamed_on_no_other() {
    let count = build(&Recipe::packed()).files().len();
    for index in 0..count {
        let built = build(&Recipe::packed());
        let path = built.files()[index].clone();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.ends_with(".arrow") {
            continue;
        }
        let mut bytes = fs_err::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs_err::write(&path, bytes).unwrap();
        let found = findings(&built);
        assert!(!found.is_empty() && found.iter().all(|finding| finding.file == name), "{name}: {found:#?}");
    }
}
