#!/usr/bin/env python3
"""Put NVRTC, the CUDA compiler as a library, where the tests and the programs look for it: `.nvrtc/lib/`.

One wheel (90 MB) is downloaded by name with pip; nothing is installed. Kept are libnvrtc.so.13 and its builtins: all
that compiling the kernels takes, with or without a GPU (they include no header of CUDA). If XLSTM_NVRTC is set,
nothing is fetched and that folder is used.

Usage: python3 tools/fetch_nvrtc.py [--force] [--into DIR]
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEEL = "nvidia-cuda-nvrtc==13.0.88"
# For each processor: the platforms of its wheel, and the digest of its file.
WHEELS = {
    "x86_64": (("manylinux_2_12_x86_64", "manylinux2010_x86_64"), "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    "aarch64": (("manylinux_2_17_aarch64", "manylinux2014_aarch64"), "d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b"),
}
LIBRARIES = ("libnvrtc.so.13", "libnvrtc-builtins.so.13.0")


def say(text):
    print("nvrtc: " + text, file=sys.stderr, flush=True)


def download(into, platforms, expected):
    """The wheel, by package name. pip decides where from, by the user's own configuration."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--dest", str(into), WHEEL]
    for name in platforms:
        command += ["--platform", name]
    if subprocess.run(command).returncode != 0:
        sys.exit("nvrtc: pip could not download %s (its message is above). pip 20.3 or newer and a package index that "
                 "has it are needed; or point XLSTM_NVRTC at a folder with %s" % (WHEEL, " and ".join(LIBRARIES)))
    wheel = next(into.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != expected:
        sys.exit("nvrtc: %s has sha256 %s, expected %s: not used; try another package index" % (wheel.name, found, expected))
    return wheel


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="fetch again")
    parser.add_argument("--into", type=Path, default=ROOT / ".nvrtc")
    arguments = parser.parse_args()
    if os.environ.get("XLSTM_NVRTC") and not arguments.force:
        say("XLSTM_NVRTC is set (%s): nothing to fetch" % os.environ["XLSTM_NVRTC"])
        return
    if platform.machine() not in WHEELS:
        sys.exit("nvrtc: wheels are known for %s, this is %s: point XLSTM_NVRTC at a folder with %s"
                 % (" and ".join(WHEELS), platform.machine(), " and ".join(LIBRARIES)))
    platforms, expected = WHEELS[platform.machine()]
    stamp = arguments.into / "stamp"
    if not arguments.force and stamp.is_file() and stamp.read_text(encoding="utf-8") == expected:
        return
    library = arguments.into / "lib"
    library.mkdir(parents=True, exist_ok=True)
    say("fetching %s (90 MB)" % WHEEL)
    with tempfile.TemporaryDirectory(dir=arguments.into) as folder:
        with zipfile.ZipFile(download(Path(folder), platforms, expected)) as archive:
            for member in archive.namelist():
                name = member.rsplit("/", 1)[-1]
                if name in LIBRARIES:
                    partial = Path(folder) / name
                    with archive.open(member) as source, open(partial, "wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
                    os.replace(partial, library / name)
    missing = [name for name in LIBRARIES if not (library / name).is_file()]
    if missing:
        sys.exit("nvrtc: the wheel held no %s: its digest and this list disagree, report it" % ", ".join(missing))
    stamp.write_text(expected, encoding="utf-8")
    say("ready in %s" % library)


if __name__ == "__main__":
    main()
