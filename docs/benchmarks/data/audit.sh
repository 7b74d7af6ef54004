#!/bin/sh
# Times `xlstm-data audit` beside `sha256sum -c` on the same files, read from the page cache.
#
#   cargo build --release -p xlstm-pipeline
#   xlstm-data prepare crates --lockfile Cargo.lock --holdout 0.02 --out DIR
#   sh docs/benchmarks/data/audit.sh target/release/xlstm-data DIR/train
#
# One line a run: program, threads, seconds of wall clock, of user and of system time. On a machine with other
# work the processor's seconds tell more than the clock's.
set -eu
program=$(realpath "$1")
cd "$2"
echo "bytes $(cat ./* | wc -c)"
measure() { name=$1; shift; /usr/bin/time -f "$name %e %U %S" "$@" > /dev/null; }
for run in 1 2 3 4 5 6 7; do
    measure "sha256sum 1" sha256sum -c --quiet manifest-sha256.txt
    RAYON_NUM_THREADS=1 measure "audit 1" "$program" audit .
    RAYON_NUM_THREADS=2 measure "audit 2" "$program" audit .
    RAYON_NUM_THREADS=2 measure "audit--text 2" "$program" audit --text .
    RAYON_NUM_THREADS=2 measure "audit--deep-all 2" "$program" audit --deep all .
done
