#![no_main]

#[path = "../bodies/hub_answers.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
