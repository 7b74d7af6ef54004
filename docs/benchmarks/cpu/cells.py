#!/usr/bin/env python3
"""Time the CPU kernels against the official packages, in turns, in one run.

Every pair is one forward and backward pass of the peer, then one of ours, so that both meet the same machine; the
report holds all times, the medians, and the median of the pairs' ratios. Set-up, outside the repository:

    python3 -m venv PEER && PEER/bin/pip install torch==2.11.0 xlstm==2.0.6 mlstm_kernels==2.0.6
    cargo build --release -p xlstm-kernels --example bench_cells
    PEER/bin/python docs/benchmarks/cpu/cells.py --out docs/benchmarks/cpu/MACHINE/cells.json

On a machine that does other work too, wall-clock times say little: `--processor-time` takes one thread on each side and
counts the time that it was running.

Peers: `mlstm_kernels` chunkwise--native_custbw at each chunk size named; the vanilla loop of `xlstm`; and, for linear
maps and the projection with cross-entropy, libtorch itself.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent.parent.parent


def mlstm(batch, heads, steps, width, chunk):
    from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_custbw as kernel

    q, k, v = (torch.randn(batch, heads, steps, width, requires_grad=True) for _ in range(3))
    i = torch.randn(batch, heads, steps, requires_grad=True)
    f = (torch.randn(batch, heads, steps) + 3).requires_grad_()

    def forward():
        h = kernel(q, k, v, i, f, chunk_size=chunk)
        return (h[0] if isinstance(h, tuple) else h).sum()

    return forward, [q, k, v, i, f]


def slstm(batch, heads, steps, width):
    from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

    cell = sLSTMCell(sLSTMCellConfig(hidden_size=heads * width, num_heads=heads, backend="vanilla"))
    x = torch.randn(batch, steps, 4 * heads * width, requires_grad=True)
    return (lambda: cell(x)[0].sum()), [x, *cell.parameters()]


def linear(rows, inputs, outputs):
    x, w = torch.randn(rows, inputs, requires_grad=True), torch.randn(outputs, inputs, requires_grad=True)
    return (lambda: torch.nn.functional.linear(x, w).sum()), [x, w]


def cross_entropy(rows, width, vocabulary):
    x = torch.randn(rows, width, requires_grad=True)
    w = (torch.randn(vocabulary, width) * 0.02).requires_grad_()
    targets = torch.randint(vocabulary, (rows,))
    return (lambda: torch.nn.functional.cross_entropy(x @ w.t(), targets)), [x, w]


# Name, peer, its arguments, the arguments of bench_cells.
CASES = [
    ("mlstm 1x4x2048x384, peer at chunk 64", mlstm, (1, 4, 2048, 384, 64), ["mlstm", 1, 4, 2048, 384]),
    ("mlstm 1x4x2048x384, peer at chunk 128", mlstm, (1, 4, 2048, 384, 128), ["mlstm", 1, 4, 2048, 384]),
    ("mlstm 1x4x2048x384, peer at chunk 256", mlstm, (1, 4, 2048, 384, 256), ["mlstm", 1, 4, 2048, 384]),
    ("slstm 1x4x2048x64", slstm, (1, 4, 2048, 64), ["slstm", 1, 4, 2048, 64]),
    ("slstm 1x4x2048x192", slstm, (1, 4, 2048, 192), ["slstm", 1, 4, 2048, 192]),
    ("linear 2048x768x3072", linear, (2048, 768, 3072), ["linear", 2048, 768, 3072]),
    ("cross-entropy 2048x256x50304", cross_entropy, (2048, 256, 50304), ["cross_entropy", 2048, 256, 50304]),
]


def running_time(process):
    """Seconds that the first thread of a process has been running on a core."""
    return int(Path("/proc/%s/schedstat" % process).read_text().split()[0]) / 1e9


def time_peer(forward, leaves, clock):
    for leaf in leaves:
        leaf.grad = None
    start = clock()
    loss = forward()
    middle = clock()
    loss.backward()
    return {"forward": middle - start, "backward": clock() - middle}


def total(run):
    return run["forward"] + run["backward"]


def compare(name, make, peer_arguments, our_arguments, pairs, threads, processor_time):
    binary = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release/examples/bench_cells"
    command = [str(binary), *map(str, our_arguments), "--threads", str(threads)]
    ours = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    about = json.loads(ours.stdout.readline())

    def time_ours():
        before = running_time(ours.pid)
        ours.stdin.write("\n")
        ours.stdin.flush()
        run = json.loads(ours.stdout.readline())
        if processor_time:
            share = (running_time(ours.pid) - before) / total(run)
            run = {**run, "forward": run["forward"] * share, "backward": run["backward"] * share}
        return run

    clock = (lambda: running_time("self")) if processor_time else time.perf_counter
    forward, leaves = make(*peer_arguments)
    time_peer(forward, leaves, clock), time_ours(), time_ours()
    runs = []
    for _ in range(pairs):
        peer = time_peer(forward, leaves, clock)
        # The peer's threads go on spinning for a moment after their work.
        time.sleep(0.05)
        runs.append({"peer": peer, "ours": time_ours(), "load": os.getloadavg()[0]})
    ours.stdin.close()
    ours.wait()
    result = {
        "case": name,
        "ours": about,
        "peer_median": statistics.median(total(run["peer"]) for run in runs),
        "ours_median": statistics.median(total(run["ours"]) for run in runs),
        "ratio_median": statistics.median(total(run["peer"]) / total(run["ours"]) for run in runs),
        "runs": runs,
    }
    print("%-42s peer %7.4f s   ours %7.4f s   ratio %6.2f   load %.1f" % (
        name, result["peer_median"], result["ours_median"], result["ratio_median"], os.getloadavg()[0]), file=sys.stderr)
    return result


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file for all that was measured")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--processor-time", action="store_true", help="one thread, and the time that it ran")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    if arguments.processor_time:
        arguments.threads = 1
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    chosen = [case for case in CASES if arguments.only in case[0]]
    report = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "clock": "processor time of one thread" if arguments.processor_time else "wall clock",
        "kernel": platform.release(),
        "versions": {name: version(name) for name in ("torch", "xlstm", "mlstm_kernels")},
        "load_before": os.getloadavg(),
        "results": [compare(*case, arguments.pairs, arguments.threads, arguments.processor_time) for case in chosen],
        "load_after": os.getloadavg(),
    }
    partial = arguments.out.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.rename(arguments.out)


if __name__ == "__main__":
    main()
