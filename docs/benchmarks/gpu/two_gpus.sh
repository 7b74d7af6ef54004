#!/usr/bin/env bash
# The kernels of the GPU on one GPU and on two: the same losses, and tokens a second. Needs two GPUs and libtorch's CUDA
# half on LD_LIBRARY_PATH (an installed PyTorch 2.11 will do).
#
#   xlstm-data prepare crates --holdout 0.05 --max-tokens 6M --out DATA
#   docs/benchmarks/gpu/two_gpus.sh xlstm-train DATA > docs/benchmarks/gpu/training/two-gpus.txt
set -uo pipefail
program=$1 data=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
nvidia-smi --query-gpu=index,name,driver_version --format=csv,noheader
"$program" doctor --device cuda:0 | grep -E "source commit|libtorch|GPUs|process groups|kernels"
common="--manifest $data/train --validation $data/validation --recipe figure6-scaling-15b/125m-7to1 --device cuda
  --set training.precision=bfloat16 --set training.steps=12 --set training.micro_batch_rows=32 --set schedule.warmup_steps=5
  --set logging.tensorboard=false --set validation.rows=64 --set validation.every_steps=0"
run() { # NAME TOKENS RANKS
  timeout 150 $program $common --set training.tokens_per_step=$2 --nproc $3 --out "$work/$1" >"$work/$1.log" 2>&1 || tail -3 "$work/$1.log"
  grep '"kind":"train"' "$work/$1/metrics.jsonl" | tail -8 | sed -E 's/.*"tokens_per_second":([0-9.]+).*/\1/' | sort -n |
    awk -v name="$1: $3 ranks, $2 tokens a step" '{ v[NR] = $1 } END { printf "%s: %.0f tokens/s (median of the last %d steps)\n", name, v[int((NR + 1) / 2)], NR }'
}
losses() { grep '"kind":"train"' "$work/$1/metrics.jsonl" | sed -E 's/.*"step":([0-9]+).*"loss":([0-9.]+).*/\1 \2/'; }
run one 131072 1
run two 131072 2
run wide 262144 2
run one-again 131072 1
run wide-again 262144 2
echo "losses of one, two and one-again by step"
paste <(losses one) <(losses two) <(losses one-again)
