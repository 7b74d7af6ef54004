#!/usr/bin/env python3
"""Time whole training steps (forward, backward, clipping, AdamW) against the official package, in turns, in one run.

Every pair is one step of the peer, then one of ours, so that both meet the same machine; the report holds all times,
the medians, the median of the pairs' ratios, and how much of the machine's fp32 matrix rate was reached. Set-up,
outside the repository:

    python3 -m venv PEER && PEER/bin/pip install torch==2.11.0 xlstm==2.0.6 mlstm_kernels==2.0.6 dacite
    cargo build --release -p xlstm-trainer --example bench_model
    PEER/bin/python docs/benchmarks/cpu/models.py --case small --pairs 5 --out docs/benchmarks/cpu/MACHINE/models-small.json

The peer computes as released, which on a CPU means the quadratic form of mLSTM (the package wires no other in) and the
plain loop of sLSTM, with what helps it: denormals flushed, the fused AdamW. `--defaults` leaves that help out: PyTorch as
it starts, AdamW as it is called, which is what a user of the package gets. `--chunkwise` puts the best CPU kernel of
mlstm_kernels (chunkwise--native_custbw, chunk 256) into its mLSTM cells, which the package itself does not offer.

Memory has no peer: `--memory` runs two of our steps at each context and records the largest resident size.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import official
from official import CONTEXT

ROOT = Path(__file__).resolve().parent.parent.parent.parent
# Name: our recipe and overrides, the peer's sizes.
CASES = {
    "small": (["small-cpu"], {"embedding_dim": 256, "num_blocks": 4, "slstm_at": [1]}),
    "125m": (
        ["figure6-scaling-15b/125m-1to0", "--set", "training.precision=float32"],
        {"embedding_dim": 768, "num_blocks": 24, "slstm_at": []},
    ),
}


class Ours:
    """One process of bench_model: a line in, a step's times out."""

    def __init__(self, arguments, context, threads):
        target = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
        command = [target / "release/examples/bench_model", *arguments, str(context), "--threads", str(threads)]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.about = json.loads(self.process.stdout.readline())

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.about["product_rate"] = max(self.about["product_rate"], json.loads(self.process.stdout.readline())["product_rate"])
        self.process.wait()


class Peer:
    """The official model with the paper's optimizer."""

    def __init__(self, sizes, chunkwise, fused):
        import torch

        self.torch = torch
        self.model = official.build(sizes)
        if chunkwise:
            from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_custbw as kernel

            official.use_kernel(self.model, kernel, chunk_size=256)
        self.optimizer = official.optimizer(self.model, fused)
        self.inputs, self.targets = (torch.randint(official.VOCABULARY, (1, CONTEXT)) for _ in range(2))

    def step(self):
        functional = self.torch.nn.functional
        begin = time.perf_counter()
        logits = self.model(self.inputs)
        loss = functional.cross_entropy(logits.view(-1, logits.shape[-1]), self.targets.view(-1))
        forward = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        del logits
        both = time.perf_counter()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        end = time.perf_counter()
        return {"forward": forward - begin, "backward": both - forward, "update": end - both, "loss": loss.item()}


def total(run):
    return run["forward"] + run["backward"] + run["update"]


def compare(name, pairs, threads, chunkwise, defaults):
    arguments, sizes = CASES[name]
    # The peer's 125M model takes 17 GB, ours 7: ours gives its memory back while the peer computes.
    shared = [] if name == "small" else ["--share-memory"]
    peer = Peer(sizes, chunkwise, fused=None if defaults else True)
    ours = Ours([*arguments, *shared], CONTEXT, threads)
    # First steps are slow on both sides: fresh memory, threads that start.
    ours.step()
    peer.step()
    runs = []
    for _ in range(pairs):
        theirs = peer.step()
        gc.collect()
        # The peer's threads go on spinning for a moment after their work.
        time.sleep(0.05)
        runs.append({"peer": theirs, "ours": ours.step(), "load": os.getloadavg()[0]})
        print("pair %d: peer %.3f s, ours %.3f s" % (len(runs), total(theirs), total(runs[-1]["ours"])), file=sys.stderr)
    ours.close()
    about, median = ours.about, statistics.median
    peer_median, our_median = (median(total(run[side]) for run in runs) for side in ("peer", "ours"))
    rate = max(about["product_rate"], about["product_rate_libtorch"])
    floor = about["operations_per_token"] * CONTEXT / rate
    return {
        "case": name,
        "peer": "mlstm_kernels chunkwise--native_custbw, chunk 256, in xlstm's cells" if chunkwise else "xlstm as released",
        "peer_settings": "PyTorch's defaults" if defaults else "denormals flushed, fused AdamW",
        "parameters": {"peer": sum(part.numel() for part in peer.model.parameters()), "ours": about["parameters"]},
        "ours": about,
        "peer_median": peer_median,
        "ours_median": our_median,
        "ratio_median": median(total(run["peer"]) / total(run["ours"]) for run in runs),
        "tokens_per_second": {"peer": CONTEXT / peer_median, "ours": CONTEXT / our_median},
        "floor_seconds": floor,
        "fraction_of_floor": floor / our_median,
        "runs": runs,
    }


def memory(contexts, threads):
    arguments = [*CASES["125m"][0], "--set", "training.activation_checkpointing=true"]
    results = []
    for context in contexts:
        ours = Ours(arguments, context, threads)
        steps = [ours.step() for _ in range(2 if context <= 4096 else 1)]
        ours.close()
        results.append({"context": context, "ours": ours.about, "runs": steps})
        peak, estimate = steps[-1]["peak_resident"], ours.about["memory_estimate"]
        print("context %6d   peak %6.2f GiB   estimate %6.2f GiB   step %6.1f s" % (
            context, peak / 2**30, estimate / 2**30, total(steps[-1])), file=sys.stderr)
    return results


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def installed(defaults):
    import torch

    # Before any thread of a pool starts: each thread has its own setting.
    if not defaults:
        torch.set_flush_denormal(True)
    torch.manual_seed(0)
    return {name: version(name) for name in ("torch", "xlstm", "mlstm_kernels")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file for all that was measured")
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--memory", type=int, nargs="+", metavar="CONTEXT")
    parser.add_argument("--chunkwise", action="store_true", help="the peer with the chunkwise kernel put into its cells")
    parser.add_argument("--defaults", action="store_true", help="the peer without denormals flushed and fused AdamW")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if (arguments.case is None) == (arguments.memory is None):
        parser.error("expected one of --case and --memory")
    report = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "kernel": platform.release(),
        "load_before": os.getloadavg(),
    }
    if arguments.memory:
        report["results"] = memory(arguments.memory, arguments.threads)
    else:
        report["versions"] = installed(arguments.defaults)
        import torch

        torch.set_num_threads(arguments.threads)
        result = compare(arguments.case, arguments.pairs, arguments.threads, arguments.chunkwise, arguments.defaults)
        report["results"] = [result]
        print("%-6s peer %8.3f s   ours %7.3f s   ratio %5.2f   %.0f tokens/s   %.0f %% of the floor's speed" % (
            result["case"], result["peer_median"], result["ours_median"], result["ratio_median"],
            result["tokens_per_second"]["ours"], 100 * result["fraction_of_floor"]), file=sys.stderr)
    report["load_after"] = os.getloadavg()
    partial = arguments.out.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.rename(arguments.out)


if __name__ == "__main__":
    main()
