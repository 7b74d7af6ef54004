#!/usr/bin/env python3
"""Writes docs/reference/PROGRAM.md: every command of the three programs, from their own `--help`.

    python3 tools/command_reference.py [--check]

`--check` writes nothing and fails where a page differs from what the programs print; `make test-docs` runs it. Commands are
found in the help text itself, so that a new one needs no line here.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ("xlstm-data", "xlstm-train", "xlstm-eval")


def release() -> pathlib.Path:
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"


def help_of(program: str, command: list[str]) -> str:
    # The width does not depend on a terminal: none is given.
    done = subprocess.run([release() / program, *command, "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"`{program} {' '.join(command)} --help` ended with {done.returncode}: {done.stderr}")
    return done.stdout


def commands_in(text: str) -> list[str]:
    section = re.search(r"^Commands:\n((?:  .*\n)+)", text, re.MULTILINE)
    names = re.findall(r"^  ([a-z][a-z0-9-]*) ", section.group(1), re.MULTILINE) if section else []
    return [name for name in names if name != "help"]


def sections(program: str, command: list[str]) -> list[tuple[str, str]]:
    text = help_of(program, command)
    found = [(" ".join([program, *command]), text)]
    for name in commands_in(text):
        found += sections(program, [*command, name])
    return found


def page(program: str) -> str:
    found = sections(program, [])
    index = " · ".join(f"[{name}](#{name.replace(' ', '-')})" for name, _ in found[1:])
    lines = [f"# {program}", "",
             f"Every command of `{program}`, as `--help` prints it. Written by `tools/command_reference.py`.", "", index, ""]
    for name, text in found:
        if name != program:
            lines += [f"## {name}", ""]
        lines += ["```text", text.rstrip(), "```", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs")
    check = parser.parse_args().check
    folder = ROOT / "docs" / "reference"
    folder.mkdir(exist_ok=True)
    differ = []
    for program in PROGRAMS:
        path, text = folder / f"{program}.md", page(program)
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            differ.append(str(path.relative_to(ROOT)))
        elif not check:
            path.write_text(text, encoding="utf-8")
    if differ:
        print(f"expected what the programs print, found something else: {', '.join(differ)}; "
              "run `python3 tools/command_reference.py`", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
