#!/usr/bin/env bash
# The data side's benchmarks: `make bench` builds what they need and calls this. Peers are installed with pip into
# .venv/bench on the first call. Raw output goes to docs/benchmarks/data/prepare.json. For quotable figures nothing else
# should run on the machine.
set -euo pipefail
cd "$(dirname "$0")/../../.."
if [ ! -x .venv/bench/bin/python ]; then
    "${PYTHON:-python3}" -m venv .venv/bench
    .venv/bench/bin/pip install --quiet 'datatrove[io,processing]==0.10.1' tokenizers orjson zstandard
fi
corpus=data/bench-corpus
[ -d "$corpus" ] || .venv/bench/bin/python docs/benchmarks/data/make_corpus.py "$corpus" 800
.venv/bench/bin/python docs/benchmarks/data/prepare.py "$corpus" "${ROUNDS:-5}" >docs/benchmarks/data/prepare.json.partial
mv docs/benchmarks/data/prepare.json.partial docs/benchmarks/data/prepare.json
tail -n 9 docs/benchmarks/data/prepare.json
