#!/usr/bin/env bash
# Starts Ray on this machine, submits ray_prepare.py as a job, and compares every file of the dataset with one process's.
#
#   docs/clusters/check_ray.sh FILES... > docs/clusters/ray-checked.txt
#
# Needs `xlstm-data` and `ray` (pip install 'ray[default]') on the path.
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
inputs=$(realpath "$@")
work=$(mktemp -d)
ray start --head --num-cpus 2 --disable-usage-stats --temp-dir "$work/ray" --block > "$work/ray.log" 2>&1 &
head=$!
trap 'kill "$head"; wait "$head" 2> /dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 60); do ray job list --address http://127.0.0.1:8265 > "$work/list.log" 2>&1 && break; sleep 1; done

echo "# $(ray --version), $(xlstm-data --version), $(wc -w <<< "$inputs") files, 2 cores"
# shellcheck disable=SC2086 # one word a file
xlstm-data prepare local $inputs --holdout 0.2 --out "$work/one" --quiet > "$work/one.log"
echo "$ ray job submit --working-dir docs/clusters -- python ray_prepare.py --tasks 3 --cpus 1 --out MANY -- local FILES --holdout 0.2"
# shellcheck disable=SC2086
ray job submit --address http://127.0.0.1:8265 --working-dir "$folder" -- \
  python ray_prepare.py --tasks 3 --cpus 1 --out "$work/many" -- local $inputs --holdout 0.2 > "$work/job.log" 2>&1
grep -o "Job 'raysubmit_[A-Za-z0-9]*' succeeded" "$work/job.log" | sed "s/ 'raysubmit_.*'//"
echo "files of the merged dataset and of one process's:"
sums() { (cd "$1" && find . -path ./parts -prune -o -type f -print | sort | xargs sha256sum); }
sums "$work/many" > "$work/many.sums"
diff "$work/many.sums" <(sums "$work/one")
cat "$work/many.sums"
echo "all equal"
