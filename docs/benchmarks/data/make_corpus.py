#!/usr/bin/env python3
"""Writes a benchmark corpus: the text of the crates in cargo's cache as SlimPajama-like .jsonl.zst files.

    python3 docs/benchmarks/data/make_corpus.py OUT_DIR [MEGABYTES] [prose|code]

`prose` (the default) keeps Markdown, text and the documentation comments of Rust sources, which is English with some
code; `code` keeps whole Rust sources too. When the cache is smaller than MEGABYTES it is gone through again. Every
run on the same cache writes the same bytes. Needs `zstandard` from pip.
"""

import glob
import json
import os
import sys
import tarfile

import zstandard

SETS = {".md": "RedPajamaCommonCrawl", ".txt": "RedPajamaC4", ".rs": "RedPajamaGithub"}
FILE_BYTES = 24 << 20


def prose(text):
    """The documentation comments of a Rust source, without their marks."""
    lines = (line.strip() for line in text.split("\n"))
    return "\n".join(line[3:].removeprefix(" ") for line in lines if line.startswith(("///", "//!")))


def documents(limit, kind):
    while True:
        before = limit
        for document in one_pass(kind):
            limit -= len(document["text"].encode("utf-8"))
            yield document
            if limit <= 0:
                return
        if limit == before:
            return


def one_pass(kind):
    home = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    for archive in sorted(glob.glob(os.path.join(home, "registry/cache/*/*.crate"))):
        with tarfile.open(archive) as tar:
            for member in tar:
                name = SETS.get(os.path.splitext(member.name)[1])
                if name is None or not 200 <= member.size <= 200_000:
                    continue
                try:
                    text = tar.extractfile(member).read().decode("utf-8")
                except UnicodeDecodeError:
                    continue
                if kind == "prose" and member.name.endswith(".rs"):
                    text = prose(text)
                if len(text) >= 200:
                    yield {"text": text, "meta": {"redpajama_set_name": name}}


def main():
    folder, megabytes, kind = (sys.argv[1:] + ["400", "prose"][len(sys.argv) - 2:])[:3]
    os.makedirs(folder, exist_ok=True)
    number, size, lines, text_bytes, count = 0, 0, [], 0, 0

    def flush():
        nonlocal number, size, lines
        if lines:
            path = os.path.join(folder, f"part_{number:04}.jsonl.zst")
            with open(path, "wb") as out:
                out.write(zstandard.ZstdCompressor(level=3).compress("".join(lines).encode("utf-8")))
            number, size, lines = number + 1, 0, []

    for document in documents(int(megabytes) * 1_000_000, kind):
        line = json.dumps(document, ensure_ascii=False) + "\n"
        lines.append(line)
        text_bytes += len(document["text"].encode("utf-8"))
        count += 1
        size += len(line)
        if size >= FILE_BYTES:
            flush()
    flush()
    print(json.dumps({"folder": folder, "files": number, "documents": count, "text_bytes": text_bytes}))


if __name__ == "__main__":
    main()
