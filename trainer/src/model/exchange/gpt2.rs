//! GPT-2 in transformers (`GPT2LMHeadModel`).
//!
//! Names and layouts are those of this program: `c_attn`, `c_proj` and `c_fc` are stored `(in, out)` in both. Older files hold
//! each block's causal mask beside its parameters (`attn.bias`). Not computed here: other norms' epsilon, attention that is
//! scaled otherwise, an output projection of its own.

use serde_json::json;
use xlstm_manifests::recipe::ModelConfig;
use xlstm_manifests::recipe::architecture::{Gelu, Gpt2Config};

use super::config::ConfigReader;
use super::{Names, Settings, TransformersForm};
use crate::error::Result;
use crate::model::gpt2::NORM_EPSILON;

pub(super) const NAMES: Names = Names {
    model_type: "gpt2",
    class: "GPT2LMHeadModel",
    base: "transformer.",
    embedding: "transformer.wte.weight",
    output: "lm_head.weight",
};

impl TransformersForm for Gpt2Config {
    fn names(&self) -> &'static Names {
        &NAMES
    }

    fn settings(&self, _context_length: u64) -> Settings {
        let activation = match self.gelu {
            Gelu::Tanh => "gelu_new",
            Gelu::Erf => "gelu",
        };
        [
            ("n_embd", json!(self.embedding_dim)),
            ("n_layer", json!(self.blocks)),
            ("n_head", json!(self.heads)),
            ("n_inner", json!(self.feed_forward())),
            ("n_positions", json!(self.positions)),
            ("activation_function", json!(activation)),
            ("layer_norm_epsilon", json!(NORM_EPSILON)),
            ("scale_attn_weights", json!(true)),
            ("scale_attn_by_inverse_layer_idx", json!(false)),
            ("reorder_and_upcast_attn", json!(false)),
            ("add_cross_attention", json!(false)),
            ("resid_pdrop", json!(0.0)),
            ("embd_pdrop", json!(0.0)),
            ("attn_pdrop", json!(0.0)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect()
    }

    fn is_tied(&self) -> bool {
        true
    }

    fn is_causal_mask(&self, name: &str) -> bool {
        let block = name.strip_prefix("h.").and_then(|name| name.strip_suffix(".attn.bias"));
        block.is_some_and(|block| block.parse::<u64>().is_ok_and(|block| block < self.blocks))
    }
}

pub(super) fn read(config: &mut ConfigReader) -> Result<(ModelConfig, Option<u64>)> {
    let activation = ["gelu_new", "gelu_pytorch_tanh", "gelu"];
    let gelu = match config.choice("activation_function", &activation, Some("gelu_new"))?.as_str() {
        "gelu" => Gelu::Erf,
        _ => Gelu::Tanh,
    };
    let positions = config.size("n_positions")?;
    let mut model = Gpt2Config {
        vocabulary_size: config.size("vocab_size")?,
        embedding_dim: config.size("n_embd")?,
        blocks: config.size("n_layer")?,
        heads: config.size("n_head")?,
        feed_forward_dim: 0,
        positions,
        gelu,
    };
    if let Some(feed_forward) = config.optional_size("n_inner")?
        && feed_forward != model.feed_forward()
    {
        model.feed_forward_dim = feed_forward;
    }
    config.only_number("layer_norm_epsilon", NORM_EPSILON)?;
    config.only_flag("scale_attn_weights", true, true)?;
    config.only_flag("scale_attn_by_inverse_layer_idx", false, false)?;
    config.only_flag("tie_word_embeddings", true, true)?;
    // The last one decides the order of rounding alone, and the rest belongs to dropout and to other heads.
    config.without_effect(&[
        "attn_pdrop",
        "embd_pdrop",
        "n_ctx",
        "resid_pdrop",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "reorder_and_upcast_attn",
    ]);
    Ok((model.into(), Some(positions)))
}
