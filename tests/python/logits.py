"""What the comparisons with other programs share: logits of ours for a file of parameters, and how far two tensors are apart.

Needs `cargo build --release -p xlstm-trainer --bins --examples`.
"""

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent.parent
RELEASE = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release"


def logits_of_ours(path, inputs, folder):
    """The logits of the model in the safetensors file `path`; `folder` takes what goes between the programs."""
    save_file({"inputs": inputs}, folder / "tokens.safetensors")
    out = folder / "logits.safetensors"
    subprocess.run([RELEASE / "examples/logits", path, folder / "tokens.safetensors", out], check=True)
    return load_file(out)["logits"]


def compare(what, found, expected, limit):
    """Prints the largest difference as a share of the largest number expected; ends the program where it is over `limit`."""
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    print("%-74s %.1e" % (what, error))
    if not error <= limit:
        sys.exit("expected at most %g" % limit)
