//! Spans and rows that were edited, with all digests made anew.

use super::*;

fn edit_spans(built: &Built, number: usize, edit: impl FnOnce(&mut Vec<Span>)) {
    let mut manifest = built.manifest();
    let mut edit = Some(edit);
    let mut documents = MerkleTree::new();
    for (index, shard) in manifest.shards.iter_mut().enumerate() {
        let path = shard.companion.path.under(&built.split());
        let mut list: Vec<Span> = SpansFile::open(&path, shard.companion.records).unwrap().iter().collect();
        if index == number {
            edit.take().unwrap()(&mut list);
            spans::write(&path, &list).unwrap();
            shard.companion.records = list.len() as u64;
        }
        for span in &list {
            documents.push(document_leaf(span.input, span.record, span.length, &span.digest));
        }
    }
    manifest.documents_root = documents.root();
    built.seal(manifest);
}

#[test]
fn spans_edited_with_all_digests_made_anew_are_still_found() {
    let file = "spans-00001.arrow";
    let edited = |edit: fn(&mut Vec<Span>)| {
        let built = build(&Recipe::packed());
        edit_spans(&built, 1, edit);
        built
    };
    assert_found(&edited(|spans| spans[1].offset ^= 1), file, Check::Spans);
    assert_found(&edited(|spans| spans[1].length += 1), file, Check::Spans);
    assert_found(&edited(|spans| spans[0].row = 0), file, Check::Spans);
    assert_found(&edited(|spans| spans.swap(1, 2)), file, Check::Spans);
    assert_found(&edited(|spans| spans[2].record = spans[1].record), file, Check::Spans);
    assert_found(&edited(|spans| spans[2].input = 77), file, Check::Spans);
    assert_found(&edited(|spans| spans[2].set = Some(9)), file, Check::Spans);
    assert_found(
        &edited(|spans| spans[2].set = Some(spans[2].set.unwrap() ^ 1)),
        MANIFEST_NAME,
        Check::Counts,
    );
    assert_found(&edited(|spans| spans[2].bytes += 1), MANIFEST_NAME, Check::Counts);
    // The border between two documents moved: counts by input agree, the separator does not.
    let moved = edited(|spans| {
        let i = (1..spans.len() - 1).find(|&i| spans[i].length > 3 && spans[i].offset < 60).unwrap();
        spans[i].length -= 1;
        spans[i + 1].length += 1;
        let start = spans[i + 1].row * 64 + u64::from(spans[i + 1].offset) - 1;
        (spans[i + 1].row, spans[i + 1].offset) = (start / 64, (start % 64) as u16);
    });
    let found = findings(&moved);
    assert!(found.iter().any(|finding| finding.check == Check::Separators), "{found:#?}");
}

#[test]
fn an_edited_digest_breaks_the_documents_root() {
    let built = build(&Recipe::packed());
    let root = built.manifest().documents_root;
    edit_spans(&built, 0, |spans| spans[0].digest = Sha256Digest::of(b"another text"));
    let mut manifest = built.manifest();
    manifest.documents_root = root;
    built.seal(manifest);
    assert_found(&built, MANIFEST_NAME, Check::DocumentsRoot);
}

/// Rewrites shard 1 with edited rows and hides it in every digest.
pub(crate) fn edit_rows(built: &Built, edit: impl Fn(usize, &mut Vec<u16>)) {
    let mut manifest = built.manifest();
    let mut whole = MerkleTree::new();
    for (number, shard) in manifest.shards.iter_mut().enumerate() {
        let path = shard.file.path.under(&built.split());
        let packed = PackedShard::open(&path, 64, shard.file.records).unwrap();
        let mut rows: Vec<Vec<u16>> =
            (0..packed.rows()).map(|row| packed.row(row).unwrap().tokens().to_vec()).collect();
        let mut tree = MerkleTree::new();
        if number == 1 {
            rows.iter_mut().enumerate().for_each(|(index, row)| edit(index, row));
            let mut writer = PackedWriter::create(&path, 64, xlstm_manifests::END_OF_TEXT).unwrap();
            rows.iter().for_each(|row| writer.push(row).unwrap());
            writer.finish().unwrap();
        }
        for row in &rows {
            tree.push(tokens_leaf(row));
            whole.push(tokens_leaf(row));
        }
        shard.tokens_root = tree.root();
    }
    manifest.tokens_root = whole.root();
    built.seal(manifest);
}

#[test]
fn rows_edited_with_all_digests_made_anew_are_still_found() {
    let file = "shard-00001.arrow";
    let edited = |edit: fn(usize, &mut Vec<u16>)| {
        let built = build(&Recipe::packed());
        edit_rows(&built, edit);
        built
    };
    assert_found(
        &edited(|row, tokens| {
            if row == 3 {
                tokens[5] = 50257
            }
        }),
        file,
        Check::Ids,
    );
    assert_found(
        &edited(|row, tokens| {
            if row == 3 {
                tokens[5] = 50256
            }
        }),
        file,
        Check::Separators,
    );
    assert_found(
        &edited(|row, tokens| {
            if row == 3 {
                tokens.truncate(63)
            }
        }),
        file,
        Check::Rows,
    );
    let missing = edited(|row, tokens| {
        if row == 3 {
            tokens.iter_mut().filter(|id| **id == 50256).for_each(|id| *id = 0);
        }
    });
    let untouched = build(&Recipe::packed());
    let had_one = PackedShard::open(&untouched.split().join(file), 64, 20).unwrap();
    if had_one.row(3).unwrap().tokens().contains(&50256) {
        assert_found(&missing, file, Check::Separators);
    }
}
