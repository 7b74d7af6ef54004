"""Starts one of the programs in `bin/`, with the libtorch of the installed PyTorch.

The programs that compute are linked against libtorch, not against Python. PyTorch is located without importing it
(importing takes seconds), its version is compared, its library folder goes to the front of `LD_LIBRARY_PATH`, and this
process is replaced by the program: signals and exit codes are the program's own.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import sys

TORCH_VERSION = "2.11.0"
FAULT = 2


def data() -> None:
    """`xlstm-data`, which needs no libtorch."""
    _replace("xlstm-data", dict(os.environ))


def train() -> None:
    """`xlstm-train`."""
    _replace("xlstm-train", _with_libtorch("xlstm-train"))


def evaluate() -> None:
    """`xlstm-eval`."""
    _replace("xlstm-eval", _with_libtorch("xlstm-eval"))


def _replace(name: str, environment: dict[str, str]) -> None:
    program = pathlib.Path(__file__).resolve().parent / "bin" / name
    try:
        os.execve(program, [name, *sys.argv[1:]], environment)
    except OSError as error:
        _fail(name, f"cannot start {program}: {error.strerror}; install the wheel again")


def _with_libtorch(name: str) -> dict[str, str]:
    """The environment, with PyTorch's libraries first on the loader's search path."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        _fail(name, f"PyTorch is not installed in {sys.prefix}; run: pip install torch=={TORCH_VERSION}")
    torch = pathlib.Path(spec.submodule_search_locations[0])
    found = _version(torch)
    if found != TORCH_VERSION:
        _fail(name, f"expected PyTorch {TORCH_VERSION}, found {found} in {torch}; run: pip install torch=={TORCH_VERSION}")
    environment = dict(os.environ)
    folders = [str(torch / "lib"), *sorted(map(str, torch.parent.glob("nvidia/*/lib")))]
    before = environment.get("LD_LIBRARY_PATH")
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(folders + ([before] if before else []))
    return environment


def _version(torch: pathlib.Path) -> str:
    """The release that `torch/version.py` states, without its local part (`+cu130`)."""
    try:
        text = (torch / "version.py").read_text(encoding="utf-8")
    except OSError:
        return "no version"
    match = re.search(r"__version__ = '([^'+]+)", text)
    return match.group(1) if match else "no version"


def _fail(name: str, message: str) -> None:
    print(f"{name}: {message}", file=sys.stderr)
    raise SystemExit(FAULT)
