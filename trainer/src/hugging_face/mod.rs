//! Models to and from folders that Hugging Face `transformers` opens.
//!
//! ```text
//! run, checkpoint, file ─► export ─► DIR: config.json, generation_config.json, model.safetensors   what transformers reads
//!                                         provenance.json, README.md                               where it came from
//! config.json, model.safetensors ─► import ─► a safetensors file of this program's own form
//! ```
//! Keys and names of each architecture are in `model/exchange`.

mod origin;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use xlstm_manifests::Sha256Digest;
use xlstm_manifests::atomic::{sync_folder, write_atomic};
use xlstm_manifests::digest::digest_file;
use xlstm_manifests::recipe::ModelConfig;

use crate::checkpoint::{FileDigest, MODEL_NAME};
use crate::error::{Result, TrainError};
use crate::model::{self, Model};
use crate::tensor_file::{self, TensorFile};
use origin::Origin;

/// A model's configuration.
pub(crate) const CONFIG_NAME: &str = "config.json";
const GENERATION_NAME: &str = "generation_config.json";
const PROVENANCE_NAME: &str = "provenance.json";
const CARD_NAME: &str = "README.md";
/// Where the metadata of an imported file has the digests of what it was imported from.
const IMPORTED_KEY: &str = "imported";
/// What a model in several files has beside them.
const INDEX_NAME: &str = "model.safetensors.index.json";

/// Writes `model`, whose parameters are in `file`, into the folder `folder`, which `AutoModelForCausalLM.from_pretrained` opens:
/// whole or not at all. Parameters are float32.
///
/// # Errors
/// When there is something at `folder`, transformers has no such architecture, or writing fails.
pub fn export(model: &Model, file: &Path, folder: &Path, context_length: u64) -> Result<()> {
    if folder.symlink_metadata().is_ok() {
        let hint = "name another folder, or remove this one";
        return Err(TrainError::file(folder, "a folder that is not there yet", "something", hint));
    }
    let config = model::config_json(model.config(), context_length)?;
    let origin = Origin::of(file)?;
    // Without a slash at its end.
    let folder: &Path = &folder.components().collect::<PathBuf>();
    let partial = partial_beside(folder)?;
    write(model, &config, &origin, partial.path())?;
    // Fails where another export was first: a folder with files in it is not replaced.
    fs_err::rename(partial.path(), folder)?;
    // It has its name now, and nothing is left to remove.
    let _ = partial.keep();
    Ok(sync_folder(folder)?)
}

/// A new folder beside `folder`, of this export alone, that is removed when it is dropped.
fn partial_beside(folder: &Path) -> Result<tempfile::TempDir> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs_err::create_dir_all(parent)?;
    let mut builder = tempfile::Builder::new();
    let mut prefix = folder.file_name().unwrap_or_default().to_owned();
    prefix.push(".");
    builder.prefix(&prefix).suffix(".export-partial");
    // As any new folder: readable as the user's mask has it, not by the user alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    Ok(builder.tempdir_in(parent)?)
}

fn write(model: &Model, config: &serde_json::Value, origin: &Origin, folder: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    let end_of_text = model::end_of_text(model.config());
    let generation = json!({"bos_token_id": end_of_text, "eos_token_id": end_of_text});
    for (name, value) in [(CONFIG_NAME, config), (GENERATION_NAME, &generation)] {
        let written = write_atomic(&folder.join(name), pretty(value)?.as_bytes())?;
        files.insert(name.to_owned(), FileDigest { size: written.size, sha256: written.sha256 });
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = tensor_file::write(&folder.join(MODEL_NAME), &metadata, &model::parameters(model)?)?;
    files.insert(MODEL_NAME.to_owned(), FileDigest { size: written.size, sha256: written.sha256 });
    write_atomic(&folder.join(CARD_NAME), origin.card(model).as_bytes())?;
    write_atomic(&folder.join(PROVENANCE_NAME), pretty(&origin.record(&files)?)?.as_bytes())?;
    Ok(())
}

fn pretty(value: &serde_json::Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).map_err(TrainError::internal)? + "\n")
}

/// What was imported.
#[derive(Debug)]
pub struct Imported {
    /// The model.
    pub model: ModelConfig,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// Writes the model at `from` to `output`, a safetensors file of this program's own form with float32 parameters. `from` is a
/// folder as transformers' `save_pretrained` writes it, or its safetensors file; `config` says where `config.json` is, if not
/// beside the parameters.
///
/// The file's metadata holds the SHA-256 of both sources (`imported`).
///
/// # Errors
/// Naming the key of a configuration that this program does not compute or know, and parameters that are missing, left over,
/// of another shape or type, or not finite.
pub fn import(from: &Path, config: Option<&Path>, output: &Path) -> Result<Imported> {
    let parameters = if from.is_dir() { parameters_in(from)? } else { from.to_path_buf() };
    let config = config.map_or_else(|| parameters.with_file_name(CONFIG_NAME), Path::to_path_buf);
    for source in [&parameters, &config] {
        if let (Ok(source), Ok(target)) = (fs_err::canonicalize(source), fs_err::canonicalize(output))
            && source == target
        {
            let hint = "name another file with --output";
            return Err(TrainError::file(output, "another file than the one that is read", "the same", hint));
        }
    }
    let described = model::read_config(&config)?;
    let file = TensorFile::open(&parameters)?;
    let tensors = model::read_parameters(&described.model, &file)?;
    let mut metadata = model::own_metadata(&described.model)?;
    if let Some(length) = described.context_length {
        metadata.insert("context_length".to_owned(), length.to_string());
    }
    metadata.insert(IMPORTED_KEY.to_owned(), Sources::read(&config, &parameters)?.to_json()?);
    tensor_file::write(output, &metadata, &tensors)?;
    Ok(Imported { model: described.model, notes: described.notes })
}

/// Metadata by which an export in this program's own form goes on saying what the parameters in `file` were imported from;
/// empty where no import made them.
///
/// # Errors
/// When what the file says of it is no record of an import.
pub fn import_record(file: &Path) -> Result<BTreeMap<String, String>> {
    let Some(sources) = Sources::of(file)? else { return Ok(BTreeMap::new()) };
    Ok(BTreeMap::from([(IMPORTED_KEY.to_owned(), sources.to_json()?)]))
}

/// The SHA-256 of what was imported.
#[derive(Debug, Serialize, Deserialize)]
struct Sources {
    config_sha256: Sha256Digest,
    parameters_sha256: Sha256Digest,
}

impl Sources {
    /// Of the files themselves.
    fn read(config: &Path, parameters: &Path) -> Result<Self> {
        let digest = |path: &Path| -> Result<Sha256Digest> { Ok(digest_file(path)?.1) };
        Ok(Self { config_sha256: digest(config)?, parameters_sha256: digest(parameters)? })
    }

    fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(TrainError::internal)
    }

    /// As an import wrote them into `file`; `None` where no import did.
    fn of(file: &Path) -> Result<Option<Self>> {
        let opened = TensorFile::open(file)?;
        let Some(text) = opened.metadata().get(IMPORTED_KEY) else { return Ok(None) };
        serde_json::from_str(text).map(Some).map_err(|error| {
            let hint = "import the model again";
            let expected = format!("digests of what was imported, in `{IMPORTED_KEY}` of the metadata");
            TrainError::file(file, expected, error.to_string(), hint)
        })
    }
}

/// The one file of parameters in a folder.
fn parameters_in(folder: &Path) -> Result<PathBuf> {
    let file = folder.join(MODEL_NAME);
    if file.is_file() {
        return Ok(file);
    }
    let found = if folder.join(INDEX_NAME).is_file() { "a model in several files" } else { "none" };
    let hint = "open it with transformers and save it with save_pretrained(DIR, max_shard_size=\"1TB\")";
    Err(TrainError::file(&file, "the parameters in one safetensors file", found, hint))
}
