//! Where everything lies in the two rooms of memory.

use super::{MlstmParameters, MlstmPlan};

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

impl MlstmPlan {
    /// Bytes of the saved and of the scratch room (the latter for the backward pass, the larger).
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.place(&mut MlstmParameters::default(), 0, 0)
    }

    /// Lays both rooms out; returns the bytes used of each.
    pub(super) fn place(&self, p: &mut MlstmParameters, saved: u64, scratch: u64) -> (u64, u64) {
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
}
