#!/usr/bin/env python3
"""Runs the fuzz targets of tests/fuzz with libFuzzer, one after the other, and prints a line for each.

    rustup toolchain install nightly --profile minimal
    cargo +nightly install cargo-fuzz --locked
    python3 tests/python/fuzz_targets.py [SECONDS] [TARGET ...]

Each target begins with the sound files that the deterministic tests alter (tests/tests/fuzz.rs, trainer/tests/fuzz.rs), which
those tests write. What libFuzzer finds stays in `tests/fuzz/artifacts`; this script then ends with code 1. The targets that
need libtorch take it from `.libtorch`, as the build does. All that is built lies in `target-fuzz`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "target-fuzz"
# Targets, and the tests whose seeds they begin with.
DATA = {
    "shards": "shards_and_spans",
    "manifest": "manifests",
    "merge_parts": "parts_of_a_merge",
    "parquet": "parquet_files",
    "json_lines": "lines_of_json",
    "copies": "lists_of_copies",
    "hub_answers": "answers_of_a_hub",
}
TRAINER = {
    "checkpoints": "checkpoints_of_every_architecture",
    "http_requests": "bodies_of_requests",
    "run_folders": "folders_of_runs",
    "transformers": "models_of_transformers",
}


def seeds(corpus: Path, package: str) -> None:
    command = ["cargo", "test", "--release", "--locked", "--quiet", "-p", package, "--test", "fuzz"]
    environment = {**os.environ, "XLSTM_FUZZ_CORPUS": str(corpus)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


class Fuzz:
    """The targets, built with what those that are asked for need."""

    def __init__(self, corpus: Path, targets: list) -> None:
        self.corpus = corpus
        self.features = ["--features", "trainer"] if set(targets) & set(TRAINER) else []
        libtorch = os.environ.get("LIBTORCH", str(ROOT / ".libtorch"))
        self.environment = {**os.environ, "LIBTORCH": libtorch, "LD_LIBRARY_PATH": libtorch + "/lib", "XLSTM_FUZZ_RUN": str(corpus / "run")}
        subprocess.run(self.command("build"), cwd=ROOT, env=self.environment, check=True)

    def command(self, what: str, *more: object) -> list:
        return ["cargo", "+nightly", "fuzz", what, "--fuzz-dir", "tests/fuzz", "--target-dir", FOLDER, *self.features, *more]

    def run(self, target: str, seconds: int) -> bool:
        """Prints what libFuzzer says at the end; true where it found nothing."""
        inputs = self.corpus / {**DATA, **TRAINER}[target]
        known = len(list(inputs.iterdir()))
        options = [f"-max_total_time={seconds}", "-timeout=30", "-rss_limit_mb=2048", "-print_final_stats=1"]
        command = self.command("run", target, inputs, "--", *options)
        done = subprocess.run(command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = done.stdout.decode(errors="replace")
        covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)
        runs = re.findall(r"Done (\d+) runs in (\d+) second", said)
        memory = re.findall(r"peak_rss_mb: +(\d+)", said)
        if done.returncode == 0 and covered and runs and memory:
            (edges, features, kept), (times, took) = covered[-1], runs[-1]
            print(f"{target:14}{times:>9} runs in {took:>3} s,{edges:>7} edges,{features:>7} features,{known:>3} seeds became{kept:>5} inputs,"
                  f"{memory[-1]:>5} MiB, nothing found", flush=True)
            return True
        print(f"{target}: exit code {done.returncode}\n{said[-3000:]}", flush=True)
        return False


def main() -> int:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    targets = sys.argv[2:] or [*DATA, *TRAINER]
    corpus = FOLDER / "corpus"
    shutil.rmtree(corpus, ignore_errors=True)
    lock = ROOT / "tests/fuzz/Cargo.lock"
    if not lock.exists():
        # The versions that the programs are built with; cargo adds libFuzzer's.
        shutil.copy(ROOT / "Cargo.lock", lock)
    for package, names in (("xlstm-tests", DATA), ("xlstm-trainer", TRAINER)):
        if set(targets) & set(names):
            seeds(corpus, package)
    fuzz = Fuzz(corpus, targets)
    return 0 if all([fuzz.run(target, seconds) for target in targets]) else 1


if __name__ == "__main__":
    sys.exit(main())
