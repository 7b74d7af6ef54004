//! How the chunkwise mLSTM kernels are called: their parameters, the memory between them, the order of launches.
//!
//! Memory comes in two rooms that the caller allocates as plain bytes. *Saved* lives from the forward to the backward
//! pass (about 40 bytes a token and head, one byte for each output, and states and scores where they are kept);
//! *scratch* only during one pass (gradients of states and scores, 2·K·V and 2·L·L bytes a chunk and head, and what they
//! are the gradients of, unless kept). The backward pass computes again what was not kept.

mod launches;
mod parameters;
mod rooms;

pub use launches::Launch;
pub use parameters::{MlstmArguments, MlstmParameters, MlstmTensors, StateAddresses, Strides};

use crate::driver::{BoxedTensor, Driver, TensorMap};
use crate::{Architecture, CudaError, MlstmSizes, Source, Specialization};

/// Rows and columns of an output tile.
const TILE: u64 = 128;

/// A layer's sizes, and all that follows from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlstmPlan {
    /// Head sizes and chunk.
    pub sizes: MlstmSizes,
    /// The GPU.
    pub architecture: Architecture,
    /// Sequences.
    pub batch: u32,
    /// Heads.
    pub heads: u32,
    /// Tokens of a sequence, at least 1.
    pub tokens: u32,
    /// Whether states between chunks and scores stay from the forward to the backward pass, which computes them again
    /// otherwise, bit by bit the same: 2·K·V + 2·L·L bytes a chunk and head of the saved room.
    pub keep: bool,
    /// Whether the backward pass is given dh / den and its dots, rather than dh.
    pub divided: bool,
    /// Whether the tensors say where everything is forgotten.
    pub resets: bool,
}

impl MlstmPlan {
    fn chunks(&self) -> u64 {
        u64::from(self.tokens.div_ceil(self.sizes.chunk))
    }

    fn batch_heads(&self) -> u64 {
        u64::from(self.batch) * u64::from(self.heads)
    }

    fn tiles(&self) -> (u64, u64, u64) {
        let of = |size: u32| u64::from(size).div_ceil(TILE);
        (of(self.sizes.key), of(self.sizes.value), of(self.sizes.chunk))
    }

    /// What to compile for a launch of this plan.
    #[must_use]
    pub fn specialization(&self, source: Source) -> Specialization {
        Specialization::mlstm(source, self.architecture, self.sizes)
    }

    /// The kernels' parameters. `qk`, `v` and `gate` are the strides of queries and keys, of values and output (dense:
    /// every element of the batch somewhere in one block of memory), and of the gates; `saved` and `scratch` are device
    /// memory of [`MlstmPlan::bytes`].
    #[must_use]
    pub fn parameters(
        &self,
        tensors: &MlstmTensors,
        [qk, v, gate]: [Strides; 3],
        saved: u64,
        scratch: u64,
    ) -> MlstmParameters {
        let count = |value: u64| i32::try_from(value).unwrap_or(i32::MAX);
        let mut p = MlstmParameters {
            batch_heads: count(self.batch_heads()),
            heads: count(u64::from(self.heads)),
            tokens: count(u64::from(self.tokens)),
            chunks: count(self.chunks()),
            key_scale: (1.0 / f64::from(self.sizes.key).sqrt()) as f32,
            epsilon: 1e-6,
            qk,
            v,
            gate,
            query: tensors.query,
            key: tensors.key,
            value: tensors.value,
            input_gate: tensors.input_gate,
            forget_gate: tensors.forget_gate,
            output: tensors.output,
            output_gradient: tensors.output_gradient,
            query_gradient: tensors.query_gradient,
            key_gradient: tensors.key_gradient,
            value_gradient: tensors.value_gradient,
            input_gate_gradient: tensors.input_gate_gradient,
            forget_gate_gradient: tensors.forget_gate_gradient,
            output_dot: tensors.output_dot,
            resets: tensors.resets,
            initial_matrix: tensors.initial.matrix,
            initial_norm: tensors.initial.normalizer,
            initial_maximum: tensors.initial.maximum,
            final_matrix: tensors.last.matrix,
            final_norm: tensors.last.normalizer,
            final_maximum: tensors.last.maximum,
            final_matrix_gradient: tensors.last_gradient.matrix,
            final_norm_gradient: tensors.last_gradient.normalizer,
            initial_matrix_gradient: tensors.initial_gradient.matrix,
            initial_norm_gradient: tensors.initial_gradient.normalizer,
            ..MlstmParameters::default()
        };
        self.place(&mut p, saved, scratch);
        if self.divided {
            p.divided_gradient = tensors.output_gradient;
        }
        p
    }

    /// What the kernels take: the parameters, with maps where the GPU has a copy engine.
    ///
    /// # Errors
    /// [`CudaError::Driver`] for a tensor that it cannot read: an address or stride that is no multiple of 16 bytes.
    pub fn arguments(
        &self,
        driver: &Driver,
        parameters: MlstmParameters,
    ) -> Result<MlstmArguments, CudaError> {
        let mut arguments = MlstmArguments { parameters, maps: [TensorMap::default(); 9] };
        if self.architecture.has_wgmma() {
            for (map, tensor) in arguments.maps.iter_mut().zip(self.boxed_tensors(&parameters)) {
                if tensor.address != 0 {
                    *map = driver.tensor_map(&tensor)?;
                }
            }
        }
        Ok(arguments)
    }

    /// In the order of the maps in `mlstm.cuh`.
    fn boxed_tensors(&self, p: &MlstmParameters) -> [BoxedTensor; 9] {
        let (key, value, chunk) =
            (u64::from(self.sizes.key), u64::from(self.sizes.value), u64::from(self.sizes.chunk));
        let activation = |address: u64, strides: Strides, width: u64| BoxedTensor {
            address,
            sizes: [width, self.tokens.into(), self.heads.into(), self.batch.into()],
            strides: [strides.token, strides.head, strides.batch].map(i64::unsigned_abs),
        };
        let by_chunk = |address: u64, rows: u64, columns: u64| BoxedTensor {
            address,
            sizes: [columns, rows, self.batch_heads() * self.chunks(), 1],
            strides: [columns, rows * columns, self.batch_heads() * self.chunks() * rows * columns],
        };
        [
            activation(p.query, p.qk, key),
            activation(p.key, p.qk, key),
            activation(p.value, p.v, value),
            activation(p.output_gradient, p.v, value),
            activation(p.divided_gradient, p.v, value),
            by_chunk(p.states, key, value),
            by_chunk(p.state_gradients, key, value),
            by_chunk(p.scores, chunk, chunk),
            by_chunk(p.score_gradients, chunk, chunk),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> MlstmPlan {
        let sizes = MlstmSizes { key: 384, value: 512, chunk: 256 };
        MlstmPlan {
            sizes,
            architecture: Architecture::Sm90a,
            batch: 3,
            heads: 4,
            tokens: 1000,
            keep: false,
            divided: false,
            resets: false,
        }
    }

    #[test]
    fn parameters_lie_as_the_header_lays_them() {
        // Four ints, two floats, three strides of three, then pointers, then maps: no padding but before these.
        assert_eq!(std::mem::offset_of!(MlstmParameters, qk), 24);
        assert_eq!(std::mem::offset_of!(MlstmParameters, query), 24 + 9 * 8);
        let header = include_str!("../../mlstm.cuh");
        let start = header.find("struct MlstmParameters {").expect("the structure");
        let body = &header[start..header[start..].find("DEVICE").map(|end| start + end).expect("its end")];
        let code = body.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<String>();
        let pointers = code.matches('*').count();
        assert_eq!(size_of::<MlstmParameters>(), 24 + 9 * 8 + pointers * 8);
        let maps = code.split("TensorMap ").nth(1).expect("the maps").split(';').next().unwrap_or_default();
        assert_eq!(maps.split(',').count(), plan().boxed_tensors(&MlstmParameters::default()).len());
        let before = size_of::<MlstmParameters>().next_multiple_of(64);
        assert_eq!(std::mem::offset_of!(MlstmArguments, maps), before);
        assert_eq!(size_of::<MlstmArguments>(), before + 9 * 128);
    }

    #[test]
    fn rooms_do_not_overlap_and_end_where_bytes_says() {
        let plan = plan();
        let (saved, scratch) = plan.bytes();
        let p = plan.parameters(&MlstmTensors::default(), [Strides::default(); 3], 1 << 40, 1 << 41);
        assert_eq!(p.state_gradients, 1 << 41);
        let state_bytes = 2 * 12 * 4 * 384 * 512;
        assert!(p.states >= p.state_gradients + state_bytes);
        let keeping = MlstmPlan { keep: true, ..plan };
        let (more, less) = keeping.bytes();
        let moved = state_bytes + 4 * 12 * 4 * 384 + 2 * 12 * 4 * 256 * 256;
        assert_eq!((more - saved, scratch - less), (moved, moved));
        assert_eq!(1 << 40 | plan.rest_offset(), p.output_rest);
        assert_eq!(1 << 40 | plan.inverse_denominator_offset(), p.inverse_denominator);
        assert!(p.output_rest >= 1 << 40 && p.output_rest + 3 * 4 * 1000 * 512 <= (1 << 40) + saved);
        assert!(p.decay_gradient + 4 * 3 * 4 * 12 * 4 <= (1 << 41) + scratch);
    }

    #[test]
    fn launches_cover_every_tile_and_name_kernels_that_exist() {
        let plan = plan();
        let keeping = MlstmPlan { keep: true, divided: true, ..plan };
        assert_eq!(keeping.backward().len() + 2, plan.backward().len());
        for launch in plan.forward().into_iter().chain(plan.backward()).chain(keeping.backward()) {
            assert!(launch.source.kernels().contains(&launch.kernel), "{}", launch.kernel);
            for architecture in Architecture::NATIVE {
                // Two blocks fit a multiprocessor, with their static memory (cuda-resources.txt) and a KiB of the system's.
                for launch in (MlstmPlan { architecture, ..keeping }).backward() {
                    let fixed = if launch.source == Source::MlstmStates { 64 } else { 1024 };
                    let block = launch.shape.shared_bytes + fixed + 1024;
                    assert!(2 * block <= architecture.shared_kibibytes() * 1024, "{architecture} {launch:?}");
                }
            }
        }
        let output = plan.forward()[4];
        assert_eq!(output.shape.grid, [2 * 4, 4, 12]);
    }
}
