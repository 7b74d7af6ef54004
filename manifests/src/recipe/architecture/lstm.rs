//! LSTM's part of a recipe, and its arithmetic: the top rows of Table 2, and Section 4.1's LSTM and LSTM (Block).
//!
//! ```text
//! LSTM layer: W 4d² · R 4d²/H · two biases 8d                  feed-forward: 2dF, F = 4d unless stated
//! plain          L LSTM layers, one after the other            no norm at all
//! residual       L × { x + LSTM(norm(x)) }                     norms d each, and a last one
//! up-projection  L blocks, LSTM and feed-forward in turn       as residual
//! block          L × { x + LSTM(norm(x)); x + feed-forward(norm(x)) }: 2L blocks of up-projection
//! model: token embedding Vd · output Vd
//! ```
//! With Table 2's sizes the counts are the paper's: 607.8, 506.1 and 505.9 million.

use serde::{Deserialize, Serialize};

use super::{ActivationSetup, Architecture, Checker, Mixing, ModelSize, ends, input_label, stated_or};
use crate::recipe::{ComputePath, Result};

/// LSTM layers, alone or as blocks of a residual network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LstmConfig {
    /// Rows of the embedding and of the output projection.
    pub vocabulary_size: u64,
    /// Numbers of a position where inputs are numbers and not tokens: a linear map takes them in place of the embedding,
    /// and the head is one linear unit. 0: tokens.
    pub input_width: u64,
    /// Width of the residual and of each LSTM.
    pub embedding_dim: u64,
    /// Layers or blocks: see the form.
    pub blocks: u64,
    /// Whether the output projection is the token embedding (weight tying); neither then decays.
    pub tied_embedding: bool,
    /// How layers are put together.
    pub form: LstmForm,
    /// Heads of the recurrent matrices, which are block-diagonal with more than one.
    pub heads: u64,
    /// Width of a feed-forward; 0: four times the residual's.
    pub feed_forward_dim: u64,
}

/// How layers are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LstmForm {
    /// Stacked layers.
    Plain,
    /// Each layer on a residual, behind a norm.
    Residual,
    /// LSTM blocks and feed-forward blocks in turn.
    UpProjection,
    /// Each block an LSTM and a feed-forward, as a Transformer's with an LSTM in place of attention.
    Block,
}

impl Default for LstmConfig {
    fn default() -> Self {
        Self {
            vocabulary_size: 50304,
            input_width: 0,
            embedding_dim: 1024,
            blocks: 48,
            tied_embedding: false,
            form: LstmForm::Residual,
            heads: 1,
            feed_forward_dim: 0,
        }
    }
}

/// Numbers a unit and step in what cuDNN reserves for the backward pass. Measured: with four the plan is 98.9 to 99.8 % of the peak of Table 2's
/// rows (docs/benchmarks/gpu/methods.md).
const RESERVED: u64 = 4;

impl LstmConfig {
    /// Dense heads of more units than this are libtorch's own LSTM on a GPU.
    pub const KERNEL_UNITS: u64 = 256;

    /// Width of a feed-forward, derived where it is not stated.
    #[must_use]
    pub fn feed_forward(&self) -> u64 {
        stated_or(self.feed_forward_dim, 4 * self.embedding_dim)
    }

    /// LSTM layers and feed-forwards, in order: whether each is a feed-forward.
    pub fn layers(&self) -> impl Iterator<Item = bool> + use<> {
        let (count, alternate) = match self.form {
            LstmForm::Plain | LstmForm::Residual => (self.blocks, false),
            LstmForm::UpProjection => (self.blocks, true),
            LstmForm::Block => (2 * self.blocks, true),
        };
        (0..count).map(move |index| alternate && index % 2 == 1)
    }

    /// LSTM layers and feed-forwards.
    fn counts(&self) -> (u64, u64) {
        let feed = self.layers().filter(|&feed| feed).count() as u64;
        (self.layers().count() as u64 - feed, feed)
    }

    /// Numbers in the matrices of an LSTM layer and of a feed-forward.
    fn matrices(&self) -> (u64, u64) {
        let d = self.embedding_dim;
        (4 * d * d + 4 * d * d / self.heads.max(1), 2 * d * self.feed_forward())
    }
}

impl Architecture for LstmConfig {
    fn tied_embedding(&self) -> bool {
        self.tied_embedding
    }

    fn vocabulary_size(&self) -> u64 {
        self.vocabulary_size
    }

    fn embedding_dim(&self) -> u64 {
        self.embedding_dim
    }

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn input_width(&self) -> u64 {
        self.input_width
    }

    fn check(&self, checker: &Checker<'_>) -> Result<()> {
        checker.heads("model.heads", self.heads, self.embedding_dim)?;
        checker.range("model.feed_forward_dim", self.feed_forward_dim, 0, 1 << 20)
    }

    /// `LSTM (Block), 2 blocks, width 128`.
    fn label(&self) -> String {
        let (name, unit) = match self.form {
            LstmForm::Plain => ("LSTM", "layers"),
            LstmForm::Residual => ("LSTM + residual", "blocks"),
            LstmForm::UpProjection => ("LSTM + up-projection", "blocks, every second a feed-forward"),
            LstmForm::Block => ("LSTM (Block)", "blocks"),
        };
        let heads = if self.heads > 1 { format!(", {} heads", self.heads) } else { String::new() };
        format!(
            "{name}, {} {unit}{heads}, width {}{}",
            self.blocks,
            self.embedding_dim,
            input_label(self.input_width)
        )
    }

    fn size(&self) -> ModelSize {
        let (d, ends) = (self.embedding_dim, ends(self));
        let ((lstm, feed), (lstm_matrices, feed_matrices)) = (self.counts(), self.matrices());
        let products = lstm * lstm_matrices + feed * feed_matrices;
        let norms = if self.form == LstmForm::Plain { 0 } else { (lstm + feed + 1) * d };
        ModelSize {
            parameters: products + ends.parameters + lstm * 8 * d + norms,
            product_parameters: products + ends.product_parameters,
        }
    }

    /// The recurrent products are among those with parameters.
    fn mixing(&self) -> Mixing {
        Mixing::Nothing
    }

    /// By operations, of an LSTM in float32: four gates, cell, its tanh, output, and two residual sums; of a feed-forward the
    /// two sums, and its inner values before and after the GELU. In the products' type: their inputs and the gates' inputs.
    fn activation_bytes(&self, _index: u64, setup: &ActivationSetup) -> u64 {
        let (d, f) = (self.embedding_dim, self.feed_forward());
        let (lstm, feed) = if setup.path == ComputePath::GpuKernels {
            // Each with a residual sum in float32, but for stacked layers, and the norm.
            let sum = if self.form == LstmForm::Plain { 0 } else { 4 * d };
            let inner = if self.heads == 1 && d > Self::KERNEL_UNITS {
                // libtorch's LSTM, in float32: its input, its output, cuDNN's reserve, and the output rounded.
                4 * (2 + RESERVED) * d + setup.element_bytes * d
            } else {
                // Gate inputs and outputs; seven numbers in float32.
                setup.element_bytes * 5 * d + 4 * 7 * d
            };
            (sum + setup.element_bytes * d + inner, sum + setup.element_bytes * (d + 2 * f))
        } else {
            (4 * 13 * d + setup.element_bytes * 5 * d, 4 * 2 * d + setup.element_bytes * (d + 3 * f))
        };
        match self.form {
            LstmForm::Plain | LstmForm::Residual => lstm,
            LstmForm::UpProjection => (lstm + feed).div_ceil(2),
            LstmForm::Block => lstm + feed,
        }
    }

    /// libtorch's LSTM: the gates' gradients, and those of output and input, as cuDNN has them and as the blocks do.
    fn backward_bytes(&self, setup: &ActivationSetup) -> u64 {
        let by_cudnn = self.heads == 1 && self.embedding_dim > Self::KERNEL_UNITS;
        if setup.path == ComputePath::GpuKernels && by_cudnn { 4 * 8 * self.embedding_dim } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(form: LstmForm, embedding_dim: u64, blocks: u64) -> u64 {
        LstmConfig { form, embedding_dim, blocks, ..LstmConfig::default() }.size().parameters
    }

    #[test]
    fn published_sizes_to_the_parameter() {
        assert_eq!(count(LstmForm::Plain, 1536, 24), 607_813_632);
        assert_eq!(count(LstmForm::Residual, 1024, 48), 506_119_168);
        assert_eq!(count(LstmForm::UpProjection, 1024, 48), 505_922_560);
        assert_eq!(count(LstmForm::Block, 1024, 24), 505_922_560);
        let blocks = count(LstmForm::UpProjection, 1024, 3) - count(LstmForm::UpProjection, 1024, 1);
        assert_eq!(blocks, count(LstmForm::Block, 1024, 2) - count(LstmForm::Block, 1024, 1));
    }

    #[test]
    fn a_wide_lstm_on_a_gpu_keeps_what_cudnn_reserves() {
        let bytes = |embedding_dim, form, path| {
            let setup = ActivationSetup { path, element_bytes: 2, context_length: 2048 };
            LstmConfig { form, embedding_dim, ..LstmConfig::default() }.activation_bytes(0, &setup)
        };
        // In bf16 and float32 the input and the output, in float32 four numbers a unit and the residual sum.
        assert_eq!(bytes(1536, LstmForm::Plain, ComputePath::GpuKernels), (2 * 6 + 4 * 4) * 1536);
        assert_eq!(bytes(1024, LstmForm::Residual, ComputePath::GpuKernels), (2 * 6 + 4 * 4 + 4) * 1024);
        // The kernel of narrow heads keeps float32.
        assert_eq!(bytes(128, LstmForm::Residual, ComputePath::GpuKernels), 44 * 128);
        assert_eq!(bytes(1024, LstmForm::Residual, ComputePath::Operations), 62 * 1024);
    }

    #[test]
    fn contradictions_are_named() {
        super::super::assert_refused(
            "lstm",
            &[
                ("model.heads=3", "model.heads"),
                ("model.heads=0", "model.heads"),
                ("model.feed_forward_dim=2000000", "model.feed_forward_dim"),
            ],
        );
    }
}
