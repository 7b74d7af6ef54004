#!/usr/bin/env python3
"""Alters shards and spans files, and compares what `xlstm-data audit` and pyarrow say of each.

    pip install pyarrow
    python tests/python/hostile_shards.py PROGRAM SPLIT [COUNT] [SEED]

SPLIT is a folder that `xlstm-data prepare` made. For each of COUNT files with altered bytes the manifest's digest and
size of that file are written anew, as whoever alters a file would do. Then, in both directions:

- what pyarrow refuses, the audit refuses;
- what the audit refuses, pyarrow refuses as well, or reads other values from it than from the original;
- what pyarrow reads other values from, the audit refuses.

Each run of the audit must end with exit code 0 or 1, within 30 seconds, with no panic on stderr.
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa


def read(path: Path) -> pa.Table:
    """All rows, fully validated."""
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    table.validate(full=True)
    return table


def values(table: pa.Table) -> object:
    """What the file says: columns with their types, kind and version, values."""
    schema = [(field.name, str(field.type), field.nullable) for field in table.schema]
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key.startswith(b"xlstm.")}
    return schema, metadata, table.to_pydict()


def altered(sound: bytes, draw: random.Random) -> bytes:
    """Bytes replaced, cut out, doubled or cut off, most of them where the file describes itself."""
    data = bytearray(sound)
    for _ in range(draw.randint(1, 3)):
        size = len(data)
        if size < 16:
            break
        # Descriptions lie at the head and at the end; in between are values.
        where = draw.choice(["head", "end", "end", "anywhere", "message"])
        start = {"head": 0, "end": max(0, size - 1200), "anywhere": 0, "message": 8}[where]
        stop = {"head": min(size, 1200), "end": size, "anywhere": size, "message": min(size, 4000)}[where]
        at = draw.randrange(start, stop)
        kind = draw.randrange(9)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + draw.choice([1, 4, 8, 64])]
        elif kind == 2:
            data[at:at] = data[at : at + 8]
        elif kind == 3:
            data[at : at + 8] = b"\xff" * len(data[at : at + 8])
        elif kind in (4, 5):
            # A number of 32 or 64 bits, at its place.
            width = draw.choice([4, 8])
            at -= at % width
            old = int.from_bytes(data[at : at + width], "little")
            new = draw.choice([0, 1, old + 1, old - 1, old * 2, 8, 64, 1 << 31, (1 << 63) - 1, -1, -8, draw.getrandbits(63)])
            data[at : at + width] = (new % (1 << (8 * width))).to_bytes(width, "little")
        else:
            data[at] = draw.randrange(256)
    return bytes(data)


def store(split: Path, name: str, content: bytes) -> None:
    """Writes the file, and its digest and size into the manifest and the list of checksums."""
    (split / name).write_bytes(content)
    path = split / "manifest.json"
    manifest = json.loads(path.read_text())
    for shard in manifest["shards"]:
        for file in (shard["file"], shard["companion"]):
            if file["path"] == name:
                file["sha256"] = hashlib.sha256(content).hexdigest()
                file["size"] = len(content)
    path.write_text(json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    sums = split / "manifest-sha256.txt"
    names = [line.split("  ", 1)[1] for line in sums.read_text().splitlines()]
    digest = {other: hashlib.sha256((split / other).read_bytes()).hexdigest() for other in names}
    sums.write_text("".join(f"{digest[other]}  {other}\n" for other in names))


def main() -> int:
    program, source = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    draw = random.Random(int(sys.argv[4]) if len(sys.argv) > 4 else 1)
    tally = {"both read the same": 0, "both refuse": 0, "pyarrow reads other values, the audit refuses": 0}
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "split"
        shutil.copytree(source, split)
        names = sorted(path.name for path in split.glob("*.arrow"))
        sound = {name: (split / name).read_bytes() for name in names}
        expected = {name: values(read(split / name)) for name in names}
        for number in range(count):
            name = names[number % len(names)]
            store(split, name, altered(sound[name], draw))
            try:
                found = "same" if values(read(split / name)) == expected[name] else "other"
            except Exception as error:  # pyarrow raises many kinds
                found = f"refused ({type(error).__name__})"
            try:
                run = subprocess.run([program, "audit", split], capture_output=True, text=True, timeout=30, check=False)
                code, said = run.returncode, run.stdout + run.stderr
            except subprocess.TimeoutExpired:
                code, said = "none in 30 s", ""
            agree = code == 0 if found == "same" else code == 1
            if agree and "panicked" not in said:
                key = {"same": 0, "other": 2}.get(found, 1)
                tally[list(tally)[key]] += 1
            else:
                faults += 1
                kept = Path(tempfile.gettempdir()) / f"hostile-{number}-{name}"
                kept.write_bytes((split / name).read_bytes())
                print(f"{number} {name}: pyarrow: {found}; audit: exit code {code}; kept as {kept}\n  {said[-600:]}")
            store(split, name, sound[name])
    for key, value in tally.items():
        print(f"{value:6} {key}")
    print(f"{faults:6} disagreements among {count} altered files")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
