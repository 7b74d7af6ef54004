//! A file of text in place of a prepared split: it is prepared as `xlstm-data prepare local` does, so that figures lead back
//! to its bytes as those of any other split.

use std::path::{Path, PathBuf};

use serde_json::json;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::printable;
use xlstm_manifests::run_manifest::RUN_NAME;
use xlstm_pipeline::prepare::{self, Common, Context, DatasetRequest, LocalRequest, PrepareProgress};
use xlstm_pipeline::report::CommandError;
use xlstm_pipeline::tokenizer::Gpt2Tokenizer;

use super::evaluate::{EVALUATIONS_NAME, together};
use crate::command_line::say;
use crate::communicator::Communicator;
use crate::error::{Result, TrainError};
use crate::run::find_parameters;

/// Folder of an evaluation's or a run's texts.
const TEXTS_NAME: &str = "texts";
/// The name of the split.
const SPLIT: &str = "text";
/// Rows in a shard.
const ROWS_PER_SHARD: u64 = 4096;

/// A file to be read as text.
#[derive(Debug, Clone)]
pub struct OwnText {
    /// Text, or JSON lines, or whatever else `xlstm-data prepare local` reads.
    pub file: PathBuf,
    /// Field of a record that holds its text.
    pub field: String,
}

/// Prepares the text and returns the dataset's folder: below `out`, or else with the evaluations of the run that `model`
/// belongs to. A text that was prepared there before is taken as it is.
///
/// # Errors
/// When the file cannot be read as text, or the folder cannot be written.
pub fn prepare(
    text: &OwnText,
    (model, step): (&Path, Option<u64>),
    out: Option<&Path>,
    communicator: &dyn Communicator,
) -> Result<PathBuf> {
    let file = &text.file;
    if !file.is_file() {
        let hint = "name a file of text or JSON lines; for a folder of files: xlstm-data prepare local, then --manifest";
        return Err(TrainError::file(file, "a file of text", "none", hint));
    }
    let base = match out {
        Some(out) => out.to_path_buf(),
        None => {
            let parameters = find_parameters(model, step)?;
            let run = parameters.ancestors().take(4).find(|folder| folder.join(RUN_NAME).is_file());
            run.unwrap_or(Path::new("")).join(EVALUATIONS_NAME)
        }
    };
    let (_, sha256) = digest_file(file)?;
    let digest = Sha256Digest::of(json!([sha256, text.field]).to_string().as_bytes()).to_string();
    let name = file.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let folder = base.join(TEXTS_NAME).join(format!("{name}-{}", &digest[..8]));
    together(communicator, || prepared(text, &folder))?;
    Ok(folder)
}

fn prepared(text: &OwnText, folder: &Path) -> Result<()> {
    let refused = |error: anyhow::Error| {
        let command = error.chain().find_map(|cause| cause.downcast_ref::<CommandError>());
        if command.is_some_and(|error| error.exit_code() == 2) {
            return TrainError::internal(format!("{error:#}"));
        }
        TrainError::Usage(format!("--text {}: {error:#}", printable::path(&text.file)))
    };
    let request = DatasetRequest::Local(LocalRequest {
        paths: vec![text.file.clone()],
        text_field: text.field.clone(),
        set_field: None,
        id_field: None,
        license_field: None,
        license: None,
        source_field: None,
        holdout: None,
        split: SPLIT.into(),
    });
    let common = Common {
        out: folder.into(),
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        max_tokens: None,
        exclude_sets: Vec::new(),
        drop_duplicates: None,
        skip_bad_records: false,
        task: None,
        rows_per_shard: ROWS_PER_SHARD,
        restart: false,
        from: None,
        downloads: None,
        discard_downloads: false,
        parallel_downloads: 1,
        offline: true,
    };
    let tokenizer = Gpt2Tokenizer::new().map_err(TrainError::internal)?;
    let context = Context { tokenizer, hub: None };
    for plan in prepare::plans(&request, &common, &context).map_err(refused)? {
        for note in &plan.notes {
            say(&format!("note: {}", printable::text(note)));
        }
        let done =
            prepare::execute(&plan, &common, &context, &PrepareProgress::new(true)).map_err(refused)?;
        let (totals, root) = (&done.manifest.totals, done.manifest.root);
        say(&format!(
            "text: {} documents, {} tokens, root {root}: {}",
            totals.documents,
            totals.tokens,
            printable::path(&done.folder)
        ));
    }
    Ok(())
}
