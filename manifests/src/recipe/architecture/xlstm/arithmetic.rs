//! Sizes, operations and memory of an xLSTM, to the last parameter.
//!
//! ```text
//! mLSTM block (pre up-projection, D = 2d): norm d · up 2Dd · conv 5D · q, k, v 3D·b · gates 2·H(3D+1) ·
//!                                          outnorm D · skip D · down Dd                      = 6d² + 87d + 8
//! sLSTM block: norms 3d · conv 5d · gates d² · recurrent d² · bias 4d · up 2Pd · down Pd = 2d² + 12d + 3Pd
//! model: token embedding Vd · output Vd · last norm d
//! ```
//! Numbers in the paper's table 7 are reproduced to the parameter with a vocabulary of 50304.

use super::{BlockKind, ForgetGate, GateWeights, SlstmFunction, XlstmConfig};
use crate::recipe::architecture::{
    ActivationSetup, Architecture, Checker, Mixing, ModelSize, ends, input_label,
};
use crate::recipe::{ComputePath, Result};

impl Architecture for XlstmConfig {
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
        checker.range("model.mlstm.heads", self.mlstm.heads, 1, 1024)?;
        checker.range("model.slstm.heads", self.slstm.heads, 1, 1024)?;
        checker.range("model.mlstm.convolution", self.mlstm.convolution, 0, 64)?;
        checker.range("model.slstm.convolution", self.slstm.convolution, 0, 64)?;
        checker.range("model.mlstm.qkv_block_size", self.mlstm.qkv_block_size, 1, 1 << 16)?;
        for &index in &self.slstm_at {
            let expected = format!("block numbers below model.blocks = {}", self.blocks);
            checker.require(index < self.blocks, "model.slstm_at", &expected, index)?;
            let twice = self.slstm_at.iter().filter(|&&other| other == index).count() > 1;
            checker.require(!twice, "model.slstm_at", "each block once", index)?;
        }
        checker.factor("model.mlstm.projection_factor", self.mlstm.projection_factor)?;
        checker.factor("model.mlstm.feed_forward_factor", self.mlstm.feed_forward_factor)?;
        checker.factor("model.slstm.feed_forward_factor", self.slstm.feed_forward_factor)?;
        checker.not_negative("model.slstm.recurrent_gradient_clip", self.slstm.recurrent_gradient_clip)?;
        if self.slstm.function == SlstmFunction::Lstm {
            let sigmoid = self.slstm.forget_gate == ForgetGate::Sigmoid;
            checker.require(sigmoid, "model.slstm.forget_gate", "sigmoid in an LSTM", "exponential")?;
            let clip = self.slstm.recurrent_gradient_clip;
            checker.require(clip == 0.0, "model.slstm.recurrent_gradient_clip", "0 in an LSTM", clip)?;
        }
        self.check_divisions(checker)?;
        self.check_forget_bias(checker)
    }

    /// `xLSTM[7:1], 48 blocks (sLSTM at 3, 5, 7, 40, 42, 44), width 1024`.
    fn label(&self) -> String {
        let scalar = self.slstm_at.len() as u64;
        let mut at = self.slstm_at.clone();
        at.sort_unstable();
        let positions = if scalar == 0 || scalar == self.blocks {
            String::new()
        } else {
            let list = at.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            format!(" (sLSTM at {list})")
        };
        let with_lstm = scalar > 0 && self.slstm.function == SlstmFunction::Lstm;
        let cells = if with_lstm { " with LSTM cells in place of sLSTM" } else { "" };
        let (matrix, scalar) = ratio(self.blocks, &at);
        format!(
            "xLSTM[{matrix}:{scalar}]{cells}, {} blocks{positions}, width {}{}",
            self.blocks,
            self.embedding_dim,
            input_label(self.input_width)
        )
    }

    fn size(&self) -> ModelSize {
        let mut size = ends(self);
        size.parameters += self.embedding_dim;
        for index in 0..self.blocks {
            let (parameters, products) =
                if self.is_slstm(index) { self.slstm_block() } else { self.mlstm_block() };
            size.parameters += parameters;
            size.product_parameters += products;
        }
        size
    }

    /// Σ over mLSTM blocks of heads × head dimension².
    fn mixing(&self) -> Mixing {
        Mixing::States(self.memory_cells())
    }

    fn activation_bytes(&self, index: u64, setup: &ActivationSetup) -> u64 {
        if setup.path == ComputePath::FusedGpu {
            self.fused_activations(index)
        } else {
            self.plain_activations(index, setup.element_bytes)
        }
    }

    /// With fused kernels, gradients alive at once, bf16, and those of states and scores.
    fn backward_bytes(&self, setup: &ActivationSetup) -> u64 {
        if setup.path == ComputePath::FusedGpu { 16 * self.inner_dim() + self.fused_cells() } else { 0 }
    }
}

impl XlstmConfig {
    fn check_divisions(&self, checker: &Checker<'_>) -> Result<()> {
        if self.slstm_at.len() as u64 != self.blocks {
            let (inner, heads, block) = (self.inner_dim(), self.mlstm.heads, self.mlstm.qkv_block_size);
            let expected = format!("a divisor of the inner width {inner}");
            checker.require(inner.is_multiple_of(heads), "model.mlstm.heads", &expected, heads)?;
            let blockwise = self.mlstm.block == BlockKind::PreUpProjection;
            let divides = !blockwise || inner.is_multiple_of(block);
            checker.require(divides, "model.mlstm.qkv_block_size", &expected, block)?;
        }
        let (width, heads) = (self.embedding_dim, self.slstm.heads);
        checker.require(
            self.slstm_at.is_empty() || width.is_multiple_of(heads),
            "model.slstm.heads",
            &format!("a divisor of model.embedding_dim = {width}"),
            heads,
        )
    }

    fn check_forget_bias(&self, checker: &Checker<'_>) -> Result<()> {
        let bias = self.mlstm.forget_gate_bias;
        let known = bias.iter().all(|value| value.is_finite()) || bias == [f64::INFINITY; 2];
        let expected = "two finite numbers, or `[inf, inf]`";
        checker.require(known, "model.mlstm.forget_gate_bias", expected, format!("{bias:?}"))?;
        let learns_infinity = bias[0].is_infinite() && self.mlstm.forget_gate_bias_learnable;
        let key = "model.mlstm.forget_gate_bias_learnable";
        checker.require(!learns_infinity, key, "false, with an infinite bias", true)
    }

    /// Numbers in the matrix memories of all mLSTM blocks: heads × head dimension² each.
    fn memory_cells(&self) -> u64 {
        let mlstm = (0..self.blocks).filter(|&index| !self.is_slstm(index)).count() as u64;
        mlstm * (self.inner_dim() * self.inner_dim() / self.mlstm.heads.max(1))
    }

    /// Parameters of an mLSTM block, and those of them in products.
    fn mlstm_block(&self) -> (u64, u64) {
        let (d, inner, mlstm) = (self.embedding_dim, self.inner_dim(), &self.mlstm);
        let heads = mlstm.heads;
        let gate_input = match mlstm.block {
            BlockKind::PreUpProjection => 3 * inner,
            BlockKind::PostUpProjection => d,
        };
        let gate = |dependent: bool, learnable: bool| {
            (if dependent { heads * gate_input } else { 0 }, if learnable { heads } else { 0 })
        };
        let (input_weights, input_bias) =
            gate(mlstm.input_gate_input_dependent, mlstm.input_gate_bias_learnable);
        let (forget_weights, forget_bias) =
            gate(mlstm.forget_gate_input_dependent, mlstm.forget_gate_bias_learnable);
        let gates = input_weights + forget_weights;
        let (products, rest) = match mlstm.block {
            BlockKind::PreUpProjection => {
                let convolution = if mlstm.convolution > 0 { inner * (mlstm.convolution + 1) } else { 0 };
                // norm, outnorm, skip, convolution.
                (3 * inner * d + 3 * inner * mlstm.qkv_block_size + gates, d + 2 * inner + convolution)
            }
            // query, key, value, output gate, output; then the feed-forward; two norms and the outnorm.
            BlockKind::PostUpProjection => (5 * d * d + 2 * d * self.mlstm_feed_forward_dim() + gates, 3 * d),
        };
        (products + rest + input_bias + forget_bias, products)
    }

    /// Parameters of an sLSTM block, and those of them in products.
    fn slstm_block(&self) -> (u64, u64) {
        let (d, slstm) = (self.embedding_dim, &self.slstm);
        let headwise = d * d / slstm.heads.max(1);
        let gates = match slstm.gate_weights {
            GateWeights::Headwise => 4 * headwise,
            GateWeights::Dense => 4 * d * d,
        };
        let products = gates + 4 * headwise + 3 * d * self.feed_forward_dim();
        let convolution = if slstm.convolution > 0 { d * (slstm.convolution + 1) } else { 0 };
        (products + 3 * d + 4 * d + convolution, products)
    }

    /// Bytes of an mLSTM block's states and scores for one token in the fused kernels, bf16, in chunks of 512 where a
    /// head has as many units, else of 256: `MlstmSizes::fastest` of `xlstm-cuda`, but for heads below 256.
    fn fused_cells(&self) -> u64 {
        let (inner, heads) = (self.inner_dim(), self.mlstm.heads.max(1));
        let chunk = if inner / heads >= 512 { 512 } else { 256 };
        2 * inner * inner / heads / chunk + 2 * chunk * heads
    }

    fn fused_activations(&self, index: u64) -> u64 {
        let (d, inner) = (self.embedding_dim, self.inner_dim());
        if self.is_slstm(index) {
            // Two residual sums fp32; norms, convolution, cell and feed-forward bf16; gates 5 bf16, states 2 fp32 a unit.
            44 * d + 6 * self.feed_forward_dim()
        } else {
            // Residual fp32 and norm; up 2D, convolution, q, k, v, h and output, bf16; a byte of h's rest; gates; cells.
            6 * d + 17 * inner + 64 * self.mlstm.heads + self.fused_cells()
        }
    }

    fn plain_activations(&self, index: u64, element_bytes: u64) -> u64 {
        let (d, inner) = (self.embedding_dim, self.inner_dim());
        if self.is_slstm(index) {
            // Residual and norms 4d, gates 4d, states 4d in float32; feed-forward 3P in the products' type.
            4 * 12 * d + element_bytes * (4 * d + 3 * self.feed_forward_dim())
        } else {
            // Residual and norm 2d; up 2D, convolution 2D, q, k, v 3D, cell, norm, skip and gate 4D.
            let chunk_states = inner * inner / self.mlstm.heads.max(1) / 64;
            4 * 2 * d + element_bytes * 11 * inner + 4 * chunk_states
        }
    }
}

/// The `a:b` of the paper's name. It is the ratio of mLSTM to sLSTM blocks but for one published model: the 125M
/// xLSTM\[7:1\] has 24 blocks with two sLSTM blocks, at 3 and 20 (paper, appendix D.2), which is 11:1.
fn ratio(blocks: u64, slstm_at: &[u64]) -> (u64, u64) {
    if blocks == 24 && slstm_at == [3, 20] {
        return (7, 1);
    }
    let scalar = slstm_at.len() as u64;
    let matrix = blocks.saturating_sub(scalar);
    let (mut a, mut b) = (matrix, scalar);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    (matrix / a.max(1), scalar / a.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{ModelConfig, load};

    fn parameters(embedding_dim: u64, blocks: u64, slstm_at: &[u64]) -> u64 {
        let model =
            XlstmConfig { embedding_dim, blocks, slstm_at: slstm_at.into(), ..XlstmConfig::default() };
        model.size().parameters
    }

    #[test]
    fn the_ten_published_sizes_to_the_parameter() {
        let six = [3, 5, 7, 40, 42, 44];
        let eight = [3, 5, 7, 9, 54, 56, 58, 60];
        assert_eq!(parameters(768, 24, &[]), 163_806_144);
        assert_eq!(parameters(1024, 48, &[]), 409_290_112);
        assert_eq!(parameters(1536, 48, &[]), 840_427_392);
        assert_eq!(parameters(2048, 48, &[]), 1_422_559_616);
        assert_eq!(parameters(2560, 64, &[]), 2_788_396_032);
        assert_eq!(parameters(768, 24, &[3, 20]), 163_690_928);
        assert_eq!(parameters(1024, 48, &six), 408_436_048);
        assert_eq!(parameters(1536, 48, &six), 839_736_144);
        assert_eq!(parameters(2048, 48, &six), 1_420_065_104);
        assert_eq!(parameters(2560, 64, &eight), 2_781_617_088);
    }

    #[test]
    fn the_official_test_model_has_its_count() {
        let model = XlstmConfig {
            vocabulary_size: 256,
            embedding_dim: 64,
            blocks: 8,
            slstm_at: vec![1],
            ..XlstmConfig::default()
        };
        assert_eq!(model.size().parameters, 277_432);
    }

    #[test]
    fn the_ablations_have_the_counts_of_tables_2_and_8() {
        for (name, millions) in [
            ("table2-lstm-to-xlstm/0to1", 427.3),
            ("table2-lstm-to-xlstm/7to1", 408.4),
            ("table8-matrix-memory/post-up-projection", 430.4),
            ("table8-matrix-memory/no-convolution", 408.8),
            ("table8-matrix-memory/convolution", 409.3),
        ] {
            let count = load(name, &[]).unwrap().model.size().parameters as f64 / 1e6;
            assert!((count - millions).abs() < 0.05, "{name}: {count}");
        }
    }

    #[test]
    fn models_have_the_names_of_the_paper() {
        let name = |blocks, slstm_at: &[u64]| {
            XlstmConfig { blocks, slstm_at: slstm_at.into(), ..XlstmConfig::default() }.label()
        };
        assert_eq!(name(48, &[]), "xLSTM[1:0], 48 blocks, width 1024");
        assert_eq!(
            name(48, &[3, 5, 7, 40, 42, 44]),
            "xLSTM[7:1], 48 blocks (sLSTM at 3, 5, 7, 40, 42, 44), width 1024"
        );
        assert_eq!(name(2, &[0, 1]), "xLSTM[0:1], 2 blocks, width 1024");
        assert_eq!(
            name(10, &[9, 1, 2, 3, 4, 5]),
            "xLSTM[2:3], 10 blocks (sLSTM at 1, 2, 3, 4, 5, 9), width 1024"
        );
        for size in ["125m", "350m", "760m", "1300m", "2700m"] {
            let Ok(recipe) = load(&format!("figure6-scaling-15b/{size}-7to1"), &[]) else { continue };
            assert!(recipe.model.label().starts_with("xLSTM[7:1], "), "{}", recipe.model.label());
        }
        assert!(matches!(load("figure6-scaling-15b/125m-7to1", &[]).unwrap().model, ModelConfig::Xlstm(_)));
    }

    #[test]
    fn contradictions_are_named() {
        crate::recipe::architecture::assert_refused(
            "xlstm",
            &[
                ("model.slstm_at=[48]", "model.slstm_at"),
                ("model.slstm_at=[1, 1]", "model.slstm_at"),
                ("model.mlstm.heads=3", "model.mlstm.heads"),
                ("model.slstm.heads=3", "model.slstm.heads"),
                ("model.mlstm.forget_gate_bias=[inf, inf]", "model.mlstm.forget_gate_bias_learnable"),
            ],
        );
    }
}
