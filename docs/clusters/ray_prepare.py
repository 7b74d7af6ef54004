#!/usr/bin/env python3
"""Prepares a dataset as Ray tasks, then merges: the same bytes as one process.

    ray job submit --working-dir docs/clusters -- python ray_prepare.py --tasks 32 --out /shared/slimpajama -- slimpajama --split train

What follows `--` goes to `xlstm-data prepare`. Every node needs `xlstm-data` on its path and must see the output folder.
Ray starts a task again when its node is lost; the task continues where it was.
"""

import argparse
import os
import subprocess

import ray


@ray.remote(max_retries=8)
def prepare(arguments: list[str], out: str, task: int, tasks: int) -> None:
    threads = str(int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    command = ["xlstm-data", "prepare", *arguments, "--out", out, "--task", f"{task}/{tasks}", "--threads", threads, "--quiet"]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--out", required=True, help="a folder that every node sees")
    parser.add_argument("--cpus", type=int, default=8, help="processors of each task")
    parser.add_argument("prepare", nargs="+", help="arguments of `xlstm-data prepare`")
    arguments = parser.parse_args()
    out = os.path.abspath(arguments.out)
    ray.init(ignore_reinit_error=True)
    numbers = range(1, arguments.tasks + 1)
    shares = [prepare.options(num_cpus=arguments.cpus).remote(arguments.prepare, out, n, arguments.tasks) for n in numbers]
    ray.get(shares)
    subprocess.run(["xlstm-data", "merge", "--out", out], check=True)


if __name__ == "__main__":
    main()
