//! Models in the form of Hugging Face `transformers`: its `config.json`, and its parameters' names.
//!
//! ```text
//! mod          what an architecture says of its form there; configurations out and in
//! config       config.json, read key by key: what is not known is refused
//! parameters   a model's parameters under the names there, out and in
//! llama, gpt2, mamba, rwkv4      one architecture each: its keys, and its parameters' names
//! ```
//! All four have the shapes and layouts of this program there, so that parameters go over bit by bit: only names differ.
//! What a key means, and what holds where it is missing, is as in transformers 5.24.

mod config;
mod gpt2;
mod llama;
mod mamba;
mod parameters;
mod rwkv4;

use std::path::Path;

use serde_json::{Map, Value, json};
use xlstm_manifests::END_OF_TEXT;
use xlstm_manifests::recipe::{self, ModelConfig, RecipeError};

use super::network::network;
use crate::error::{Result, TrainError};
use config::ConfigReader;

pub(crate) use parameters::{parameters, read_parameters};

/// The keys of `config.json` that an architecture writes.
pub(super) type Settings = Map<String, Value>;

/// What an architecture is called in transformers.
pub(super) struct Names {
    /// `model_type` of its configuration.
    pub(super) model_type: &'static str,
    /// The class of its language model.
    pub(super) class: &'static str,
    /// What stands before all names but the output projection's.
    pub(super) base: &'static str,
    /// The token embedding.
    pub(super) embedding: &'static str,
    /// The output projection.
    pub(super) output: &'static str,
}

/// The form of an architecture in transformers, implemented by its part of a recipe.
pub(super) trait TransformersForm {
    /// What it is called there.
    fn names(&self) -> &'static Names;

    /// Every key that decides what the model computes, for contexts of this many tokens.
    fn settings(&self, context_length: u64) -> Settings;

    /// The name there of the parameter that is `own` here.
    fn name_of(&self, own: &str) -> String {
        own.to_owned()
    }

    /// Whether the output projection is the token embedding.
    fn is_tied(&self) -> bool;

    /// Whether a file may hold this name beside the parameters, with a causal mask of `(1, 1, P, P)` ones and zeros in it.
    fn is_causal_mask(&self, name: &str) -> bool {
        let _ = name;
        false
    }
}

/// What reads an architecture's configuration.
type ReadConfig = fn(&mut ConfigReader) -> Result<(ModelConfig, Option<u64>)>;

/// All architectures, by their `model_type`.
const READERS: [(&Names, ReadConfig); 4] = [
    (&llama::NAMES, llama::read),
    (&gpt2::NAMES, gpt2::read),
    (&mamba::NAMES, mamba::read),
    (&rwkv4::NAMES, rwkv4::read),
];

/// The form of a model.
///
/// # Errors
/// When transformers has no such architecture.
fn form(model: &ModelConfig) -> Result<&dyn TransformersForm> {
    network(model).transformers().ok_or_else(|| {
        TrainError::Usage(format!(
            "expected a model over tokens of an architecture that transformers has in this form (llama, gpt2, mamba, rwkv4), \
             found {}; leave --format out for a file in this program's own form",
            model.label()
        ))
    })
}

/// `config.json` of a model: everything that decides its numbers. Ids of the end of text are GPT-2's, or none where the
/// vocabulary is smaller.
///
/// # Errors
/// When transformers has no such architecture.
pub(crate) fn config_json(model: &ModelConfig, context_length: u64) -> Result<Value> {
    let form = form(model)?;
    let names = form.names();
    let mut config = form.settings(context_length);
    let end_of_text = end_of_text(model);
    for (key, value) in [
        ("model_type", json!(names.model_type)),
        ("architectures", json!([names.class])),
        ("vocab_size", json!(model.vocabulary_size())),
        ("tie_word_embeddings", json!(form.is_tied())),
        ("torch_dtype", json!("float32")),
        ("bos_token_id", json!(end_of_text)),
        ("eos_token_id", json!(end_of_text)),
        ("pad_token_id", Value::Null),
    ] {
        config.insert(key.into(), value);
    }
    Ok(Value::Object(config))
}

/// The id of the end of a text, which also stands before a text; `None` of a vocabulary without it.
pub(crate) fn end_of_text(model: &ModelConfig) -> Option<u32> {
    (model.vocabulary_size() > u64::from(END_OF_TEXT)).then_some(END_OF_TEXT.into())
}

/// What a `config.json` describes.
pub(crate) struct Described {
    /// The model.
    pub(crate) model: ModelConfig,
    /// Tokens of the contexts that it was made for, where that is said.
    pub(crate) context_length: Option<u64>,
    /// What a reader must know.
    pub(crate) notes: Vec<String>,
}

/// Reads a `config.json`.
///
/// # Errors
/// Naming the key: of another architecture, of a model that is not computed here, or a key that is not known.
pub(crate) fn read_config(path: &Path) -> Result<Described> {
    let mut config = ConfigReader::open(path)?;
    let kinds: Vec<&str> = READERS.iter().map(|(names, _)| names.model_type).collect();
    let kind = config.choice("model_type", &kinds, None)?;
    let Some((names, read)) = READERS.iter().find(|(names, _)| names.model_type == kind) else {
        return Err(TrainError::Internal(format!("no architecture for `{kind}`")));
    };
    config.class(names.class)?;
    let (model, context_length) = read(&mut config)?;
    let notes = config.finish()?;
    let shown = path.display().to_string();
    recipe::check_model(&shown, &model).map_err(|error| match error {
        RecipeError::Value { key, expected, found, .. } => {
            let hint = "this program computes no such model";
            TrainError::file(path, format!("`{key}` {expected}"), found, hint)
        }
        other => other.into(),
    })?;
    Ok(Described { model, context_length, notes })
}
