//! Parameters by their official names, in a fixed order, with their initial values.
//!
//! Initial values are drawn on the CPU from one generator, in the order of the list, and moved to the device
//! afterwards: a seed means the same model everywhere. A parameter says itself whether weight decay applies to it.

use tch::{Device, Kind, Tensor};

use super::network::Biases;
use crate::error::Result;

/// Whether weight decay applies to a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decay {
    /// It does: matrices.
    Yes,
    /// It does not: embeddings, norms, biases, and what the authors of an architecture leave out.
    No,
}

/// How a parameter begins.
#[derive(Debug, Clone)]
pub(super) enum Init {
    /// All the same.
    Constant(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this.
    Uniform(f64),
    /// These values.
    Values(Vec<f32>),
}

/// One named tensor of a model.
#[derive(Debug)]
pub struct Parameter {
    /// Official name.
    pub name: String,
    /// The values; a leaf of the graph when trainable.
    pub tensor: Tensor,
    /// Whether it is trained (the gates of some ablations are not).
    pub trainable: bool,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// Collects parameters while a model is built.
pub(super) struct Builder {
    pub(super) parameters: Vec<Parameter>,
    device: Device,
    kind: Kind,
    /// Names and shapes alone: no value is drawn or stored.
    sketch: bool,
    /// Whether the output projection is the token embedding.
    tied: bool,
    /// The output projection's own name, where it is the token embedding by choice.
    pub(super) tied_output: Option<TiedOutput>,
}

/// One tensor under two names.
#[derive(Debug, Clone)]
pub(super) struct TiedOutput {
    /// The output projection's name.
    pub(super) name: String,
    /// The token embedding's name, which is a parameter's.
    pub(super) embedding: String,
}

impl Builder {
    /// Parameters on `device`, with initial values from `seed`.
    pub(super) fn new(device: Device, kind: Kind, seed: u64) -> Self {
        // libtorch takes the bits, not the number.
        tch::manual_seed(seed.cast_signed());
        Self::empty(device, kind)
    }

    /// Parameters of all names and shapes, each of which takes the memory of one number: to compare a model with a file
    /// before anything of its size is allocated.
    pub(super) fn sketch() -> Self {
        Self { sketch: true, ..Self::empty(Device::Cpu, Kind::Float) }
    }

    fn empty(device: Device, kind: Kind) -> Self {
        Self { parameters: Vec::new(), device, kind, sketch: false, tied: false, tied_output: None }
    }

    /// With an output projection that is the token embedding, or not.
    pub(super) fn tied(self, tied: bool) -> Self {
        Self { tied, ..self }
    }

    /// The output projection, of the embedding's shape where inputs are tokens: a matrix of its own, or the embedding itself.
    pub(super) fn output(
        &mut self,
        name: &str,
        embedding: &Tensor,
        shape: &[i64],
        init: &Init,
    ) -> Result<Tensor> {
        if !self.tied {
            return self.add(name.into(), shape, init, Decay::Yes);
        }
        let same = |parameter: &&Parameter| parameter.tensor.data_ptr() == embedding.data_ptr();
        let own = self.parameters.iter().find(same).map(|parameter| parameter.name.clone());
        self.tied_output = own.map(|embedding| TiedOutput { name: name.into(), embedding });
        Ok(embedding.shallow_clone())
    }

    /// First values that are computed; a sketch has none.
    pub(super) fn values(&self, compute: impl FnOnce() -> Result<Vec<f32>>) -> Result<Init> {
        if self.sketch { Ok(Init::Constant(0.0)) } else { compute().map(Init::Values) }
    }

    /// Tensors that are no parameters: never trained, in no file. A sketch has none.
    pub(super) fn constants<T>(&self, make: impl FnOnce((Kind, Device)) -> Result<T>) -> Result<Option<T>> {
        if self.sketch { Ok(None) } else { make((self.kind, self.device)).map(Some) }
    }

    /// A trained parameter.
    pub(super) fn add(&mut self, name: String, shape: &[i64], init: &Init, decay: Decay) -> Result<Tensor> {
        self.add_with(name, shape, init, decay, true)
    }

    /// A parameter that is trained or stays as it is.
    pub(super) fn add_with(
        &mut self,
        name: String,
        shape: &[i64],
        init: &Init,
        decay: Decay,
        trainable: bool,
    ) -> Result<Tensor> {
        let options = (Kind::Float, Device::Cpu);
        if self.sketch {
            let tensor = Tensor::f_zeros([1], options)?.f_expand(shape, false)?;
            let decays = decay == Decay::Yes;
            self.parameters.push(Parameter { name, tensor: tensor.shallow_clone(), trainable, decays });
            return Ok(tensor);
        }
        let values = match init {
            Init::Constant(value) => Tensor::f_full(shape, *value, options)?,
            Init::Normal(deviation) => Tensor::f_randn(shape, options)? * *deviation,
            Init::Uniform(bound) => (Tensor::f_rand(shape, options)? * 2.0 - 1.0) * *bound,
            Init::Values(values) => Tensor::f_from_slice(values)?.f_reshape(shape)?,
        };
        let tensor = values.f_to_device(self.device)?.f_to_kind(self.kind)?.f_set_requires_grad(trainable)?;
        let decays = decay == Decay::Yes;
        self.parameters.push(Parameter { name, tensor: tensor.shallow_clone(), trainable, decays });
        Ok(tensor)
    }
}

/// Shape, first values and decay of what takes inputs.
pub(super) struct InputMap<'a> {
    /// The name of the token embedding.
    pub(super) name: &'a str,
    /// V.
    pub(super) vocabulary: i64,
    /// C.
    pub(super) width: i64,
    /// First values of the token embedding.
    pub(super) init: &'a Init,
    /// Numbers of a position; 0: tokens.
    pub(super) numbers: u64,
}

impl Builder {
    /// The token embedding, `(V, C)`, which does not decay; or of numbers a linear map, `(C, W)`, with its bias. PyTorch's
    /// initial values for a linear layer, U(±1/√W); the matrix decays.
    pub(super) fn input(&mut self, map: &InputMap<'_>) -> Result<(Tensor, Option<Tensor>)> {
        if map.numbers == 0 {
            let shape = [map.vocabulary, map.width];
            return Ok((self.add(map.name.into(), &shape, map.init, Decay::No)?, None));
        }
        let init = Init::Uniform((map.numbers as f64).powf(-0.5));
        let numbers = i64::try_from(map.numbers).unwrap_or(i64::MAX);
        let weight = self.add("input_projection.weight".into(), &[map.width, numbers], &init, Decay::Yes)?;
        let bias = self.add("input_projection.bias".into(), &[map.width], &init, Decay::No)?;
        Ok((weight, Some(bias)))
    }

    /// Both biases, where inputs are numbers: the head's begins at 0.
    pub(super) fn biases(&mut self, input: Option<Tensor>, vocabulary: i64) -> Result<Option<Biases>> {
        let Some(input) = input else { return Ok(None) };
        let output = self.add("lm_head.bias".into(), &[vocabulary], &Init::Constant(0.0), Decay::No)?;
        Ok(Some(Biases { input, output }))
    }
}

/// Normal initial values for a layer with this many inputs (paper's small init): √(2 / (5·inputs)).
pub(super) fn small_init(inputs: u64) -> Init {
    Init::Normal((2.0 / (5.0 * inputs as f64)).sqrt())
}

/// Normal initial values for a layer at a block's end: 2 / (blocks · √width).
pub(super) fn wang_init(width: u64, blocks: u64) -> Init {
    Init::Normal(2.0 / (blocks as f64 * (width as f64).sqrt()))
}

/// `count` equidistant values from `first` to `last`.
pub(super) fn linspace(first: f64, last: f64, count: u64) -> Vec<f32> {
    let step = if count > 1 && first != last { (last - first) / (count - 1) as f64 } else { 0.0 };
    (0..count).map(|index| (first + step * index as f64) as f32).collect()
}
