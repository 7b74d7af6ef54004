//! Each link altered in turn, and named.

use super::*;

/// Changes the first occurrence of a text in a file.
fn replace(path: &Path, from: &str, to: &str) {
    let content = fs_err::read_to_string(path).unwrap();
    assert!(content.contains(from), "{}: no `{from}` in {content}", path.display());
    fs_err::write(path, content.replacen(from, to, 1)).unwrap();
}

/// Changes one bit in the middle of a file.
fn flip(path: &Path) {
    let mut content = fs_err::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs_err::write(path, content).unwrap();
}

#[test]
fn every_altered_link_is_named() {
    let fixture = whole_rows();
    let run = train(&fixture, "a", &[]);
    let told = succeed(&eval(&["verify"], &[&run]));
    assert!(told.contains(" 0 do not"), "{told}");
    let checkpoint = run.join("checkpoints/step-00000012");
    type Damage<'a> = (&'a str, PathBuf, &'a dyn Fn(&Path));
    let damages: [Damage; 14] = [
        ("checkpoint 12: model.safetensors", checkpoint.join("model.safetensors"), &flip),
        ("checkpoint 12: optimizer.safetensors", checkpoint.join("optimizer.safetensors"), &flip),
        ("checkpoint 12: state", checkpoint.join("state.json"), &|path| {
            replace(path, "\"tokens\": 2304", "\"tokens\": 2305");
        }),
        ("recipe", run.join("recipe.toml"), &|path| replace(path, "steps = 12", "steps = 13")),
        ("run manifest", run.join("run.json"), &|path| replace(path, "\"seed\": 42", "\"seed\": 43")),
        ("run manifest", run.join("run.json"), &|path| {
            replace(path, "\"parameters\": ", "\"parameters\": 1")
        }),
        ("training split: manifest", run.join("run.json"), &|path| {
            let content = fs_err::read_to_string(path).unwrap();
            let tokens = content.split("\"train\":").nth(1).unwrap().split("\"tokens\": ").nth(1).unwrap();
            let tokens: String = tokens.chars().take_while(char::is_ascii_digit).collect();
            let altered = format!("\"tokens\": {}", tokens.parse::<u64>().unwrap() + 1);
            fs_err::write(path, content.replace(&format!("\"tokens\": {tokens}"), &altered)).unwrap();
        }),
        ("metrics", run.join("metrics.jsonl"), &|path| replace(path, "\"perplexity\":", "\"perplexity\":1")),
        ("metrics", run.join("metrics.jsonl"), &|path| replace(path, "\"loss\":", "\"loss\":1")),
        ("metrics", run.join("metrics.jsonl"), &|path| {
            replace(path, "\"learning_rate\":0.005", "\"learning_rate\":0.006");
        }),
        ("training split: manifest", fixture.train.join("manifest.json"), &|path| {
            replace(path, "\"documents\": 60", "\"documents\": 61");
        }),
        ("training split: shards", fixture.train.join("shard-00000.arrow"), &flip),
        ("training split: shards", fixture.train.join("manifest-sha256.txt"), &|path| {
            let content = fs_err::read_to_string(path).unwrap();
            let shard = content.find("  shard").unwrap();
            let digit = if &content[shard - 1..shard] == "0" { "1" } else { "0" };
            fs_err::write(path, format!("{}{digit}{}", &content[..shard - 1], &content[shard..])).unwrap();
        }),
        ("validation split: shards", fixture.validation.join("spans-00000.arrow"), &flip),
    ];
    for (link, path, damage) in damages {
        let before = fs_err::read(&path).unwrap();
        damage(&path);
        assert_ne!(fs_err::read(&path).unwrap(), before, "{link}");
        let output = eval(&["verify"], &[&run]);
        let told = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{link}: {told}{}", text(&output.stderr));
        let named = told
            .lines()
            .any(|line| line.strip_prefix("FAILED       ").is_some_and(|rest| rest.starts_with(link)));
        assert!(named, "{link}, altered in {}: {told}", path.display());
        fs_err::write(&path, before).unwrap();
    }
    succeed(&eval(&["verify"], &[&run]));
}

#[test]
fn a_loss_altered_with_all_that_follows_from_it_is_found_by_computing_it_again() {
    let fixture = whole_rows();
    let run = train(&fixture, "a", &[]);
    let deep = |run: &Path| {
        let output = eval(&["verify", "--deep"], &[run]);
        text(&output.stdout)
    };
    let told = deep(&run);
    assert!(told.lines().any(|line| line.starts_with("ok           figure ")), "{told}");
    // The fixture's documents have no source file: that is said, and is another link.
    let path = run.join("metrics.jsonl");
    let content = fs_err::read_to_string(&path).unwrap();
    let lines = content.lines().map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        if line["kind"] == "validation" && line["step"] == 12 {
            let loss = line["loss"].as_f64().unwrap() - 0.01;
            (line["loss"], line["perplexity"]) = (loss.into(), loss.exp().into());
        }
        format!("{line}\n")
    });
    let altered: String = lines.collect();
    fs_err::write(&path, altered).unwrap();
    assert!(succeed(&eval(&["verify"], &[&run])).contains(" 0 do not"));
    let told = deep(&run);
    assert!(told.lines().any(|line| line.starts_with("FAILED       figure ")), "{told}");
}
