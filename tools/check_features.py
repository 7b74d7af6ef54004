#!/usr/bin/env python3
"""The data half alone and both halves together build the same dependencies, with the same features.

    python3 tools/check_features.py

Cargo gives a crate the features that anything in the build asks for. Where the training half asked for more, `make build` and
`make demo` would compile the same crates twice, and the demo could not build the data half while libtorch is being fetched. What is
missing goes beside the unused dependencies in pipeline/Cargo.toml.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ["-p", "xlstm-pipeline"]
BOTH = [*DATA, "-p", "xlstm-trainer"]


def crates(packages: list[str]) -> set[str]:
    """Every crate of a build: name, version, features."""
    tree = [os.environ.get("CARGO", "cargo"), "tree", "--locked", "--prefix", "none", "--edges", "normal,build", "--format", "{p} {f}"]
    done = subprocess.run([*tree, *packages], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {line.removesuffix("(*)").strip() for line in done.stdout.splitlines() if line}


def main() -> None:
    apart = sorted(crates(DATA) - crates(BOTH))
    for crate in apart:
        print(f"the data half alone builds `{crate}`; both halves together ask it for other features", file=sys.stderr)
    if apart:
        raise SystemExit("pipeline/Cargo.toml: expected the features of both halves; add what is missing to its unused dependencies")
    print("both halves build the same dependencies")


if __name__ == "__main__":
    main()
