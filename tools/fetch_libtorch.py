#!/usr/bin/env python3
"""Put libtorch where the build looks for it: `.libtorch/` at the repository root.

The PyTorch wheel carries the whole C++ library and its headers. This script downloads the wheel by name with pip
(no Python package is installed, no virtual environment is needed), and keeps of it only what a C++ program links:

    .libtorch/
      include/            the C++ headers
      lib/                libtorch_cpu.so, libc10.so, libgomp.so.1, the two small CUDA libraries that
                          libtorch_cpu.so names as needed, and libtorch.so: a linker script that stands for them
      build-version       "2.11.0+cu130", which the build checks
      stamp.json          what was fetched, so that a second call does nothing
      include-cuda/       headers of CUDA's runtime (2 MB), to compile the process group for GPUs; no GPU needed
      cuda/               with --cuda only: libtorch_cuda.so and the libraries under it, opened at run time

A program linked against `lib/` needs no GPU and no driver; where there is one, the same program opens
libtorch_cuda.so from `cuda/`, or from any folder on LD_LIBRARY_PATH. If LIBTORCH is set, nothing is fetched:
its version is checked, and cargo uses it.

Wheels are known for Linux on x86_64 and aarch64. Another processor's than this machine's, to compile for it, goes
into a folder of its own: `--machine aarch64 --into .libtorch-aarch64` (docs/platforms.md).

Usage: python3 tools/fetch_libtorch.py [--cuda] [--force] [--machine NAME] [--into DIR]
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "2.11.0"
ROOT = Path(__file__).resolve().parent.parent

# Wheels of the CPU half and of headers, with the digests of their files for each processor. The Python tag does not
# matter to a C++ program: one is fixed, so that everybody links the same bytes.
CPU_WHEELS = {
    "x86_64": {
        "torch==2.11.0": "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        "nvidia-cuda-runtime==13.0.96": "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        "nvidia-cuda-cupti==13.0.85": "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    },
    "aarch64": {
        "torch==2.11.0": "d91aac77f24082809d2c5a93f52a5f085032740a1ebc9252a7b052ef5a4fddc6",
        "nvidia-cuda-runtime==13.0.96": "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
        "nvidia-cuda-cupti==13.0.85": "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
    },
}
# Headers that libtorch's own headers for GPUs include, beside those of the runtime's wheel above.
HEADER_WHEELS = {
    "x86_64": {"nvidia-cuda-crt==13.0.88": "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4"},
    "aarch64": {"nvidia-cuda-crt==13.0.88": "ee2ea2a97073e02ee62bb27841f437332be2c248e3eac013df07997ada39c003"},
}
# What libtorch_cuda.so of the same wheel needs, as its metadata states it.
CUDA_WHEELS = [
    "cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx]==13.0.2",
    "nvidia-cudnn-cu13==9.19.0.56",
    "nvidia-cusparselt-cu13==0.8.0",
    "nvidia-nccl-cu13==2.28.9",
    "nvidia-nvshmem-cu13==3.4.5",
]
ALL_LIBRARIES = ("libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13")
# What libtorch_cpu.so names as needed: for Arm it has the matrix products of two more libraries.
CPU_LIBRARIES = {
    "x86_64": ALL_LIBRARIES,
    "aarch64": (*ALL_LIBRARIES, "libarm_compute.so", "libarm_compute_graph.so", "libnvpl_blas_lp64_gomp.so.0", "libnvpl_blas_core.so.0",
                "libnvpl_lapack_lp64_gomp.so.0", "libnvpl_lapack_core.so.0"),
}
CUDA_LIBRARIES = ("libtorch_cuda.so", "libtorch_cuda_linalg.so", "libc10_cuda.so", "libtorch_nvshmem.so", "libcaffe2_nvrtc.so")
LINKER_SCRIPT = "/* Only the CPU half: libtorch_cuda.so is opened at run time. */\nINPUT(libtorch_cpu.so libc10.so)\n"


class Failure(Exception):
    """A message for the user: what was expected, what was found, what to do next."""


def say(text):
    print("libtorch: " + text, file=sys.stderr, flush=True)


def header_version(folder):
    """The version that the headers of a libtorch folder state, or None when there are none."""
    for name in ("include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"):
        path = folder / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            parts = [re.search(r"#define\s+TORCH_VERSION_%s\s+(\d+)" % part, text) for part in ("MAJOR", "MINOR", "PATCH")]
            if all(parts):
                return ".".join(part.group(1) for part in parts)
    return None


def check_folder(folder, called):
    """Refuse a folder that is not a libtorch of the right version."""
    if not (folder / "lib" / "libtorch_cpu.so").is_file():
        raise Failure("%s (%s) has no lib/libtorch_cpu.so: point it at a folder with `include` and `lib`, or unset it" % (folder, called))
    found = header_version(folder)
    if found != VERSION:
        raise Failure("%s (%s) is libtorch %s, expected %s: unset LIBTORCH to have the right one fetched" % (folder, called, found, VERSION))


def pip_download(requirements, hashes, machine, into):
    """Fetch wheels by package name. pip decides where from, by the user's own configuration."""
    into.mkdir(parents=True, exist_ok=True)
    listing = into / "requirements.txt"
    lines = [name + (" --hash=sha256:" + hashes[name] if hashes else "") for name in requirements]
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:",
               "--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "none", "--abi", "abi3"]
    for glibc in ("_2_28", "_2_27", "_2_25", "_2_17", "2014"):
        command += ["--platform", "manylinux%s_%s" % (glibc, machine)]
    command += ["--platform", "any", "--dest", str(into), "--requirement", str(listing)]
    command += ["--no-deps", "--require-hashes"] if hashes else []
    result = subprocess.run(command)
    if result.returncode != 0:
        raise Failure(
            "pip could not download %s (exit code %d, its message is above). pip 20.3 or newer is needed "
            "(`%s -m pip --version`), and a package index that has these wheels. Or set LIBTORCH to an unpacked "
            "libtorch %s" % (", ".join(requirements), result.returncode, sys.executable, VERSION))
    return sorted(into.glob("*.whl"))


def extract(wheel, keep):
    """Write the members of a wheel for which `keep(name)` names a target path."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            target = None if member.is_dir() else keep(member.filename)
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)


def keep_cpu(folder, machine):
    def target(name):
        if name.startswith("torch/include/"):
            return folder / name[len("torch/"):]
        base = name.rsplit("/", 1)[-1]
        return folder / "lib" / base if base in CPU_LIBRARIES[machine] and "/lib/" in name else None
    return target


def keep_headers(folder):
    def target(name):
        prefix = "nvidia/cu13/include/"
        return folder / name[len(prefix):] if name.startswith(prefix) else None
    return target


def keep_cuda(folder):
    def target(name):
        base = name.rsplit("/", 1)[-1]
        if name.startswith("torch/lib/") and base in CUDA_LIBRARIES:
            return folder / "cuda" / name
        # The paths inside libtorch_cuda.so lead from torch/lib to ../../nvidia/*/lib, so the wheels' layout is kept.
        return folder / "cuda" / name if name.startswith("nvidia/") and "/lib/" in name and ".so" in base else None
    return target


def finish(folder, cuda, machine, wheels):
    """The linker script, the version file, and last of all the stamp."""
    missing = [name for name in CPU_LIBRARIES[machine] if not (folder / "lib" / name).is_file()]
    if missing:
        raise Failure("the wheels held no %s: the stated digests and this list disagree, report it" % ", ".join(missing))
    (folder / "lib" / "libtorch.so").write_text(LINKER_SCRIPT, encoding="utf-8")
    link = folder / "lib" / "libgomp.so"
    if not link.exists():
        link.symlink_to("libgomp.so.1")
    (folder / "build-version").write_text(VERSION + "+cu130\n", encoding="utf-8")
    check_folder(folder, "just unpacked")
    stamp = {"version": VERSION, "cuda": cuda, "machine": machine, "wheels": wheels}
    temporary = folder / "stamp.json.partial"
    temporary.write_text(json.dumps(stamp, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.rename(folder / "stamp.json")


def is_done(folder, cuda, machine):
    """True when an earlier call left a complete folder that holds at least what this call asks for."""
    try:
        stamp = json.loads((folder / "stamp.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # Stamps without a processor are older than the second one.
    same = stamp.get("version") == VERSION and stamp.get("machine", "x86_64") == machine
    return same and (stamp.get("cuda") or not cuda) and header_version(folder) == VERSION


def digest(path):
    state = hashlib.sha256()
    with open(path, "rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            state.update(block)
    return state.hexdigest()


def processor(asked):
    """The processor to fetch for, by the name that wheels have for it."""
    machine = asked or {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if platform.system() != "Linux" and not asked or machine not in CPU_WHEELS:
        raise Failure("wheels are known for Linux on %s, this is %s on %s: set LIBTORCH to a folder with libtorch %s for "
                      "this machine" % (" and ".join(CPU_WHEELS), platform.system(), machine, VERSION))
    return machine


def fetch(folder, cuda, machine):
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".libtorch-", dir=str(folder.parent)) as scratch:
        partial = Path(scratch) / "unpacked"
        names = CPU_WHEELS[machine]
        say("downloading %s for %s with pip (%d MB)" % (", ".join(names), machine, 540 if machine == "x86_64" else 430))
        wheels = pip_download(list(names), names, machine, Path(scratch) / "wheels")
        if cuda:
            say("downloading the CUDA libraries (about 2 GB)")
            wheels += pip_download(CUDA_WHEELS, None, machine, Path(scratch) / "cuda-wheels")
        say("unpacking")
        for wheel in wheels:
            extract(wheel, keep_cpu(partial, machine))
            if cuda:
                extract(wheel, keep_cuda(partial))
        finish(partial, cuda, machine, {wheel.name: digest(wheel) for wheel in wheels})
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(str(folder))
        partial.rename(folder)
    say("ready: %s (%s)" % (folder, VERSION))


def fetch_headers(folder, machine):
    """CUDA's headers beside libtorch. An older folder has none yet: they come by themselves."""
    headers = folder / "include-cuda"
    if (headers / "cuda_runtime_api.h").is_file():
        return
    with tempfile.TemporaryDirectory(prefix=".libtorch-", dir=str(folder.parent)) as scratch:
        partial = Path(scratch) / "include-cuda"
        runtime = "nvidia-cuda-runtime==13.0.96"
        names = {runtime: CPU_WHEELS[machine][runtime], **HEADER_WHEELS[machine]}
        for wheel in pip_download(list(names), names, machine, Path(scratch) / "wheels"):
            extract(wheel, keep_headers(partial))
        if not (partial / "cuda_runtime_api.h").is_file():
            raise Failure("the wheels held no cuda_runtime_api.h: the stated digests and this list disagree, report it")
        partial.rename(headers)
        # What the build watches: it is to notice the headers.
        os.utime(str(folder / "include/torch/headeronly/version.h"))
    say("CUDA's headers are in %s" % headers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cuda", action="store_true", help="also fetch libtorch_cuda.so and the libraries under it")
    parser.add_argument("--force", action="store_true", help="fetch again even if the stamp says it is done")
    parser.add_argument("--machine", metavar="NAME", choices=sorted(CPU_WHEELS), help="a processor other than this machine's")
    parser.add_argument("--into", type=Path, default=ROOT / ".libtorch", help="folder to fill (default: .libtorch)")
    arguments = parser.parse_args()
    chosen = os.environ.get("LIBTORCH")
    try:
        if chosen:
            check_folder(Path(chosen), "LIBTORCH")
            say("using %s, as LIBTORCH says" % chosen)
            return 0
        machine = processor(arguments.machine)
        if not arguments.force and is_done(arguments.into, arguments.cuda, machine):
            say("%s is in place (%s)" % (VERSION, arguments.into))
        else:
            fetch(arguments.into, arguments.cuda, machine)
        fetch_headers(arguments.into, machine)
    except (Failure, OSError, zipfile.BadZipFile) as failure:
        print("error: %s" % failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
