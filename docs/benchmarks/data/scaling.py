#!/usr/bin/env python3
"""Speed of `xlstm-data prepare local` by the number of threads, and that the bytes do not depend on it.

    python3 docs/benchmarks/data/scaling.py CORPUS_DIR ROUNDS THREADS... > docs/benchmarks/data/scaling.json

CORPUS_DIR holds `.jsonl` or `.jsonl.zst` files; `PROGRAMS` names the programs to compare (`NAME=PATH`, separated by spaces;
default: the release binary), which run in turn. Every run reads the whole corpus and writes a new dataset, which is removed.
Rates are MB of text a second; the medians are what to quote. Files should be in the page cache: a first run that is not counted
reads them. Beside each wall time stand the processor seconds of each kind of thread, where the system tells them: what is serial
shows as one thread that is always busy.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time


def thread_seconds(pid, seen):
    """Processor seconds of each thread so far, by its name."""
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/comm", encoding="utf-8") as file:
                name = file.read().strip()
            # Nanoseconds on a processor, waiting, turns.
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="utf-8") as file:
                seen[task] = (name, int(file.read().split()[0]) / 1e9)
    except (FileNotFoundError, ProcessLookupError):
        pass


def run(program, corpus, threads, out):
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    command = [program, "prepare", "local", corpus, "--out", out, "--json", "--threads", str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    seen, done = {}, threading.Event()

    def watch():
        while not done.wait(0.02):
            thread_seconds(process.pid, seen)

    watcher = threading.Thread(target=watch)
    watcher.start()
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    assert os.waitstatus_to_exitcode(status) == 0, command
    split = json.loads(text)["splits"][0]
    names = {}
    for name, used in seen.values():
        names.setdefault(name, []).append(used)
    busy = {name: {"threads": len(used), "busiest": max(used), "sum": sum(used)} for name, used in sorted(names.items())}
    return {"threads": threads, "seconds": seconds, "root": split["root"], "text_bytes": split["totals"]["text_bytes"],
            "mb_per_second": split["totals"]["text_bytes"] / seconds / 1e6, "peak_mib": usage.ru_maxrss / 1024,
            "processor_seconds": usage.ru_utime + usage.ru_stime, "by_thread": busy}


def main():
    corpus, rounds, counts = sys.argv[1], int(sys.argv[2]), [int(count) for count in sys.argv[3:]]
    programs = os.environ.get("PROGRAMS", "now=target/release/xlstm-data").split()
    programs = dict(entry.split("=", 1) for entry in programs)
    out = os.path.join(tempfile.mkdtemp(prefix="scaling"), "out")
    run(next(iter(programs.values())), corpus, max(counts), out)
    results = {name: [] for name in programs}
    for _ in range(rounds):
        for threads in counts:
            for name, program in programs.items():
                result = run(program, corpus, threads, out)
                results[name].append(result)
                print(f"{name} {threads} threads: {result['mb_per_second']:.0f} MB/s", file=sys.stderr, flush=True)
    shutil.rmtree(os.path.dirname(out))
    roots = {result["root"] for runs in results.values() for result in runs}
    assert len(roots) == 1, roots
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    medians = {name: {threads: statistics.median(r["mb_per_second"] for r in runs if r["threads"] == threads)
                      for threads in counts} for name, runs in results.items()}
    print(json.dumps({"machine": {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(),
                                  "load": os.getloadavg()},
                      "corpus_files": len(os.listdir(corpus)), "root": roots.pop(), "rounds": results,
                      "median_mb_per_second": medians}, indent=1))


if __name__ == "__main__":
    main()
