//! Real text through `xlstm-data`, and a model of GPT-2's vocabulary that is small enough to train in a second.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a program said and how it ended.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    #[track_caller]
    pub(crate) fn success(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self
    }

    /// Everything that it wrote.
    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs `xlstm-train` (the first argument is no flag of training) or trains.
pub(crate) fn train<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Said {
    Said::of(&Command::new(env!("CARGO_BIN_EXE_xlstm-train")).args(arguments).output().unwrap())
}

/// Runs `xlstm-eval`.
pub(crate) fn eval<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Said {
    Said::of(&Command::new(env!("CARGO_BIN_EXE_xlstm-eval")).args(arguments).output().unwrap())
}

/// A recipe of two steps for a model of GPT-2's vocabulary, under this name.
pub(crate) fn write_recipe(path: &Path, name: &str) {
    let name = toml::Value::from(name);
    let text = format!(
        "
        name = {name}
        description = 'two steps'
        [model]
        vocabulary_size = 50304
        embedding_dim = 8
        blocks = 1
        slstm_at = []
        [model.mlstm]
        heads = 1
        [training]
        context_length = 64
        tokens_per_step = 2048
        micro_batch_rows = 1
        steps = 2
        precision = 'float32'
        [schedule]
        warmup_steps = 1
        [validation]
        every_steps = 2
        [checkpoint]
        every_steps = 2
        "
    );
    fs_err::write(path, text).unwrap();
}

/// Arguments that train this recipe on these splits.
pub(crate) fn training(train: &Path, validation: &Path, recipe: &Path, out: &Path) -> Vec<PathBuf> {
    ["--device", "cpu", "--threads", "1", "--manifest"]
        .iter()
        .map(PathBuf::from)
        .chain([train.into(), "--validation".into(), validation.into(), "--recipe".into(), recipe.into()])
        .chain(["--out".into(), out.into()])
        .collect()
}
