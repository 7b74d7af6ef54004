#!/bin/sh
# How fast `prepare task --stream` makes and digests samples, by threads: sh docs/benchmarks/data/stream.sh [EXAMPLES] [PROGRAM…]
# Seconds of the clock, of processors (user and system), the largest resident memory in MB, and the root, for each program.
set -eu
examples=${1:-2000000}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- target/release/xlstm-data
nproc
uptime
for program in "$@"; do
    for threads in 1 2 4; do
        out=$(mktemp -d)
        /usr/bin/env python3 - "$out" "$program" "$examples" "$threads" <<'P'
import json, resource, subprocess, sys, time
out, program, examples, threads = sys.argv[1:]
begin = time.time()
arguments = ["prepare", "task", "parity", "--split", "train", "--examples", examples, "--stream", "--json"]
run = subprocess.run([program, *arguments, "--threads", threads, "--out", out], capture_output=True, text=True, check=True)
seconds = time.time() - begin
used = resource.getrusage(resource.RUSAGE_CHILDREN)
split = json.load(open(out + "/train/manifest.json"))
print(json.dumps({"program": program.split("/")[-1], "threads": int(threads), "examples": int(examples),
    "seconds": round(seconds, 2), "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
    "peak_mb": round(used.ru_maxrss / 1024), "million_positions_a_second": round(split["totals"]["tokens"] / seconds / 1e6, 1),
    "root": split["root"]}))
P
        rm -r "$out"
    done
done
