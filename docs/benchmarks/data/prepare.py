#!/usr/bin/env python3
"""End-to-end speed of `xlstm-data prepare local` against its own tokenizer alone and against datatrove.

    python3 docs/benchmarks/data/prepare.py CORPUS_DIR [ROUNDS] > docs/benchmarks/data/prepare.json

In each round, one after the other: the whole pipeline (zstd, JSON, digests, tokens, packing, shards, manifest), the
tokenizer alone on documents in memory (example `tokenizer_speed`, one pass, all cores: ours, and the library
`tokenizers` as its users call it), `audit`, and sha256sum over the same shards. Once, the tokenizers on the first 13
MiB with one core: most words are then new. Before and after the rounds, datatrove's DocumentTokenizer on one file a worker (it is slow).
Rates are MB of text a second; ratios are formed within a round; the medians are what to quote. Needs
datatrove[io,processing]==0.10.1 in the Python that runs this, and the release binaries (`make bench` builds them).
"""

import glob
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

THREADS = os.cpu_count()
TARGET = os.environ.get("CARGO_TARGET_DIR", "target")
DATA = os.path.join(TARGET, "release/xlstm-data")
ALONE = os.path.join(TARGET, "release/examples/tokenizer_speed")


def measure(command):
    """Runs a command: wall seconds, peak resident MiB, output."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    assert os.waitstatus_to_exitcode(status) == 0, command
    return seconds, usage.ru_maxrss / 1024, out


def pipeline(corpus, out):
    shutil.rmtree(out, ignore_errors=True)
    seconds, mib, text = measure([DATA, "prepare", "local", corpus, "--out", out, "--json",
                                  "--set-field", "meta.redpajama_set_name"])
    totals = json.loads(text)["splits"][0]["totals"]
    return {"seconds": seconds, "peak_mib": mib, "text_bytes": totals["text_bytes"], "tokens": totals["tokens"],
            "mb_per_second": totals["text_bytes"] / seconds / 1e6}


def audit(out):
    seconds, _, _ = measure([DATA, "audit", out, "--json"])
    files = sorted(glob.glob(os.path.join(out, "train/*.arrow")))
    sha256sum, _, _ = measure(["sha256sum", *files])
    return {"bytes": sum(map(os.path.getsize, files)), "audit_seconds": seconds, "sha256sum_seconds": sha256sum}


def datatrove(corpus, folder):
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    part, run = os.path.join(folder, "part"), os.path.join(folder, str(time.time_ns()))
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    for path in sorted(glob.glob(os.path.join(corpus, "*.jsonl.zst")))[:THREADS]:
        shutil.copy(path, part)
    text_bytes = pipeline(part, run + "-size")["text_bytes"]
    tokenizer = os.path.join(folder, "tokenizer.json")
    write_gpt2(tokenizer)
    executor = LocalPipelineExecutor(
        pipeline=[JsonlReader(part, glob_pattern="*.jsonl.zst", compression="zstd"),
                  DocumentTokenizer(run + "-ds", tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>",
                                    shuffle_documents=False)],
        tasks=THREADS, workers=THREADS, logging_dir=run + "-log")
    start = time.perf_counter()
    executor.run()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "text_bytes": text_bytes, "workers": THREADS,
            "mb_per_second": text_bytes / seconds / 1e6}


def write_gpt2(path):
    """GPT-2's tokenizer.json from the merge list in this repository, by the library that datatrove uses."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    lines = open("pipeline/assets/gpt2/vocab.bpe", encoding="utf-8").read().split("\n")[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    # OpenAI's order: the printable bytes first, then the others, then the merges.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    vocabulary = {text: i for i, text in enumerate(spelling)}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    vocabulary["<|endoftext|>"] = len(vocabulary)
    assert len(vocabulary) == 50257
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>")])
    tokenizer.save(path)


def cpu():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")),
                    platform.machine())


def main():
    corpus, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    folder = tempfile.mkdtemp(prefix="bench")
    joined, out = os.path.join(folder, "joined.jsonl.zst"), os.path.join(folder, "out")
    with open(joined, "wb") as joint:
        for path in sorted(glob.glob(os.path.join(corpus, "*.jsonl.zst"))):
            with open(path, "rb") as part:
                joint.write(part.read())
    tokenizer = os.path.join(folder, "gpt2.json")
    write_gpt2(tokenizer)
    peers = [] if os.environ.get("NO_PEER") else [datatrove(corpus, folder)]
    cold = json.loads(measure([ALONE, joined, "1", "1", "13", tokenizer])[2])
    results = []
    for _ in range(rounds):
        whole = pipeline(corpus, out)
        alone = json.loads(measure([ALONE, joined, str(THREADS), "1", "1000", tokenizer])[2])
        library = {call: speeds[0] for call, speeds in alone["library"].items()}
        results.append({"pipeline": whole, "tokenizer_alone": alone, "load": os.getloadavg(), **audit(out),
                        "share": whole["mb_per_second"] / alone["megabytes_per_second"][0],
                        "share_of_library": {call: whole["mb_per_second"] / speed for call, speed in library.items()}})
    peers += [datatrove(corpus, folder)] if peers else []
    shutil.rmtree(folder)
    middle = lambda values: statistics.median(list(values))
    rate = middle(r["pipeline"]["mb_per_second"] for r in results)
    print(json.dumps({
        "machine": {"cpu": cpu(), "cores": THREADS, "kernel": platform.release()},
        "rounds": results, "datatrove": peers, "one_core_13_mib": cold,
        "median": {
            "pipeline_mb_per_second": rate,
            "share_of_tokenizer_alone": middle(r["share"] for r in results),
            "share_of_library": {call: middle(r["share_of_library"][call] for r in results)
                                 for call in results[0]["share_of_library"]},
            "times_datatrove": rate / middle(p["mb_per_second"] for p in peers) if peers else None,
            "peak_mib": max(r["pipeline"]["peak_mib"] for r in results),
            "audit_over_sha256sum": middle(r["audit_seconds"] / r["sha256sum_seconds"] for r in results),
        },
    }, indent=1))


if __name__ == "__main__":
    main()
