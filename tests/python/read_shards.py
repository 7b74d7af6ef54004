#!/usr/bin/env python3
"""Reads a prepared split with pyarrow and Hugging Face `datasets`, and checks it against its manifest.

    pip install pyarrow datasets
    python tests/python/read_shards.py data/crates/train [EXPORTED_STREAM.arrow ...]

Nothing of this project is imported: what is here is all that another program needs to know. See
docs/guides/python.md.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched

import datasets
import pyarrow as pa
import pyarrow.compute as pc

END_OF_TEXT = 50256


def rows_of(shard: Path) -> pa.Table:
    """A shard's table. Its buffers are the mapped file's: nothing is copied."""
    return pa.ipc.open_file(pa.memory_map(str(shard))).read_all()


def flat_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """All ids of a list column, one after the other, as 64-bit numbers (sums overflow 16 bits)."""
    return pc.list_flatten(column).cast(pa.int64())


def read_with_pyarrow(split: Path, manifest: dict) -> tuple[int, int]:
    """Prints the first row; returns the number of rows and the sum of all ids, filling included."""
    rows = ids = tokens = separators = 0
    for index, shard in enumerate(manifest["shards"]):
        before = pa.total_allocated_bytes()
        table = rows_of(split / shard["file"]["path"])
        copied = pa.total_allocated_bytes() - before
        if index == 0:
            print(f"schema: {', '.join(f'{field.name}: {field.type}' for field in table.schema)}")
            print(f"bytes copied while opening {shard['file']['path']}: {copied}")
            print(f"first ids of row 0: {table['input_ids'][0].as_py()[:12]}")
        lengths = table["length"] if "length" in table.column_names else pc.list_value_length(table["input_ids"])
        shard_tokens = pc.sum(lengths.cast(pa.int64())).as_py()
        assert shard_tokens == shard["tokens"], f"{shard['file']['path']}: {shard_tokens} tokens"
        flat = flat_ids(table["input_ids"])
        rows += table.num_rows
        tokens += shard_tokens
        ids += pc.sum(flat).as_py()
        separators += pc.sum(pc.equal(flat, END_OF_TEXT).cast(pa.int64())).as_py()
    totals = manifest["totals"]
    assert (rows, tokens) == (totals["rows"], totals["tokens"]), (rows, tokens)
    if manifest["layout"] == "packed":
        # A separator for each document; what fills the last row up has the same id.
        filling = rows * manifest["packing"]["row_length"] - tokens
        assert separators - filling == totals["documents"], separators
    print(f"pyarrow: {rows} rows, {tokens} tokens, sum of ids {ids}: as the manifest says")
    return rows, ids


def read_spans(split: Path, manifest: dict) -> None:
    """Prints where the first document comes from."""
    if manifest["layout"] != "packed":
        return
    spans = rows_of(split / manifest["shards"][0]["companion"]["path"])
    first = {name: spans[name][0].as_py() for name in spans.column_names}
    source = manifest["inputs"][first["input"]]
    print(f"first document: record {first['record']} of {source['path']}, {first['length']} tokens, id {first['id']}")


def read_with_datasets(split: Path, manifest: dict, expected: tuple[int, int]) -> None:
    """Loads the shards through `datasets`, which takes Arrow files as they are."""
    files = [str(split / shard["file"]["path"]) for shard in manifest["shards"]]
    with tempfile.TemporaryDirectory() as cache:
        loaded = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=cache)
        ids = pc.sum(flat_ids(loaded.data["input_ids"])).as_py()
        assert (loaded.num_rows, ids) == expected, (loaded.num_rows, ids)
        print(f"datasets.load_dataset: {loaded.num_rows} rows, sum of ids {ids}; {loaded.features['input_ids']}")
        del loaded


def read_stream(path: Path) -> None:
    """Maps an exported stream, which `Dataset.from_file` opens in place."""
    stream = datasets.Dataset.from_file(str(path))
    ids = pc.sum(flat_ids(stream.data["input_ids"])).as_py()
    print(f"Dataset.from_file({path.name}): {stream.num_rows} records, sum of ids {ids}, columns {stream.column_names}")


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 1
    split = Path(arguments[0])
    manifest = json.loads((split / "manifest.json").read_text(encoding="utf-8"))
    print(f"{manifest['source']['profile']}, split {manifest['split']}, root {manifest['root']}")
    expected = read_with_pyarrow(split, manifest)
    read_spans(split, manifest)
    datasets.disable_progress_bars()
    read_with_datasets(split, manifest, expected)
    for path in arguments[1:]:
        read_stream(Path(path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
