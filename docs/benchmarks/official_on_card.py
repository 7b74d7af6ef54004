#!/usr/bin/env python3
"""Training steps of the official package on a card: 125M xLSTM[1:0], context 2048, bf16 autocast over fp32 weights.

    python3 docs/benchmarks/official_on_card.py [--rows 16,8,4] > FILE
    (xlstm 2.0.6, mlstm_kernels 2.0.6 and dacite on PYTHONPATH, PyTorch 2.11; ours in the same run: `bench_training`)

Forward, backward, clipping and fused AdamW on random tokens; the largest number of rows of the list that fits. Two
variants, a JSON line each: the mLSTM cell as released, which is its quadratic form, and with the package's own Triton
kernel (TFLA, chunk 128) put in its place, which the released model does not offer.
"""

import argparse
import json
import time

import dacite
import torch
from xlstm import xLSTMLMModel, xLSTMLMModelConfig

CONTEXT = 2048


def build(chunkwise):
    config = {"vocab_size": 50304, "context_length": CONTEXT, "add_post_blocks_norm": True, "embedding_dim": 768,
              "num_blocks": 24, "slstm_at": [],
              "mlstm_block": {"mlstm": {"num_heads": 4, "conv1d_kernel_size": 4, "qkv_proj_blocksize": 4}}}
    model = xLSTMLMModel(dacite.from_dict(xLSTMLMModelConfig, config))
    model.reset_parameters()
    if chunkwise:
        from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk as kernel

        def backend(queries, keys, values, igate_preact, fgate_preact, lower_triangular_matrix):
            tensors = [part.contiguous() for part in (queries, keys, values)]
            gates = [part.squeeze(-1).contiguous() for part in (igate_preact, fgate_preact)]
            return kernel(*tensors, *gates, chunk_size=128, autocast_kernel_dtype=torch.bfloat16)

        for block in model.xlstm_block_stack.blocks:
            block.xlstm.mlstm_cell.backend_fn = backend
    return model.cuda()


def measure(chunkwise, rows, repeats=5):
    model = build(chunkwise)
    decay, rest = model.get_weight_decay_optim_groups()
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-5, betas=(0.9, 0.95), eps=1e-5, fused=True)
    inputs, targets = (torch.randint(50304, (rows, CONTEXT), device="cuda") for _ in range(2))
    times = []
    for _ in range(2 + repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(inputs)
        loss = torch.nn.functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    rates = sorted(rows * CONTEXT / t for t in times[2:])
    return {"tokens a second": round(rates[repeats // 2]), "least, most": [round(rates[0]), round(rates[-1])],
            "peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 1), "loss": loss.item()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="32,16,8,4")
    arguments = parser.parse_args()
    for chunkwise in (False, True):
        record = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "model": "125M xLSTM[1:0]",
                  "cell": "TFLA, chunk 128" if chunkwise else "as released"}
        for rows in (int(text) for text in arguments.rows.split(",")):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                print(json.dumps({**record, "rows": rows, **measure(chunkwise, rows)}), flush=True)
                break
            except torch.OutOfMemoryError:
                print(json.dumps({**record, "rows": rows, "failed": "out of memory"}), flush=True)


if __name__ == "__main__":
    main()
