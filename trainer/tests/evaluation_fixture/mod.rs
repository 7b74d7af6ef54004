//! A PALOMA-shaped dataset from the loopback Hub, a tiny trained run, and the plain reference, made once for all tests.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};
use xlstm_tests::corpus::gzip_members;
use xlstm_tests::loopback_hub::LoopbackHub;
use xlstm_tests::program::{data_command, run};
use xlstm_trainer::model::{Model, ModelState, Placement, export, import};

pub(crate) use xlstm_trainer::evaluation::paper::SOURCES;

/// Words that are one token each, with a space before.
const WORDS: [&str; 8] = ["the", "of", "and", "to", "in", "is", "was", "for"];

pub(crate) struct Fixture {
    folder: tempfile::TempDir,
    pub(crate) train: PathBuf,
    pub(crate) paloma: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) commit: String,
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A text of `tokens` tokens.
fn words(seed: usize, tokens: usize) -> String {
    let word = |index: usize| WORDS[(index * index + 3 * index + seed + index / 7) % WORDS.len()];
    (0..tokens).map(word).collect::<Vec<_>>().join(" ")
}

/// Token numbers of each source's documents: every edge case of windows is in some source.
fn lengths(source: usize) -> Vec<usize> {
    match source {
        0 => vec![0, 1, 2, 2048],
        3 => vec![2049, 7],
        8 => vec![4100, 1, 30],
        11 => vec![2047, 300],
        _ => vec![5 + source, 40 - source, 1],
    }
}

fn paloma_files() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for (number, (source, _)) in SOURCES.iter().enumerate() {
        // mC4 has no domains, and is split by file.
        let numbered = *source == "mc4";
        let domains: &[&str] = match number {
            _ if numbered => &["", ""],
            number if number % 3 == 0 => &["alpha", "beta"],
            _ => &[""],
        };
        for (which, domain) in domains.iter().enumerate() {
            let mut lines = Vec::new();
            for (index, &tokens) in lengths(number).iter().enumerate() {
                if which == 1 && tokens > 100 {
                    continue;
                }
                let text = words(number * 31 + index * 7 + which, tokens);
                let mut line =
                    serde_json::json!({"text": text, "id": format!("{source}-{index}"), "source": source});
                if !domain.is_empty() {
                    line["subdomain"] = (*domain).into();
                }
                serde_json::to_writer(&mut lines, &line).unwrap();
                lines.push(b'\n');
            }
            let suffix = match *domain {
                "" if numbered => format!("-{which:08}"),
                "" => String::new(),
                domain => format!("_{domain}"),
            };
            files.push((format!("{source}/val/val{suffix}.jsonl.gz"), gzip_members(&lines, 1)));
        }
    }
    files
}

fn prepare_paloma(hub: &LoopbackHub, folder: &Path, out: &Path, sources: &[&str]) {
    let commit = hub.commit("allenai/paloma");
    let mut command = data_command(["prepare", "paloma", "--revision", &commit[..7], "--split", "val"]);
    command.args(["--out", text(out), "--quiet"]);
    for source in sources {
        command.args(["--source", source]);
    }
    command
        .env("HF_ENDPOINT", hub.endpoint())
        .env("HF_HOME", folder.join("home"))
        .env("HF_TOKEN", "hf_right");
    run(&mut command).success();
}

fn start_hub() -> LoopbackHub {
    LoopbackHub::builder().dataset("allenai/paloma", paloma_files()).gated("hf_right").start()
}

pub(crate) fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let hub = start_hub();
        prepare_paloma(&hub, path, &path.join("paloma"), &[]);
        let lines: String = (0..6)
            .map(|index| format!("{}\n", serde_json::json!({"text": words(index * 5, 900 + 37 * index)})))
            .collect();
        fs_err::write(path.join("train.jsonl"), lines).unwrap();
        let train = path.join("train");
        run(&mut data_command([
            "prepare",
            "local",
            text(&path.join("train.jsonl")),
            "--out",
            text(&train),
            "--quiet",
        ]))
        .success();
        let recipe = path.join("tiny.toml");
        fs_err::write(
            &recipe,
            "description = 'a tiny model of both kinds of block'
            [model]
            vocabulary_size = 50304
            embedding_dim = 16
            blocks = 2
            slstm_at = [1]
            [training]
            context_length = 2048
            tokens_per_step = 2048
            micro_batch_rows = 1
            steps = 4
            precision = 'float32'
            [optimizer]
            learning_rate = 3e-2
            [schedule]
            warmup_steps = 1
            [validation]
            every_steps = 0
            [checkpoint]
            every_steps = 4
            ",
        )
        .unwrap();
        let (train, runs) = (train.join("train"), path.join("run"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-train"));
        command.args(["--threads", "1", "--device", "cpu", "--manifest", text(&train)]);
        command.args(["--recipe", text(&recipe), "--out", text(&runs)]);
        run(&mut command).success();
        let (paloma, commit) = (path.join("paloma/validation"), hub.commit("allenai/paloma").to_string());
        Fixture { paloma, run: runs, train, commit, folder }
    })
}

/// `xlstm-eval COMMAND` on the fixture's run.
pub(crate) fn evaluate(command: &str, fixture: &Fixture) -> Command {
    evaluate_model(command, &fixture.run)
}

/// `xlstm-eval COMMAND` on a model.
pub(crate) fn evaluate_model(command: &str, model: &Path) -> Command {
    let mut evaluate = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    evaluate.args([command, text(model), "--threads", "1", "--device", "cpu"]);
    evaluate.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    evaluate
}

/// Negative log-likelihood of `targets` after the last inputs, one token at a time through carried states, in float64.
pub(crate) fn reference(model: &Model, inputs: &[i64], targets: &[i64]) -> Vec<f64> {
    let _guard = tch::no_grad_guard();
    let mut state: Option<ModelState> = None;
    let mut hidden = Vec::new();
    for &id in inputs {
        let token = Tensor::from_slice(&[id]).view([1, 1]);
        let (output, next) = model.forward(&token, state.as_ref(), None).unwrap();
        hidden.push(output.view([1, -1]));
        state = Some(next);
    }
    let scored = &hidden[inputs.len() - targets.len()..];
    let mut losses = Vec::new();
    for (hidden, targets) in scored.chunks(256).zip(targets.chunks(256)) {
        let logits = model.logits(&Tensor::cat(hidden, 0)).unwrap();
        assert_eq!(logits.kind(), Kind::Double);
        let log_probabilities = logits.log_softmax(1, Kind::Double);
        let chosen = log_probabilities.gather(1, &Tensor::from_slice(targets).unsqueeze(1), false);
        losses.extend(Vec::<f64>::try_from(chosen.neg().view([-1])).unwrap());
    }
    losses
}

impl Fixture {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The file of the trained parameters.
    pub(crate) fn parameters(&self) -> PathBuf {
        self.run.join("checkpoints/step-00000004/model.safetensors")
    }

    /// The trained model in float64.
    pub(crate) fn model(&self) -> Model {
        let placement = Placement {
            device: Device::Cpu,
            kind: Kind::Double,
            products: None,
            activation_checkpointing: false,
        };
        import(&self.parameters(), placement).unwrap()
    }

    /// A dataset with these sources only.
    pub(crate) fn prepare_sources(&self, name: &str, sources: &[&str]) -> PathBuf {
        let out = self.path(name);
        prepare_paloma(&start_hub(), self.folder.path(), &out, sources);
        out
    }

    /// The trained parameters as a file by itself, one value changed.
    pub(crate) fn with_changed_parameter(&self, name: &str, parameter: &str, value: f64) -> PathBuf {
        let model = self.model();
        let found = model.parameters().iter().find(|one| one.name == parameter).unwrap();
        let mut tensor = found.tensor.detach().view([-1]).get(3);
        let _ = tch::no_grad(|| tensor.fill_(value));
        let path = self.path(name).with_extension("safetensors");
        export(&model, &path, 2048).unwrap();
        path
    }

    /// An untrained model of 64 ids.
    pub(crate) fn small_model(&self) -> PathBuf {
        let config = xlstm_manifests::recipe::XlstmConfig {
            vocabulary_size: 64,
            embedding_dim: 16,
            blocks: 1,
            slstm_at: vec![],
            ..xlstm_manifests::recipe::XlstmConfig::default()
        };
        let placement = Placement {
            device: Device::Cpu,
            kind: Kind::Float,
            products: None,
            activation_checkpointing: false,
        };
        let path = self.path("small.safetensors");
        export(&Model::new(&config.into(), placement, 1).unwrap(), &path, 2048).unwrap();
        path
    }

    /// A copy of a folder.
    pub(crate) fn copy(&self, folder: &Path, name: &str) -> PathBuf {
        let copy = self.path(name);
        for (path, content) in xlstm_tests::program::files(folder) {
            let path = copy.join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, content).unwrap();
        }
        copy
    }

    /// Changes one byte, `before_end` bytes before the last.
    pub(crate) fn flip_last_byte_but(&self, path: &Path, before_end: usize) {
        let mut content = fs_err::read(path).unwrap();
        let index = content.len() - 1 - before_end;
        content[index] ^= 1;
        fs_err::write(path, content).unwrap();
    }
}
