//! `audit`: an intact dataset passes; whatever is changed in one is found, and the file named.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on should stop"
)]

mod datasets;

use std::path::Path;
use std::sync::OnceLock;

use datasets::{Built, Recipe, build};
use proptest::prelude::*;
use xlstm_manifests::checksums::CHECKSUMS_NAME;
use xlstm_manifests::manifest::{MANIFEST_NAME, VERSION};
use xlstm_manifests::merkle::MerkleTree;
use xlstm_manifests::packed::{PackedShard, PackedWriter, tokens_leaf};
use xlstm_manifests::spans::{self, Span, SpansFile, document_leaf};
use xlstm_manifests::{Manifest, Sha256Digest};
use xlstm_pipeline::audit::{Amount, AuditArgs, AuditReport, Check, Finding, audit, run};

fn report(path: &Path) -> AuditReport {
    audit(&AuditArgs::new(vec![path.into()])).unwrap()
}

fn findings(built: &Built) -> Vec<Finding> {
    let report = report(&built.split());
    assert_eq!(report.clean, report.splits[0].findings.is_empty());
    report.splits[0].findings.clone()
}

/// The audit must blame exactly this file for this.
#[track_caller]
fn assert_found(built: &Built, file: &str, check: Check) {
    let found = findings(built);
    assert!(found.iter().any(|f| f.file == file && f.check == check), "{file} {check:?} not in {found:#?}");
}

#[test]
fn an_intact_dataset_passes_and_is_summed_up() {
    for recipe in [Recipe::packed(), Recipe::documents()] {
        let built = build(&recipe);
        let report = report(&built.split());
        assert!(report.clean, "{report:#?}");
        let split = &report.splits[0];
        let manifest = built.manifest();
        assert_eq!(split.checked.files, 2 * manifest.shards.len() as u64 + 1);
        assert_eq!(split.checked.shards, manifest.shards.len() as u64);
        let summary = split.summary.as_ref().unwrap();
        assert_eq!(summary.lengths.as_ref().unwrap().iter().sum::<u64>(), 42);
        assert_eq!(summary.sets.len(), 2);
        assert!((summary.sets.iter().map(|set| set.token_percent).sum::<f64>() - 100.0).abs() < 1e-9);
        // A parent folder and the manifest itself name the same split.
        for path in [built.split().parent().unwrap().to_owned(), built.split().join(MANIFEST_NAME)] {
            assert_eq!(audit(&AuditArgs::new(vec![path])).unwrap().splits[0].checked, split.checked);
        }
    }
}

fn shared(documents: bool) -> &'static Built {
    static PACKED: OnceLock<Built> = OnceLock::new();
    static DOCUMENTS: OnceLock<Built> = OnceLock::new();
    if documents {
        DOCUMENTS.get_or_init(|| build(&Recipe::documents()))
    } else {
        PACKED.get_or_init(|| build(&Recipe::packed()))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_flipped_bit_anywhere_is_found_and_its_file_named(
        documents: bool,
        file: prop::sample::Index,
        at: prop::sample::Index,
        bit in 0u8..8,
    ) {
        let original = shared(documents);
        let files = original.files();
        let copy = tempfile::tempdir().unwrap();
        let victim = file.get(&files);
        for path in &files {
            let mut bytes = fs_err::read(path).unwrap();
            if path == victim {
                let position = at.index(bytes.len());
                bytes[position] ^= 1 << bit;
            }
            fs_err::write(copy.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
        let found = report(copy.path());
        let name = victim.file_name().unwrap().to_str().unwrap();
        prop_assert!(!found.clean);
        prop_assert!(
            found.splits[0].findings.iter().any(|finding| finding.file == name),
            "{name}: {:#?}", found.splits[0].findings
        );
    }

    #[test]
    fn any_truncation_is_found_and_its_file_named(
        documents: bool,
        file: prop::sample::Index,
        at: prop::sample::Index,
    ) {
        let original = shared(documents);
        let files = original.files();
        let copy = tempfile::tempdir().unwrap();
        let victim = file.get(&files);
        for path in &files {
            let mut bytes = fs_err::read(path).unwrap();
            if path == victim {
                bytes.truncate(at.index(bytes.len()));
            }
            fs_err::write(copy.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
        let found = report(copy.path());
        let name = victim.file_name().unwrap().to_str().unwrap();
        prop_assert!(found.splits[0].findings.iter().any(|finding| finding.file == name), "{name}: {found:#?}");
    }
}

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
fn edit_rows(built: &Built, edit: impl Fn(usize, &mut Vec<u16>)) {
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

#[test]
fn a_contradicting_manifest_is_named_whatever_its_digest_says() {
    let change = |edit: fn(&mut Manifest)| {
        let built = build(&Recipe::packed());
        let mut manifest = built.manifest();
        edit(&mut manifest);
        built.seal(manifest);
        built
    };
    let built = change(|m| m.inputs[0].counts.tokens += 1);
    assert_found(&built, MANIFEST_NAME, Check::Manifest);
    assert_found(&built, MANIFEST_NAME, Check::Counts);
    assert_found(&change(|m| m.sets[0].documents += 1), MANIFEST_NAME, Check::Counts);
    assert_found(&change(|m| m.shards[0].tokens -= 1), "shard-00000.arrow", Check::Counts);
    assert_found(&change(|m| m.shards[0].file.records -= 1), "shard-00000.arrow", Check::Format);
    assert_found(
        &change(|m| m.selection.exclude_sets = vec!["prose".into()]),
        "spans-00000.arrow",
        Check::Selection,
    );
    assert_found(
        &change(|m| {
            let fraction = "0.5".to_owned();
            m.selection.holdout = Some(xlstm_manifests::manifest::Holdout { fraction, held_out: true });
        }),
        "spans-00000.arrow",
        Check::Selection,
    );
}

#[test]
fn other_layouts_of_the_same_json_are_not_canonical() {
    let built = build(&Recipe::packed());
    let path = built.split().join(MANIFEST_NAME);
    let value: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    fs_err::write(&path, serde_json::to_vec(&value).unwrap()).unwrap();
    assert_found(&built, MANIFEST_NAME, Check::Canonical);
    assert_found(&built, MANIFEST_NAME, Check::Digest);
}

#[test]
fn a_newer_version_is_refused_and_says_what_to_do() {
    let built = build(&Recipe::packed());
    let mut manifest = built.manifest();
    manifest.version = VERSION + 1;
    built.seal(manifest);
    let found = findings(&built);
    assert!(
        found.iter().any(|f| f.file == MANIFEST_NAME && f.message.contains("update xlstm-data")),
        "{found:#?}"
    );
}

#[test]
fn a_damaged_line_of_the_checksums_is_told_from_a_damaged_manifest() {
    let built = build(&Recipe::packed());
    let path = built.split().join(CHECKSUMS_NAME);
    let text = fs_err::read_to_string(&path).unwrap();
    let line = text.lines().find(|line| line.ends_with(MANIFEST_NAME)).unwrap();
    let other = if line.starts_with('0') { "1" } else { "0" };
    fs_err::write(&path, text.replace(line, &format!("{other}{}", &line[1..]))).unwrap();
    let found = findings(&built);
    assert_eq!(found.iter().map(|f| f.file.as_str()).collect::<Vec<_>>(), [CHECKSUMS_NAME], "{found:#?}");
}

#[test]
fn paths_that_name_no_split_say_what_to_name() {
    let empty = tempfile::tempdir().unwrap();
    for path in [empty.path().to_owned(), empty.path().join("nothing")] {
        let message = audit(&AuditArgs::new(vec![path])).unwrap_err().to_string();
        assert!(message.contains("--out"), "{message}");
    }
}

fn deep(built: &Built, deep: Amount, edit: impl FnOnce(&mut AuditArgs)) -> AuditReport {
    let mut args =
        AuditArgs { deep: Some(deep), inputs: Some(built.inputs()), ..AuditArgs::new(vec![built.split()]) };
    edit(&mut args);
    audit(&args).unwrap()
}

#[test]
fn a_deep_audit_derives_every_token_from_its_source_again() {
    for recipe in [Recipe::packed(), Recipe::documents()] {
        let built = build(&recipe);
        let report = deep(&built, Amount::All, |_| ());
        assert!(report.clean, "{report:#?}");
        let done = report.splits[0].deep.as_ref().unwrap();
        assert_eq!((done.documents, done.of, done.inputs), (42, 42, 3));
        let sampled = deep(&built, Amount::Documents(5), |_| ());
        assert_eq!(sampled.splits[0].deep.as_ref().unwrap().documents, 5);
        // `prepare` leaves a pointer to the inputs beside the split: nothing needs to be named then.
        let pointer = built.split().join("../.inputs");
        fs_err::write(pointer, format!("{}\n", built.inputs().display())).unwrap();
        assert!(deep(&built, Amount::All, |args| args.inputs = None).clean);
    }
}

#[test]
fn a_deep_audit_finds_what_no_digest_shows() {
    // The tokens of one document are exchanged and everything is sealed anew: only the source knows.
    let built = build(&Recipe::packed());
    edit_rows(&built, |row, tokens| {
        if row == 3 {
            let at = tokens.iter().position(|&id| id != 50256).unwrap();
            tokens[at] = if tokens[at] == 464 { 262 } else { 464 };
        }
    });
    assert!(report(&built.split()).clean);
    let found = deep(&built, Amount::All, |_| ());
    assert!(found.splits[0].findings.iter().any(|f| f.check == Check::Deep), "{found:#?}");
    // Decoding the tokens shows it without the source too.
    let args = AuditArgs { text: true, ..AuditArgs::new(vec![built.split()]) };
    let found = audit(&args).unwrap();
    assert!(found.splits[0].findings.iter().any(|f| f.check == Check::Text), "{found:#?}");
}

#[test]
fn tokens_spell_the_text_of_their_digests() {
    for recipe in [Recipe::packed(), Recipe::documents()] {
        let built = build(&recipe);
        let report = audit(&AuditArgs { text: true, ..AuditArgs::new(vec![built.split()]) }).unwrap();
        assert!(report.clean, "{report:#?}");
        assert_eq!(report.splits[0].text_documents, Some(42));
    }
}

#[test]
fn changed_and_missing_sources_are_named() {
    let built = build(&Recipe::packed());
    let path = built.inputs().join("part-1.jsonl");
    let bytes = fs_err::read(&path).unwrap();
    fs_err::write(&path, [&bytes[..], b"{}\n"].concat()).unwrap();
    fs_err::remove_file(built.inputs().join("part-2.jsonl")).unwrap();
    let report = deep(&built, Amount::All, |_| ());
    let found = &report.splits[0].findings;
    let message =
        |file: &str| &found.iter().find(|f| f.file == file && f.check == Check::Deep).unwrap().message;
    assert!(message("part-1.jsonl").contains("sha256"), "{found:#?}");
    assert!(message("part-2.jsonl").contains("--inputs"), "{found:#?}");
    assert_eq!(report.splits[0].deep.as_ref().unwrap().documents, 14);
}

#[test]
fn what_cannot_be_done_because_of_damage_is_said() {
    let built = build(&Recipe::packed());
    fs_err::remove_file(built.split().join("shard-00001.arrow")).unwrap();
    let report = deep(&built, Amount::All, |args| args.text = true);
    assert_eq!(report.splits[0].not_done.len(), 2);
}

#[test]
fn text_and_json_say_the_same() {
    let built = build(&Recipe::packed());
    fs_err::write(built.split().join("extra"), "x").unwrap();
    let mut args = AuditArgs::new(vec![built.split()]);
    let mut text = Vec::new();
    assert_eq!(run(&args, &mut text).unwrap().exit_code(), 1);
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("1 finding") && text.contains("extra [extra]"), "{text}");
    args.json = true;
    let mut json = Vec::new();
    assert_eq!(run(&args, &mut json).unwrap().exit_code(), 1);
    let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(value["clean"], false);
    assert_eq!(value["splits"][0]["findings"][0]["check"], "extra");
    assert_eq!(value["splits"][0]["summary"]["root"], built.manifest().root.to_string());
}

#[test]
fn the_page_holds_findings_and_figures_and_asks_no_server() {
    let built = build(&Recipe::packed());
    fs_err::write(built.split().join("<b>extra"), "x").unwrap();
    let html = built.folder.path().join("audit.html");
    let args = AuditArgs { html: Some(html.clone()), ..AuditArgs::new(vec![built.split()]) };
    assert_eq!(run(&args, &mut Vec::new()).unwrap().exit_code(), 1);
    let page = fs_err::read_to_string(html).unwrap();
    for part in
        ["&lt;b&gt;extra", "Tokens by set", "Lengths of documents", &built.manifest().root.to_string()]
    {
        assert!(page.contains(part), "{part}");
    }
    for forbidden in ["<b>", "http://", "https://", "src=", "url("] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    // One script, the page's own, which the policy names by its digest; nothing else may run or be loaded.
    assert!(page.contains("default-src 'none'; style-src 'unsafe-inline';"), "{page}");
    assert!(page.matches("<script").count() <= 1 && page.matches("script-src 'sha256-").count() <= 1);
    assert_eq!(page.matches("<script").count(), page.matches("script-src 'sha256-").count());
}

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

#[test]
fn one_tasks_part_can_be_audited_too() {
    let built = build(&Recipe::packed());
    let mut manifest = built.manifest();
    manifest.part = Some(xlstm_manifests::manifest::Part {
        index: 1,
        count: 3,
        plan: Sha256Digest::of(b"plan"),
        not_planned: 0,
    });
    built.seal(manifest);
    let report = deep(&built, Amount::All, |args| args.text = true);
    assert!(report.clean, "{report:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes that were changed by somebody who makes every digest anew reach the decoders: whatever they
    /// find, the audit ends with a report, and decoding everything is still guarded.
    #[test]
    fn damage_behind_right_digests_never_stops_the_audit(
        documents: bool,
        file: prop::sample::Index,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..6),
    ) {
        let recipe = if documents { Recipe::documents() } else { Recipe::packed() };
        let built = build(&Recipe { inputs: recipe.inputs[..1].to_vec(), ..recipe });
        let shards: Vec<_> =
            built.files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "arrow")).collect();
        let victim = file.get(&shards);
        let mut bytes = fs_err::read(victim).unwrap();
        for (at, bit) in flips {
            let position = at.index(bytes.len());
            bytes[position] ^= 1 << bit;
        }
        let manifest = built.manifest();
        fs_err::write(victim, bytes).unwrap();
        built.seal(manifest);
        let args = AuditArgs { text: true, ..AuditArgs::new(vec![built.split()]) };
        prop_assert_eq!(audit(&args).unwrap().splits.len(), 1);
    }
}
