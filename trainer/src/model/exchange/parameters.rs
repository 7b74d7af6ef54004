//! Parameters under the names of transformers.

use std::collections::HashSet;

use tch::{Kind, Tensor};
use xlstm_manifests::recipe::ModelConfig;

use super::super::Model;
use super::super::network::network;
use super::super::parameters::{Builder, Parameter};
use super::super::weights::{Problems, copy_to_cpu, refuse_larger};
use super::{Names, TransformersForm, form};
use crate::error::Result;
use crate::tensor_file::TensorFile;

/// Copies of all parameters by their names in transformers; an output projection that is the token embedding is left out,
/// as there.
///
/// # Errors
/// When transformers has no such architecture, or a parameter cannot be copied.
pub(crate) fn parameters(model: &Model) -> Result<Vec<(String, Tensor)>> {
    let form = form(model.config())?;
    let one = |parameter: &Parameter| {
        Ok((form.name_of(&parameter.name), copy_to_cpu(&parameter.tensor)?.f_to_kind(Kind::Float)?))
    };
    model.parameters().iter().map(one).collect()
}

/// All parameters of `model` by this program's names, in float32, from a file with those of transformers. A file whose names are
/// those of the base model, without the language model's own prefix, is read too.
///
/// # Errors
/// When parameters are missing, left over, of another shape or type, or not finite: they are named.
pub(crate) fn read_parameters(model: &ModelConfig, file: &TensorFile) -> Result<Vec<(String, Tensor)>> {
    refuse_larger(model, file)?;
    let source = Source::new(form(model)?, file);
    let mut sketch = Builder::sketch().tied(model.tied_embedding());
    network(model).build(&mut sketch)?;
    source.check_names(&sketch.parameters)?;
    let mut problems = Problems::default();
    source.check_masks(&mut problems)?;
    source.check_tied(&mut problems)?;
    let mut tensors = Vec::with_capacity(sketch.parameters.len());
    for Parameter { name: own, .. } in sketch.parameters {
        let name = source.name_of(&own);
        let Some(tensor) = file.tensor(&name)? else { continue };
        match tensor.kind() {
            Kind::Float | Kind::BFloat16 | Kind::Half => {}
            other => {
                problems.add(format!("  {name}: expected float32, bfloat16 or float16, found {other:?}"));
                continue;
            }
        }
        let tensor = tensor.f_to_kind(Kind::Float)?;
        if !bool::try_from(tensor.f_isfinite()?.f_all()?)? {
            problems.add(format!("  {name}: expected finite numbers, found NaN or infinity"));
        }
        tensors.push((own, tensor));
    }
    problems.result(file, "")?;
    Ok(tensors)
}

/// A file of transformers, and how its names are made.
struct Source<'a> {
    form: &'a dyn TransformersForm,
    names: &'static Names,
    file: &'a TensorFile,
    /// Whether the names have the base model's prefix.
    prefixed: bool,
}

impl<'a> Source<'a> {
    fn new(form: &'a dyn TransformersForm, file: &'a TensorFile) -> Self {
        let names = form.names();
        let prefixed = file.names().any(|name| name.starts_with(names.base));
        Self { form, names, file, prefixed }
    }

    /// The name in this file of the parameter that is `own` here.
    fn name_of(&self, own: &str) -> String {
        self.in_file(&self.form.name_of(own))
    }

    /// A name of the language model as this file has it.
    fn in_file(&self, name: &str) -> String {
        match name.strip_prefix(self.names.base) {
            Some(rest) if !self.prefixed => rest.to_owned(),
            _ => name.to_owned(),
        }
    }

    fn is_mask(&self, name: &str) -> bool {
        let name = if self.prefixed { name.strip_prefix(self.names.base) } else { Some(name) };
        name.is_some_and(|name| self.form.is_causal_mask(name))
    }

    /// Refuses parameters that are missing, left over or of another shape.
    fn check_names(&self, parameters: &[Parameter]) -> Result<()> {
        let mut problems = Problems::default();
        let mut known = HashSet::new();
        for parameter in parameters {
            let (name, expected) = (self.name_of(&parameter.name), parameter.tensor.size());
            match self.file.shape(&name) {
                None => problems.add(format!("  {name}: expected {expected:?}, found none")),
                Some(shape) if shape != expected => {
                    problems.add(format!("  {name}: expected {expected:?}, found {shape:?}"));
                }
                Some(_) => {}
            }
            known.insert(name);
        }
        let tied = self.form.is_tied().then_some(self.names.output);
        problems.left_over(self.file, "", |name| {
            known.contains(name) || Some(name) == tied || self.is_mask(name)
        });
        problems.result(self.file, "")
    }

    /// Refuses a mask that hides something else than what comes later.
    fn check_masks(&self, problems: &mut Problems) -> Result<()> {
        for name in self.file.names().filter(|name| self.is_mask(name)) {
            let Some(mask) = self.file.tensor(name)? else { continue };
            let causal = match mask.size()[..] {
                [1, 1, rows, columns] if rows == columns => mask.f_equal(&mask.f_ones_like()?.f_tril(0)?)?,
                _ => false,
            };
            if !causal {
                problems.add(format!("  {name}: expected a causal mask, found something else"));
            }
        }
        Ok(())
    }

    /// Refuses an output projection of its own, where the configuration says that it is the embedding.
    fn check_tied(&self, problems: &mut Problems) -> Result<()> {
        if !self.form.is_tied() {
            return Ok(());
        }
        let (output, embedding) = (self.names.output, self.in_file(self.names.embedding));
        let (Some(found), Some(expected)) = (self.file.tensor(output)?, self.file.tensor(&embedding)?) else {
            return Ok(());
        };
        let same = found.size() == expected.size()
            && found.f_to_kind(Kind::Double)?.f_equal(&expected.f_to_kind(Kind::Double)?)?;
        if !same {
            let expected = format!("the numbers of {embedding} (`tie_word_embeddings`)");
            problems.add(format!("  {output}: expected {expected}, found others"));
        }
        Ok(())
    }
}
