//! What an audit says, as text, JSON and a page.

use super::deep::deep;
use super::*;

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
fn one_tasks_part_can_be_audited_too() {
    let built = build(&Recipe::packed());
    let mut manifest = built.manifest();
    manifest.part = Some(xlstm_manifests::manifest::Part {
        met: None,
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
