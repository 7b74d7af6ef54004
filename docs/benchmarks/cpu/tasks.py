#!/usr/bin/env python3
"""Processor time of a training step of the synthetic tasks' models: 256 sequences of 40 tokens, one thread.

    LD_LIBRARY_PATH=.libtorch/lib docs/benchmarks/cpu/tasks.py > docs/benchmarks/cpu/avx512-shared/tasks.txt

A program's time over 34 steps, less that over 4, by 30; the better of two."""
import resource
import subprocess

PROGRAM = "target/release/examples/bench_model"


def seconds(variant, steps, more):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [PROGRAM, f"tasks-small/{variant}", "40", "--batch", "256", "--threads", "1",
               "--set", "model.vocabulary_size=8", *more]
    subprocess.run(command, input="y\n" * steps, text=True, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


convolution = ["--set", "model.slstm.convolution=4"]
for variant, more in (("0to1", convolution), ("1to0", convolution), ("1to1", convolution), ("lstm", [])):
    step = min((seconds(variant, 34, more) - seconds(variant, 4, more)) / 30 for _ in range(2))
    print(f"{variant:<12} {step:.4f} s a step, {10240 / step:.0f} tokens a second of processor time", flush=True)
