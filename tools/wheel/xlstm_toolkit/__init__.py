"""Programs and Python helpers of the xLSTM toolkit.

The wheel puts `xlstm-data`, `xlstm-train` and `xlstm-eval` on the path. From Python:

    from xlstm_toolkit import Rows, load_official_model

`Rows` is a `torch.utils.data.Dataset` over a prepared split, with the provenance of every token; it needs `pyarrow`
(`pip install xlstm-toolkit[data]`). `load_official_model` loads a checkpoint of `xlstm-train` into the official `xlstm`
package; it needs `xlstm`, `dacite` and `safetensors` (`pip install xlstm-toolkit[official]`).

Names are imported when they are first used: the programs start through this package, and importing PyTorch takes
seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import load_official_model
    from .rows import Document, Rows, Source

__all__ = ["Document", "Rows", "Source", "load_official_model"]

_MODULES = {"Document": ".rows", "Rows": ".rows", "Source": ".rows", "load_official_model": ".checkpoint"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name], __name__), name)
