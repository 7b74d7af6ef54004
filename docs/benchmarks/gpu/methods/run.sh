#!/usr/bin/env bash
# Speeds and checks of the other methods on one GPU: ../methods.md has the figures, the files beside this what it printed.
#   run.sh TRAIN BENCH SPLIT OUT      programs xlstm-train and bench_training (an example of `trainer`), a split of text, a folder
set -u
train=$1 bench=$2 split=$3 out=$4
"$train" selfcheck --device cuda:0 | tee "$out/selfcheck.txt"
for variant in hgrn gla hgrn2 retnet rwkv5 rwkv6 rwkv4 mamba; do
    "$train" --manifest "$split" --recipe "table1-small/$variant" --set schedule.warmup_steps=5 --set training.steps=14 \
        --set logging.every_steps=1 --set validation.every_steps=0 --set checkpoint.every_steps=14 --out "$out/$variant" --device cuda:0 > "$out/log" 2>&1
    echo "$variant rc $? $(python3 - "$out/$variant/metrics.jsonl" <<'P'
import json, sys
steps = [line for line in map(json.loads, open(sys.argv[1])) if line["kind"] == "train"]
seconds = sorted(b["time"] - a["time"] for a, b in zip(steps[3:], steps[4:]))
print(len(steps), "steps", round(65.536 / seconds[len(seconds) // 2], 1), "k tok/s", steps[-1]["loss"])
P
)"
done
for method in gpt3 llama hgrn rwkv4 gla rwkv5 hgrn2 rwkv6 retnet retnet-block h3 mamba hyena; do
    "$bench" "table1-15b/$method" --repeats 3 --profile | grep '^{' | tee -a "$out/bench.jsonl" # chunks-350m-h100.jsonl
done
# The peers, each on a GPU of its own: peers-h100.jsonl. flash-linear-attention compiles and chooses its kernels for one to three minutes first.
python3 "$(dirname "$0")/peers.py" gla retnet hgrn hgrn2 rwkv6 | tee "$out/peers.jsonl"
python3 "$(dirname "$0")/peers.py" --compile llama gpt2 | tee -a "$out/peers.jsonl"
