#!/usr/bin/env python3
"""Two builds of the programs in turn on the same inputs: `prepare`, and steps of training on the CPU.

    python3 docs/benchmarks/pairs.py BEFORE AFTER CORPUS [PAIRS] [prepare|train …] >docs/benchmarks/pairs.txt

BEFORE and AFTER are folders with `xlstm-data` and `xlstm-train`, built with the tree's own release profile; CORPUS is one
of `docs/benchmarks/data/make_corpus.py`. Both train on the split that BEFORE prepared. In each pair the two run one right after
the other, and pairs take turns in who is first. Of `prepare` the whole program is timed; of training the steps after the
first two, from `metrics.jsonl`. Seconds of the processor (user and system, all cores) say what a program costs on a
machine that others use too; seconds on the clock are beside them. A ratio is after over before, within a pair.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 6
RECIPE = f"""
[model]
embedding_dim = 256
blocks = 4
slstm_at = [1]
[training]
context_length = 512
tokens_per_step = 2048
steps = {STEPS}
precision = "float32"
[schedule]
warmup_steps = 1
[checkpoint]
every_steps = 1000
[validation]
every_steps = 1000
[logging]
every_steps = 1
"""


def measure(command, folder):
    """Runs a command: seconds on the clock, seconds of the processor, peak resident MiB."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    assert os.waitstatus_to_exitcode(status) == 0, command
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def prepare(binaries, corpus, folder):
    out = folder / "prepared"
    shutil.rmtree(out, ignore_errors=True)
    command = [binaries / "xlstm-data", "prepare", "local", corpus, "--out", out, "--quiet", "--set-field", "meta.redpajama_set_name"]
    seconds, processor, mib = measure(command, folder)
    return {"clock": seconds, "processor": processor, "MiB": mib}


def train(binaries, data, folder):
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    command = [binaries / "xlstm-train", "--manifest", data, "--recipe", folder / "recipe.toml", "--out", run, "--device", "cpu"]
    _, processor, mib = measure(command, folder)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    clock = (steps[-1]["time"] - steps[1]["time"]) / (len(steps) - 2)
    return {"clock": clock, "processor": processor / len(steps), "MiB": mib, "loss": steps[-1]["loss"]}


def main():
    builds = {"before": Path(sys.argv[1]).resolve(), "after": Path(sys.argv[2]).resolve()}
    corpus, pairs = Path(sys.argv[3]).resolve(), int(sys.argv[4]) if len(sys.argv) > 4 else 10
    print(f"# {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the beginning")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.toml").write_text(RECIPE)
        prepare(builds["before"], corpus, folder)
        data = folder / "data"
        (folder / "prepared").rename(data)
        wanted = sys.argv[5:] or ["prepare", "train"]
        for what, body, source in [("prepare", prepare, corpus), ("train", train, data / "train")]:
            if what not in wanted:
                continue
            ratios = {"clock": [], "processor": []}
            for pair in range(pairs):
                order = ["before", "after"] if pair % 2 == 0 else ["after", "before"]
                found = {which: body(builds[which], source, folder) for which in order}
                for which in ("before", "after"):
                    print(f"{what} {pair:2} {which:6} " + " ".join(f"{key} {value:.4f}" for key, value in found[which].items()), flush=True)
                for key in ratios:
                    ratios[key].append(found["after"][key] / found["before"][key])
            for key, values in ratios.items():
                low, middle, high = min(values), statistics.median(values), max(values)
                quartiles = statistics.quantiles(values, n=4)
                print(f"{what}: {key}, after over before: median {middle:.4f}, quartiles {quartiles[0]:.4f} to {quartiles[2]:.4f}, all {low:.4f} to {high:.4f}, {pairs} pairs", flush=True)


if __name__ == "__main__":
    main()
