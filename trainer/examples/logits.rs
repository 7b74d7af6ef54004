//! Logits of a model in a safetensors file, for comparison with the official package (tests/python/official_package.py).
//!
//! Usage: logits MODEL.safetensors TOKENS.safetensors OUT.safetensors, with `inputs` (B, T; int64) in TOKENS; OUT gets
//! `logits` (B, T, V; float32).

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use tch::Device;
use xlstm_manifests::recipe::Precision;
use xlstm_trainer::model::{Placement, import};
use xlstm_trainer::tensor_file::{self, TensorFile};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, tokens, out] = paths.as_slice() else { return Err("expected MODEL TOKENS OUT".into()) };
    xlstm_bridge::runtime::initialize(None)?;
    let model = import(model, Placement::new(Device::Cpu, Precision::Float32, false))?;
    let inputs = TensorFile::open(tokens)?.tensor("inputs")?.ok_or("no `inputs` in the file of tokens")?;
    let (hidden, _) = tch::no_grad(|| model.forward(&inputs, None, None))?;
    let logits = tch::no_grad(|| model.logits(&hidden))?;
    tensor_file::write(out, &BTreeMap::new(), &[("logits".to_owned(), logits)])?;
    Ok(())
}
