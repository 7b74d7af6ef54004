//! A file of a run's folder, put in the place of a sound one; then everything that opens a run opens it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use xlstm_manifests::recipe::Precision;
use xlstm_manifests::run_manifest::rows_of_step;
use xlstm_trainer::model::Placement;
use xlstm_trainer::report::RunView;
use xlstm_trainer::run::load_model;
use xlstm_trainer::verify::{Depth, verify};
use xlstm_trainer::{chain, plot};

/// A sound run; the deterministic run sets it, else `XLSTM_FUZZ_RUN` names one.
#[allow(dead_code, reason = "libFuzzer has it from the environment")]
pub(crate) static RUN: OnceLock<PathBuf> = OnceLock::new();

/// Files of the run that are put in another's place.
pub(crate) const FILES: [&str; 6] = [
    "run.json",
    "recipe.toml",
    "metrics.jsonl",
    "checkpoints/step-00000001/state.json",
    "checkpoints/step-00000001/DONE",
    "rows/rank-00000.jsonl",
];

fn sound() -> PathBuf {
    RUN.get().cloned().or_else(|| std::env::var_os("XLSTM_FUZZ_RUN").map(PathBuf::from)).expect("a sound run")
}

pub(crate) fn run(data: &[u8]) {
    let Some((&which, content)) = data.split_first() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = folder.path().join("run");
    copy(&sound(), &run);
    let file = run.join(FILES[usize::from(which) % FILES.len()]);
    fs_err::create_dir_all(file.parent().unwrap_or(&run)).expect("made");
    fs_err::write(file, content).expect("written");
    let _ = load_model(&run, None, Placement::new(tch::Device::Cpu, Precision::Float32, false));
    let _ = RunView::load(&run);
    let _ = chain::chain(&run, None, &[]);
    let _ = plot::curve(&run).map(|curve| plot::svg(&[curve]));
    let _ = rows_of_step(&run, 1, None);
    let _ = verify(&run, &Depth::default());
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).expect("made");
    for entry in fs_err::read_dir(from).expect("listed").flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs_err::copy(path, target).expect("copied");
        }
    }
}
