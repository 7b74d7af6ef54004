//! Parameters in and out of files.
//!
//! Names and layouts are those of the architecture's own code. The metadata says what the model is: `model` is this
//! project's TOML; architectures with a package of their own add what that package reads (`Network::foreign_metadata`).

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Kind, Tensor};
use xlstm_manifests::recipe::{self, ModelConfig, RecipeError};

use super::network::network;
use super::parameters::{Builder, TiedOutput};
use super::xlstm::official::config_from_nested;
use super::{Model, Placement, config_from_json};
use crate::error::{Result, TrainError};
use crate::tensor_file::{self, TensorFile};

/// Metadata by which [`import`], and the architecture's own package where there is one, rebuild the model.
///
/// # Errors
/// Never in practice: every architecture has a TOML form.
pub(crate) fn metadata(model: &ModelConfig, context_length: u64) -> Result<BTreeMap<String, String>> {
    let mut metadata = network(model).foreign_metadata(context_length);
    metadata.extend(own_metadata(model)?);
    if !metadata.contains_key("config") {
        metadata.insert("context_length".to_owned(), context_length.to_string());
    }
    Ok(metadata)
}

/// Metadata by which [`import`] rebuilds the model.
///
/// # Errors
/// Never in practice: every architecture has a TOML form.
pub(crate) fn own_metadata(model: &ModelConfig) -> Result<BTreeMap<String, String>> {
    let own = toml::to_string(model).map_err(|error| TrainError::Internal(error.to_string()))?;
    Ok(BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("model".to_owned(), own)]))
}

/// Writes the model's parameters to `path`, also for the architecture's own package where there is one.
///
/// # Errors
/// When writing fails.
pub fn export(model: &Model, path: &Path, context_length: u64) -> Result<()> {
    export_with(model, path, context_length, BTreeMap::new())
}

/// As [`export`], with metadata that say where the parameters came from.
///
/// # Errors
/// When writing fails.
pub fn export_with(
    model: &Model,
    path: &Path,
    context_length: u64,
    came_from: BTreeMap<String, String>,
) -> Result<()> {
    let tensors = model.snapshot()?;
    let mut metadata = metadata(model.config(), context_length)?;
    metadata.extend(came_from);
    tensor_file::write(path, &metadata, &tensors)?;
    Ok(())
}

/// A model from a file's metadata and parameters.
///
/// # Errors
/// When the metadata describes no model, or parameters are missing, left over or of another shape (all are named).
pub fn import(path: &Path, placement: Placement) -> Result<Model> {
    let file = TensorFile::open(path)?;
    let config = config_of(&file)?;
    check_sizes(&config, &file)?;
    let model = Model::new(&config, placement, 0)?;
    model.load(&file, "")?;
    Ok(model)
}

/// Refuses a model that is many times larger than the file, whose names alone could not be listed.
pub(super) fn refuse_larger(config: &ModelConfig, file: &TensorFile) -> Result<()> {
    /// Numbers whose names and shapes can be listed in a moment.
    const LISTED: u64 = 1 << 26;
    let (needed, found) = (config.size().parameters, file.numbers());
    if needed <= found.saturating_mul(4).saturating_add(LISTED) {
        return Ok(());
    }
    let hint = "the description and the tensors are of different models: export the model again";
    let expected = format!("the {needed} numbers of the model that its description asks for");
    Err(TrainError::file(file.path(), expected, format!("{found}"), hint))
}

/// Refuses a file that does not hold a model of these sizes, before anything of their size is allocated. What is left to
/// [`Model::load`] are shapes of equally many numbers, which an architecture may store otherwise.
///
/// # Errors
/// When the model is many times larger than the file, or parameters are missing or of another size (they are named).
pub(crate) fn check_sizes(config: &ModelConfig, file: &TensorFile) -> Result<()> {
    refuse_larger(config, file)?;
    let mut sketch = Builder::sketch().tied(config.tied_embedding());
    network(config).build(&mut sketch)?;
    let mut problems = Problems::default();
    for parameter in &sketch.parameters {
        let expected = parameter.tensor.size();
        match file.shape(&parameter.name) {
            None => problems.add(format!("  {}: expected {expected:?}, found none", parameter.name)),
            Some(shape) if count(shape) != count(&expected) => {
                problems.add(format!("  {}: expected {expected:?}, found {shape:?}", parameter.name));
            }
            Some(_) => {}
        }
    }
    if problems.count == 0 {
        return Ok(());
    }
    // Only together with what is missing does a name tell something that is left over.
    let known: std::collections::HashSet<&str> =
        sketch.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    let second = sketch.tied_output.as_ref().map(|tied| tied.name.as_str());
    problems.left_over(file, "", |name| known.contains(name) || Some(name) == second);
    problems.result(file, "")
}

fn count(shape: &[i64]) -> Option<i64> {
    shape.iter().try_fold(1_i64, |product, &size| product.checked_mul(size))
}

/// What does not fit between a model and a file. A file can have any number of names: not all are listed.
#[derive(Default)]
pub(super) struct Problems {
    lines: Vec<String>,
    count: usize,
}

impl Problems {
    const LISTED: usize = 200;

    pub(super) fn add(&mut self, line: String) {
        self.count += 1;
        if self.lines.len() < Self::LISTED {
            self.lines.push(line);
        }
    }

    /// Adds the names of `file` that the model does not have.
    pub(super) fn left_over(&mut self, file: &TensorFile, prefix: &str, known: impl Fn(&str) -> bool) {
        for name in file.names().filter_map(|name| name.strip_prefix(prefix)) {
            if !known(name) {
                self.add(format!("  {prefix}{name}: expected no such parameter, found one"));
            }
        }
    }

    /// Adds an output projection that is not the token embedding, in a file of a model in which they are one.
    fn untied(&mut self, file: &TensorFile, prefix: &str, tied: &TiedOutput) -> Result<()> {
        let (name, embedding) = (format!("{prefix}{}", tied.name), format!("{prefix}{}", tied.embedding));
        if let (Some(output), Some(embedding)) = (file.tensor(&name)?, file.tensor(&embedding)?)
            && !(output.size() == embedding.size() && output.equal(&embedding))
        {
            self.add(format!(
                "  {name}: expected the numbers of {} (model.tied_embedding), found others",
                tied.embedding
            ));
        }
        Ok(())
    }

    pub(super) fn result(mut self, file: &TensorFile, prefix: &str) -> Result<()> {
        if let Some(problem) = wrapped_names(file, prefix) {
            self.lines.insert(0, problem);
            self.count += 1;
        }
        if self.count == 0 {
            return Ok(());
        }
        let more = self.count.saturating_sub(self.lines.len());
        if more > 0 {
            self.lines.push(format!("  and {more} more"));
        }
        let (path, count) = (file.path().to_path_buf(), self.count);
        Err(TrainError::Parameters { path, count, list: self.lines.join("\n") })
    }
}

/// The model that a file's metadata describes; `None` where it has none.
///
/// # Errors
/// When the metadata is there and describes no model.
pub(crate) fn described_model(file: &TensorFile) -> Result<Option<ModelConfig>> {
    if describes_model(file) { config_of(file).map(Some) } else { Ok(None) }
}

/// Whether a file's metadata describes a model.
pub(crate) fn describes_model(file: &TensorFile) -> bool {
    ["model", "config", "xlstm_config"].iter().any(|key| file.metadata().contains_key(*key))
}

/// The architecture that a file's metadata describes.
pub(crate) fn config_of(file: &TensorFile) -> Result<ModelConfig> {
    let own = file.metadata().get("model").map(|text| {
        toml::from_str(text).map_err(|error| {
            let hint = "the file was written by another version; export it again";
            let found = recipe::in_short(&error);
            TrainError::file(file.path(), "a model in the metadata key `model`", found, hint)
        })
    });
    let config = match (own, file.metadata().get("config")) {
        (Some(own), _) => own?,
        (None, Some(text)) => config_from_json(file.path(), text)?,
        (None, None) if file.metadata().contains_key("xlstm_config") => {
            config_from_nested(file.path(), &file.metadata()["xlstm_config"])?
        }
        (None, None) => {
            return Err(TrainError::file(
                file.path(),
                "metadata with the model's `config`",
                "none",
                "add the configuration as JSON under `config` (names as in an exported file)",
            ));
        }
    };
    let shown = file.path().display().to_string();
    recipe::check_model(&shown, &config).map_err(|error| match error {
        RecipeError::Value { key, expected, found, .. } => {
            let hint = "no such model can be: the metadata is damaged, export the model again";
            TrainError::file(file.path(), format!("`{key}` {expected}"), found, hint)
        }
        other => other.into(),
    })?;
    Ok(config)
}

impl Model {
    /// Replaces all parameters by those of `file`, whose names have `prefix` in front. Names of the file without
    /// that prefix are left alone.
    ///
    /// # Errors
    /// When parameters are missing, left over or of another shape: all are named, and none is replaced.
    pub fn load(&self, file: &TensorFile, prefix: &str) -> Result<()> {
        let mut found = Vec::with_capacity(self.parameters().len());
        let mut problems = Problems::default();
        for parameter in self.parameters() {
            let name = format!("{prefix}{}", parameter.name);
            let expected = parameter.tensor.size();
            // A tensor of another size is not even read.
            match file.shape(&name).map(|shape| (shape, count(shape) == count(&expected))) {
                None => problems.add(format!("  {name}: expected {expected:?}, found none")),
                Some((shape, false)) => {
                    problems.add(format!("  {name}: expected {expected:?}, found {shape:?}"));
                }
                Some((_, true)) => {
                    let Some(tensor) = file.tensor(&name)? else { continue };
                    let tensor = network(self.config()).canonical(file, prefix, &parameter.name, tensor)?;
                    if tensor.size() == expected {
                        found.push(tensor);
                    } else {
                        problems.add(format!("  {name}: expected {expected:?}, found {:?}", tensor.size()));
                    }
                }
            }
        }
        let known: std::collections::HashSet<&str> =
            self.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
        let second = self.tied_output.as_ref().map(|tied| tied.name.as_str());
        problems.left_over(file, prefix, |name| known.contains(name) || Some(name) == second);
        if let Some(tied) = &self.tied_output {
            problems.untied(file, prefix, tied)?;
        }
        problems.result(file, prefix)?;
        tch::no_grad(|| -> Result<()> {
            for (parameter, tensor) in self.parameters().iter().zip(found) {
                parameter.tensor.shallow_clone().f_copy_(&tensor)?;
            }
            Ok(())
        })
    }

    /// Copies of all parameters on the CPU, by name; an output projection that is the token embedding under both names.
    ///
    /// # Errors
    /// When libtorch cannot copy them (no memory).
    pub fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        let one =
            |parameter: &super::Parameter| Ok((parameter.name.clone(), copy_to_cpu(&parameter.tensor)?));
        let mut tensors = self.parameters().iter().map(one).collect::<Result<Vec<_>>>()?;
        // Other programs look for both names.
        if let Some(tied) = &self.tied_output
            && let Some((_, embedding)) = tensors.iter().find(|(name, _)| *name == tied.embedding)
        {
            let second = (tied.name.clone(), copy_to_cpu(embedding)?);
            tensors.push(second);
        }
        Ok(tensors)
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
