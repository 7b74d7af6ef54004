//! `xlstm-eval results`: a folder of runs and sweeps becomes a page, whatever the folders are called; what was altered is said.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results")
}

fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs_err::copy(&path, &to).unwrap();
        }
    }
}

/// Three runs of Table 1's small twin and a sweep, under other names.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let table = committed().join("table1-small");
    for run in ["1to0-seed0", "llama-seed0", "rwkv6-seed0"] {
        copy(&table.join("runs").join(run), &folder.path().join("tonight/models").join(run));
    }
    copy(&table.join("text"), &folder.path().join("tonight/text"));
    copy(&committed().join("sweeps/parity-small"), &folder.path().join("parity"));
    fs_err::remove_file(folder.path().join("parity/README.md")).unwrap();
    fs_err::write(folder.path().join("tonight/summary.txt"), "Words of <people>.\n\nMore\nof them.\n")
        .unwrap();
    folder
}

fn results(folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xlstm-eval")).arg("results").arg(folder).output().unwrap()
}

fn page(folder: &Path) -> String {
    let output = results(folder);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs_err::read_to_string(folder.join("index.html")).unwrap()
}

#[test]
fn folders_of_any_name_become_sections_with_links_and_orders() {
    let folder = folder();
    let page = page(folder.path());
    // The paper: xLSTM[1:0], Llama, RWKV-6; here RWKV-6, xLSTM[1:0], Llama.
    let said = "Of 3 pairs that the paper orders, 1 come out as there, 2 the other way, 0 cannot be told apart. \
                Kendall&#39;s τ of the two orders is -0.33";
    assert!(page.contains(said), "{page}");
    assert!(page.contains("<p>Words of &lt;people&gt;.</p>\n<p>More of them.</p>"), "{page}");
    let link = "href=\"./tonight/models/llama-seed0/evaluations/validation/report.json\"";
    assert!(page.contains(link) && page.contains("Not run: xLSTM[7:1], GLA"), "{page}");
    assert!(page.contains("the figures of all 2 runs are those of the runs&#39; own files"), "{page}");
    assert!(page.contains("holds.") && !page.contains("broken."), "{page}");
    assert!(page.contains("PALOMA, 16 sources and 571 domains") && page.contains("id=\"not-run\""), "{page}");
}

#[test]
fn what_was_altered_is_said_or_refused() {
    let folder = folder();
    let run = folder.path().join("tonight/models/llama-seed0");
    let recipe = run.join("recipe.toml");
    let text = fs_err::read_to_string(&recipe).unwrap();
    fs_err::write(&recipe, text.replace("learning_rate = 0.0015", "learning_rate = 0.0016")).unwrap();
    let altered = page(folder.path());
    assert!(altered.contains("broken.") && altered.contains("expected SHA-256"), "{altered}");

    // A figure of a document that is not its report's, and a figure of a sweep that is not its run's.
    let documents = run.join("evaluations/validation/documents.csv");
    let text = fs_err::read_to_string(&documents).unwrap();
    fs_err::write(&documents, text.lines().take(100).map(|line| format!("{line}\n")).collect::<String>())
        .unwrap();
    let output = results(folder.path());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("documents.csv"), "{error}");
    fs_err::write(&documents, text).unwrap();

    let runs = folder.path().join("parity/runs");
    let run = fs_err::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    fs_err::write(run.join("sweep-accuracy.json"), "{\"step\":300,\"validation\":1.0,\"test\":0.25}")
        .unwrap();
    let output = results(folder.path());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("sweep-accuracy.json") && error.contains("0.25"), "{error}");
}

/// A run of Table 1's small twin under the name of another recipe, with another size and this validation loss.
fn renamed(folder: &Path, recipe: &str, parameters: u64, loss: f64) {
    let run = folder.join("sizes/runs").join(recipe.replace('/', "-"));
    copy(&committed().join("table1-small/runs/1to0-seed0"), &run);
    fs_err::remove_dir_all(run.join("evaluations/test")).unwrap();
    let change = |name: &str, pairs: &[(&str, String)]| {
        let path = run.join(name);
        let mut text = fs_err::read_to_string(&path).unwrap();
        for (old, new) in pairs {
            assert!(text.contains(old), "{name}: {old}");
            text = text.replacen(old, new, 1);
        }
        fs_err::write(&path, text).unwrap();
    };
    change("recipe.toml", &[("table1-small/1to0", recipe.into())]);
    change("run.json", &[("\"parameters\": 77390464", format!("\"parameters\": {parameters}"))]);
    let path = run.join("evaluations/validation/report.json");
    let mut report: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    report["run"]["recipe"]["name"] = recipe.into();
    report["results"]["total"]["loss"] = loss.into();
    report["results"]["total"]["perplexity"] = loss.exp().into();
    fs_err::write(&path, report.to_string()).unwrap();
    fs_err::remove_file(run.join("evaluations/validation/documents.csv")).unwrap();
    // The same model on longer contexts.
    let lengths: Vec<serde_json::Value> = [2048_u64, 16_384]
        .iter()
        .map(|length| {
            let perplexity = loss.exp() * (*length as f64 / 2048.0).powf(0.1);
            let nll = perplexity.ln() * 1000.0;
            serde_json::json!({"length": length, "contexts": 1, "tokens": 1000, "nll": nll, "perplexity": perplexity,
                "perplexity_interval": null})
        })
        .collect();
    report["results"] = serde_json::json!({"kind": "extrapolation", "text": "stream", "trained_length": 2048, "lengths": lengths,
        "positions": []});
    let longer = run.join("evaluations/longer");
    fs_err::create_dir_all(&longer).unwrap();
    fs_err::write(longer.join("report.json"), report.to_string()).unwrap();
}

#[test]
fn sizes_and_longer_contexts_are_found_by_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    // Perplexity as the size to the power of −0.1.
    for (size, parameters) in [("5m", 5_000_000_u64), ("25m", 25_000_000), ("125m", 125_000_000)] {
        for (method, best) in [("1to0", 4.0), ("llama", 4.2)] {
            let loss = best - 0.1 * (parameters as f64 / 5e6).ln();
            renamed(folder.path(), &format!("scaling-small/{size}-{method}"), parameters, loss);
        }
    }
    let page = page(folder.path());
    assert!(page.contains("Best at the smallest size: xLSTM[1:0]; at the largest: xLSTM[1:0]."), "{page}");
    let exponents = "Exponents: Llama -0.100 (-0.100 to -0.100), xLSTM[1:0] -0.100 (-0.100 to -0.100).";
    assert!(page.contains(exponents), "{page}");
    // 8^0.1 at eight times the trained length.
    assert!(
        page.contains("Perplexity at the longest context over that at the trained one: ")
            && page.contains(" 1.23"),
        "{page}"
    );
    assert!(page.contains("337.83") && page.contains("xLSTM[1:0] 125M"), "{page}");
}
