//! Prints what the driver says of each GPU that `CUDA_VISIBLE_DEVICES` leaves.
#![expect(clippy::print_stdout, reason = "it prints")]

fn main() {
    for ordinal in 0.. {
        match xlstm_cuda::describe(ordinal) {
            Ok(found) => println!("cuda:{ordinal} {}, {} bytes", found.name, found.memory),
            Err(error) => return println!("cuda:{ordinal} {error}"),
        }
    }
}
