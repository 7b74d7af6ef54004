//! How the chunkwise mLSTM kernels are called: their parameters, the memory between them, the order of launches.
//!
//! Memory comes in two rooms that the caller allocates as plain bytes. *Saved* lives from the forward to the backward
//! pass (about 40 bytes a token and head, one byte for each output, and states and scores where they are kept);
//! *scratch* only during one pass (gradients of states and scores, 2·K·V and 2·L·L bytes a chunk and head, and what they
//! are the gradients of, unless kept). The backward pass computes again what was not kept.

use crate::driver::{BoxedTensor, Driver, LaunchShape, TensorMap};
use crate::precise::GateAddresses;
use crate::{Architecture, CudaError, MlstmSizes, Source, Specialization};

/// Strides of an activation's first axes in elements; the last axis is contiguous.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strides {
    /// From one sequence of the batch to the next.
    pub batch: i64,
    /// From one head to the next.
    pub head: i64,
    /// From one token to the next.
    pub token: i64,
}

impl Strides {
    /// Those of a contiguous `(B, T, H, width)`.
    #[must_use]
    pub fn token_major(tokens: i64, heads: i64, width: i64) -> Self {
        Self { batch: tokens * heads * width, head: width, token: heads * width }
    }
}

/// Device addresses of an mLSTM call. Queries, keys, values and output are bf16, gates fp32 (before exp and before
/// log sigmoid); gradients have the type and strides of what they belong to and may be 0 in a forward pass.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "names say it")]
pub struct MlstmTensors {
    pub query: u64,
    pub key: u64,
    pub value: u64,
    pub input_gate: u64,
    pub forget_gate: u64,
    pub output: u64,
    /// dh; or dh / den, where the plan says that it comes divided.
    pub output_gradient: u64,
    pub query_gradient: u64,
    pub key_gradient: u64,
    pub value_gradient: u64,
    pub input_gate_gradient: u64,
    pub forget_gate_gradient: u64,
    /// dh / den · h of every token and head, `(B, T, H)` fp32, where dh comes divided; otherwise 0.
    pub output_dot: u64,
    /// `(B, T)`, one byte each, nonzero where everything before the token is forgotten; where the plan says that there are
    /// resets, otherwise 0.
    pub resets: u64,
    /// The state before the first token, or zeros.
    pub initial: StateAddresses,
    /// Where the state after the last token goes, in a forward pass, or zeros.
    pub last: StateAddresses,
    /// Gradient of the state after the last token, or zeros.
    pub last_gradient: StateAddresses,
    /// Where the gradient of the state before the first token goes, or zeros.
    pub initial_gradient: StateAddresses,
}

/// Device addresses of a state of every sequence and head, fp32: `k vᵀ / √K` summed and divided by exp(maximum).
/// Gradients have no maximum: the state is the same whatever it was divided by.
#[derive(Debug, Clone, Copy, Default)]
pub struct StateAddresses {
    /// `(B, H, K, V)`.
    pub matrix: u64,
    /// `(B, H, K)`.
    pub normalizer: u64,
    /// `(B, H)`, −∞ for a state that remembers nothing; 0 for a gradient.
    pub maximum: u64,
}

/// `MlstmParameters` of `mlstm.cuh`, field by field, but for what the copy engine must know.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MlstmParameters {
    batch_heads: i32,
    heads: i32,
    tokens: i32,
    chunks: i32,
    key_scale: f32,
    epsilon: f32,
    qk: Strides,
    v: Strides,
    gate: Strides,
    query: u64,
    key: u64,
    value: u64,
    input_gate: u64,
    forget_gate: u64,
    output: u64,
    resets: u64,
    initial_matrix: u64,
    initial_norm: u64,
    initial_maximum: u64,
    final_matrix: u64,
    final_norm: u64,
    final_maximum: u64,
    final_matrix_gradient: u64,
    final_norm_gradient: u64,
    initial_matrix_gradient: u64,
    initial_norm_gradient: u64,
    log_forget_sum: u64,
    exponent: u64,
    local_maximum: u64,
    maximum: u64,
    carry: u64,
    keep: u64,
    chunk_forget: u64,
    chunk_maximum: u64,
    decay: u64,
    state_weight: u64,
    segment_start: u64,
    states: u64,
    norm_states: u64,
    scores: u64,
    row_sums: u64,
    query_norm: u64,
    output_rest: u64,
    inverse_denominator: u64,
    output_gradient: u64,
    divided_gradient: u64,
    gradient_scale: u64,
    query_gradient: u64,
    key_gradient: u64,
    value_gradient: u64,
    input_gate_gradient: u64,
    forget_gate_gradient: u64,
    norm_gradient: u64,
    gradient_weight: u64,
    gradient_column: u64,
    output_dot: u64,
    state_gradients: u64,
    norm_state_gradients: u64,
    score_gradients: u64,
    query_dot: u64,
    key_carry_dot: u64,
    key_dot: u64,
    decay_gradient: u64,
}

/// What a kernel takes: the parameters, and maps of the tensors that the copy engine reads.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub struct MlstmArguments {
    parameters: MlstmParameters,
    maps: [TensorMap; 9],
}

impl MlstmParameters {
    /// For the kernels of `mlstm_gates.cu` alone; sizes are B·H, H, T and N.
    pub(crate) fn of_gates(
        [batch_heads, heads, tokens, chunks]: [i32; 4],
        gate: Strides,
        addresses: &GateAddresses,
    ) -> Self {
        Self {
            batch_heads,
            heads,
            tokens,
            chunks,
            key_scale: 1.0,
            epsilon: 1e-6,
            gate,
            input_gate: addresses.input_gate,
            forget_gate: addresses.forget_gate,
            resets: addresses.resets,
            segment_start: addresses.segment_start,
            initial_matrix: addresses.initial_matrix,
            initial_maximum: addresses.initial_maximum,
            final_maximum: addresses.final_maximum,
            final_matrix_gradient: addresses.final_matrix_gradient,
            log_forget_sum: addresses.log_forget_sum,
            exponent: addresses.exponent,
            local_maximum: addresses.local_maximum,
            maximum: addresses.maximum,
            carry: addresses.carry,
            keep: addresses.keep,
            chunk_forget: addresses.chunk_forget,
            chunk_maximum: addresses.chunk_maximum,
            decay: addresses.decay,
            state_weight: addresses.state_weight,
            query_dot: addresses.query_dot,
            key_carry_dot: addresses.key_carry_dot,
            key_dot: addresses.key_dot,
            decay_gradient: addresses.decay_gradient,
            input_gate_gradient: addresses.input_gate_gradient,
            forget_gate_gradient: addresses.forget_gate_gradient,
            ..Self::default()
        }
    }
}

impl MlstmArguments {
    /// Without maps, which the gates' kernels do not read.
    pub(crate) fn of_gates(parameters: MlstmParameters) -> Self {
        Self { parameters, maps: [TensorMap::default(); 9] }
    }
}

/// One kernel launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// The file that holds the kernel.
    pub source: Source,
    /// The kernel.
    pub kernel: &'static str,
    /// Blocks, threads, shared memory.
    pub shape: LaunchShape,
}

/// Hands out parts of one allocation, each on a boundary of 256 bytes.
struct Arena {
    base: u64,
    used: u64,
}

impl Arena {
    fn take(&mut self, bytes: u64) -> u64 {
        let at = self.base + self.used;
        self.used += bytes.next_multiple_of(256);
        at
    }
}

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

    /// Bytes of the saved and of the scratch room (the latter for the backward pass, the larger).
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.place(&mut MlstmParameters::default(), 0, 0)
    }

    /// Lays both rooms out; returns the bytes used of each.
    fn place(&self, p: &mut MlstmParameters, saved: u64, scratch: u64) -> (u64, u64) {
        let (key, value, chunk) =
            (u64::from(self.sizes.key), u64::from(self.sizes.value), u64::from(self.sizes.chunk));
        let (key_tiles, value_tiles, row_tiles) = self.tiles();
        let per_chunk = self.batch_heads() * self.chunks();
        let per_token = per_chunk * chunk;
        let mut kept = Arena { base: saved, used: 0 };
        for field in [
            &mut p.log_forget_sum,
            &mut p.exponent,
            &mut p.local_maximum,
            &mut p.maximum,
            &mut p.carry,
            &mut p.keep,
            &mut p.query_norm,
        ] {
            *field = kept.take(4 * per_token);
        }
        p.state_weight = kept.take(2 * per_token);
        if self.resets {
            p.segment_start = kept.take(4 * per_token);
        }
        for field in [&mut p.chunk_forget, &mut p.chunk_maximum, &mut p.decay] {
            *field = kept.take(4 * per_chunk);
        }
        p.output_rest = kept.take(self.batch_heads() * u64::from(self.tokens) * value);
        p.inverse_denominator = kept.take(4 * self.batch_heads() * u64::from(self.tokens));
        let mut used = Arena { base: scratch, used: 0 };
        p.state_gradients = used.take(2 * per_chunk * key * value);
        p.norm_state_gradients = used.take(4 * per_chunk * key);
        let room = if self.keep { &mut kept } else { &mut used };
        p.states = room.take(2 * per_chunk * key * value);
        p.norm_states = room.take(4 * per_chunk * key);
        p.scores = room.take(2 * per_token * chunk);
        p.score_gradients = used.take(2 * per_token * chunk);
        p.row_sums = used.take(4 * row_tiles * per_token);
        if !self.divided {
            p.divided_gradient = used.take(2 * self.batch_heads() * u64::from(self.tokens) * value);
            p.gradient_scale = used.take(4 * per_token);
        }
        p.norm_gradient = used.take(4 * per_token);
        for field in [&mut p.gradient_weight, &mut p.gradient_column] {
            *field = used.take(2 * per_token);
        }
        for field in [&mut p.query_dot, &mut p.key_carry_dot, &mut p.key_dot] {
            *field = used.take(4 * key_tiles * per_token);
        }
        p.decay_gradient = used.take(4 * key_tiles * value_tiles * per_chunk);
        (kept.used, used.used)
    }

    /// Where in the saved room what rounding took from the output lies: a byte for each element, as the output.
    #[must_use]
    pub fn rest_offset(&self) -> u64 {
        let mut p = MlstmParameters::default();
        self.place(&mut p, 0, 0);
        p.output_rest
    }

    /// Where in the saved room 1 / den of every token and head lies, `(B, T, H)` fp32.
    #[must_use]
    pub fn inverse_denominator_offset(&self) -> u64 {
        let mut p = MlstmParameters::default();
        self.place(&mut p, 0, 0);
        p.inverse_denominator
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

    /// The launches of the forward pass, in order.
    #[must_use]
    pub fn forward(&self) -> Vec<Launch> {
        let (.., row_tiles) = self.tiles();
        vec![
            self.by_token("mlstm_gates_local"),
            self.by_token("mlstm_gates_carry"),
            self.by_state("mlstm_states"),
            self.by_chunk(Source::MlstmScores, "mlstm_scores", row_tiles * (row_tiles + 1) / 2),
            self.by_chunk(Source::MlstmOutputs, "mlstm_output", row_tiles * self.tiles().1),
        ]
    }

    /// The launches of the backward pass, in order.
    #[must_use]
    pub fn backward(&self) -> Vec<Launch> {
        let (key_tiles, value_tiles, row_tiles) = self.tiles();
        let triangle = row_tiles * (row_tiles + 1) / 2;
        let tokens = self.batch_heads() * self.chunks() * u64::from(self.sizes.chunk);
        let prepare = LaunchShape { grid: [narrow(tokens.div_ceil(8)), 1, 1], threads: 256, shared_bytes: 0 };
        let prepare = if self.divided {
            self.by_token("mlstm_backward_prepare_dotted")
        } else {
            Launch { source: Source::MlstmGates, kernel: "mlstm_backward_prepare", shape: prepare }
        };
        let mut all = Vec::new();
        if !self.keep {
            all.push(self.by_state("mlstm_states"));
            all.push(self.by_chunk(Source::MlstmScores, "mlstm_scores", triangle));
        }
        all.extend([
            prepare,
            self.by_state("mlstm_state_gradients"),
            self.by_chunk(Source::MlstmScores, "mlstm_score_gradients", triangle),
            self.by_chunk(Source::MlstmOutputs, "mlstm_value_gradient", row_tiles * value_tiles),
            self.by_chunk(Source::MlstmOutputs, "mlstm_query_gradient", row_tiles * key_tiles),
            self.by_chunk(Source::MlstmOutputs, "mlstm_key_gradient", row_tiles * key_tiles),
            self.by_token("mlstm_gate_gradients"),
        ]);
        all
    }

    fn by_token(&self, kernel: &'static str) -> Launch {
        let grid = [narrow(self.chunks()), narrow(self.batch_heads()), 1];
        let shape = LaunchShape { grid, threads: self.sizes.chunk, shared_bytes: 0 };
        Launch { source: Source::MlstmGates, kernel, shape }
    }

    /// A ring of two operand tiles a stage, 128 by `block_k` bf16. Those of the copy engine lie swizzled, on a boundary of
    /// 1024 bytes, with two barriers each.
    fn ring_bytes(&self, extra: u32) -> u32 {
        let (block_k, stages) = MlstmSizes::tiles(self.architecture);
        let bulk = self.architecture.has_wgmma();
        let (before, barriers) = if bulk { (1024, 16) } else { (0, 0) };
        before + stages * (2 * 128 * block_k * 2 + extra * block_k + barriers)
    }

    fn by_state(&self, kernel: &'static str) -> Launch {
        let (key_tiles, value_tiles, _) = self.tiles();
        let grid = [narrow(key_tiles * value_tiles), narrow(self.batch_heads()), 1];
        // Beside the operands, two bf16 a token: its weight and the normalizer's column.
        let shape = LaunchShape { grid, threads: 128, shared_bytes: self.ring_bytes(4) };
        Launch { source: Source::MlstmStates, kernel, shape }
    }

    fn by_chunk(&self, source: Source, kernel: &'static str, tiles: u64) -> Launch {
        let grid = [narrow(tiles), narrow(self.chunks()), narrow(self.batch_heads())];
        Launch { source, kernel, shape: LaunchShape { grid, threads: 128, shared_bytes: self.ring_bytes(0) } }
    }
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
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
        let header = include_str!("../mlstm.cuh");
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
