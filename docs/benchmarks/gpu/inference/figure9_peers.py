#!/usr/bin/env python3
"""Speed of generation by transformers' Llama and Mamba of 1.3 billion parameters, random weights in bf16: Figure 9's peers.

    python3 docs/benchmarks/gpu/inference/figure9_peers.py llama|mamba LENGTHS BATCHES TOKENS

As `xlstm-eval throughput` measures: prompts of 16 tokens, the likeliest token always taken. One JSON object a line: seconds for
each of LENGTHS with one sequence, and tokens a second of all sequences together for each of BATCHES over TOKENS. Llama's cache is static and
its step compiled as `generate` does by itself (`cache_implementation="static"`), and beside it without either; Mamba is
what pip brings, without `mamba-ssm`'s kernels. The first call of each size, which compiles, is not timed.
"""

import json
import sys
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

PROMPT = 16


def model(name):
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        if name == "llama":
            return LlamaForCausalLM(LlamaConfig(
                vocab_size=50304, hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=16,
                max_position_embeddings=16384, tie_word_embeddings=False)).eval()
        return MambaForCausalLM(MambaConfig(vocab_size=50304, hidden_size=2048, num_hidden_layers=48)).eval()


def measure(net, batch, tokens, options):
    prompt = torch.randint(0, 50304, (batch, PROMPT), device="cuda")
    arguments = dict(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, eos_token_id=None, **options)
    times = []
    with torch.inference_mode():
        for _ in range(3):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            net.generate(prompt, attention_mask=torch.ones_like(prompt), **arguments)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
    return min(times[1:])


def main():
    name, lengths, batches, tokens = sys.argv[1], *sys.argv[2:]
    lengths, batches, tokens = [int(n) for n in lengths.split(",")], [int(n) for n in batches.split(",")], int(tokens)
    net = model(name)
    about = {"model": name, "parameters": sum(p.numel() for p in net.parameters()), "gpu": torch.cuda.get_device_name(),
             "torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(about), flush=True)
    ways = {"static cache, compiled": {"cache_implementation": "static"}, "as it comes": {}} if name == "llama" else {"as it comes": {}}
    for way, options in ways.items():
        for batch, count, key in [(1, n, "length") for n in lengths] + [(n, tokens, "batch") for n in batches]:
            row = {"model": name, "way": way, "by": key, "batch": batch, "tokens": count}
            try:
                seconds = measure(net, batch, count, options)
                row |= {"seconds": round(seconds, 3), "tokens a second": round(batch * count / seconds, 1)}
            except (RuntimeError, torch.OutOfMemoryError) as error:
                row["error"] = str(error).splitlines()[0][:200]
                torch.cuda.empty_cache()
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
