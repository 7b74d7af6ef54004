#!/usr/bin/env python3
"""Peak memory of `xlstm-data prepare local` on inputs made to hurt.

    python3 docs/benchmarks/data/memory.py FOLDER > docs/benchmarks/data/memory.json

One Parquet file of about 6 GB in row groups of 100,000 rows; documents of 200 MB in JSON lines and plain text. The
files are made in FOLDER (13 GB free) and removed. Needs pyarrow, and the release binaries.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time

TARGET = os.environ.get("CARGO_TARGET_DIR", "target")
DATA = os.path.join(TARGET, "release/xlstm-data")
WORDS = "the memory of a gate is an exponential function state tokens 42 = { } naïve \"quoted\" (see below) \n".split(" ")


def text(generator, size):
    piece = " ".join(generator.choices(WORDS, k=20_000))
    return (piece * (size // len(piece) + 1))[:size]


def parquet(path, gigabytes):
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = random.Random(1)
    schema = pa.schema([("text", pa.string()), ("meta", pa.struct([("redpajama_set_name", pa.string())]))])
    # Uncompressed and without a dictionary, so that the file is as large as its text.
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        while not os.path.exists(path) or os.path.getsize(path) < gigabytes * 1e9:
            documents = [text(generator, 4000 + i % 4000) for i in range(1000)]
            rows = [documents[i % 1000] for i in range(100_000)]
            writer.write_table(pa.table({"text": rows, "meta": [{"redpajama_set_name": "RedPajamaC4"}] * len(rows)},
                                        schema=schema))


def large_documents(folder):
    generator = random.Random(2)
    document = text(generator, 200_000_000)
    with open(os.path.join(folder, "a.jsonl"), "w", encoding="utf-8") as lines:
        for value in ("small", document, document[:150_000_000]):
            lines.write(json.dumps({"text": value}, ensure_ascii=False) + "\n")
    with open(os.path.join(folder, "b.jsonl"), "w", encoding="utf-8") as lines:
        lines.write(json.dumps({"text": document[5:]}) + "\n")
    with open(os.path.join(folder, "c.txt"), "w", encoding="utf-8") as file:
        file.write(document)


def prepare(folder, out):
    start = time.perf_counter()
    process = subprocess.Popen([DATA, "prepare", "local", folder, "--out", out, "--json"], stdout=subprocess.PIPE)
    summary = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    size = sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))
    totals = summary["splits"][0]["totals"]
    return {"input_bytes": size, "seconds": time.perf_counter() - start, "peak_mib": usage.ru_maxrss / 1024,
            "documents": totals["documents"], "text_bytes": totals["text_bytes"], "tokens": totals["tokens"]}


def main():
    if sys.argv[1] == "--make":
        _, _, name, folder = sys.argv
        return large_documents(folder) if name == "large_documents" else parquet(folder + "/rows.parquet", 6)
    base = sys.argv[1]
    results = {}
    for name in ("large_documents", "parquet_6_gb"):
        folder, out = os.path.join(base, name), os.path.join(base, name + "-out")
        os.makedirs(folder)
        # In a process of its own: Linux counts what a process held before exec towards its successor's peak.
        subprocess.run([sys.executable, __file__, "--make", name, folder], check=True)
        results[name] = prepare(folder, out)
        shutil.rmtree(folder)
        shutil.rmtree(out)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
