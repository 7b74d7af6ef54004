//! Llama in transformers (`LlamaForCausalLM`).
//!
//! Names, layouts and the pairing of rotary positions, `(j, j + E/2)`, are those of this program. Not computed here: heads
//! that share keys and values, biases, heads wider or narrower than the residual's share, scaled rotary positions.

use serde_json::json;
use xlstm_manifests::recipe::ModelConfig;
use xlstm_manifests::recipe::architecture::LlamaConfig;

use super::config::ConfigReader;
use super::{Names, Settings, TransformersForm};
use crate::error::Result;

pub(super) const NAMES: Names = Names {
    model_type: "llama",
    class: "LlamaForCausalLM",
    base: "model.",
    embedding: "model.embed_tokens.weight",
    output: "lm_head.weight",
};

/// Base of the rotary angles where none is stated.
const ROTARY_BASE: f64 = 10_000.0;

impl TransformersForm for LlamaConfig {
    fn names(&self) -> &'static Names {
        &NAMES
    }

    fn settings(&self, context_length: u64) -> Settings {
        let base = self.rotary_base;
        [
            ("hidden_size", json!(self.embedding_dim)),
            ("intermediate_size", json!(self.feed_forward())),
            ("num_hidden_layers", json!(self.blocks)),
            ("num_attention_heads", json!(self.heads)),
            ("num_key_value_heads", json!(self.heads)),
            ("head_dim", json!(self.embedding_dim / self.heads)),
            ("hidden_act", json!("silu")),
            ("rms_norm_eps", json!(self.norm_epsilon)),
            // Version 4 reads the first two, version 5 the third.
            ("rope_theta", json!(base)),
            ("rope_scaling", json!(null)),
            ("rope_parameters", json!({"rope_type": "default", "rope_theta": base})),
            ("max_position_embeddings", json!(context_length)),
            ("attention_bias", json!(false)),
            ("mlp_bias", json!(false)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect()
    }

    fn is_tied(&self) -> bool {
        self.tied_embedding
    }
}

pub(super) fn read(config: &mut ConfigReader) -> Result<(ModelConfig, Option<u64>)> {
    let mut model = LlamaConfig {
        vocabulary_size: config.size("vocab_size")?,
        embedding_dim: config.size("hidden_size")?,
        blocks: config.size("num_hidden_layers")?,
        heads: config.size("num_attention_heads")?,
        tied_embedding: config.flag("tie_word_embeddings", false)?,
        norm_epsilon: config.number("rms_norm_eps", 1e-6)?,
        rotary_base: rotary_base(config)?,
        ..LlamaConfig::default()
    };
    let feed_forward = config.size("intermediate_size")?;
    if feed_forward != model.feed_forward() {
        model.feed_forward_dim = feed_forward;
    }
    let (heads, width) = (model.heads, model.embedding_dim);
    config.derived_size(
        "num_key_value_heads",
        heads,
        "as `num_attention_heads`: each head has its own keys and values",
    )?;
    config.derived_size("head_dim", width / heads.max(1), "`hidden_size` / `num_attention_heads`")?;
    config.choice("hidden_act", &["silu", "swish"], Some("silu"))?;
    config.only_flag("attention_bias", false, false)?;
    config.only_flag("mlp_bias", false, false)?;
    config.without_effect(&["attention_dropout", "pretraining_tp"]);
    let context_length = config.optional_size("max_position_embeddings")?;
    Ok((model.into(), context_length))
}

/// The base of the rotary angles, which stands in one of two places; scaled angles are refused.
fn rotary_base(config: &mut ConfigReader) -> Result<f64> {
    let mut bases = Vec::new();
    for key in ["rope_parameters", "rope_scaling"] {
        for (entry, value) in config.object(key)? {
            let name = format!("{key}.{entry}");
            match (entry.as_str(), value.as_f64()) {
                ("rope_theta", Some(base)) => bases.push(base),
                ("rope_type" | "type", _) if value == "default" => {}
                ("rope_type" | "type", _) => {
                    return Err(config.refused(&name, "default", &value.to_string()));
                }
                ("partial_rotary_factor", Some(1.0)) => {}
                _ => return Err(config.refused(&name, "no such entry", &value.to_string())),
            }
        }
    }
    let stated = config.number("rope_theta", bases.first().copied().unwrap_or(ROTARY_BASE))?;
    match bases.iter().find(|base| base.to_bits() != stated.to_bits()) {
        None => Ok(stated),
        Some(other) => {
            let expected = format!("{other}, as the rotary parameters have it");
            Err(config.refused("rope_theta", &expected, &stated.to_string()))
        }
    }
}
