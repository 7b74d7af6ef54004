#!/usr/bin/env bash
# Ranks on GPUs: two ranks compute what one does, started by --nproc and by torchrun; speed at one and at two ranks;
# what happens when one is killed.
#
#   docs/benchmarks/gpu/ranks.sh PROGRAM DATASET > docs/benchmarks/gpu/training/ranks.txt
#
# Needs two GPUs and libtorch's CUDA half on LD_LIBRARY_PATH (an installed PyTorch 2.11 will do).
set -uo pipefail
program=$1 data=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
nvidia-smi --query-gpu=index,name,driver_version --format=csv,noheader
"$program" doctor --device cpu | grep -E "source commit|libtorch|cuda|GPUs|process groups"

# A model of both kinds of block in fp32, so that differences between runs are rounding alone.
small="--manifest $data --recipe small-cpu --set training.precision=float32 --set training.context_length=256
  --set training.tokens_per_step=32768 --set training.micro_batch_rows=8 --set training.steps=10
  --set schedule.warmup_steps=2 --set logging.tensorboard=false --set validation.every_steps=0 --device cuda"
losses() { grep '"kind":"train"' "$1/metrics.jsonl" | sed -E 's/.*"step":([0-9]+).*"loss":([0-9.]+).*/\1 \2/'; }

compare() { # NAME: losses of runs one and NAME agree to 1e-4 at every step
  paste <(losses "$work/one") <(losses "$work/$1") | awk -v name="$1" '
    { d = $2 - $4; if (d < 0) d = -d; if (d > worst) worst = d; rows++ }
    END { printf "%s: %d steps, largest difference of loss to one rank %.2e\n", name, rows, worst; exit !(rows == 10 && worst < 1e-4) }' || failed=1
}
timeout 100 $program $small --out "$work/one" 2>&1 | tail -3 || failed=1
timeout 100 $program $small --out "$work/two" --nproc 2 2>&1 | tail -3 || failed=1
compare two
timeout 100 torchrun --no-python --nproc-per-node 2 $program $small --out "$work/torchrun" 2>&1 | tail -3 || failed=1
compare torchrun

# A rank is killed: the other ends and names it.
$program $small --set training.steps=100000 --set checkpoint.every_steps=20 --rank-timeout 20 --nproc 2 --out "$work/killed" 2> "$work/killed.txt" &
parent=$!
for _ in $(seq 100); do [ -e "$work/killed/checkpoints/step-00000020/DONE" ] && break; sleep 0.5; done
victim=$(for pid in $(pgrep -P $parent); do grep -qzx RANK=1 /proc/$pid/environ && echo $pid; done)
begin=$SECONDS; kill -9 $victim; wait $parent; code=$?
echo "killed rank 1 (process $victim): exit code $code after $((SECONDS - begin)) s"
grep "is lost" "$work/killed.txt" | head -2 || failed=1

# Speed: about 16k tokens a rank and step.
large="--manifest $data --recipe small-cpu --set model.slstm_at=[] --set training.precision=bfloat16 --set training.micro_batch_rows=8
  --set training.steps=20 --set schedule.warmup_steps=5 --set logging.tensorboard=false --set validation.every_steps=0 --device cuda"
for ranks in 1 2 1 2; do
  tokens=$((ranks * 8 * 2048))
  timeout 100 $program $large --set training.tokens_per_step=$tokens --nproc $ranks --out "$work/speed" > "$work/log" 2>&1 || { tail -3 "$work/log"; failed=1; }
  grep '"kind":"train"' "$work/speed/metrics.jsonl" | tail -15 | sed -E 's/.*"tokens_per_second":([0-9.]+).*/\1/' | sort -n |
    awk -v ranks=$ranks '{ v[NR] = $1 } END { printf "%d ranks: %.0f tokens/s (median of %d steps)\n", ranks, v[int((NR + 1) / 2)], NR }'
  rm -rf "$work/speed"
done
exit $failed
