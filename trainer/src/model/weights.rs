//! Parameters in and out of files.
//!
//! Names and layouts are those of the architecture's own code. The metadata says what the model is: `model` is this
//! project's TOML; architectures with a package of their own add what that package reads (`Network::foreign_metadata`).

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Kind, Tensor};
use xlstm_manifests::recipe::ModelConfig;

use super::network::network;
use super::{Model, Placement, config_from_json};
use crate::error::{Result, TrainError};
use crate::tensor_file::{self, TensorFile};

/// Metadata by which [`import`], and the architecture's own package where there is one, rebuild the model.
///
/// # Errors
/// Never in practice: every architecture has a TOML form.
pub(crate) fn metadata(model: &ModelConfig, context_length: u64) -> Result<BTreeMap<String, String>> {
    let own = toml::to_string(model).map_err(|error| TrainError::Internal(error.to_string()))?;
    let mut metadata = network(model).foreign_metadata(context_length);
    metadata.insert("format".to_owned(), "pt".to_owned());
    metadata.insert("model".to_owned(), own);
    if !metadata.contains_key("config") {
        metadata.insert("context_length".to_owned(), context_length.to_string());
    }
    Ok(metadata)
}

/// Writes the model's parameters to `path`, also for the architecture's own package where there is one.
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
                    let tensor = network(self.config()).canonical(file, prefix, &parameter.name, tensor)?;
                    if tensor.size() == expected {
                        found.push(tensor);
                    } else {
                        problems.push(format!("  {name}: expected {expected:?}, found {:?}", tensor.size()));
                    }
                }
            }
        }
        if let Some(problem) = wrapped_names(file, prefix) {
            problems.insert(0, problem);
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

/// What to do about names that PyTorch's wrappers of a model have put a prefix before.
fn wrapped_names(file: &TensorFile, prefix: &str) -> Option<String> {
    let wrappers = [
        ("_orig_mod.", "torch.compile", "model._orig_mod.state_dict()"),
        ("module.", "DistributedDataParallel", "model.module.state_dict()"),
    ];
    let name = file.names().find_map(|name| name.strip_prefix(prefix))?;
    let (wrapper, by, instead) = wrappers.into_iter().find(|(wrapper, ..)| name.starts_with(wrapper))?;
    Some(format!(
        "  names begin with `{wrapper}`, as {by} writes them: save `{instead}` instead, or remove the prefix from all names"
    ))
}

/// The values of a tensor in fresh memory of the CPU, without history.
pub(crate) fn copy_to_cpu(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = Tensor::f_empty(tensor.size(), (tensor.kind(), tch::Device::Cpu))?;
    copy.f_copy_(&tensor.detach())?;
    Ok(copy)
}
