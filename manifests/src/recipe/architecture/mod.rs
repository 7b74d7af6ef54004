//! Architectures: what a model is, and the arithmetic that follows from it without libtorch.
//!
//! The `[model]` table of a recipe names its architecture, and holds that architecture's own keys:
//!
//! ```toml
//! [model]
//! architecture = "xlstm"     # the default; recipes and checkpoints from before the key existed have none
//! embedding_dim = 1024
//! ```
//! An architecture is a file here (its options, and [`Architecture`] for them), a line in `architectures!` below, its
//! blocks in `trainer/src/model`, and an arm in `trainer/src/model/network.rs`. Everything else goes through
//! [`ModelConfig`], which dereferences to the architecture's arithmetic.

mod checker;
mod gpt2;
mod llama;
mod long_filters;
mod lstm;
mod mamba;
mod recurrent;
mod retnet_block;
mod rwkv;
mod xlstm;

pub use checker::Checker;
pub use gpt2::{Gelu, Gpt2Config};
pub use llama::{LlamaConfig, LlamaInit};
pub use long_filters::{H3Config, HyenaConfig};
pub use lstm::{LstmConfig, LstmForm};
pub use mamba::{MAMBA_TAPS, MambaConfig};
pub use recurrent::{
    GLA_GATE_RANK, Gla, GlaConfig, Hgrn, Hgrn2, Hgrn2Config, HgrnConfig, RecurrentConfig, RecurrentMixer,
    Retnet, RetnetConfig,
};
pub use retnet_block::RetnetBlockConfig;
pub use rwkv::{
    Five, Four, RWKV_DECAY_RANK, RWKV_MIX_RANK, Rwkv4Config, Rwkv5Config, Rwkv6Config, RwkvConfig,
    RwkvVersion, Six,
};
pub use xlstm::{
    BlockKind, ForgetGate, GateWeights, InputBias, MlstmConfig, RecurrentInit, SlstmBias, SlstmConfig,
    SlstmFunction, WeightInit, XlstmConfig,
};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use toml::{Table, Value};

use super::{ComputePath, Result};

/// The key that names the architecture inside `[model]`.
pub(super) const ARCHITECTURE_KEY: &str = "architecture";

/// The architecture of a `[model]` table that names none.
const DEFAULT_ARCHITECTURE: &str = "xlstm";

/// Sizes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelSize {
    /// All trainable numbers.
    pub parameters: u64,
    /// Those that take part in matrix products: all matrices but the token embedding (which counts where it is also
    /// the output projection).
    pub product_parameters: u64,
}

impl ModelSize {
    /// The size of a model.
    #[must_use]
    pub fn of(model: &ModelConfig) -> Self {
        model.size()
    }
}

/// What decides how much memory the tensors of a forward pass take.
#[derive(Debug, Clone, Copy)]
pub struct ActivationSetup {
    /// Who computes.
    pub path: ComputePath,
    /// Bytes of a number in matrix products: 2 for bfloat16, 4 for float32.
    pub element_bytes: u64,
    /// Tokens of a sequence.
    pub context_length: u64,
}

/// What it costs that a token reads the tokens before it, beside the products with parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixing {
    /// Nothing: all of it is among the products.
    Nothing,
    /// `12·M`: `M` numbers in the states of all layers, each written and read once (2 operations each), and twice that
    /// in the backward pass. The context's length does not matter.
    States(u64),
    /// `6·L·d·T`: in each of `L` blocks a token meets on average half of its context's `T` keys and as many values of
    /// width `d` (2 operations each), and twice that in the backward pass.
    Attention,
    /// `3·F`: this many convolutions as long as the text, `F` operations of their transforms forward.
    Convolutions(u64),
}

/// A width that a recipe states, or the derived one where it states 0.
fn stated_or(stated: u64, derived: u64) -> u64 {
    if stated == 0 { derived } else { stated }
}

/// The arithmetic of an architecture: what can be said of a model without building it.
pub trait Architecture {
    /// Rows of the token embedding and of the output projection.
    fn vocabulary_size(&self) -> u64;

    /// Width of the residual.
    fn embedding_dim(&self) -> u64;

    /// Residual blocks.
    fn blocks(&self) -> u64;

    /// Numbers of a position, of a model whose inputs are numbers and not tokens; 0: tokens. Architectures that have the
    /// option say it in `[model]`.
    fn input_width(&self) -> u64 {
        0
    }

    /// Whether the output projection is the token embedding by choice. Where an architecture leaves no choice, this is
    /// false, and [`size`](Self::size) counts the one matrix.
    fn tied_embedding(&self) -> bool {
        false
    }

    /// Refuses options out of range or in contradiction with each other. The three sizes above are checked already.
    ///
    /// # Errors
    /// Naming the key, what it can be, and what it is.
    fn check(&self, checker: &Checker<'_>) -> Result<()>;

    /// The model's name in the paper's terms, with its sizes, for people: `xLSTM[7:1], 24 blocks (sLSTM at 3, 20),
    /// width 768`.
    fn label(&self) -> String;

    /// Parameters, to the last one, with an output projection of its own: [`ModelConfig::size`] knows of
    /// [`tied_embedding`](Self::tied_embedding).
    fn size(&self) -> ModelSize;

    /// How a token reads the tokens before it.
    fn mixing(&self) -> Mixing;

    /// Operations of forward and backward pass for one token in contexts of `context_length` tokens: six for each
    /// parameter in products, and those of [`mixing`](Self::mixing). A multiplication and an addition are two; what is
    /// computed again in the backward pass is not counted.
    fn operations_per_token(&self, context_length: u64) -> u64 {
        let mixing = match self.mixing() {
            Mixing::Nothing => 0,
            Mixing::States(numbers) => 12 * numbers,
            Mixing::Attention => 6 * self.blocks() * self.embedding_dim() * context_length,
            Mixing::Convolutions(count) => {
                3 * count * long_filters::transforms(self.embedding_dim(), context_length)
            }
        };
        6 * self.size().product_parameters + mixing
    }

    /// The formula behind [`operations_per_token`](Self::operations_per_token), for reports.
    fn formula(&self) -> &'static str {
        match self.mixing() {
            Mixing::Nothing => "6P",
            Mixing::States(_) => "6P+12M",
            Mixing::Attention => "6P+6LdT",
            Mixing::Convolutions(_) => "6P+3F",
        }
    }

    /// The longest context that the model can be given; `None`: any. Learned positions end somewhere.
    fn longest_context(&self) -> Option<u64> {
        None
    }

    /// Bytes for one token that block `index` keeps for its backward pass.
    fn activation_bytes(&self, index: u64, setup: &ActivationSetup) -> u64;

    /// Bytes for one token that the backward pass of one block takes beside what is kept, where that is much.
    fn backward_bytes(&self, setup: &ActivationSetup) -> u64 {
        let _ = setup;
        0
    }
}

/// What stands before and behind the blocks: an embedding and an output projection of V tokens, 2·V·d; or a linear map of
/// W numbers and a linear head, each with its bias, W·d + d + V·d + V.
fn ends(model: &dyn Architecture) -> ModelSize {
    let (d, v, w) = (model.embedding_dim(), model.vocabulary_size(), model.input_width());
    match w {
        0 => ModelSize { parameters: 2 * v * d, product_parameters: v * d },
        _ => ModelSize { parameters: (w + v) * d + d + v, product_parameters: (w + v) * d },
    }
}

/// What a label says of inputs that are numbers.
fn input_label(width: u64) -> String {
    if width == 0 { String::new() } else { format!(", inputs of {width} numbers") }
}

macro_rules! architectures {
    ($($(#[$documentation:meta])* $variant:ident($config:ty) = $name:literal),* $(,)?) => {
        /// The `[model]` table of a recipe: one architecture with its options.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "architecture")]
        pub enum ModelConfig {
            $($(#[$documentation])* #[serde(rename = $name)] $variant($config),)*
        }

        impl ModelConfig {
            /// The names that `model.architecture` can have.
            pub const ARCHITECTURES: &'static [&'static str] = &[$($name),*];

            /// The architecture's name, as `model.architecture` has it.
            #[must_use]
            pub fn architecture_name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)* }
            }

            /// An architecture's default options; `None` for a name that is not in
            /// [`ARCHITECTURES`](Self::ARCHITECTURES).
            #[must_use]
            pub fn default_of(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant(<$config>::default())),)*
                    _ => None,
                }
            }

            fn from_table(name: &str, table: Table) -> std::result::Result<Self, toml::de::Error> {
                match name {
                    $($name => table.try_into().map(Self::$variant),)*
                    _ => Err(toml::de::Error::custom(format!(
                        "`architecture` expected one of {}, found `{name}`",
                        Self::ARCHITECTURES.join(", ")
                    ))),
                }
            }
        }

        impl std::ops::Deref for ModelConfig {
            type Target = dyn Architecture;

            /// The arithmetic of the architecture that this is.
            fn deref(&self) -> &Self::Target {
                match self { $(Self::$variant(config) => config,)* }
            }
        }

        $(impl From<$config> for ModelConfig {
            fn from(config: $config) -> Self {
                Self::$variant(config)
            }
        })*
    };
}

architectures! {
    /// xLSTM\[a:b\]: mLSTM and sLSTM blocks (the paper's own).
    Xlstm(XlstmConfig) = "xlstm",
    /// Llama: the paper's main Transformer baseline.
    Llama(LlamaConfig) = "llama",
    /// GPT-2, which the paper calls GPT-3.
    Gpt2(Gpt2Config) = "gpt2",
    /// RetNet, as flash-linear-attention has it.
    Retnet(RetnetConfig) = "retnet",
    /// RetNet in GPT-like blocks, whose size is the paper's.
    RetnetBlock(RetnetBlockConfig) = "retnet-block",
    /// GLA.
    Gla(GlaConfig) = "gla",
    /// HGRN.
    Hgrn(HgrnConfig) = "hgrn",
    /// HGRN2.
    Hgrn2(Hgrn2Config) = "hgrn2",
    /// Mamba.
    Mamba(MambaConfig) = "mamba",
    /// RWKV-4.
    Rwkv4(Rwkv4Config) = "rwkv4",
    /// RWKV-5.
    Rwkv5(Rwkv5Config) = "rwkv5",
    /// RWKV-6.
    Rwkv6(Rwkv6Config) = "rwkv6",
    /// H3.
    H3(H3Config) = "h3",
    /// Hyena.
    Hyena(HyenaConfig) = "hyena",
    /// LSTM: stacked, or as blocks.
    Lstm(LstmConfig) = "lstm",
}

impl ModelConfig {
    /// Parameters, to the last one: a matrix that is embedding and output projection counts once.
    #[must_use]
    pub fn size(&self) -> ModelSize {
        let size = (**self).size();
        let shared = if self.tied_embedding() { self.vocabulary_size() * self.embedding_dim() } else { 0 };
        ModelSize { parameters: size.parameters - shared, ..size }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::Xlstm(XlstmConfig::default())
    }
}

impl<'de> Deserialize<'de> for ModelConfig {
    /// By the table's `architecture`, which tables from before the key existed do not have.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut table = Table::deserialize(deserializer)?;
        let name = match table.remove(ARCHITECTURE_KEY) {
            None => DEFAULT_ARCHITECTURE.to_owned(),
            Some(Value::String(name)) => name,
            Some(other) => {
                let kind = other.type_str();
                return Err(D::Error::custom(format!(
                    "`architecture` expected a name, found {other} ({kind})"
                )));
            }
        };
        Self::from_table(&name, table).map_err(|error| D::Error::custom(error.message()))
    }
}

/// Asserts that each override of an architecture's default recipe is refused with a message that names the key.
#[cfg(test)]
pub(super) fn assert_refused(architecture: &str, cases: &[(&str, &str)]) {
    for (text, key) in cases {
        let overrides = [format!("model.architecture={architecture}"), (*text).to_owned()];
        let error = super::resolve(&super::Recipe::default(), &overrides).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}` expected")), "{text}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_without_a_name_is_an_xlstm() {
        let old: ModelConfig =
            toml::from_str("embedding_dim = 64\nslstm_at = [1]\n[slstm]\nheads = 2\n").unwrap();
        let slstm = SlstmConfig { heads: 2, ..SlstmConfig::default() };
        let expected = XlstmConfig { embedding_dim: 64, slstm_at: vec![1], slstm, ..XlstmConfig::default() };
        assert_eq!(old, ModelConfig::Xlstm(expected));
        let text = toml::to_string(&old).unwrap();
        assert!(text.starts_with("architecture = \"xlstm\"\n"), "{text}");
        assert_eq!(toml::from_str::<ModelConfig>(&text).unwrap(), old);
    }

    #[test]
    fn unknown_architectures_and_keys_are_named() {
        let error = toml::from_str::<ModelConfig>("architecture = \"lstmx\"").unwrap_err().to_string();
        assert!(error.contains("expected one of xlstm") && error.contains("found `lstmx`"), "{error}");
        let error = toml::from_str::<ModelConfig>("embeding_dim = 64").unwrap_err().to_string();
        assert!(error.contains("embeding_dim"), "{error}");
        assert!(toml::from_str::<ModelConfig>("architecture = 3").is_err());
    }

    #[test]
    fn every_architecture_resolves_and_round_trips() {
        for &name in ModelConfig::ARCHITECTURES {
            let overrides = [format!("model.architecture={name}")];
            let recipe = crate::recipe::resolve(&crate::recipe::Recipe::default(), &overrides).unwrap();
            assert_eq!(recipe.model.architecture_name(), name);
            assert_eq!(Some(&recipe.model), ModelConfig::default_of(name).as_ref());
            let again: crate::recipe::Recipe = toml::from_str(&recipe.to_toml().unwrap()).unwrap();
            assert_eq!(again, recipe);
            assert!(
                recipe.model.label().contains(&format!("width {}", recipe.model.embedding_dim())),
                "{name}"
            );
            assert!(recipe.operations_per_token() >= 6 * recipe.model.size().product_parameters, "{name}");
        }
    }
}
