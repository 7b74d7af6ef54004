//! What is stored is compared with what it is said to be.

use xlstm_tests::program::files;

use super::*;

#[test]
fn a_trace_and_a_diff_tell_altered_shards() {
    let folders = Folders::new(&[("a.txt", b"some words to be found again"), ("b.txt", b"and more of them")]);
    folders.prepare(&[]).success();
    let copy = folders.path("copy");
    fs_err::create_dir(&copy).unwrap();
    for (name, bytes) in files(&folders.split()) {
        fs_err::write(copy.join(name), bytes).unwrap();
    }
    assert_says(&data(["diff", text(&folders.split()), text(&copy)]).success(), &["The same tokens"]);
    let shard = folders.split().join("shard-00000.arrow");
    let mut bytes = fs_err::read(&shard).unwrap();
    let tokens: Vec<u8> = Dataset::open(&copy).unwrap().row(0).unwrap().ids[..4]
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    let at = bytes.windows(8).position(|window| window == tokens).unwrap();
    bytes[at] ^= 1;
    fs_err::write(&shard, &bytes).unwrap();
    let ran = data(["diff", text(&folders.split()), text(&copy)]);
    assert_says(&ran.stdout, &["shard-00000.arrow", "altered"]);
    assert_eq!(ran.code, Some(1));
    let alone = data(["diff", text(&folders.split()), text(&copy), "--manifests-only"]).success();
    assert_says(&alone, &["By their manifests alone"]);
    let ran = data(["trace", text(&folders.split()), "--row", "0", "--token", "0"]);
    assert_says(&ran.stdout, &["shards were altered", "xlstm-data audit"]);
    assert_eq!(ran.code, Some(1));
    // No line may name one digest as expected and as found.
    for line in ran.stdout.lines().filter(|line| line.contains("expected") && line.contains("found")) {
        let words = line.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() >= 16);
        let digests: Vec<_> = words.collect();
        let distinct: std::collections::BTreeSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len(), "{line}");
    }
}

#[test]
fn a_step_that_a_run_does_not_have_is_refused() {
    let folders = Folders::new(&[("a.txt", b"some words for a step")]);
    folders.prepare(&[]).success();
    let (run_folder, split) = (folders.path("run"), folders.split());
    fs_err::create_dir(&run_folder).unwrap();
    let root = folders.manifest().root;
    let program = serde_json::json!({
        "name": "xlstm-train", "version": "0", "commit": "unknown", "binary_sha256": null, "libtorch": "2",
        "kernels": "cpu",
    });
    let manifest = serde_json::json!({
        "format": "xlstm-run", "version": 1, "validation": null, "initialization_seed": 1, "parameters": 1,
        "train": {"root": root, "path": split, "split": "train", "profile": "local", "rows": 1, "tokens": 6},
        "recipe": {"name": "test", "sha256": root},
        "order": {"algorithm": xlstm_manifests::order::ALGORITHM, "root": root, "seed": 1, "rows": 1,
            "rows_per_step": 1, "row_length": 2048, "tokens": 6},
        "program": program, "sessions": [],
    });
    fs_err::write(run_folder.join("run.json"), manifest.to_string()).unwrap();
    fs_err::write(run_folder.join("recipe.toml"), "[training]\nsteps = 200\n").unwrap();
    fs_err::write(run_folder.join("metrics.jsonl"), "{\"step\":10}\n{\"step\":20}\n").unwrap();
    let trace = |step: &str| data(["trace", "--run", text(&run_folder), "--step", step]);
    assert_says(&trace("20").success(), &["step 20"]);
    assert_says(&trace("21").failure(1), &["up to 20", "has recorded", "found step 21"]);
    assert_says(&trace("99999").failure(1), &["up to 200", "recipe", "found step 99999"]);
}

#[test]
fn an_export_replaces_no_shard_and_mixes_with_no_other_tables() {
    let folders = Folders::new(&[("a.txt", b"some words to be exported")]);
    folders.prepare(&[]).success();
    let before = files(&folders.split());
    for to in ["arrow-stream", "parquet"] {
        let error =
            data(["export", text(&folders.split()), "--to", to, "--out", text(&folders.split())]).failure(1);
        assert_says(&error, &["expected a folder without other tables", "a split", "another --out"]);
        assert_eq!(files(&folders.split()), before);
    }
    let table = folders.path("table");
    let export = || data(["export", text(&folders.split()), "--to", "parquet", "--out", text(&table)]);
    export().success();
    // The same tables again are the same; those of a larger split would be read along with them.
    export().success();
    fs_err::copy(table.join("shard-00000.parquet"), table.join("shard-00001.parquet")).unwrap();
    assert_says(&export().failure(1), &["`shard-00001.parquet`, which is not of this split"]);
    let empty = Folders::new(&[("a.txt", b"")]);
    empty.prepare(&[]).success();
    let said = data(["export", text(&empty.split()), "--to", "parquet", "--out", text(&empty.path("table"))]);
    assert_says(&said.success(), &["nothing was written: the split holds no document"]);
}

#[test]
fn nothing_that_counted_nothing_has_a_share() {
    let folders = Folders::new(&[(
        "a.txt",
        b"one two three four five six seven eight nine ten eleven twelve thirteen",
    )]);
    folders.prepare(&[]).success();
    let empty = Folders::new(&[("a.txt", b"")]);
    empty.prepare(&[]).success();
    let (full, nothing) = (folders.split(), empty.split());
    for (train, eval, side) in [(&full, &nothing, "evaluation"), (&nothing, &full, "training")] {
        let page = folders.path("page.html");
        let said = data(["overlap", text(train), text(eval), "--html", text(&page)]).success();
        assert_says(&said, &[&format!("nothing was compared: the {side} sets hold no document"), "–"]);
        let page = fs_err::read_to_string(page).unwrap();
        assert_says(&page, &["Nothing was compared"]);
        assert!(!page.contains("No overlap.") && !page.contains("NaN"));
    }
    let audit = data(["audit", text(&nothing), "--deep", "all", "--json"]).success();
    let audit: serde_json::Value = serde_json::from_str(&audit).unwrap();
    assert_eq!(audit["splits"][0]["deep"]["of"], 0);
    assert!(!audit.to_string().contains("NaN"));
}
