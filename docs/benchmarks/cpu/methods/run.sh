#!/usr/bin/env bash
# All fourteen methods of Table 1 at about 10 million parameters on a CPU, 200 steps each on the demo's corpus: metrics of each and one page.
#   run.sh TRAIN EVAL DEMO OUT      programs xlstm-train and xlstm-eval, the folder that `make demo-data` prepares, a new folder
set -eu
train=$1 eval=$2 demo=$3 out=$4
mkdir -p "$out"
sizes() { # the heads that fit a width of 96
    case $1 in
    7to1) echo "model.slstm_at=[1]" ;;
    gpt3 | llama | retnet) echo "model.heads=4" ;;
    rwkv5 | rwkv6) echo "model.head_dim=32" ;;
    hgrn2) echo "model.heads=1" ;;
    *) echo "model.blocks=4" ;;
    esac
}
one() {
    "$train" --manifest "$demo/train" --validation "$demo/validation" --recipe "table1-small/$1" \
        --set model.embedding_dim=96 --set model.blocks=4 --set "$(sizes "$1")" \
        --set training.precision=float32 --set training.context_length=512 --set training.tokens_per_step=2048 --set training.steps=200 \
        --set optimizer.learning_rate=3e-3 --set schedule.warmup_steps=20 --set validation.every_steps=50 --set validation.rows=32 \
        --set checkpoint.every_steps=200 --set logging.every_steps=10 --device cpu --threads 1 --out "$out/$1" > "$out/$1.log" 2>&1
    echo "$1 $(grep -c '"kind":"train"' "$out/$1/metrics.jsonl") lines"
}
export -f one sizes
export train demo out
echo 7to1 1to0 gpt3 llama h3 mamba hyena rwkv4 rwkv5 rwkv6 retnet hgrn gla hgrn2 | tr ' ' '\n' | xargs -P 2 -I{} bash -c 'one {}'
cd "$out"
"$eval" compare 7to1 1to0 gpt3 llama h3 mamba hyena rwkv4 rwkv5 rwkv6 retnet hgrn gla hgrn2 --out compare
