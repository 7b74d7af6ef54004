#!/usr/bin/env python3
"""What a first build costs: seconds of the processor, crate by crate and file by file, of what `make demo` builds.

    python3 docs/benchmarks/cold_start.py FOLDER >docs/benchmarks/cold-start/NAME.txt

FOLDER is made, holds the build, and must not be there; run this in a fresh clone with libtorch in its place (`make libtorch`)
and every crate fetched (`make fetch`). Compilers are called through a script that writes down what each call cost, and not
through ccache. Seconds of the processor (user and system) are compared, since machines are shared; seconds on the clock are
beside them. With a FOLDER that this script has made before, only the summary is printed again.
"""

import os
import pathlib
import re
import resource
import subprocess
import sys
from collections import Counter

BUILD = ["cargo", "build", "--release", "--locked", "--offline", "--timings", "-p", "xlstm-pipeline", "-p", "xlstm-trainer"]
LARGEST = 40
WRAPPER = """#!/bin/bash
begin=$EPOCHREALTIME
{call}; code=$?
times >"$COLD_START_LOG/$$"
echo "$CARGO_PKG_NAME|$begin|$EPOCHREALTIME|$(tail -1 "$COLD_START_LOG/$$")|$*" >>"$COLD_START_LOG/{name}.log"
rm -f "$COLD_START_LOG/$$"
exit $code
"""


def build(folder):
    """Builds into `folder`, whose logs say what each compiler's call cost."""
    programs, log = folder / "programs", folder / "log"
    programs.mkdir(parents=True)
    log.mkdir()
    compilers = {name: f'/usr/bin/{name} "$@"' for name in ("cc", "c++", "gcc", "g++")}
    for name, call in (compilers | {"rustc": '"$@"'}).items():
        script = programs / (name if name in compilers else "rustc-wrapper")
        script.write_text(WRAPPER.replace("{call}", call).replace("{name}", name))
        script.chmod(0o755)
    environment = dict(os.environ, PATH=f"{programs}:/usr/bin:{os.environ['PATH']}", CCACHE_DISABLE="1", COLD_START_LOG=str(log),
                       RUSTC_WRAPPER=str(programs / "rustc-wrapper"), CARGO_TARGET_DIR=str(folder / "target"))
    subprocess.run(BUILD, check=True, env=environment)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    (folder / "total").write_text(f"{used.ru_utime:.1f} {used.ru_stime:.1f}\n")


def seconds(text):
    """Seconds in what bash's `times` says: user and system."""
    return sum(int(minutes) * 60 + float(rest) for minutes, rest in re.findall(r"(\d+)m([\d.]+)s", text))


def calls(folder):
    """Every call: package, what was compiled, optimization, seconds of the processor, begin and end."""
    for log in sorted((folder / "log").glob("*.log")):
        for line in log.read_text(errors="replace").splitlines():
            parts = line.split("|", 4)
            if len(parts) < 5:
                continue
            package, begin, end, used, command = parts
            if log.stem == "rustc":
                kind = "Rust, programs" if " --crate-type bin" in command and "build_script" not in command else "Rust"
                level = re.search(r"opt-level=(\w)", command)
            elif re.search(r"\.(cpp|cc|c|S)( |$)", command):
                kind, level = "C++" if "+" in log.stem else "C", re.search(r"-O(\w)\b", command)
            else:
                continue  # A link, which rustc's own line has, or a question what the compiler knows.
            yield package or "cargo", kind, level[1] if level else "0", seconds(used), float(begin), float(end)


def summary(folder):
    user, system = map(float, (folder / "total").read_text().split())
    listed = list(calls(folder))
    print(f"# {' '.join(BUILD)}")
    print(f"# {os.cpu_count()} cores; rustc and the C++ compiler as on the machine; nothing compiled before, no ccache")
    clock = max(end for *_, end in listed) - min(begin for *_, begin, _ in listed)
    print(f"# processor: {user + system:.0f} s ({user:.0f} user, {system:.0f} system), {clock:.0f} s on the clock")
    by_kind, by_package, times = Counter(), Counter(), Counter()
    for package, kind, level, used, *_ in listed:
        by_kind[kind] += used
        by_package[package, kind, level] += used
        times[package, kind, level] += 1
    print("# " + ", ".join(f"{kind} {used:.0f} s" for kind, used in by_kind.most_common()))
    print(f"\n{'processor s':>11} {'calls':>5}  level  package")
    for (package, kind, level), used in by_package.most_common(LARGEST):
        print(f"{used:11.1f} {times[package, kind, level]:5}  {level:5}  {package} ({kind})")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1]).resolve()
    if not (folder / "total").is_file():
        if folder.exists():
            sys.exit(f"{folder}: expected no such folder, or a finished build of this script; found something else: name another")
        build(folder)
    summary(folder)


if __name__ == "__main__":
    main()
