#!/usr/bin/env python3
"""EleutherAI's lm-evaluation-harness scores a checkpoint through `xlstm-eval serve`, on two tasks of local files.

    python3 -m venv /tmp/lm-eval && /tmp/lm-eval/bin/pip install 'lm_eval[api]==0.4.13'
    /tmp/lm-eval/bin/python tests/python/lm_eval_tasks.py RUN [--program target/release/xlstm-eval]

The tasks are a multiple choice (acc, acc_norm), a last word in LAMBADA's manner (acc, perplexity), and the six of the paper
as `tools/zero_shot.py` writes them from files in the forms of their authors and of the Hub, all made here from a few sentences;
nothing is fetched. Each log-likelihood that the harness got is then asked for
again, one prompt by itself and by other means (`echo` without a batch, then summed here), and must agree within 1e-3 nats.
Prints the harness's table, and the largest difference.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

CHOICES = [
    ("To keep water from freezing in a pipe, one", ["wraps it in wool", "leaves it in the snow"], 0),
    ("The opposite of cold is", ["hot", "blue", "seven"], 0),
    ("fn main() {", ["\n    println!(\"hello\");\n}", " elephants and trumpets"], 0),
    ("Licensed under the Apache", ["License, Version 2.0", "pie, with cream"], 0),
    ("impl Default for", ["Config {", "the rain in Spain"], 0),
    ("use std::collections::", ["HashMap;", "sandwich;"], 0),
]
WORDS = [
    "This program is free software: you can redistribute it and/or modify it under the terms of the licence",
    "Returns the number of elements in the vector, also known as its length",
    "The quick brown fox jumps over the lazy dog",
    "If the value is None, the function returns None",
]

CHOICE_TASK = """task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
WORD_TASK = """task: local_last_word
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' '+text.split(' ')[-1]}}}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


PAPER = ["lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"]


def write_paper_tasks(folder):
    """Files as people have them on disk, then the task files that the tool makes of them."""
    raw = folder / "raw"
    raw.mkdir()

    def write(name, rows):
        (raw / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    letters = ["A", "B"]
    write("lambada_test.jsonl", [{"text": text} for text in WORDS])
    write("hellaswag_val.jsonl", [
        {"ind": number, "activity_label": "Reading", "ctx_a": q, "ctx_b": "one", "ctx": q, "label": answer, "split": "val",
         "endings": [*choices[:2], "sits down.", "leaves."]} for number, (q, choices, answer) in enumerate(CHOICES)])
    write("piqa_valid.jsonl", [{"goal": q, "sol1": c[0], "sol2": c[1]} for q, c, _ in CHOICES])
    (raw / "piqa_valid-labels.lst").write_text("".join(f"{answer}\n" for _, _, answer in CHOICES))
    write("ARC-Easy-Test.jsonl", [
        {"id": q, "answerKey": letters[answer], "question": {"stem": q, "choices": [
            {"label": label, "text": text} for label, text in zip(letters, choices)]}} for q, choices, answer in CHOICES])
    write("ai2_arc__ARC-Challenge__test.jsonl", [
        {"id": q, "question": q, "choices": {"text": c[:2], "label": letters}, "answerKey": letters[answer]}
        for q, c, answer in CHOICES])
    write("winogrande_xl_validation.jsonl", [
        {"sentence": "The cup did not fit into the box because the _ was too small.", "option1": "cup", "option2": "box",
         "answer": "2"}])
    tool = pathlib.Path(__file__).parents[2] / "tools" / "zero_shot.py"
    subprocess.run([sys.executable, tool, raw, "--out", folder], check=True, stdout=subprocess.DEVNULL)


def write_tasks(folder):
    rows = [json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in CHOICES]
    (folder / "choices.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in WORDS))
    (folder / "choice.yaml").write_text(CHOICE_TASK.format(file=folder / "choices.jsonl"))
    (folder / "word.yaml").write_text(WORD_TASK.format(file=folder / "words.jsonl"))


def post(base, path, body):
    request = urllib.request.Request(base + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def again(base, context, continuation):
    """The log-likelihood of a continuation, by one request for each of its tokens."""
    ids = lambda text: post(base, "/tokenize", {"prompt": text})["tokens"]
    whole, start = ids(context + continuation), len(ids(context))
    total = 0.0
    for end in range(start, len(whole)):
        # No padding, no batch, one token more each time.
        body = {"prompt": whole[: end + 1], "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 1}
        total += post(base, "/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"][-1]
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--program", default="target/release/xlstm-eval")
    arguments = parser.parse_args()
    server = subprocess.Popen([arguments.program, "serve", arguments.run, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        base = url.removesuffix("/v1/completions")
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_tasks(folder)
            write_paper_tasks(folder)
            tasks = ["local_choice", "local_last_word"] + [f"local_{name}" for name in PAPER]
            command = [
                sys.executable, "-m", "lm_eval", "--model", "local-completions",
                "--model_args", f"base_url={url},model=xlstm,tokenizer_backend=remote,num_concurrent=1,max_length=2049",
                "--include_path", str(folder), "--tasks", ",".join(tasks), "--batch_size", "4",
                "--log_samples", "--output_path", str(folder / "out"),
            ]
            print("$ " + " ".join(["lm_eval"] + command[3:]).replace(str(folder), "TASKS"), flush=True)
            offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=offline)
            print(done.stdout[done.stdout.find("|"):].strip())
            worst, count = 0.0, 0
            for path in sorted((folder / "out").rglob("samples_*.jsonl")):
                for line in path.read_text().splitlines():
                    sample = json.loads(line)
                    for asked, answered in zip(sample["arguments"].values(), sample["filtered_resps"]):
                        given = float(answered[0])
                        worst = max(worst, abs(given - again(base, asked["arg_0"], asked["arg_1"])))
                        count += 1
            print(f"{count} log-likelihoods asked for again; largest difference {worst:.2e} nats")
            sys.exit(0 if count and worst < 1e-3 else 1)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
