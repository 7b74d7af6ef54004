//! `config.json` of transformers, read key by key.
//!
//! Every key is one that decides a size or an option, one that must have a certain value because nothing else is computed
//! here, or one that is known to decide nothing about what the model computes. Any other key is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use xlstm_manifests::END_OF_TEXT;

use crate::error::{Result, TrainError};

/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 20;
/// Sizes are at most this, so that no product of a few overflows.
const MAX_SIZE: u64 = 1 << 24;

/// Keys of every architecture that decide nothing about what the model computes: first values, training, what a call gives
/// back, how it is generated from, and who wrote it.
const WITHOUT_EFFECT: &[&str] = &[
    "_name_or_path",
    "attn_implementation",
    "chunk_size_feed_forward",
    "do_sample",
    "dtype",
    "id2label",
    "initializer_range",
    "label2id",
    "max_length",
    "min_length",
    "num_beams",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "repetition_penalty",
    "return_dict",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers_version",
    "unk_token_id",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
];

/// A `config.json` that is being read.
pub(super) struct ConfigReader {
    path: PathBuf,
    values: Map<String, Value>,
    known: BTreeSet<String>,
    notes: Vec<String>,
}

impl ConfigReader {
    /// Reads the file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let hint =
            "name a folder that transformers' `save_pretrained` has written, or the file with --config";
        let fail = |found: String| {
            TrainError::file(path, "a configuration of transformers (config.json)", found, hint)
        };
        let metadata = fs_err::metadata(path).map_err(|error| {
            let is_none = error.kind() == std::io::ErrorKind::NotFound;
            fail(if is_none { "none".into() } else { error.to_string() })
        })?;
        if !metadata.is_file() {
            return Err(fail("something else than a file".into()));
        }
        let length = metadata.len();
        if length > MAX_BYTES {
            return Err(fail(format!("{length} bytes, of at most {MAX_BYTES}")));
        }
        let values = match serde_json::from_slice(&fs_err::read(path)?) {
            Ok(Value::Object(values)) => values,
            Ok(_) => return Err(fail("JSON that is no object".into())),
            Err(error) => return Err(fail(error.to_string())),
        };
        Ok(Self { path: path.into(), values, known: BTreeSet::new(), notes: Vec::new() })
    }

    /// The error of a value that is not computed here.
    pub(super) fn refused(&self, key: &str, expected: &str, found: &str) -> TrainError {
        let hint = "this program computes no such model";
        TrainError::file(&self.path, format!("`{key}`: {expected}"), found, hint)
    }

    /// The value of a key; `None` where it is missing or null.
    fn value(&mut self, key: &str) -> Option<Value> {
        self.known.insert(key.to_owned());
        self.values.get(key).filter(|value| !value.is_null()).cloned()
    }

    /// A whole number; `None` where there is none.
    pub(super) fn optional_size(&mut self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if size <= MAX_SIZE => Ok(Some(size)),
            _ => Err(self.refused(key, &format!("a whole number up to {MAX_SIZE}"), &value.to_string())),
        }
    }

    /// A whole number that must be there.
    pub(super) fn size(&mut self, key: &str) -> Result<u64> {
        self.optional_size(key)?.ok_or_else(|| self.refused(key, "a whole number", "none"))
    }

    /// A whole number that follows from others.
    pub(super) fn derived_size(&mut self, key: &str, expected: u64, why: &str) -> Result<()> {
        match self.optional_size(key)? {
            Some(found) if found != expected => {
                Err(self.refused(key, &format!("{expected}, {why}"), &found.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// A number, with what holds where there is none.
    pub(super) fn number(&mut self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.refused(key, "a number", &value.to_string()))
    }

    /// True or false, with what holds where there is none.
    pub(super) fn flag(&mut self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.refused(key, "true or false", &value.to_string()))
    }

    /// True or false, of which only one is computed here.
    pub(super) fn only_flag(&mut self, key: &str, expected: bool, default: bool) -> Result<()> {
        let found = self.flag(key, default)?;
        if found == expected {
            return Ok(());
        }
        Err(self.refused(key, &expected.to_string(), &found.to_string()))
    }

    /// A number of which one value alone is computed here.
    pub(super) fn only_number(&mut self, key: &str, expected: f64) -> Result<()> {
        let found = self.number(key, expected)?;
        if found.to_bits() == expected.to_bits() {
            return Ok(());
        }
        Err(self.refused(key, &expected.to_string(), &found.to_string()))
    }

    /// One of several names, with what holds where there is none; it must be there where that is `None`.
    pub(super) fn choice(&mut self, key: &str, expected: &[&str], default: Option<&str>) -> Result<String> {
        let value = self.value(key).or_else(|| default.map(Value::from));
        let found = value.as_ref().and_then(Value::as_str);
        match found.filter(|found| expected.contains(found)) {
            Some(found) => Ok(found.to_owned()),
            None => {
                let found = value.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
                Err(self.refused(key, &format!("one of {}", expected.join(", ")), &found))
            }
        }
    }

    /// Whether a key has this text.
    pub(super) fn is_text(&self, key: &str, text: &str) -> bool {
        self.values.get(key).is_some_and(|value| value == text)
    }

    /// An object without entries.
    pub(super) fn empty(&mut self, key: &str) -> Result<()> {
        let entries = self.object(key)?;
        if entries.is_empty() {
            Ok(())
        } else {
            Err(self.refused(key, "{}", &Value::Object(entries).to_string()))
        }
    }

    /// An object, empty where there is none.
    pub(super) fn object(&mut self, key: &str) -> Result<Map<String, Value>> {
        match self.value(key) {
            None => Ok(Map::new()),
            Some(Value::Object(entries)) => Ok(entries),
            Some(other) => Err(self.refused(key, "an object", &other.to_string())),
        }
    }

    /// The class that saved it: a model with another head has other parameters.
    pub(super) fn class(&mut self, expected: &str) -> Result<()> {
        let Some(value) = self.value("architectures") else { return Ok(()) };
        let found = value.as_array().is_some_and(|classes| classes.iter().any(|class| *class == expected));
        if found {
            Ok(())
        } else {
            Err(self.refused("architectures", &format!("[\"{expected}\"]"), &value.to_string()))
        }
    }

    /// Keys that decide nothing about what this architecture computes.
    pub(super) fn without_effect(&mut self, keys: &[&str]) {
        self.known.extend(keys.iter().map(|&key| key.to_owned()));
    }

    /// Something that a reader must know.
    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Refuses keys that nobody asked for; gives what a reader must know.
    pub(super) fn finish(mut self) -> Result<Vec<String>> {
        for key in
            ["is_encoder_decoder", "is_decoder", "add_cross_attention", "tie_encoder_decoder", "torchscript"]
        {
            self.only_flag(key, false, false)?;
        }
        if let Some(id) = self.value("eos_token_id")
            && id.as_u64() != Some(u64::from(END_OF_TEXT))
        {
            self.note(format!(
                "`eos_token_id` is {id}, not GPT-2's {END_OF_TEXT}: if ids of this model are not GPT-2's, text that this program \
                 tokenizes means nothing to it"
            ));
        }
        let unknown = self.values.iter().find(|(key, value)| {
            !value.is_null() && !self.known.contains(*key) && !WITHOUT_EFFECT.contains(&key.as_str())
        });
        let Some((key, value)) = unknown else { return Ok(self.notes) };
        let hint = "if it does not change what the model computes, remove it from the file";
        let (expected, found) = (format!("no key `{key}`, which is not known here"), value.to_string());
        Err(TrainError::file(&self.path, expected, found, hint))
    }
}
