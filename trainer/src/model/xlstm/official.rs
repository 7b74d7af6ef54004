//! The architecture as the official package describes it.
//!
//! Two forms stand in the metadata of an exported file: `config`, flat, with the names that matter; and
//! `xlstm_config`, the nested form that `dacite.from_dict(xLSTMLMModelConfig, …)` takes. Variants of the ablations
//! that the official package does not have are kept in a third, `model`, this project's own TOML.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use xlstm_manifests::recipe::{
    BlockKind, ForgetGate, GateWeights, MlstmConfig, ModelConfig, SlstmConfig, SlstmFunction, XlstmConfig,
};

use crate::error::{Result, TrainError};

/// Both forms, where the official package can compute this model. Where it cannot, a file must not say how to build one
/// there: the logits would differ without a word.
pub(super) fn metadata(model: &XlstmConfig, context_length: u64) -> BTreeMap<String, String> {
    let (mlstm, slstm) = (&model.mlstm, &model.slstm);
    let only_slstm = model.slstm_at.len() as u64 == model.blocks;
    let plain_slstm = slstm.gate_weights == GateWeights::Headwise && slstm.forget_gate == ForgetGate::Sigmoid;
    let plain_slstm = plain_slstm && slstm.function == SlstmFunction::Slstm;
    let known = (only_slstm || mlstm.block == BlockKind::PreUpProjection)
        && (model.slstm_at.is_empty() || plain_slstm);
    if !known {
        return BTreeMap::new();
    }
    BTreeMap::from([
        ("config".to_owned(), config_to_json(model, context_length).to_string()),
        ("xlstm_config".to_owned(), official_config(model, context_length).to_string()),
    ])
}

/// The flat form.
#[must_use]
pub fn config_to_json(model: &XlstmConfig, context_length: u64) -> Value {
    json!({
        "embedding_dim": model.embedding_dim,
        "num_blocks": model.blocks,
        "slstm_at": model.slstm_at,
        "num_heads": model.mlstm.heads,
        "slstm_num_heads": model.slstm.heads,
        "context_length": context_length,
        "vocab_size": model.vocabulary_size,
        "tie_weights": model.tied_embedding,
        "conv1d_kernel_size": model.mlstm.convolution,
        "slstm_conv1d_kernel_size": model.slstm.convolution,
        "qkv_proj_blocksize": model.mlstm.qkv_block_size,
        "mlstm_proj_factor": model.mlstm.projection_factor,
        "ffn_proj_factor": model.slstm.feed_forward_factor,
        "ffn_act": "gelu",
        "slstm_backend_layout": "vanilla",
    })
}

/// The nested form of the official package.
#[must_use]
pub fn official_config(model: &XlstmConfig, context_length: u64) -> Value {
    let mut config = json!({
        "vocab_size": model.vocabulary_size,
        "embedding_dim": model.embedding_dim,
        "num_blocks": model.blocks,
        "slstm_at": model.slstm_at,
        "context_length": context_length,
        "tie_weights": model.tied_embedding,
        "add_post_blocks_norm": true,
        "bias": false,
        "dropout": 0.0,
    });
    if (model.slstm_at.len() as u64) < model.blocks {
        config["mlstm_block"] = json!({"mlstm": {
            "num_heads": model.mlstm.heads,
            "conv1d_kernel_size": model.mlstm.convolution,
            "qkv_proj_blocksize": model.mlstm.qkv_block_size,
            "proj_factor": model.mlstm.projection_factor,
        }});
    }
    if !model.slstm_at.is_empty() {
        config["slstm_block"] = json!({
            "slstm": {
                "backend": "vanilla",
                "num_heads": model.slstm.heads,
                "conv1d_kernel_size": model.slstm.convolution,
            },
            "feedforward": {"proj_factor": model.slstm.feed_forward_factor, "act_fn": "gelu"},
        });
    }
    config
}

/// Reads the nested form of the official package, `xLSTMLMModelConfig` as JSON.
///
/// # Errors
/// As [`config_from_json`].
pub(crate) fn config_from_nested(path: &Path, text: &str) -> Result<ModelConfig> {
    let nested: Value = serde_json::from_str(text).map_err(|error| {
        let hint = "write the package's configuration there as JSON";
        TrainError::file(path, "a JSON object in the metadata key `xlstm_config`", error.to_string(), hint)
    })?;
    let (mlstm, slstm) = (&nested["mlstm_block"]["mlstm"], &nested["slstm_block"]["slstm"]);
    let feed = &nested["slstm_block"]["feedforward"];
    let parts = [
        ("vocab_size", &nested["vocab_size"]),
        ("embedding_dim", &nested["embedding_dim"]),
        ("num_blocks", &nested["num_blocks"]),
        ("slstm_at", &nested["slstm_at"]),
        ("context_length", &nested["context_length"]),
        ("tie_weights", &nested["tie_weights"]),
        ("bias", &nested["bias"]),
        ("num_heads", &mlstm["num_heads"]),
        ("conv1d_kernel_size", &mlstm["conv1d_kernel_size"]),
        ("qkv_proj_blocksize", &mlstm["qkv_proj_blocksize"]),
        ("mlstm_proj_factor", &mlstm["proj_factor"]),
        ("slstm_num_heads", &slstm["num_heads"]),
        ("slstm_conv1d_kernel_size", &slstm["conv1d_kernel_size"]),
        ("ffn_proj_factor", &feed["proj_factor"]),
        ("ffn_act", &feed["act_fn"]),
    ];
    let known = parts.into_iter().filter(|(_, value)| !value.is_null());
    let flat: serde_json::Map<String, Value> =
        known.map(|(key, value)| (key.to_owned(), value.clone())).collect();
    config_from_json(path, &Value::Object(flat).to_string())
}

/// Reads the flat form; keys that are missing have the official package's defaults.
///
/// # Errors
/// When it is no JSON object, lacks a size, or describes a model that is not supported.
pub fn config_from_json(path: &Path, text: &str) -> Result<ModelConfig> {
    let fail = |expected: &str, found: String| {
        TrainError::file(path, expected, found, "only the architecture of the paper is supported")
    };
    let value: Value = serde_json::from_str(text)
        .map_err(|error| fail("a JSON object in the metadata key `config`", error.to_string()))?;
    let size = |key: &str, default: Option<u64>| match value.get(key) {
        None => default.ok_or_else(|| fail(&format!("`{key}` in `config`"), "none".into())),
        Some(number) => {
            number.as_u64().ok_or_else(|| fail(&format!("a size in `{key}`"), number.to_string()))
        }
    };
    let factor = |key: &str, default: f64| value.get(key).and_then(Value::as_f64).unwrap_or(default);
    for (key, expected) in [("ffn_act", json!("gelu")), ("bias", json!(false))] {
        match value.get(key) {
            Some(found) if *found != expected => {
                return Err(fail(&format!("`{key}` = {expected} in `config`"), found.to_string()));
            }
            _ => {}
        }
    }
    let slstm_at = match value.get("slstm_at") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_u64).collect(),
        Some(other) => return Err(fail("a list in `slstm_at`", other.to_string())),
    };
    let function = match value.get("slstm_function").map(|function| function.as_str().unwrap_or_default()) {
        None | Some("slstm") => SlstmFunction::Slstm,
        Some("lstm") => SlstmFunction::Lstm,
        Some(other) => return Err(fail("`slstm` or `lstm` in `slstm_function`", format!("`{other}`"))),
    };
    let tied_embedding = match value.get("tie_weights") {
        None => false,
        Some(tied) => {
            tied.as_bool().ok_or_else(|| fail("true or false in `tie_weights`", tied.to_string()))?
        }
    };
    let (heads, convolution) = (size("num_heads", Some(4))?, size("conv1d_kernel_size", Some(4))?);
    let config = XlstmConfig {
        input_width: 0,
        vocabulary_size: size("vocab_size", None)?,
        embedding_dim: size("embedding_dim", None)?,
        blocks: size("num_blocks", None)?,
        slstm_at,
        tied_embedding,
        mlstm: MlstmConfig {
            heads,
            convolution,
            qkv_block_size: size("qkv_proj_blocksize", Some(4))?,
            projection_factor: factor("mlstm_proj_factor", 2.0),
            ..MlstmConfig::default()
        },
        slstm: SlstmConfig {
            function,
            heads: size("slstm_num_heads", Some(heads))?,
            convolution: size("slstm_conv1d_kernel_size", Some(convolution))?,
            feed_forward_factor: factor("ffn_proj_factor", 1.3),
            ..SlstmConfig::default()
        },
    };
    Ok(config.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flat_form_round_trips_and_foreign_models_are_refused() {
        let path = Path::new("x.safetensors");
        let model = XlstmConfig { embedding_dim: 64, blocks: 2, slstm_at: vec![1], ..XlstmConfig::default() };
        let mut value = config_to_json(&model, 32);
        assert_eq!(config_from_json(path, &value.to_string()).unwrap(), model.clone().into());
        let nested = official_config(&model, 32).to_string();
        assert_eq!(config_from_nested(path, &nested).unwrap(), model.clone().into());
        value["tie_weights"] = json!(true);
        let tied = config_from_json(path, &value.to_string()).unwrap();
        assert!(tied.tied_embedding() && tied.size().parameters < ModelConfig::from(model).size().parameters);
        value["bias"] = json!(true);
        let error = config_from_json(path, &value.to_string()).unwrap_err().to_string();
        assert!(error.contains("`bias` = false"), "{error}");
        assert!(config_from_json(path, "{}").unwrap_err().to_string().contains("`vocab_size`"));
    }
}
