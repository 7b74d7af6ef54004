#!/usr/bin/env python3
"""Time whole training steps of the other methods on a CPU against transformers', in turns, in one run.

Llama, GPT-2, Mamba and RWKV-4 at the size of `table1-small` (about 25M parameters beside the vocabulary), one sequence of CONTEXT tokens a
step in float32: forward, backward, gradient norm, clipping, AdamW. Every pair is one step of the peer, then one of ours. The peer is
helped: fused attention, denormals flushed, the fused AdamW, and with --compile it is compiled first. Set-up, outside the repository:

    python3 -m venv PEER && PEER/bin/pip install torch==2.11.0 transformers==5.17.0
    cargo build --release -p xlstm-trainer --example bench_model
    PEER/bin/python docs/benchmarks/cpu/methods.py --pairs 5 --out docs/benchmarks/cpu/MACHINE/methods.json [--compile] [METHOD ...]
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

from models import Ours, processor, total

VOCABULARY, WIDTH = 50304, 512


def peer_model(method, context):
    import transformers

    common = {"vocab_size": VOCABULARY, "use_cache": False}
    if method == "llama":
        config = transformers.LlamaConfig(
            **common, hidden_size=WIDTH, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, max_position_embeddings=context
        )
        return transformers.LlamaForCausalLM(config)
    if method == "gpt3":
        config = transformers.GPT2Config(
            **common, n_embd=WIDTH, n_layer=8, n_head=8, n_positions=context, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
        return transformers.GPT2LMHeadModel(config)
    if method == "mamba":
        config = transformers.MambaConfig(**common, hidden_size=WIDTH, num_hidden_layers=16, tie_word_embeddings=False)
        return transformers.MambaForCausalLM(config)
    config = transformers.RwkvConfig(
        **common, hidden_size=WIDTH, num_hidden_layers=8, context_length=context, rescale_every=0, tie_word_embeddings=False
    )
    return transformers.RwkvForCausalLM(config)


class Peer:
    """transformers' model with the paper's optimizer."""

    def __init__(self, method, context, compiled):
        import torch

        self.torch = torch
        self.model = peer_model(method, context).train()
        self.forward = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.tokens = torch.randint(VOCABULARY, (1, context))

    def step(self):
        begin = time.perf_counter()
        loss = self.forward(input_ids=self.tokens, labels=self.tokens).loss
        forward = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        both = time.perf_counter()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        end = time.perf_counter()
        return {"forward": forward - begin, "backward": both - forward, "update": end - both, "loss": loss.item()}


def compare(method, options):
    peer = Peer(method, options.context, options.compile)
    ours = Ours([f"table1-small/{method}", "--set", "training.precision=float32"], options.context, options.threads)
    # First steps are slow on both sides: fresh memory, threads that start, what is compiled.
    for side in (ours, peer, ours, peer):
        side.step()
    runs = []
    for _ in range(options.pairs):
        theirs = peer.step()
        gc.collect()
        # The peer's threads go on spinning for a moment after their work.
        time.sleep(0.05)
        runs.append({"peer": theirs, "ours": ours.step(), "load": os.getloadavg()[0]})
    ours.close()
    median = statistics.median
    result = {
        "method": method,
        "parameters": {"peer": sum(part.numel() for part in peer.model.parameters()), "ours": ours.about["parameters"]},
        "peer_median": median(total(run["peer"]) for run in runs),
        "ours_median": median(total(run["ours"]) for run in runs),
        "ratio_median": median(total(run["peer"]) / total(run["ours"]) for run in runs),
        "runs": runs,
    }
    print("%-6s peer %7.3f s   ours %7.3f s   ratio %5.2f" % (
        method, result["peer_median"], result["ours_median"], result["ratio_median"]), file=sys.stderr, flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("methods", nargs="*", default=["llama", "gpt3", "mamba", "rwkv4"], metavar="METHOD")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for all that was measured")
    parser.add_argument("--compile", action="store_true", help="the peer through torch.compile")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    import torch

    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    report = {
        "processor": processor(),
        "threads": options.threads,
        "context": options.context,
        "peer": "transformers, compiled" if options.compile else "transformers",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "results": [compare(method, options) for method in options.methods],
    }
    partial = options.out.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.rename(options.out)


if __name__ == "__main__":
    main()
