#!/usr/bin/env python3
"""Checks the documents: every link leads somewhere, and every command in them works as printed.

    python3 tools/check_docs.py [--links] [FILE.md …]

Pictures: docs/images/speed.svg is what docs/benchmarks says (`tools/speed_chart.py`).

Reference: docs/reference is what the programs' `--help` prints (`tools/command_reference.py`).

Links: each relative link of every tracked Markdown file names a file of the repository, and each `#anchor` a heading.

Commands: each block marked `sh` in the README and in docs/guides is run, line by line, with `bash -e`, in one temporary
folder for all of them. There `data/demo` and `runs/demo` are small stand-ins of what `make demo` makes: prepared from
the project's own documents, trained for two steps. A block after the comment `<!-- needs: hub -->` (or `gpu`, `slurm`,
`ray`, `torch`, `minutes`) is parsed but not run, and counted. Blocks marked `console` are transcripts and are not run.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(?:<!-- needs: ([a-z, ]+) -->\n+)?^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
SMALL = ["--set", "training.steps=2", "--set", "schedule.warmup_steps=1", "--set", "training.tokens_per_step=4096"]
LIMIT_SECONDS = 300


def tracked() -> list[pathlib.Path]:
    listed = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return [ROOT / name for name in sorted(listed.stdout.decode().split("\0")) if name]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: pathlib.Path) -> set[str]:
    """The anchors that forges give to headings: lower case, punctuation dropped, spaces as hyphens."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        count = found.get(name, 0)
        found[name] = count + 1
        names.add(f"{name}-{count}" if count else name)
    return names


def broken_links(path: pathlib.Path) -> list[str]:
    broken = []
    text = re.sub(r"`[^`\n]*`", "", without_code(path.read_text(encoding="utf-8")))
    for found in LINK.finditer(text):
        target = found.group(1) or found.group(2)
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            broken.append(f"{path.relative_to(ROOT)}: `{target}` leads to no file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            broken.append(f"{path.relative_to(ROOT)}: `{target}` leads to no heading")
    return broken


def stand_ins(folder: pathlib.Path, environment: dict[str, str]) -> None:
    """What the commands expect from `make demo`, and the files of the repository that they name."""
    for name in ("tests", "docs", "README.md", "Cargo.lock", "tools", "manifests"):
        (folder / name).symlink_to(ROOT / name)
    prepare = ["xlstm-data", "prepare", "local", *sorted(map(str, (ROOT / "docs").glob("*.md"))), str(ROOT / "README.md")]
    train = ["xlstm-train", "--manifest", "data/demo/train", "--validation", "data/demo/validation", "--recipe", "demo"]
    for command in (prepare + ["--holdout", "0.3", "--out", "data/demo"], train + [*SMALL, "--out", "runs/demo"]):
        run(command, folder, environment, " ".join(command))


def run(command: list[str], folder: pathlib.Path, environment: dict[str, str], said: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, timeout=LIMIT_SECONDS,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"still running after {LIMIT_SECONDS} s:\n{said}") from None
    if done.returncode != 0:
        raise SystemExit(f"ended with {done.returncode}, expected 0:\n{said}\n{done.stdout}")


def commands(paths: list[pathlib.Path]) -> None:
    release = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    for name in ("xlstm-data", "xlstm-train", "xlstm-eval"):
        if not (release / name).is_file():
            raise SystemExit(f"{release / name} is not there; run `make test-docs`, which builds it first")
    environment = {**os.environ, "PATH": f"{release.resolve()}{os.pathsep}{os.environ['PATH']}"}
    ran = left = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        stand_ins(folder, environment)
        for path in paths:
            for found in BLOCK.finditer(path.read_text(encoding="utf-8")):
                needs, block = found.groups()
                run(["bash", "-n", "-c", block], folder, environment, block)
                if needs:
                    left += 1
                    continue
                print(f"{path.relative_to(ROOT)}: {block.splitlines()[0]}", flush=True)
                run(["bash", "-e", "-c", block], folder, environment, block)
                ran += 1
    print(f"{ran} blocks of commands ran, {left} need what is not here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", action="store_true", help="check links only")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.files] or tracked()
    broken = [line for path in paths for line in broken_links(path)]
    for line in broken:
        print(line, file=sys.stderr)
    if broken:
        raise SystemExit(1)
    print(f"{len(paths)} documents, every link leads somewhere")
    check = [sys.executable, str(ROOT / "tools" / "speed_chart.py"), "--check"]
    run(check, ROOT, dict(os.environ), " ".join(check))
    if not arguments.links:
        check = [sys.executable, str(ROOT / "tools" / "command_reference.py"), "--check"]
        run(check, ROOT, dict(os.environ), " ".join(check))
        commands([path for path in paths if path.name == "README.md" and path.parent == ROOT or "guides" in path.parts])


if __name__ == "__main__":
    main()
