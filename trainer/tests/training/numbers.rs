//! Rows of numbers: trained on with squared error, measured, stopped early, and refused where tokens are needed.

use xlstm_pipeline::tasks::written::TaskPlan;
use xlstm_pipeline::tasks::{self, Parameters, Range, Split};

use super::*;

/// Sequences of two to four vectors, and a recipe for them.
struct Numbers {
    fixture: Fixture,
    data: PathBuf,
}

/// Makes the splits of nearest-neighbor search below `out`.
fn prepare(out: &Path, streamed: bool) {
    let parameters = Parameters { length: Some(Range { min: 2, max: 4 }), ..Parameters::default() };
    let task = tasks::by_name("nearest-neighbor-search", 0, &parameters).unwrap();
    for (split, examples) in [(Split::Train, 2048), (Split::Validation, 256), (Split::Test, 200)] {
        let plan = TaskPlan::new(&*task, split, examples, 128).unwrap();
        let plan = if streamed { plan.streamed() } else { plan };
        plan.execute(out, 1, false).unwrap();
    }
}

impl Numbers {
    fn new() -> Self {
        let fixture = Fixture::new();
        let data = fixture.path("nearest");
        prepare(&data, false);
        Self { fixture, data }
    }

    /// Trains a variant of the small twin on short sequences.
    fn training(&self, run: &str, variant: &str, set: &[&str]) -> Command {
        let mut command = program();
        command.arg("--manifest").arg(&self.data).arg("--out").arg(self.fixture.path(run));
        command.arg("--recipe").arg(format!("figure2-nearest-small/{variant}"));
        let short = [
            "training.context_length=4",
            "training.tokens_per_step=256",
            "training.micro_batch_rows=64",
            "training.steps=6",
            "schedule.warmup_steps=2",
            "model.embedding_dim=16",
            "logging.every_steps=1",
            "logging.tensorboard=false",
        ];
        short.iter().chain(set).for_each(|text| {
            command.args(["--set", text]);
        });
        command
    }

    fn losses(&self, run: &str, kind: &str) -> Vec<f64> {
        lines(&self.fixture.path(run), kind).iter().map(|line| line.loss.unwrap()).collect()
    }

    fn evaluate(&self, command: &str, run: &str, manifest: &Path) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
        program.arg(command).arg(self.fixture.path(run)).arg("--manifest").arg(manifest);
        program.args(["--device", "cpu", "--threads", "1"]);
        program
    }
}

#[test]
fn a_model_of_numbers_learns_and_every_figure_is_a_squared_error() {
    let numbers = Numbers::new();
    let learning = ["training.steps=250", "training.dropout=0", "optimizer.learning_rate=1e-2"];
    succeed(&mut numbers.training("run", "0to1", &learning));
    let run = numbers.fixture.path("run");
    let measured = lines(&run, "validation");
    let (first, last) = (&measured[0], measured.last().unwrap());
    let variance = first.target_variance.unwrap();
    assert!((variance - 1.0 / 12.0).abs() < 0.02, "{first:?}");
    assert!(last.loss.unwrap() < 0.5 * variance, "a constant has {variance}: {last:?}");
    for line in measured.iter().chain(&lines(&run, "train")) {
        assert!(line.perplexity.is_none() && line.accuracy.is_none() && line.unigram_entropy.is_none());
    }

    // The report has the validation's own figure over the same rows, to the last digits that summing in another order
    // leaves.
    let split = numbers.data.join("validation");
    let out = numbers.fixture.path("report");
    let mut command = numbers.evaluate("squared-error", "run", &split);
    let report: Value =
        serde_json::from_slice(&succeed(command.arg("--out").arg(&out).arg("--json")).stdout).unwrap();
    let results = &report["results"];
    let number = |value: &Value| value.as_f64().unwrap();
    let total = number(&results["total"]["mean_squared_error"]);
    assert!((total / last.loss.unwrap() - 1.0).abs() < 1e-6, "{total} and {last:?}");
    assert!((number(&results["target_variance"]) - variance).abs() < 1e-12);
    let list = |name: &str| results[name].as_array().unwrap().clone();
    let firsts =
        |name: &str| list(name).iter().map(|line| line["first"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!((firsts("lengths"), firsts("positions")), (vec![2, 3, 4], vec![1, 2, 3]));
    let targets: u64 = list("positions").iter().map(|line| line["targets"].as_u64().unwrap()).sum();
    assert_eq!(Some(targets), last.tokens);
    assert_eq!(results["at_end"]["examples"], 256);
    // Of one candidate there is nothing to choose: the error grows with the position.
    let by_position: Vec<f64> =
        list("positions").iter().map(|line| number(&line["mean_squared_error"])).collect();
    assert!(by_position[0] < by_position[2], "{by_position:?}");
    let csv = fs_err::read_to_string(out.join("report.csv")).unwrap();
    assert!(csv.contains("position,1,1,,256,") && csv.contains("target_variance,"), "{csv}");
    let page = fs_err::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Mean squared error by position"), "the page has its plot");
    let verify = |path: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_xlstm-eval")).arg("verify").arg(path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(verify(&out).0, Some(0));
    let (code, said) = verify(&run);
    assert_eq!(code, Some(0), "{said}");
    let report_file = out.join("report.json");
    let altered = fs_err::read_to_string(&report_file).unwrap();
    let at = altered.find("\"mean_squared_error\": ").unwrap() + 22;
    fs_err::write(&report_file, format!("{}9{}", &altered[..at], &altered[at..])).unwrap();
    let (code, said) = verify(&out);
    assert!(code == Some(1) && said.contains("squared error"), "{said}");

    // Pages and texts about the run name the unit.
    let chain = succeed(Command::new(env!("CARGO_BIN_EXE_xlstm-train")).arg("chain").arg(&run)).stdout;
    let chain = String::from_utf8(chain).unwrap();
    assert!(chain.contains("mean squared error") && chain.contains("variance of the targets"), "{chain}");
    let page = numbers.fixture.path("run.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    succeed(command.arg("report").arg(&run).arg("-o").arg(&page));
    let page = fs_err::read_to_string(&page).unwrap();
    assert!(page.contains("loss in mean squared error") && !page.contains("nats a token"), "{page}");
}

#[test]
fn figures_do_not_depend_on_shards_micro_batches_or_interruptions() {
    let numbers = Numbers::new();
    let streamed = Numbers { data: numbers.fixture.path("streamed"), fixture: Fixture::new() };
    prepare(&streamed.data, true);
    succeed(&mut numbers.training("whole", "1to1", &[]));
    succeed(&mut streamed.training("whole", "1to1", &[]));
    assert_eq!(numbers.losses("whole", "train"), streamed.losses("whole", "train"), "rows made when wanted");
    assert_eq!(numbers.losses("whole", "validation"), streamed.losses("whole", "validation"));
    let figure = |numbers: &Numbers| -> Value {
        let mut command = numbers.evaluate("squared-error", "whole", &numbers.data.join("test"));
        serde_json::from_slice::<Value>(&succeed(command.arg("--json")).stdout).unwrap()["results"].clone()
    };
    assert_eq!(figure(&numbers), figure(&streamed));

    // A mean over the step's targets, whatever it is cut into.
    let plain = ["training.dropout=0", "training.micro_batch_rows=64"];
    let cut = ["training.dropout=0", "training.micro_batch_rows=7"];
    succeed(&mut numbers.training("plain", "1to1", &plain));
    succeed(&mut numbers.training("cut", "1to1", &cut));
    for (plain, cut) in numbers.losses("plain", "train").iter().zip(numbers.losses("cut", "train")) {
        assert!((plain / cut - 1.0).abs() < 1e-4, "{plain} {cut}");
    }
    // Dropout is drawn for training alone: step 0 is validated alike, and its own losses differ.
    assert_eq!(numbers.losses("plain", "validation")[0], numbers.losses("whole", "validation")[0]);
    assert_ne!(numbers.losses("plain", "train")[0], numbers.losses("whole", "train")[0]);
    // It is the same again after an interruption.
    let mut command =
        numbers.training("cut-short", "1to1", &["checkpoint.every_steps=2", "checkpoint.keep_last=3"]);
    succeed(&mut command);
    let run = numbers.fixture.path("cut-short");
    for step in [4, 6] {
        let folder = checkpoint::folder_of(&run.join("checkpoints"), step);
        if step == 6 {
            fs_err::remove_dir_all(folder).unwrap();
        }
    }
    succeed(&mut resume(&numbers.fixture, "cut-short"));
    assert_eq!(state_bytes(&run, 6), state_bytes(&numbers.fixture.path("whole"), 6));
}

#[test]
fn a_run_ends_when_the_squared_error_no_longer_falls() {
    let numbers = Numbers::new();
    let rules = [
        "optimizer.learning_rate=0",
        "training.steps=100",
        "validation.every_steps=2",
        "validation.patience=3",
    ];
    let output = succeed(&mut numbers.training("early", "lstm", &rules));
    let said = stderr(&output);
    assert!(said.contains("ending early at step 6") && said.contains("validation.patience"), "{said}");
    let error = fail(&mut numbers.training("none", "lstm", &["validation.stop_at_accuracy=0.9"]), 1);
    assert!(error.contains("numbers are not right or wrong"), "{error}");
}

#[test]
fn tokens_where_numbers_are_needed_and_the_other_way_round_are_refused_by_kind() {
    let numbers = Numbers::new();
    let Fixture { train, recipe, .. } = &numbers.fixture;
    // A corpus for a model of numbers, numbers for a model of tokens, and another number of numbers.
    let mut command = program();
    command.arg("--manifest").arg(train).args(["--recipe", "figure2-nearest-small/0to1"]);
    let error = fail(command.arg("--out").arg(numbers.fixture.path("none")), 1);
    let kinds = ["rows of 3 numbers a position (layout `vectors`)", "found layout `packed`"];
    assert!(kinds.iter().all(|kind| error.contains(kind)), "{error}");
    let mut command = program();
    command.arg("--manifest").arg(&numbers.data).arg("--recipe").arg(recipe);
    let error = fail(command.arg("--out").arg(numbers.fixture.path("none")), 1);
    let kinds = ["rows of tokens (layout `packed`, `examples`)", "found layout `vectors` with 3 numbers"];
    assert!(kinds.iter().all(|kind| error.contains(kind)) && error.contains("figure2-nearest"), "{error}");
    let error = fail(&mut numbers.training("none", "0to1", &["model.input_width=2"]), 1);
    assert!(error.contains("rows of 2 numbers") && error.contains("with 3 numbers"), "{error}");
    let mut command = numbers.training("none", "0to1", &[]);
    let error = fail(command.arg("--validation").arg(&numbers.fixture.validation), 1);
    assert!(error.contains("layout `vectors`") && error.contains("layout `packed`"), "{error}");
    assert!(!numbers.fixture.path("none").exists(), "nothing was written");
    // Architectures without the option do not know the key.
    let none = ["model.architecture=mamba", "model.input_width=3"];
    let error = fail(&mut numbers.training("none", "0to1", &none), 1);
    assert!(error.contains("model.input_width"), "{error}");

    succeed(&mut numbers.training("run", "llama", &[]));
    succeed(&mut training(&numbers.fixture, "text", &["training.steps=2"]));
    let split = numbers.data.join("validation");
    for (command, run, data, said) in [
        ("accuracy", "run", &split, ["layout `examples`", "whose targets are numbers"]),
        ("perplexity", "run", &split, ["layout `packed`", "layout `vectors`"]),
        ("squared-error", "text", &split, ["rows of tokens", "layout `vectors`"]),
        ("squared-error", "run", &numbers.fixture.validation, ["layout `vectors`", "layout `packed`"]),
        ("perplexity", "run", &numbers.fixture.validation, ["rows of 3 numbers", "layout `packed`"]),
    ] {
        let error = fail(&mut numbers.evaluate(command, run, data), 1);
        assert!(said.iter().all(|part| error.contains(part)), "{command} {run}: {error}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_xlstm-eval"));
    command.arg("throughput").arg(numbers.fixture.path("run")).args(["--device", "cpu"]);
    let error = fail(&mut command, 1);
    assert!(error.contains("found one of numbers"), "{error}");
}
