"""A prepared, packed split as a `torch.utils.data.Dataset`.

Shards are mapped, not read: opening costs no memory, and worker processes share the pages. Format:
docs/reference/dataset-format.md of the toolkit. Shapes: T is the row length of the split (2048).
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import pathlib
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

FORMAT = "xlstm-dataset"
VERSION = 1
IGNORED = -100


@dataclass(frozen=True)
class Source:
    """The file that a document was read from."""

    path: str
    sha256: str
    licences: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Document:
    """Where a token came from."""

    source: Source
    record: int
    """Line, row or entry in the source file, from 0."""
    text_sha256: str
    set: str | None
    id: str | None
    token: int
    """Index of the token in its document, from 0; the document's last token is the separator."""
    tokens: int
    """Tokens of the document, separator included."""


class Rows(Dataset):
    """Rows of a packed split: `(inputs, targets)`, each int64 of shape (T,).

    Every token of the split is a target once. Inputs are the row shifted right by one, the separator first, as in
    `xlstm-train`. Positions after the end of the split's last row have the target -100, which PyTorch's cross-entropy
    ignores.

    Raises `ValueError` for a folder that is not a finished, packed split, with what was expected and what was found.
    `verify=True` compares every file with its SHA-256 first.
    """

    def __init__(self, split: str | os.PathLike[str], *, verify: bool = False) -> None:
        self.folder = pathlib.Path(split)
        self.manifest: dict[str, Any] = self._read_manifest()
        self.root: str = self.manifest["root"]
        self.row_length: int = self.manifest["packing"]["row_length"]
        self._separator: int = self.manifest["tokenizer"]["end_of_text"]
        self._shards = self.manifest["shards"]
        if verify:
            self._verify()
        self._first_rows = [0]
        for shard in self._shards:
            self._first_rows.append(self._first_rows[-1] + shard["file"]["records"])
        self._tables: dict[str, Any] = {}

    def __len__(self) -> int:
        return self._first_rows[-1]

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids, length = self._ids(row)
        tokens = torch.tensor(ids, dtype=torch.int64)
        inputs = torch.cat([tokens.new_tensor([self._separator]), tokens[:-1]])
        targets = tokens.clone()
        targets[length:] = IGNORED
        return inputs, targets

    def document(self, row: int, token: int) -> Document:
        """The document that holds target `token` (from 0) of `row`.

        Raises `IndexError` for a position outside the split.
        """
        _, length = self._ids(row)
        if not 0 <= token < length:
            raise IndexError(f"row {row} of {self.folder} has {length} tokens, asked for token {token}")
        position = row * self.row_length + token
        # A document that began in an earlier shard stands in that shard's spans.
        for shard in range(self._locate(row)[0], -1, -1):
            found = self._document_in(shard, position)
            if found is not None:
                return found
        raise ValueError(f"{self.folder}: no document covers row {row}, token {token}; run `xlstm-data audit {self.folder}`")

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes map the shards again."""
        return {**self.__dict__, "_tables": {}}

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        if not (self.folder / "manifest-sha256.txt").is_file():
            raise ValueError(f"{self.folder}: expected a finished split, found no manifest-sha256.txt; run `xlstm-data prepare` again to finish it")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind = (manifest.get("format"), manifest.get("version"))
        if kind != (FORMAT, VERSION):
            raise ValueError(f"{path}: expected format {FORMAT} version {VERSION}, found {kind[0]} version {kind[1]}; update xlstm-toolkit")
        if manifest["layout"] != "packed":
            raise ValueError(f"{path}: expected a packed split, found the layout `{manifest['layout']}`")
        return manifest

    def _verify(self) -> None:
        for line in (self.folder / "manifest-sha256.txt").read_text(encoding="utf-8").splitlines():
            expected, name = line.split(maxsplit=1)
            with open(self.folder / name.lstrip("*"), "rb") as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != expected:
                raise ValueError(f"{self.folder / name}: expected sha256 {expected}, found {digest.hexdigest()}; copy or prepare it again")

    def _table(self, name: str) -> Any:
        """The Arrow file `name`, mapped on first use."""
        if name not in self._tables:
            import pyarrow

            table = pyarrow.ipc.open_file(pyarrow.memory_map(str(self.folder / name))).read_all()
            self._tables[name] = table.combine_chunks()
        return self._tables[name]

    def _locate(self, row: int) -> tuple[int, int]:
        """The shard of a row, and the row in that shard."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.folder} has {len(self)} rows, asked for row {row}")
        shard = bisect.bisect_right(self._first_rows, row) - 1
        return shard, row - self._first_rows[shard]

    def _ids(self, row: int) -> tuple[list[int], int]:
        shard, place = self._locate(row)
        table = self._table(self._shards[shard]["file"]["path"])
        return table["input_ids"][place].values.to_numpy().astype("int64"), table["length"][place].as_py()

    def _document_in(self, shard: int, position: int) -> Document | None:
        spans = self._table(self._shards[shard]["companion"]["path"])
        starts = [row * self.row_length + offset for row, offset in zip(spans["row"].to_pylist(), spans["offset"].to_pylist())]
        index = bisect.bisect_right(starts, position) - 1
        if index < 0:
            return None
        span = spans.slice(index, 1).to_pylist()[0]
        source = self.manifest["inputs"][span["input"]]
        sets = self.manifest["sets"]
        return Document(
            source=Source(source["path"], source["sha256"], tuple([source["licence"]] if source["licence"] else self.manifest["source"]["licences"])),
            record=span["record"],
            text_sha256=span["digest"].hex(),
            set=None if span["set"] is None else sets[span["set"]]["name"],
            id=span["id"],
            token=position - starts[index],
            tokens=span["length"],
        )
