#!/usr/bin/env python3
"""A layer of LSTM with one dense head on a CPU: our product and loop beside libtorch's own LSTM, run in turn.

    cargo build --release -p xlstm-kernels --example bench_cells
    LD_LIBRARY_PATH=.libtorch/lib python3 docs/benchmarks/cpu/lstm.py > docs/benchmarks/cpu/lstm.txt

Seconds of forward and backward pass together: the least and the median of seven, for batch, tokens and units; the ratio is libtorch's to
ours. Two threads.
"""

import json
import statistics
import subprocess

PROGRAM = "target/release/examples/bench_cells"
CELLS = ("lstm", "lstm-library")

for sizes in ((4, 512, 512), (1, 2048, 512), (4, 512, 1024), (16, 256, 128)):
    command = [*map(str, sizes), "--threads", "2"]
    running = [
        subprocess.Popen([PROGRAM, cell, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for cell in CELLS
    ]
    head = [json.loads(process.stdout.readline()) for process in running][0]
    seconds = {cell: [] for cell in CELLS}
    for _ in range(8):
        for cell, process in zip(CELLS, running):
            process.stdin.write("\n")
            process.stdin.flush()
            line = json.loads(process.stdout.readline())
            seconds[cell].append(line["forward"] + line["backward"])
    for process in running:
        process.stdin.close()
        process.wait()
    # The first calls make room and compile.
    ours, theirs = (seconds[cell][1:] for cell in CELLS)
    line = {"batch, tokens, units": sizes, "instruction set": head["instruction_set"], "libtorch": head["libtorch"]}
    line |= {name: [min(values), statistics.median(values)] for name, values in (("ours", ours), ("libtorch's", theirs))}
    line["ratio"] = [round(min(theirs) / min(ours), 2), round(statistics.median(theirs) / statistics.median(ours), 2)]
    print(json.dumps(line), flush=True)
