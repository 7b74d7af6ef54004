#!/bin/sh
# The tokens that `xlstm-data plan` expects, beside those that `prepare` then makes of the same files.
#
#   sh docs/benchmarks/data/plan.sh target/release/xlstm-data NAME crates --lockfile Cargo.lock
#   sh docs/benchmarks/data/plan.sh target/release/xlstm-data NAME local DIR --on-bad-record skip
#
# One line a run: NAME, expected, found, their ratio, seconds that the plan took, and what it says of its sample.
set -eu
program=$(realpath "$1")
name=$2
shift 2
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
begin=$(date +%s.%N)
plan=$("$program" plan "$@" --out "$out/data" 2> /dev/null)
end=$(date +%s.%N)
expected=$(echo "$plan" | sed -n 's/.*expected: about \([0-9]*\) tokens.*/\1/p')
sample=$(echo "$plan" | sed -n 's/.*estimated from a sample: //p')
found=$("$program" prepare "$@" --out "$out/data" --quiet 2> /dev/null | sed -n 's/.* documents, \([0-9]*\) tokens.*/\1/p')
awk -v name="$name" -v expected="$expected" -v found="$found" -v seconds="$(echo "$end $begin" | awk '{print $1 - $2}')" \
    -v sample="$sample" \
    'BEGIN { printf "%s: expected %d, found %d, ratio %.4f, %.2f s; %s\n", name, expected, found, expected / found, seconds, sample }'
