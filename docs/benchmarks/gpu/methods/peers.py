#!/usr/bin/env python3
"""Tokens a second of the peers' own models at Table 1's size: flash-linear-attention's and transformers', on one GPU.

    python3 peers.py [--compile] METHOD[:ROWS[,ROWS...]] ...     gla retnet hgrn hgrn2 rwkv6 fla-llama llama gpt2

Whole training steps as `bench_training` times them: forward, backward, gradient norm, clipping, AdamW (fused), on random
tokens, context 2048, one micro-batch a step. Each way of running a peer is timed, and the fastest counts: weights in float32
under autocast to bf16 (as ours) or weights, gradients and moments in bf16 (less than ours keeps); with torch.compile or
without; each number of rows. One JSON line a way; a way that fails is a line with the error.

Needs a CUDA GPU, torch, transformers, flash-linear-attention (pip install flash-linear-attention).
"""

import json
import statistics
import sys
import time

import torch
import transformers

CONTEXT = 2048
VOCABULARY = 50304
COMMON = {"vocab_size": VOCABULARY, "use_cache": False}
SIZE = {"hidden_size": 1024, "num_hidden_layers": 24, "max_position_embeddings": CONTEXT}


def fla_model(name, **options):
    import fla.models

    config = getattr(fla.models, f"{name}Config")(**COMMON, **SIZE, **options)
    return getattr(fla.models, f"{name}ForCausalLM")(config)


def transformers_model(name, config):
    config._attn_implementation = "sdpa"
    return getattr(transformers, name)(config)


# The sizes of Table 1; RetNet in flash-linear-attention's form, as the recipe table1-15b/retnet.
MODELS = {
    "gla": lambda: fla_model("GLA", num_heads=4),
    "retnet": lambda: fla_model("RetNet", num_heads=8),
    "hgrn": lambda: fla_model("HGRN"),
    "hgrn2": lambda: fla_model("HGRN2", expand_ratio=128),
    "rwkv6": lambda: fla_model("RWKV6", num_heads=16, expand_k=1.0),
    "fla-llama": lambda: fla_model("Transformer", num_heads=16, intermediate_size=2752),
    "llama": lambda: transformers_model(
        "LlamaForCausalLM",
        transformers.LlamaConfig(**COMMON, **SIZE, intermediate_size=2752, num_attention_heads=16),
    ),
    "gpt2": lambda: transformers_model(
        "GPT2LMHeadModel",
        transformers.GPT2Config(
            **COMMON, n_positions=CONTEXT, n_embd=1024, n_layer=24, n_head=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        ),
    ),
}


def measure(name, rows, weights, compiled, steps=6):
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"):
        model = MODELS[name]().to(weights).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model
    tokens = torch.randint(0, VOCABULARY, (rows, CONTEXT), device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=weights == torch.float32):
            loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    # Compiling and choosing of kernels ends with the first steps.
    began = time.perf_counter()
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    warm = time.perf_counter() - began
    print(f"{name}: three steps after {warm:.0f} s", file=sys.stderr, flush=True)
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        loss = step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    seconds.sort()
    return {
        "tokens_per_second": round(rows * CONTEXT / statistics.median(seconds)),
        "fastest": round(rows * CONTEXT / seconds[0]),
        "slowest": round(rows * CONTEXT / seconds[-1]),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "warm_up_s": round(warm, 1),
        "loss": round(loss.item(), 3),
    }


def versions():
    from importlib.metadata import version

    packages = ["torch", "triton", "transformers", "flash-linear-attention", "fla-core"]
    found = {"gpu": torch.cuda.get_device_name()}
    for package in packages:
        try:
            found[package] = version(package)
        except Exception as error:  # a package that is not there is said, its methods fail below
            found[package] = repr(error)
    return found


def main():
    torch.backends.cuda.matmul.allow_tf32 = True
    print(json.dumps(versions()), flush=True)
    compiled_too = "--compile" in sys.argv
    for argument in sys.argv[1:]:
        if argument.startswith("--"):
            continue
        name, _, rows = argument.partition(":")
        for number in [int(text) for text in (rows or "16").split(",")]:
            for weights in (torch.float32, torch.bfloat16):
                for compiled in (False, True) if compiled_too else (False,):
                    line = {"peer": name, "rows": number, "weights": str(weights)[6:], "compiled": compiled}
                    try:
                        line.update(measure(name, number, weights, compiled))
                    except Exception as error:
                        line["error"] = f"{type(error).__name__}: {error}"[:300]
                    print(json.dumps(line), flush=True)
                    torch._dynamo.reset()
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
