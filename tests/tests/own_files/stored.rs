//! What is stored is compared with what it is said to be.

use xlstm_tests::program::files;

use super::*;

#[test]
fn a_trace_and_a_diff_tell_altered_shards() {
    let place = Place::new(&[("a.txt", b"some words to be found again"), ("b.txt", b"and more of them")]);
    place.prepare(&[]).success();
    let copy = place.path("copy");
    fs_err::create_dir(&copy).unwrap();
    for (name, bytes) in files(&place.split()) {
        fs_err::write(copy.join(name), bytes).unwrap();
    }
    assert_says(&data(["diff", text(&place.split()), text(&copy)]).success(), &["The same tokens"]);
    let shard = place.split().join("shard-00000.arrow");
    let mut bytes = fs_err::read(&shard).unwrap();
    let tokens: Vec<u8> = Dataset::open(&copy).unwrap().row(0).unwrap().ids[..4]
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    let at = bytes.windows(8).position(|window| window == tokens).unwrap();
    bytes[at] ^= 1;
    fs_err::write(&shard, &bytes).unwrap();
    let ran = data(["diff", text(&place.split()), text(&copy)]);
    assert_says(&ran.stdout, &["shard-00000.arrow", "altered"]);
    assert_eq!(ran.code, Some(1));
    let alone = data(["diff", text(&place.split()), text(&copy), "--manifests-only"]).success();
    assert_says(&alone, &["By their manifests alone"]);
    let ran = data(["trace", text(&place.split()), "--row", "0", "--token", "0"]);
    assert_says(&ran.stdout, &["shards were altered", "xlstm-data audit"]);
    assert_eq!(ran.code, Some(1));
    for line in
        ran.stdout.lines().filter(|line| line.contains("expected sha256") && line.contains("found sha256"))
    {
        let digests: Vec<_> = line.split("sha256 ").skip(1).map(|rest| rest.get(..64)).collect();
        assert_ne!(digests[0], digests[1], "{line}");
    }
}

#[test]
fn a_step_that_a_run_does_not_have_is_refused() {
    let place = Place::new(&[("a.txt", b"some words for a step")]);
    place.prepare(&[]).success();
    let (run_folder, split) = (place.path("run"), place.split());
    fs_err::create_dir(&run_folder).unwrap();
    let root = place.manifest().root;
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
