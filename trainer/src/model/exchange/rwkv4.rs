//! RWKV-4 in transformers (`RwkvForCausalLM`).
//!
//! Layouts are those of this program: `time_decay` is the logarithm of the rate in both, and what leaks is `exp(−exp(w))`. Names
//! differ. Not computed here: an attention of another width than the residual, other norms' epsilon.

use serde_json::json;
use xlstm_manifests::recipe::ModelConfig;
use xlstm_manifests::recipe::architecture::Rwkv4Config;

use super::config::ConfigReader;
use super::{Names, Settings, TransformersForm};
use crate::error::Result;
use crate::model::rwkv::NORM_EPSILON;

pub(super) const NAMES: Names = Names {
    model_type: "rwkv",
    class: "RwkvForCausalLM",
    base: "rwkv.",
    embedding: "rwkv.embeddings.weight",
    output: "head.weight",
};

impl TransformersForm for Rwkv4Config {
    fn names(&self) -> &'static Names {
        &NAMES
    }

    fn settings(&self, context_length: u64) -> Settings {
        [
            ("hidden_size", json!(self.embedding_dim)),
            ("attention_hidden_size", json!(self.embedding_dim)),
            ("intermediate_size", json!(self.feed_forward())),
            ("num_hidden_layers", json!(self.blocks)),
            ("context_length", json!(context_length)),
            ("layer_norm_epsilon", json!(NORM_EPSILON)),
            // Halving is against the overflow of float16, and would change the norms' epsilon.
            ("rescale_every", json!(0)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect()
    }

    fn name_of(&self, own: &str) -> String {
        let (stem, part) = own.rsplit_once('.').unwrap_or((own, ""));
        // Mixes: `time_mix_k` there is `time_mix_key`.
        let part = match part {
            "time_mix_k" => "time_mix_key",
            "time_mix_v" => "time_mix_value",
            "time_mix_r" => "time_mix_receptance",
            other => other,
        };
        if stem == "head" {
            return format!("{stem}.{part}");
        }
        let stem = if stem == "emb" { "embeddings".to_owned() } else { stem.replace(".att", ".attention") };
        let stem = stem.replace(".ffn", ".feed_forward").replace(".ln0", ".pre_ln");
        format!("{}{stem}.{part}", NAMES.base)
    }

    fn is_tied(&self) -> bool {
        self.tied_embedding
    }
}

pub(super) fn read(config: &mut ConfigReader) -> Result<(ModelConfig, Option<u64>)> {
    let mut model = Rwkv4Config::default();
    model.vocabulary_size = config.size("vocab_size")?;
    model.embedding_dim = config.size("hidden_size")?;
    model.blocks = config.size("num_hidden_layers")?;
    model.tied_embedding = config.flag("tie_word_embeddings", false)?;
    if let Some(feed_forward) = config.optional_size("intermediate_size")?
        && feed_forward != model.feed_forward()
    {
        model.feed_forward_dim = feed_forward;
    }
    config.derived_size("attention_hidden_size", model.embedding_dim, "as `hidden_size`")?;
    config.only_number("layer_norm_epsilon", NORM_EPSILON)?;
    let every = config.number("rescale_every", 6.0)?;
    if every > 0.0 && model.blocks as f64 >= every {
        config.note(format!(
            "`rescale_every` is {every}: transformers halves the residual every so many blocks, against the overflow of float16, \
             which also makes the norms' epsilon count for more; this program computes as in training, without"
        ));
    }
    let context_length = config.optional_size("context_length")?;
    Ok((model.into(), context_length))
}
