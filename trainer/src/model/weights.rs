//! Parameters in and out of files that the official package reads and writes.
//!
//! Names and layouts are the official package's `vanilla` ones. On import the `cuda` layout of sLSTM weights is
//! recognised by the shape of `_recurrent_kernel_`, `(H, E, 4·E)` where `vanilla` has `(H, 4·E, E)`, and the bias of
//! the same cell is then taken to be in that layout too. The metadata says what the model is: see `config_json`.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Kind, Tensor};
use xlstm_kernels::slstm::{SlstmLayout, canonical_bias, canonical_recurrent};
use xlstm_manifests::recipe::{BlockKind, ForgetGate, GateWeights, ModelConfig};

use super::{Model, Placement, config_from_json, config_to_json, official_config, signed};
use crate::error::{Result, TrainError};
use crate::tensor_file::{self, TensorFile};

/// Metadata that lets the official package, and [`import`], rebuild the model.
///
/// # Errors
/// When the architecture has no TOML form; every one has.
pub(crate) fn metadata(model: &ModelConfig, context_length: u64) -> Result<BTreeMap<String, String>> {
    let own = toml::to_string(model).map_err(|error| TrainError::Internal(error.to_string()))?;
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("model".to_owned(), own)]);
    if is_official(model) {
        metadata.insert("config".to_owned(), config_to_json(model, context_length).to_string());
        metadata.insert("xlstm_config".to_owned(), official_config(model, context_length).to_string());
    }
    Ok(metadata)
}

/// Whether the official package can compute this model. Where it cannot, a file must not say how to build one there:
/// the logits would differ without a word.
fn is_official(model: &ModelConfig) -> bool {
    let (mlstm, slstm) = (&model.mlstm, &model.slstm);
    let only_slstm = model.slstm_at.len() as u64 == model.blocks;
    let plain_slstm = slstm.gate_weights == GateWeights::Headwise && slstm.forget_gate == ForgetGate::Sigmoid;
    (only_slstm || mlstm.block == BlockKind::PreUpProjection) && (model.slstm_at.is_empty() || plain_slstm)
}

/// Writes the model's parameters to `path` for the official package.
///
/// # Errors
/// When writing fails.
pub fn export(model: &Model, path: &Path, context_length: u64) -> Result<()> {
    let tensors: Vec<(String, Tensor)> = model
        .parameters()
        .iter()
        .map(|parameter| (parameter.name.clone(), parameter.tensor.shallow_clone()))
        .collect();
    tensor_file::write(path, &metadata(model.config(), context_length)?, &tensors)?;
    Ok(())
}

/// A model from a file's metadata and parameters.
///
/// # Errors
/// When the metadata describes no model, or parameters are missing, left over or of another shape (all are named).
pub fn import(path: &Path, placement: Placement) -> Result<Model> {
    let file = TensorFile::open(path)?;
    let config = config_of(&file)?;
    let model = Model::new(&config, placement, 0)?;
    model.load(&file, "")?;
    Ok(model)
}

/// The architecture that a file's metadata describes.
pub(crate) fn config_of(file: &TensorFile) -> Result<ModelConfig> {
    if let Some(text) = file.metadata().get("model") {
        return toml::from_str(text).map_err(|error| {
            let hint = "the file was written by another version; export it again";
            TrainError::file(file.path(), "a model in the metadata key `model`", error.to_string(), hint)
        });
    }
    match file.metadata().get("config") {
        Some(text) => config_from_json(file.path(), text),
        None => Err(TrainError::file(
            file.path(),
            "metadata with the model's `config`",
            "none",
            "add the configuration as JSON under `config` (names as in an exported file)",
        )),
    }
}

impl Model {
    /// Replaces all parameters by those of `file`, whose names have `prefix` in front. Names of the file without
    /// that prefix are left alone.
    ///
    /// # Errors
    /// When parameters are missing, left over or of another shape: all are named, and none is replaced.
    pub fn load(&self, file: &TensorFile, prefix: &str) -> Result<()> {
        let mut found = Vec::with_capacity(self.parameters().len());
        let mut problems = Vec::new();
        for parameter in self.parameters() {
            let name = format!("{prefix}{}", parameter.name);
            let expected = parameter.tensor.size();
            match file.tensor(&name)? {
                None => problems.push(format!("  {name}: expected {expected:?}, found none")),
                Some(tensor) => {
                    let tensor = self.to_vanilla(file, prefix, &parameter.name, tensor)?;
                    if tensor.size() == expected {
                        found.push(tensor);
                    } else {
                        problems.push(format!("  {name}: expected {expected:?}, found {:?}", tensor.size()));
                    }
                }
            }
        }
        let known = |name: &str| self.parameters().iter().any(|parameter| parameter.name == name);
        for name in file.names().filter_map(|name| name.strip_prefix(prefix)) {
            if !known(name) {
                problems.push(format!("  {prefix}{name}: expected no such parameter, found one"));
            }
        }
        if !problems.is_empty() {
            let (path, count) = (file.path().to_path_buf(), problems.len());
            return Err(TrainError::Parameters { path, count, list: problems.join("\n") });
        }
        tch::no_grad(|| -> Result<()> {
            for (parameter, tensor) in self.parameters().iter().zip(found) {
                parameter.tensor.shallow_clone().f_copy_(&tensor)?;
            }
            Ok(())
        })
    }

    /// A tensor of an sLSTM cell in the vanilla layout; others as they are.
    fn to_vanilla(&self, file: &TensorFile, prefix: &str, name: &str, tensor: Tensor) -> Result<Tensor> {
        let Some(cell) = name.strip_suffix("_recurrent_kernel_").or_else(|| name.strip_suffix("_bias_"))
        else {
            return Ok(tensor);
        };
        let kernel = match file.tensor(&format!("{prefix}{cell}_recurrent_kernel_"))? {
            Some(kernel) if kernel.dim() == 3 && kernel.size()[2] == 4 * kernel.size()[1] => kernel,
            _ => return Ok(tensor),
        };
        if name.ends_with("_bias_") {
            let heads = signed(self.config().slstm.heads);
            return Ok(canonical_bias(&tensor, heads, SlstmLayout::Cuda)?.f_contiguous()?.f_view([-1])?);
        }
        let size = kernel.size();
        let canonical = canonical_recurrent(&kernel, SlstmLayout::Cuda)?;
        Ok(canonical.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_view([size[0], size[2], size[1]])?)
    }

    /// Copies of all parameters on the CPU, by name.
    ///
    /// # Errors
    /// When libtorch cannot copy them (no memory).
    pub fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        let one =
            |parameter: &super::Parameter| Ok((parameter.name.clone(), copy_to_cpu(&parameter.tensor)?));
        self.parameters().iter().map(one).collect()
    }

    /// Whether every parameter is a finite number.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn is_finite(&self) -> Result<bool> {
        for parameter in self.parameters().iter().filter(|parameter| parameter.trainable) {
            let sum = parameter.tensor.detach().f_sum(Kind::Double)?;
            if !f64::try_from(sum)?.is_finite() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The values of a tensor in fresh memory of the CPU, without history.
pub(crate) fn copy_to_cpu(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = Tensor::f_empty(tensor.size(), (tensor.kind(), tch::Device::Cpu))?;
    copy.f_copy_(&tensor.detach())?;
    Ok(copy)
}
