//! What a second message in the other lane of the SHA instructions costs.
//!
//! ```sh
//! cargo run --release -p xlstm-manifests --example lane_speed
//! ```
//! Messages of 1 MiB; the least of several passes, so that other work on the machine counts little.
#![expect(clippy::print_stdout, reason = "a program that prints its result")]

use std::time::{Duration, Instant};

use xlstm_manifests::Sha256Digest;

const PASSES: usize = 500;

fn least(mut work: impl FnMut()) -> Duration {
    let pass = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..PASSES).map(pass).min().unwrap_or_default()
}

fn main() {
    let messages = [1, 2].map(|byte| vec![byte; 1 << 20]);
    let alone = least(|| {
        std::hint::black_box(Sha256Digest::of(&messages[0]));
    });
    let two = least(|| {
        std::hint::black_box(Sha256Digest::of_each(messages.iter().map(Vec::as_slice)));
    });
    println!("one message of 1 MiB: {alone:?}");
    println!("two side by side:     {two:?}");
}
