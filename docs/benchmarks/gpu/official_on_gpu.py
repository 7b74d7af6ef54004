#!/usr/bin/env python3
"""Training steps of the official package on a GPU: 125M xLSTM[1:0], context 2048, bf16 autocast over fp32 weights.

    python3 docs/benchmarks/gpu/official_on_gpu.py [--rows 16,8,4] > FILE
    (xlstm 2.0.6, mlstm_kernels 2.0.6 and dacite on PYTHONPATH, PyTorch 2.11; ours in the same run: `bench_training`)

Forward, backward, clipping and fused AdamW on random tokens; the largest number of rows of the list that fits. Two
variants, a JSON line each: the mLSTM cell as released, which is its quadratic form, and with the package's own Triton
kernel (TFLA, chunk 128) put in its place, which the released model does not offer.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "cpu"))
import official  # noqa: E402
from official import CONTEXT  # noqa: E402

SIZES = {"embedding_dim": 768, "num_blocks": 24, "slstm_at": []}


def build(chunkwise):
    model = official.build(SIZES)
    if chunkwise:
        from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk as kernel

        official.use_kernel(model, kernel, chunk_size=128, autocast_kernel_dtype=torch.bfloat16)
    return model.cuda()


def measure(chunkwise, rows, repeats=5):
    model = build(chunkwise)
    optimizer = official.optimizer(model, fused=True)
    inputs, targets = (torch.randint(official.VOCABULARY, (rows, CONTEXT), device="cuda") for _ in range(2))
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
        record = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "model": "125M xLSTM[1:0]",
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
