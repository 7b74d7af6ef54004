#!/usr/bin/env python3
"""Speed of `xlstm-eval serve` beside `xlstm-eval perplexity`, on one machine, in turn.

    LD_LIBRARY_PATH=.libtorch/lib docs/benchmarks/cpu/serve_speed.py PROGRAM RUN SPLIT [--requests 1000] [--batch 16] [--pairs 3]

Requests are shaped like those of lm-evaluation-harness's `local-completions`: lists of ids, `echo`, `logprobs` 1, one token, in batches sorted by
length, one connection each. Lengths are lognormal (median 67 tokens), about HellaSwag's and PIQA's. Prints for each pair tokens a second by
the clock, and by the processor time of the program that scores, which other programs on the machine change less.
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import subprocess
import tempfile
import time


def processor_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port, prompts):
    body = json.dumps({"model": "xlstm", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True})
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    assert len(answer["choices"]) == len(prompts), answer
    connection.close()


def served(program, run, requests, batch):
    draw = random.Random(1)
    length = lambda: max(6, min(400, int(draw.lognormvariate(4.2, 0.6))))
    prompts = sorted(([draw.randrange(50000) for _ in range(length())] for _ in range(requests)), key=len, reverse=True)
    server = subprocess.Popen([program, "serve", run, "--device", "cpu", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = int(server.stdout.readline().split(":")[2].split("/")[0])
        ask(port, prompts[:1])
        begin, before = time.monotonic(), processor_seconds(server.pid)
        for first in range(0, requests, batch):
            ask(port, prompts[first : first + batch])
        seconds, processor = time.monotonic() - begin, processor_seconds(server.pid) - before
    finally:
        server.terminate()
        server.wait()
    tokens = sum(map(len, prompts))
    return tokens / seconds, tokens / processor


def evaluated(program, run, split):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out"
        before = os.times()
        subprocess.run([program, "perplexity", run, "--manifest", split, "--device", "cpu", "--first", "40", "--out", out], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = os.times()
        report = json.loads((out / "report.json").read_text())
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return report["effort"]["tokens_per_second"], report["results"]["total"]["tokens"] / processor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("run")
    parser.add_argument("split")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    for pair in range(1, arguments.pairs + 1):
        clock, processor = served(arguments.program, arguments.run, arguments.requests, arguments.batch)
        own_clock, own_processor = evaluated(arguments.program, arguments.run, arguments.split)
        print(f"pair {pair}: serve {clock:.0f} tokens/s, {processor:.0f} a processor second; perplexity {own_clock:.0f}, {own_processor:.0f}; "
              f"shares {clock / own_clock:.2f}, {processor / own_processor:.2f}; load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
