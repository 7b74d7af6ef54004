//! Mamba in transformers (`MambaForCausalLM`).
//!
//! Layouts are those of this program, and names but the token embedding's. Not computed here: a convolution of other than four
//! taps or without bias, biases in the projections, a step size of another rank than ⌈d/16⌉, activations other than SiLU.

use serde_json::json;
use xlstm_manifests::recipe::ModelConfig;
use xlstm_manifests::recipe::architecture::{MAMBA_TAPS, MambaConfig};

use super::config::ConfigReader;
use super::{Names, Settings, TransformersForm};
use crate::error::Result;

pub(super) const NAMES: Names = Names {
    model_type: "mamba",
    class: "MambaForCausalLM",
    base: "backbone.",
    embedding: "backbone.embeddings.weight",
    output: "lm_head.weight",
};

impl TransformersForm for MambaConfig {
    fn names(&self) -> &'static Names {
        &NAMES
    }

    fn settings(&self, _context_length: u64) -> Settings {
        [
            ("hidden_size", json!(self.embedding_dim)),
            ("num_hidden_layers", json!(self.blocks)),
            ("state_size", json!(self.state_dim)),
            ("expand", json!(self.expansion)),
            ("intermediate_size", json!(self.inner())),
            ("time_step_rank", json!(self.step_rank())),
            ("conv_kernel", json!(MAMBA_TAPS)),
            ("use_conv_bias", json!(true)),
            ("use_bias", json!(false)),
            ("hidden_act", json!("silu")),
            ("layer_norm_epsilon", json!(self.norm_epsilon)),
            ("residual_in_fp32", json!(true)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect()
    }

    fn name_of(&self, own: &str) -> String {
        if own == "backbone.embedding.weight" { NAMES.embedding.to_owned() } else { own.to_owned() }
    }

    fn is_tied(&self) -> bool {
        self.tied_embedding
    }
}

pub(super) fn read(config: &mut ConfigReader) -> Result<(ModelConfig, Option<u64>)> {
    let model = MambaConfig {
        vocabulary_size: config.size("vocab_size")?,
        embedding_dim: config.size("hidden_size")?,
        blocks: config.size("num_hidden_layers")?,
        tied_embedding: config.flag("tie_word_embeddings", true)?,
        state_dim: config.optional_size("state_size")?.unwrap_or(16),
        expansion: config.optional_size("expand")?.unwrap_or(2),
        norm_epsilon: config.number("layer_norm_epsilon", 1e-5)?,
    };
    let inner = model.expansion.saturating_mul(model.embedding_dim);
    config.derived_size("intermediate_size", inner, "`expand` · `hidden_size`")?;
    if config.is_text("time_step_rank", "auto") {
        config.without_effect(&["time_step_rank"]);
    } else {
        config.derived_size("time_step_rank", model.step_rank(), "`hidden_size` / 16, rounded up")?;
    }
    config.derived_size("conv_kernel", MAMBA_TAPS, "the taps of this program's convolution")?;
    config.only_flag("use_conv_bias", true, true)?;
    config.only_flag("use_bias", false, false)?;
    config.choice("hidden_act", &["silu", "swish"], Some("silu"))?;
    // Settings of the authors' own package, in files that were made from its checkpoints.
    config.derived_size("d_model", model.embedding_dim, "as `hidden_size`")?;
    config.derived_size("d_inner", inner, "as `intermediate_size`")?;
    config.derived_size("n_layer", model.blocks, "as `num_hidden_layers`")?;
    config.only_flag("rms_norm", true, true)?;
    config.empty("ssm_cfg")?;
    // The residual is float32 here in any case, as it is there in a float32 model.
    config.without_effect(&[
        "residual_in_fp32",
        "fused_add_norm",
        "pad_vocab_size_multiple",
        "rescale_prenorm_residual",
        "time_step_floor",
        "time_step_init_scheme",
        "time_step_max",
        "time_step_min",
        "time_step_scale",
        "use_associative_scan",
        "use_mambapy",
    ]);
    Ok((model.into(), None))
}
