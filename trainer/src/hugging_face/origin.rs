//! Where an exported model came from: `provenance.json`, and the card that a reader sees first.
//!
//! Digests alone lead from the folder to the checkpoint, its run and its data: no path of a machine leaves with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::run_manifest::{DatasetRef, Program, RUN_NAME, RecipeRef, RunManifest};
use xlstm_manifests::{END_OF_TEXT, Sha256Digest};

use super::{MODEL_NAME, PROVENANCE_NAME, Sources};
use crate::checkpoint::{self, CheckpointRecord, FileDigest};
use crate::environment;
use crate::error::{Result, TrainError};
use crate::model::Model;
use crate::run::CheckpointFile;

/// Where parameters came from.
#[derive(Serialize)]
pub(super) struct Origin {
    /// The file that was exported.
    parameters: FileDigest,
    /// What that file was imported from, where it was.
    imported: Option<Sources>,
    /// Updates and tokens that went into it, where it is a checkpoint's.
    step: Option<u64>,
    tokens: Option<u64>,
    /// Its run, where that is known.
    run: Option<RunOrigin>,
}

/// The run that made parameters.
#[derive(Serialize)]
struct RunOrigin {
    manifest_sha256: Sha256Digest,
    recipe: RecipeRef,
    train: Vec<DataOrigin>,
    validation: Option<DataOrigin>,
    /// SHA-256 of the parameters that it began with, where they were not drawn.
    initialized_from: Option<Sha256Digest>,
    program: Program,
}

/// A dataset of a run.
#[derive(Serialize)]
struct DataOrigin {
    root: Sha256Digest,
    profile: String,
    split: String,
    rows: u64,
    tokens: u64,
    /// Its share of a mixture.
    weight: u64,
}

impl DataOrigin {
    fn new(weight: u64, data: &DatasetRef) -> Self {
        let DatasetRef { root, profile, split, rows, tokens, .. } = data;
        Self {
            root: *root,
            profile: profile.clone(),
            split: split.clone(),
            rows: *rows,
            tokens: *tokens,
            weight,
        }
    }
}

impl Origin {
    /// Reads what is recorded of the parameters in `file`.
    pub(super) fn of(file: &Path) -> Result<Self> {
        let (size, sha256) = digest_file(file)?;
        let parameters = FileDigest { size, sha256 };
        let imported = Sources::of(file)?;
        let Some(CheckpointFile { folder, state, run }) = CheckpointFile::at(file)? else {
            return Ok(Self { parameters, imported, step: None, tokens: None, run: None });
        };
        if state.files.get(MODEL_NAME) != Some(&parameters) {
            // Says what differs.
            checkpoint::verify_file(&folder, &state, MODEL_NAME)?;
        }
        let run = run.map(|run| RunOrigin::read(&run, &state)).transpose()?.flatten();
        Ok(Self { parameters, imported, step: Some(state.step), tokens: Some(state.tokens), run })
    }

    /// `provenance.json`, with the digests of the files beside it.
    pub(super) fn record(&self, files: &BTreeMap<String, FileDigest>) -> Result<Value> {
        Ok(json!({
            "format": "xlstm-export",
            "version": 1,
            "from": serde_json::to_value(self).map_err(TrainError::internal)?,
            "program": environment::program(),
            "files": files,
        }))
    }

    /// `README.md`.
    pub(super) fn card(&self, model: &Model) -> String {
        let mut text = format!(
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {}\n\n{} parameters, float32. Written by \
             `xlstm-train export --format transformers`.\n\n## Where it came from\n\n| | |\n|---|---|\n",
            model.config().label(),
            model.parameter_count()
        );
        let mut row = |what: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "| {what} | {} |", cell(&value));
        };
        row("exported parameters, SHA-256", self.parameters.sha256.to_string());
        if let Some(sources) = &self.imported {
            row("imported from parameters, SHA-256", sources.parameters_sha256.to_string());
            row("imported with configuration, SHA-256", sources.config_sha256.to_string());
        }
        if let (Some(step), Some(tokens)) = (self.step, self.tokens) {
            row("trained", format!("{step} steps, {tokens} tokens"));
        }
        match &self.run {
            None => row("run", "not known".into()),
            Some(run) => run.rows(&mut row),
        }
        let _ = write!(
            text,
            "\n`{PROVENANCE_NAME}` holds the same with the digests of the files in this folder.\n"
        );
        text + &ids(model)
    }
}

impl RunOrigin {
    /// Reads the manifest of the run in `folder`; `None` where it was trained on other data than the checkpoint `state`.
    fn read(folder: &Path, state: &CheckpointRecord) -> Result<Option<Self>> {
        let manifest = RunManifest::load(folder)?;
        if manifest.train.root != state.train_root {
            return Ok(None);
        }
        let (_, manifest_sha256) = digest_file(&folder.join(RUN_NAME))?;
        let train = manifest.trained_on().into_iter().map(|(weight, data)| DataOrigin::new(weight, data));
        Ok(Some(Self {
            manifest_sha256,
            train: train.collect(),
            validation: manifest.validation.as_ref().map(|data| DataOrigin::new(1, data)),
            initialized_from: manifest.initialized_from.as_ref().map(|from| from.sha256),
            recipe: manifest.recipe,
            program: manifest.program,
        }))
    }

    fn rows(&self, row: &mut impl FnMut(&str, String)) {
        row("run manifest, SHA-256", self.manifest_sha256.to_string());
        row("recipe", format!("{}, SHA-256 {}", self.recipe.name, self.recipe.sha256));
        for data in &self.train {
            let share =
                if self.train.len() > 1 { format!(", weight {}", data.weight) } else { String::new() };
            row(
                "training data, root",
                format!("{} ({}, split {}{share})", data.root, data.profile, data.split),
            );
        }
        if let Some(data) = &self.validation {
            row("validation data, root", format!("{} ({}, split {})", data.root, data.profile, data.split));
        }
        if let Some(sha256) = &self.initialized_from {
            row("first parameters, SHA-256", sha256.to_string());
        }
    }
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    text.chars().map(|letter| if letter == '|' || letter.is_control() { ' ' } else { letter }).collect()
}

/// What the ids of the vocabulary are.
fn ids(model: &Model) -> String {
    let rows = model.config().vocabulary_size();
    let end_of_text = u64::from(END_OF_TEXT);
    if rows <= end_of_text {
        return format!("\n## Ids\n\n{rows} ids, those of the training data; none is the end of a text.\n");
    }
    let mut text = format!(
        "\n## Ids\n\nIds 0 to {end_of_text} are GPT-2's tokens; {end_of_text} ends a document, and stands before the first. No \
         tokenizer is in this folder: `openai-community/gpt2` has it.\n"
    );
    if rows > end_of_text + 1 {
        let _ = writeln!(
            text,
            "Ids {} to {} are no tokens: they round the table up, were never a target, and no tokenizer gives them.",
            end_of_text + 1,
            rows - 1
        );
    }
    text
}
