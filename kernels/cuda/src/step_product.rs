//! How one token's products, with what stands before them in a block, are called: `step_product.cu`.

use crate::driver::LaunchShape;
use crate::layers::LayerLaunch;
use crate::{Architecture, Specialization};

/// Threads of a block: `THREADS` of the source.
const THREADS: u32 = 256;
const WARPS: u32 = THREADS / 32;

/// Sequences of a product at most: from there on libtorch's products, which read the matrix once for all, are as fast.
const MOST_SEQUENCES: u32 = 4;

/// Shared memory that x may take: what every GPU gives a block that asks for nothing, less what the source needs besides.
const MOST_BYTES: u32 = 40 * 1024;

/// Blocks that a matrix is spread over: one for each of 132 multiprocessors.
const BLOCKS: u32 = 132;

/// Pieces of sixteen bytes that a lane asks for at once, at most.
const PIECES: u32 = 12;

/// What stands before the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProductStage {
    /// The residual and the layer norm of so many numbers.
    Up {
        /// K.
        width: u32,
    },
    /// The norm of each head, skip and gate.
    Down {
        /// H.
        heads: u32,
        /// Numbers of a head.
        head: u32,
    },
}

/// What is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProductSizes {
    stage: ProductStage,
    batch: u32,
    rows: u32,
    outputs: u32,
}

impl ProductSizes {
    /// For so many sequences and numbers out; `None` where there is no kernel: more than 4 sequences, a width that is no
    /// multiple of 8 or above 8192, heads that do not divide it, or more than 40 KiB of x.
    #[must_use]
    pub fn new(stage: ProductStage, batch: u32, outputs: u32) -> Option<Self> {
        let width = Self::width_of(stage)?;
        let known = (8..=8192).contains(&width)
            && width.is_multiple_of(8)
            && (1..=MOST_SEQUENCES).contains(&batch)
            && batch * width * 2 <= MOST_BYTES
            && outputs > 0;
        if !known {
            return None;
        }
        // As many rows a warp as spread over all blocks, and as a lane's registers hold.
        let spread = outputs.div_ceil(BLOCKS * WARPS);
        let rows = spread.min(PIECES / width.div_ceil(256)).clamp(1, 4);
        Some(Self { stage, batch, rows, outputs })
    }

    fn width_of(stage: ProductStage) -> Option<u32> {
        match stage {
            ProductStage::Up { width } => Some(width),
            ProductStage::Down { heads, head } => heads.checked_mul(head).filter(|_| head.is_multiple_of(8)),
        }
    }

    /// What `step_product.cu` is compiled with.
    pub(crate) fn defines(self) -> Vec<(&'static str, u32)> {
        let (stage, width, head) = match self.stage {
            ProductStage::Up { width } => (0, width, width),
            ProductStage::Down { heads, head } => (1, heads * head, head),
        };
        vec![("STAGE", stage), ("WIDTH", width), ("HEAD", head), ("ROWS", self.rows), ("BATCH", self.batch)]
    }

    /// A warp a few rows of the matrix, again and again where there are more.
    #[must_use]
    pub fn launch(self) -> LayerLaunch {
        let blocks = self.outputs.div_ceil(WARPS * self.rows).min(2 * BLOCKS);
        let shape = LaunchShape { grid: [blocks, 1, 1], threads: THREADS, shared_bytes: 0 };
        LayerLaunch { kernel: "step_product", shape, parts: 0 }
    }

    /// What to compile.
    #[must_use]
    pub fn specialization(self, architecture: Architecture) -> Specialization {
        Specialization::step_product(architecture, self)
    }
}

/// `StepProductParameters` of `step_product.cu`, field by field; addresses are device addresses, 0 for null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "step_product.cu says it")]
pub struct StepProductParameters {
    pub outputs: i32,
    pub epsilon: f32,
    pub gate_stride: i64,
    pub weight: u64,
    pub norm: u64,
    pub residual: u64,
    pub delta: u64,
    pub sum: u64,
    pub hidden: u64,
    pub branch: u64,
    pub gate: u64,
    pub skip: u64,
    pub output: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_spread_over_all_multiprocessors() {
        assert_eq!(size_of::<StepProductParameters>(), 16 + 10 * 8);
        let sizes = |stage, batch, outputs| ProductSizes::new(stage, batch, outputs);
        let up = sizes(ProductStage::Up { width: 768 }, 1, 3072).expect("a size there is a kernel for");
        assert_eq!((up.rows, up.launch().shape.grid), (3, [128, 1, 1]));
        let down =
            sizes(ProductStage::Down { heads: 4, head: 384 }, 1, 768).expect("a size there is a kernel for");
        assert_eq!((down.rows, down.launch().shape.grid), (1, [96, 1, 1]));
    }

    #[test]
    fn sizes_end_where_x_does_not_fit() {
        let down =
            |batch, head| ProductSizes::new(ProductStage::Down { heads: 4, head }, batch, 768).is_some();
        assert!(down(4, 384) && !down(5, 384));
        assert!(down(4, 1280) && down(2, 2048) && !down(3, 2048));
        assert!(!down(1, 12) && !down(1, 2056) && !down(0, 384));
    }
}
