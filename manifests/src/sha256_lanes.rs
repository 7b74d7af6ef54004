//! SHA-256 of many messages at once, two at a time on processors with SHA instructions.
//!
//! One message is a chain: each pair of rounds (`sha256rnds2`) waits some four cycles for the pair before, and
//! the unit could have begun another in two. Two messages side by side fill the gaps. Each of the two lanes
//! takes the next message as soon as its own is done, so that lengths need not be alike. On other processors,
//! and where one message is left, blocks go through the crate `sha2`, which these digests equal by test.
//!
//! A file that is being written is one long message, so [`LongMessage`] gives its blocks away to whoever has something for the
//! other lane: the rows of a shard are digested for their Merkle tree while the same bytes are digested for the file.
//! Nothing here knows of either: states, blocks and digests are plain arrays.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 64;

/// What the blocks so far have made of [`INITIAL`].
pub(crate) type ShaState = [u32; 8];

/// The first 32 bits of the fractional parts of the square roots of the first 8 primes (FIPS 180-4, 5.3.3).
pub(crate) const INITIAL: ShaState =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// Takes blocks into a state.
pub(crate) fn compress(state: &mut ShaState, blocks: &[[u8; BLOCK]]) {
    sha2::block_api::compress256(state, blocks);
}

/// One message on its way.
struct Lane<'a> {
    /// Place of its digest in the result.
    index: usize,
    state: ShaState,
    /// Whole blocks still to come.
    blocks: &'a [[u8; BLOCK]],
    /// What follows them, less than a block.
    tail: &'a [u8],
    /// Bytes of the message.
    length: u64,
}

impl<'a> Lane<'a> {
    fn new((index, message): (usize, &'a [u8])) -> Self {
        let (blocks, tail) = message.as_chunks();
        Self { index, state: INITIAL, blocks, tail, length: message.len() as u64 }
    }

    /// The blocks that are left and the padding: a one bit, zeros, the length in bits (FIPS 180-4, 5.1.1).
    fn finish(mut self) -> [u8; 32] {
        compress(&mut self.state, self.blocks);
        finish(self.state, self.tail, self.length)
    }
}

/// The digest of a message of `length` bytes, of which `state` has all blocks and `tail` is the rest.
pub(crate) fn finish(mut state: ShaState, tail: &[u8], length: u64) -> [u8; 32] {
    let mut last = [[0; BLOCK]; 2];
    let padded = last.as_flattened_mut();
    padded[..tail.len()].copy_from_slice(tail);
    padded[tail.len()] = 0x80;
    let count = if tail.len() < BLOCK - 8 { 1 } else { 2 };
    padded[count * BLOCK - 8..count * BLOCK].copy_from_slice(&(8 * length).to_be_bytes());
    compress(&mut state, &last[..count]);
    let mut digest = [0; 32];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

/// One message that comes in pieces.
#[derive(Debug, Clone)]
pub(crate) struct LongMessage {
    state: ShaState,
    /// The bytes behind the last whole block.
    tail: [u8; BLOCK],
    /// How many of them there are.
    filled: usize,
    length: u64,
}

impl Default for LongMessage {
    /// No bytes yet.
    fn default() -> Self {
        Self { state: INITIAL, tail: [0; BLOCK], filled: 0, length: 0 }
    }
}

impl LongMessage {
    /// Bytes so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Takes the next piece. `take` brings its whole blocks into the state: [`compress`], or with another message in the
    /// lane beside.
    pub(crate) fn update(&mut self, mut piece: &[u8], take: impl FnOnce(&mut ShaState, &[[u8; BLOCK]])) {
        self.length += piece.len() as u64;
        if self.filled > 0 {
            let (head, rest) = piece.split_at(piece.len().min(BLOCK - self.filled));
            self.tail[self.filled..self.filled + head.len()].copy_from_slice(head);
            self.filled += head.len();
            if self.filled < BLOCK {
                return;
            }
            compress(&mut self.state, &[self.tail]);
            self.filled = 0;
            piece = rest;
        }
        let (blocks, rest) = piece.as_chunks();
        take(&mut self.state, blocks);
        self.tail[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    pub(crate) fn finish(&self) -> [u8; 32] {
        finish(self.state, &self.tail[..self.filled], self.length)
    }
}

/// The digests of `messages`, in their order.
pub(crate) fn digest_each<'a>(messages: impl IntoIterator<Item = &'a [u8]>) -> Vec<[u8; 32]> {
    let mut digests = Vec::new();
    let mut next = messages.into_iter().enumerate().map(Lane::new);
    let mut keep = |lane: Lane<'_>| {
        let index = lane.index;
        if digests.len() <= index {
            digests.resize(index + 1, [0; 32]);
        }
        digests[index] = lane.finish();
    };
    let (mut first, mut second) = (next.next(), next.next());
    while let (Some(one), Some(other)) = (&mut first, &mut second) {
        let count = one.blocks.len().min(other.blocks.len());
        let (left, right) = (one.blocks.split_at(count), other.blocks.split_at(count));
        (one.blocks, other.blocks) = (left.1, right.1);
        compress_two(&mut one.state, left.0, &mut other.state, right.0);
        for lane in [&mut first, &mut second] {
            if let Some(done) = lane.take_if(|lane| lane.blocks.is_empty()) {
                keep(done);
                *lane = next.next();
            }
        }
    }
    first.into_iter().chain(second).for_each(keep);
    digests
}

/// Takes as many blocks of one message as of another into their states.
pub(crate) fn compress_two(
    one: &mut ShaState,
    left: &[[u8; BLOCK]],
    other: &mut ShaState,
    right: &[[u8; BLOCK]],
) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") {
        // SAFETY: the processor has the instructions.
        unsafe { x86::compress_two([one, other], [left, right]) };
        return;
    }
    compress(one, left);
    compress(other, right);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_loadu_si128, _mm_set_epi32, _mm_set_epi64x,
        _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
        _mm_shuffle_epi32, _mm_storeu_si128,
    };

    use super::BLOCK;

    /// The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
    #[rustfmt::skip]
    const ROUND: [[i32; 4]; 16] = round_constants([
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ]);

    const fn round_constants(words: [u32; 64]) -> [[i32; 4]; 16] {
        let mut groups = [[0; 4]; 16];
        let mut at = 0;
        while at < 64 {
            groups[at / 4][at % 4] = words[at].cast_signed();
            at += 1;
        }
        groups
    }

    /// A state as the instructions want it: words A, B, E, F and C, D, G, H from high to low.
    #[derive(Clone, Copy)]
    struct Registers {
        abef: __m128i,
        cdgh: __m128i,
    }

    #[target_feature(enable = "sha,sse4.1")]
    fn load_state(words: &[u32; 8]) -> Registers {
        let [a, b, c, d, e, f, g, h] = words.map(u32::cast_signed);
        Registers { abef: _mm_set_epi32(a, b, e, f), cdgh: _mm_set_epi32(c, d, g, h) }
    }

    #[target_feature(enable = "sha,sse4.1")]
    fn store_state(state: Registers) -> [u32; 8] {
        let words = |register: __m128i| {
            let mut words = [0u32; 4];
            // SAFETY: 16 bytes of room, and no alignment is asked for.
            unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), register) };
            words
        };
        let ([f, e, b, a], [h, g, d, c]) = (words(state.abef), words(state.cdgh));
        [a, b, c, d, e, f, g, h]
    }

    /// A block's 16 words in the order of the host, four a register.
    #[target_feature(enable = "sha,sse4.1")]
    fn load_block(block: &[u8; BLOCK]) -> [__m128i; 4] {
        let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        std::array::from_fn(|at| {
            // SAFETY: bytes 16·at to 16·at + 15 are inside the block, and no alignment is asked for.
            let words = unsafe { _mm_loadu_si128(block.as_ptr().add(16 * at).cast()) };
            _mm_shuffle_epi8(words, swap)
        })
    }

    /// Four rounds with the message words `words`.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn four_rounds(state: &mut Registers, words: __m128i, constants: [i32; 4]) {
        let [k0, k1, k2, k3] = constants;
        let sum = _mm_add_epi32(words, _mm_set_epi32(k3, k2, k1, k0));
        state.cdgh = _mm_sha256rnds2_epu32(state.cdgh, state.abef, sum);
        state.abef = _mm_sha256rnds2_epu32(state.abef, state.cdgh, _mm_shuffle_epi32::<0x0e>(sum));
    }

    /// The next four message words from the last sixteen, the oldest at `oldest` of the ring.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn schedule(words: &[__m128i; 4], oldest: usize) -> __m128i {
        let [w0, w1, w2, w3] = std::array::from_fn(|at| words[(oldest + at) % 4]);
        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8::<4>(w3, w2));
        _mm_sha256msg2_epu32(sum, w3)
    }

    /// Blocks of two messages, their rounds in turn; the longer one's surplus is left.
    #[target_feature(enable = "sha,sse4.1")]
    pub(super) fn compress_two(states: [&mut [u32; 8]; 2], blocks: [&[[u8; BLOCK]]; 2]) {
        let mut lanes = [load_state(states[0]), load_state(states[1])];
        for (left, right) in blocks[0].iter().zip(blocks[1]) {
            let before = lanes;
            let mut words = [load_block(left), load_block(right)];
            for (at, &constants) in ROUND[..4].iter().enumerate() {
                for (state, words) in lanes.iter_mut().zip(&words) {
                    four_rounds(state, words[at], constants);
                }
            }
            for sixteen in ROUND[4..].as_chunks::<4>().0 {
                for (at, &constants) in sixteen.iter().enumerate() {
                    for (state, words) in lanes.iter_mut().zip(&mut words) {
                        words[at] = schedule(words, at);
                        four_rounds(state, words[at], constants);
                    }
                }
            }
            for (state, before) in lanes.iter_mut().zip(before) {
                state.abef = _mm_add_epi32(state.abef, before.abef);
                state.cdgh = _mm_add_epi32(state.cdgh, before.cdgh);
            }
        }
        for (words, state) in states.into_iter().zip(lanes) {
            *words = store_state(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn message(length: usize, seed: u8) -> Vec<u8> {
        (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
    }

    fn of(message: &[u8]) -> [u8; 32] {
        Sha256::digest(message).into()
    }

    proptest! {
        /// Lengths around the edges of blocks and of the padding, and lanes that end at different times.
        #[test]
        fn each_digest_is_that_of_its_message(lengths in prop::collection::vec(0usize..700, 0..9)) {
            let messages: Vec<_> = lengths.iter().zip(0..).map(|(&length, seed)| message(length, seed)).collect();
            let expected: Vec<_> = messages.iter().map(|message| of(message)).collect();
            prop_assert_eq!(digest_each(messages.iter().map(Vec::as_slice)), expected);
        }
    }

    #[test]
    fn every_length_of_the_last_block() {
        for length in 0..200 {
            let (one, other) = (message(length, 1), message(300 - length, 2));
            let expected = vec![of(&one), of(&other)];
            assert_eq!(digest_each([&one[..], &other[..]]), expected, "{length}");
        }
    }
}
