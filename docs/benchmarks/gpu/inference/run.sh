#!/usr/bin/env bash
# Evaluation and generation on one GPU: ../inference.md has the figures, run.log what this printed.
#   run.sh TRAIN EVAL SPLIT OUT      programs xlstm-train and xlstm-eval, a split of text, a folder for models and reports
set -u
train=$1 eval=$2 split=$3 out=$4
timed() { local begin=$SECONDS; "$@"; echo "== exit $? after $((SECONDS - begin)) s: ${*##*/}"; }

"$eval" --version
for recipe in 125m-7to1 125m-1to0 1300m-7to1; do
    timed "$train" --manifest "$split" --recipe figure6-scaling-15b/$recipe --steps 1 --set schedule.warmup_steps=1 \
        --out "$out/$recipe" --device cuda:0 2>&1 | tail -n 1
done
for recipe in 125m-7to1 125m-1to0; do
    timed "$eval" throughput "$out/$recipe" --device cuda:0 --precision bfloat16 --lengths 64,256,1024,4096,16384 \
        --batches 1,2,4,8,16,32,64,128,256 --tokens 256 --repetitions 3 --out "$out/throughput-$recipe"
    timed "$eval" perplexity "$out/$recipe" --manifest "$split" --device cuda:0 --out "$out/perplexity-$recipe" > "$out/log" 2>&1
done
timed "$eval" throughput "$out/1300m-7to1" --device cuda:0 --precision bfloat16 --lengths 64,256,1024 --batches 1,4,16,32,64 \
    --tokens 128 --repetitions 1 --out "$out/throughput-1300m-7to1"
for recipe in 125m-7to1 125m-1to0; do
    timed "$eval" extrapolate "$out/$recipe" --manifest "$split" --text stream --lengths 2048,16384,65536 --stretches 32 \
        --device cuda:0 --out "$out/extrapolate-$recipe" > "$out/log" 2>&1
done
timed "$eval" throughput "$out/125m-7to1" --kernels libtorch --device cuda:0 --precision bfloat16 --lengths 64,256 --batches 1,128 \
    --tokens 64 --repetitions 1 --out "$out/throughput-libtorch"
for report in "$out"/*/report.json; do
    python3 -c 'import json, sys; print(sys.argv[1].split("/")[-2], json.load(open(sys.argv[1]))["effort"])' "$report"
done
