#!/usr/bin/env python3
"""Makes a golden file small enough for the repository: gradients are sampled, everything else stays.

    sample_golden.py FULL.safetensors SMALL.safetensors [STRIDE]

`grad.NAME` becomes `grad_sample.NAME`: every STRIDE-th number in row-major order, from the first, or the smallest
stride that leaves at least eight. The metadata says the stride (`grad_stride`, a JSON object by parameter)."""
import json
import struct
import sys
from pathlib import Path


def main(source, target, stride=61):
    data = Path(source).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8:8 + length]), data[8 + length:]
    metadata, strides, entries = header.pop("__metadata__"), {}, []
    for name, entry in sorted(header.items()):
        begin, end = entry["data_offsets"]
        values, shape = body[begin:end], entry["shape"]
        if name.startswith("grad."):
            parameter = name.removeprefix("grad.")
            count = len(values) // 4
            step = max(1, min(int(stride), count // 8))
            values = b"".join(values[4 * i:4 * i + 4] for i in range(0, count, step))
            name, shape, strides[parameter] = f"grad_sample.{parameter}", [len(values) // 4], step
        entries.append((name, entry["dtype"], shape, values))
    metadata["grad_stride"] = json.dumps(strides)
    header, offset = {"__metadata__": metadata}, 0
    for name, dtype, shape, values in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(values)]}
        offset += len(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(target).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(values for *_, values in entries))


if __name__ == "__main__":
    main(*sys.argv[1:])
