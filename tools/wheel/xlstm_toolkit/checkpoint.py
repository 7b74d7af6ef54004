"""Loads a checkpoint of `xlstm-train` into the official `xlstm` package.

`xlstm-train export RUN --output model.safetensors` writes float32 parameters under the official names, and the official
configuration in the file's metadata (key `xlstm_config`, JSON). Variants that the official package does not have are
refused when the parameters are loaded, by the name of the parameter.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CONFIGURATION = "xlstm_config"


def load_official_model(path: str | os.PathLike[str], **overrides: Any) -> torch.nn.Module:
    """The official `xLSTMLMModel` with the parameters of the exported file at `path`, on the CPU.

    `overrides` replace top-level entries of its configuration, for example `context_length=4096`.

    Raises `ValueError` for a file without the official configuration, and `RuntimeError`, from PyTorch, for parameters
    that do not fit it.
    """
    from dacite import Config, from_dict
    from safetensors import safe_open
    from safetensors.torch import load_file
    from xlstm import xLSTMLMModel, xLSTMLMModelConfig

    path = os.fspath(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if CONFIGURATION not in metadata:
        raise ValueError(
            f"{path}: expected the metadata key `{CONFIGURATION}`, found {sorted(metadata) or 'none'}; "
            "write the file with `xlstm-train export RUN --output FILE`"
        )
    configuration = {**json.loads(metadata[CONFIGURATION]), **overrides}
    model = xLSTMLMModel(from_dict(xLSTMLMModelConfig, configuration, config=Config(strict=True)))
    model.load_state_dict(load_file(path), strict=True)
    return model
