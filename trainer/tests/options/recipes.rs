//! Recipes that can be read, and flags for what everyone sets.

use std::process::Command;

use xlstm_manifests::run_manifest::RunManifest;

use crate::common::Fixture;
use crate::common::runs::*;

fn text(command: &mut Command) -> String {
    String::from_utf8(succeed(command).stdout).unwrap()
}

#[test]
fn every_key_is_said_in_one_place() {
    let page = text(Command::new(env!("CARGO_BIN_EXE_xlstm-train")).args(["recipes", "--keys"]));
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/recipes.md");
    assert_eq!(page, fs_err::read_to_string(kept).unwrap());
    assert!(
        page.contains(
            "- `optimizer.clip_norm = 1.0` Largest norm of all gradients together. 0: no clipping."
        )
    );
    let printed = text(program().args(["--print-config", "--recipe", "demo"]));
    assert!(
        printed.contains(
            "# Length of the run. Unit: optimizer steps. 0: the first parameters are measured and saved."
        ),
        "{printed}"
    );
    assert!(printed.contains("steps = 300\n"), "{printed}");
}

#[test]
fn flags_are_the_keys_they_stand_for() {
    let flags = ["--name", "007", "--seed", "7", "--learning-rate", "2e-4", "--steps", "90"];
    let set = ["name='007'", "training.seed=7", "optimizer.learning_rate=2e-4", "training.steps=90"];
    let print =
        |arguments: &[&str]| text(program().args(["--print-config", "--recipe", "demo"]).args(arguments));
    let by_set: Vec<&str> = set.iter().flat_map(|&text| ["--set", text]).collect();
    assert_eq!(print(&flags), print(&by_set));
    assert!(print(&flags).contains("learning_rate = 0.0002\n"));
    let twice = ["--print-config", "--recipe", "demo", "--steps", "9", "--set", "training.steps=8"];
    let message = fail(program().args(twice), 2);
    assert!(message.contains("one value of `training.steps`"), "{message}");
}

#[test]
fn a_partial_recipe_says_what_it_left_out() {
    let fixture = Fixture::new();
    let mut command = training(&fixture, "run", &["training.steps=2"]);
    let said = stderr(&succeed(&mut command));
    assert!(said.contains("keys to their defaults"), "{said}");
    assert!(said.contains("\n  optimizer.clip_norm = 1.0\n"), "{said}");
    assert!(!said.contains("\n  training.steps"), "what was set is no default: {said}");
    // A whole recipe leaves nothing out.
    let whole = fixture.path("whole.toml");
    fs_err::write(&whole, text(program().args(["--print-config", "--recipe"]).arg(&fixture.recipe))).unwrap();
    let mut command = program();
    command.arg("--manifest").arg(&fixture.train).arg("--recipe").arg(&whole).arg("--dry-run");
    assert!(!stderr(&succeed(&mut command)).contains("to their defaults"));
}

#[test]
fn seeds_of_initial_values_and_of_order_are_apart() {
    let fixture = Fixture::new();
    let run = |name: &str, set: &[&str]| {
        succeed(&mut training(
            &fixture,
            name,
            &[&["training.steps=2", "validation.every_steps=0"], set].concat(),
        ));
        let manifest = RunManifest::load(&fixture.path(name)).unwrap();
        let first = lines(&fixture.path(name), "validation")[0].loss.unwrap();
        (manifest.order.rows_of_step(1), first.to_bits(), state_bytes(&fixture.path(name), 2))
    };
    let shared = run("shared", &["training.seed=7"]);
    let same = run("same", &["training.seed=9", "training.initialization_seed=7", "training.order_seed=7"]);
    assert_eq!(shared, same, "one seed is all seeds");
    let order = run("order", &["training.seed=7", "training.order_seed=8"]);
    assert!(order.0 != shared.0 && order.1 == shared.1);
    let initial = run("initial", &["training.seed=7", "training.initialization_seed=8"]);
    assert!(initial.0 == shared.0 && initial.1 != shared.1);
    let verified =
        Command::new(env!("CARGO_BIN_EXE_xlstm-eval")).arg("verify").arg(fixture.path("order")).output();
    let verified = verified.unwrap();
    assert!(
        !stderr(&verified).contains("seed")
            && !String::from_utf8_lossy(&verified.stdout).contains("order.seed,")
    );
}

/// Memory and rows follow from the GPU's size; a time that was not measured is called a bound.
#[test]
fn a_run_is_planned_for_gpus_that_are_not_here() {
    let fixture = Fixture::new();
    let plan = |words: &[&str]| {
        let mut command = program();
        command.arg("--manifest").arg(&fixture.train).arg("--recipe").arg(&fixture.recipe).arg("--dry-run");
        command.arg("--for").args(words);
        command
    };
    let text = String::from_utf8(succeed(&mut plan(&["A100 40GB", "x3"])).stdout).unwrap();
    for expected in [
        "device           A100 40GB\n",
        "micro-batch      2 rows, 1 a step on each of 3 ranks\n",
        "by estimate on each of 3 ranks",
        "time             at least ",
        "the bf16 peak, 312 TFLOP/s a GPU: no step of this model was measured on this GPU",
        "planned for      3 of these GPUs, none of which was asked; its memory is taken as 37.3 GiB",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let message = fail(&mut plan(&["H100", "x8"]), 1);
    assert!(message.contains("at least one row for each of 8 GPUs, found 6 rows"), "{message}");
    let message = fail(&mut plan(&["A100"]), 1);
    assert!(message.contains("expected the size of its memory too, such as `A100 40GB`"), "{message}");
    let mut command = training(&fixture, "run", &[]);
    fail(command.args(["--for", "H100"]), 2);
    assert!(!fixture.path("run").exists());
}
