#!/usr/bin/env python3
"""Installs the wheel into a fresh virtual environment, and does a researcher's first jobs with it.

    make wheel
    python3 tests/python/wheel.py [--full]

The environment lies in a folder with a space and a letter outside ASCII. Without `--full` only the wheels that the
programs themselves need are installed (PyTorch and two small CUDA libraries, without their dependencies); `--full` lets
pip install everything (5 GB), which the Python helpers need because `import torch` does, and goes through the README's table of
jobs, row by row, but for what needs a Hub or a GPU. Environment variables of the build (LIBTORCH, LD_LIBRARY_PATH) are taken
away. Nothing needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import signal
import sys
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM_WHEELS = ["torch==2.11.0", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"]
TEXTS = {"one.md": "Recurrent networks read one token after the other. " * 120, "two.md": "Gates decide what is kept. " * 300}

HELPERS = '''
import hashlib, json, pathlib, sys
from torch.utils.data import DataLoader
from xlstm_toolkit import Rows

split, texts = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
rows = Rows(split, verify=True)
manifest = json.loads((split / "manifest.json").read_text())
assert rows.root == manifest["root"] and len(rows) == manifest["totals"]["rows"]
batches = list(DataLoader(rows, batch_size=2, num_workers=1))
targets = sum(int((batch[1] != -100).sum()) for batch in batches)
assert targets == manifest["totals"]["tokens"], targets
inputs, first = rows[0]
assert int(inputs[0]) == manifest["tokenizer"]["end_of_text"] and inputs[1:].equal(first[:-1])
found = rows.document(0, 0)
text = (texts / pathlib.Path(found.source.path).name).read_bytes()
assert hashlib.sha256(text).hexdigest() == found.text_sha256 == found.source.sha256, found
assert (found.record, found.token) == (0, 0), found
last = rows.document(len(rows) - 1, int((rows[len(rows) - 1][1] != -100).sum()) - 1)
assert last.token == last.tokens - 1, last
for row, token in ((len(rows), 0), (0, 2048), (-1, 0)):
    try:
        rows.document(row, token)
    except IndexError:
        continue
    raise SystemExit(f"row {row}, token {token} was answered")
print(f"Rows: {len(rows)} rows, {targets} targets, every document found")
'''


class Environment:
    """A virtual environment with the wheel."""

    def __init__(self, folder: pathlib.Path, full: bool) -> None:
        self.folder = folder
        self.variables = {k: v for k, v in os.environ.items() if k not in ("LIBTORCH", "LD_LIBRARY_PATH", "PYTHONPATH")}
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        wheels = sorted((ROOT / "dist").glob("xlstm_toolkit-*.whl"))
        if len(wheels) != 1:
            raise SystemExit(f"expected one wheel in dist/, found {len(wheels)}; run `make wheel`")
        if full:
            self.install(f"{wheels[0]}[data]")
        else:
            self.install("--no-deps", wheels[0])

    def install(self, *packages: object) -> None:
        self.run("pip", "install", "--quiet", "--disable-pip-version-check", *packages)

    def run(self, program: str, *arguments: object, code: int = 0) -> str:
        command = [str(self.folder / "bin" / program), *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.variables)
        if done.returncode != code:
            raise SystemExit(f"`{' '.join(command)}` ended with {done.returncode}, expected {code}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr


def jobs(environment: Environment, folder: pathlib.Path, full: bool) -> None:
    texts, data, run = folder / "texts", folder / "data", folder / "run"
    texts.mkdir()
    for name, text in TEXTS.items():
        (texts / name).write_text(text)
    environment.run("xlstm-data", "prepare", "local", texts, "--out", data)
    environment.run("xlstm-data", "audit", data, "--deep", "all")
    if not full:
        said = environment.run("xlstm-train", "doctor", code=2)
        assert "pip install torch==2.11.0" in said, said
        environment.install("--no-deps", *PROGRAM_WHEELS)
    assert str(environment.folder) in environment.run("xlstm-train", "doctor")
    train = ["--manifest", data / "train", "--recipe", "demo", "--set", "training.steps=2", "--out", run]
    train += ["--set", "training.tokens_per_step=2048", "--set", "schedule.warmup_steps=1"]
    environment.run("xlstm-train", *train)
    report = environment.run("xlstm-eval", "perplexity", run, "--manifest", data / "train", "--json")
    environment.run("xlstm-eval", "verify", run)
    assert json.loads(report[: report.rindex("}") + 1]), report
    if full:
        print(environment.run("python", "-c", HELPERS, data / "train", texts).strip())
        table_of_jobs(environment, folder, data, run)


METHODS = "llama gpt3 mamba rwkv4 rwkv5 rwkv6 retnet retnet-block gla hgrn hgrn2 h3 hyena".split()
SHORT = ["--set", "training.steps=2", "--set", "schedule.warmup_steps=1"]
STEP = ["--set", "training.tokens_per_step=4096"]


def table_of_jobs(environment: Environment, folder: pathlib.Path, data: pathlib.Path, run: pathlib.Path) -> None:
    """The rows of the README's table that `jobs` has not done."""
    count = 0

    def row(program: str, *arguments: object, code: int = 0) -> str:
        nonlocal count
        count += 1
        return environment.run(program, *arguments, code=code)

    split, other, examples = data / "train", folder / "zweite ö", folder / "examples é"
    text = ROOT / "README.md"
    row("xlstm-data", "plan", "local", ROOT / "docs", "--out", other)
    row("xlstm-data", "prepare", "local", *sorted((ROOT / "docs" / "guides").glob("*.md")), "--holdout", "0.3", "--out", other)
    lines = folder / "lines ü.jsonl"
    lines.write_text('{"inputs": [1, 2, 3], "targets": [-100, 2, 3]}\n{"inputs": [4, 5], "targets": [5, 6]}\n', encoding="utf-8")
    row("xlstm-data", "prepare", "examples", lines, "--out", examples)
    row("xlstm-data", "audit", examples, "--deep", "all")
    row("xlstm-data", "show", split)
    assert "but one in" in row("xlstm-data", "show", data, code=1)
    row("xlstm-data", "trace", split, "--row", "0", "--token", "5")
    row("xlstm-data", "overlap", split, other / "validation")
    row("xlstm-data", "duplicates", other)
    train = ["xlstm-train", "--recipe", "demo", *SHORT, *STEP]
    row(*train, "--manifest", f"{split}=70", "--manifest", f"{other / 'train'}=30", "--out", folder / "mixture")
    row(*train, "--nproc", "2", "--manifest", split, "--out", folder / "ranks")
    started = ["--nproc-per-node", "2", "--no-python", environment.folder / "bin" / "xlstm-train", *train[1:]]
    row("torchrun", *started, "--manifest", split, "--out", folder / "torchrun ä")
    for recipe in [*(f"table1-15b/{method}" for method in METHODS), "table2-lstm-to-xlstm/lstm"]:
        row("xlstm-train", "--manifest", split, "--recipe", recipe, "--dry-run", "--out", folder / "none")
    llama, back, imported = folder / "llama", folder / "export é", folder / "imported.safetensors"
    one_row = ["--set", "training.micro_batch_rows=1", "--set", "training.precision=float32"]
    row("xlstm-train", "--manifest", split, "--recipe", "table1-small/llama", *SHORT, *STEP, *one_row, "--out", llama)
    row("xlstm-train", "export", llama, "--format", "transformers", "-o", back)
    row("xlstm-train", "import", back, "-o", imported)
    row("xlstm-train", "sample", imported, "--prompt", "x", "--tokens", "2")
    row("xlstm-data", "prepare", "task", "parity", "--split", "train", "--examples", "512", "--out", folder / "parity")
    # Two steps are not enough for the accuracy that the sweep expects, and it says so.
    assert "not the 0.95" in row("xlstm-train", "sweep", "parity-small", *SHORT, "--out", folder / "sweep ü", code=1)
    trained = next((folder / "sweep ü").rglob("run.json")).parent
    tested = next(path for path in (folder / "sweep ü").rglob("manifest.json") if path.parent.name == "test").parent
    row("xlstm-eval", "accuracy", trained, "--manifest", tested)
    row("xlstm-eval", "extrapolate", run, "--manifest", split, "--text", "stream", "--lengths", "64,128")
    row("xlstm-eval", "losses", run, "--text", text, "--to", folder / "losses.parquet")
    row("xlstm-eval", "perplexity", run, "--text", text)
    row("xlstm-eval", "report", run)
    row("xlstm-eval", "results", ROOT / "docs" / "results", "--out", folder / "results.html")
    row("xlstm-train", "recipes")
    serve(environment, run)
    print(f"README's table of jobs: {count + 1} commands; not asked for: a Hub (slimpajama, paloma), a cluster's srun, a GPU")


def serve(environment: Environment, run: pathlib.Path) -> None:
    """`xlstm-eval serve` answers, and ends when it is told to."""
    command = [environment.folder / "bin" / "xlstm-eval", "serve", run, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment.variables) as server:
        try:
            address = server.stdout.readline().strip()
            body = json.dumps({"model": "any", "prompt": "Recurrent", "max_tokens": 2}).encode()
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=120) as answer:
                assert json.load(answer)["choices"], "no completion"
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0, server.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="install all dependencies, and test the Python helpers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wheel é ") as name:
        folder = pathlib.Path(name)
        jobs(Environment(folder / "environment", arguments.full), folder, arguments.full)
    print("the wheel works" + ("" if arguments.full else " (programs only; --full tests the Python helpers)"))


if __name__ == "__main__":
    main()
