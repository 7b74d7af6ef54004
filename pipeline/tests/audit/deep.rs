//! `--deep` and `--text`: every token from its source again.

use std::collections::HashMap;

use xlstm_pipeline::tokenizer::Gpt2Tokenizer;

use super::edited::edit_rows;
use super::*;

pub(crate) fn deep(built: &Built, deep: Amount, edit: impl FnOnce(&mut AuditArgs)) -> AuditReport {
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

/// The place of two tokens of a row that can be cut between them in another way, and the two that come of it.
fn cut_otherwise(
    tokenizer: &Gpt2Tokenizer,
    ids: &HashMap<&[u8], u16>,
    row: &[u16],
) -> Option<(usize, [u16; 2])> {
    row.windows(2).enumerate().find_map(|(at, pair)| {
        let bytes = tokenizer.decode(pair);
        (!pair.contains(&50256)).then_some(())?;
        (1..bytes.len()).find_map(|cut| {
            let (head, tail) = bytes.split_at(cut);
            let other = [*ids.get(head)?, *ids.get(tail)?];
            (other != *pair).then_some((at, other))
        })
    })
}

#[test]
fn a_deep_audit_compares_ids_and_not_only_the_text_that_they_spell() {
    let tokenizer = Gpt2Tokenizer::new().unwrap();
    let ids: HashMap<&[u8], u16> =
        (0..50256).filter_map(|id| Some((tokenizer.token_bytes(id)?, id))).collect();
    let built = build(&Recipe::packed());
    let before = PackedShard::open(&built.split().join("shard-00001.arrow"), 64, 20).unwrap();
    let before = before.row(3).unwrap().tokens().to_vec();
    edit_rows(&built, |row, tokens| {
        if row == 3 {
            let (at, other) = cut_otherwise(&tokenizer, &ids, tokens).unwrap();
            tokens[at..at + 2].copy_from_slice(&other);
        }
    });
    let after = PackedShard::open(&built.split().join("shard-00001.arrow"), 64, 20).unwrap();
    let after = after.row(3).unwrap().tokens().to_vec();
    assert_ne!(before, after);
    assert_eq!(tokenizer.decode(&before), tokenizer.decode(&after));
    // As many tokens, the same text, and every digest made anew.
    assert!(audit(&AuditArgs { text: true, ..AuditArgs::new(vec![built.split()]) }).unwrap().clean);
    let found = deep(&built, Amount::All, |_| ());
    let deep: Vec<_> = found.splits[0].findings.iter().filter(|f| f.check == Check::Deep).collect();
    assert!(matches!(deep[..], [_]), "{found:#?}");
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
