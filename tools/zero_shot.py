#!/usr/bin/env python3
"""Task files for lm-evaluation-harness from files on disk: the paper's zero-shot tasks without the network.

    lm-eval/bin/python tools/zero_shot.py FOLDER --out TASKS [--task NAME=FILE]... [--context 2048] [--url URL]

FOLDER holds the tasks' files as their authors or the Hugging Face Hub give them (.jsonl, .json or .parquet; .zst and .gz
too): LAMBADA, HellaSwag, PIQA, ARC (easy, challenge), WinoGrande. Each is found by its name and known by its fields; --task
names one that is not found. TASKS gets, for each task,

    local_NAME.yaml   the harness's own task of that name (an absolute `include`), with these rows as its data
    NAME.jsonl        the rows, in the fields that the harness's task reads

so that prompts, choices and metrics are the harness's. Rows that are rendered already (`query`, `choices`, `gold`) get a task
of their own. Prints the command that runs them against `xlstm-eval serve`. A task without a file is said to be missing (exit
code 1 where there is none at all).
"""

import argparse
import gzip
import hashlib
import importlib.util
import io
import json
import pathlib
import re
import shlex
import sys

# For each task: the harness's file, the split that it scores, rows in that split, the paper's metric, names of files.
TASKS = {
    "lambada_openai": ("lambada/lambada_openai.yaml", "test", 5153, "perplexity, acc", r"lambada"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation", 10042, "acc_norm", r"hellaswag"),
    "piqa": ("piqa/piqa.yaml", "validation", 1838, "acc", r"piqa|physicaliqa"),
    "arc_easy": ("arc/arc_easy.yaml", "test", 2376, "acc", r"arc[-_ ]?e(asy)?(?![a-z])"),
    "arc_challenge": ("arc/arc_challenge.yaml", "test", 1172, "acc_norm", r"arc[-_ ]?c(hallenge)?(?![a-z])"),
    "winogrande": ("winogrande/default.yaml", "validation", 1267, "acc", r"winogrande"),
}
SPLITS = {"test": r"test", "validation": r"val(id(ation)?)?|dev", "train": r"train"}
ENDINGS = (".jsonl", ".json", ".parquet", ".jsonl.zst", ".jsonl.gz", ".json.zst", ".json.gz")
RENDERED = """task: local_{name}
dataset_path: json
dataset_kwargs:
  data_files: {{{split}: {file}}}
{split}_split: {split}
output_type: multiple_choice
doc_to_text: query
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata: {metadata}
"""
INCLUDED = """include: {harness}
task: local_{name}
tag: null
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files: {{{split}: {file}}}
training_split: null
validation_split: {validation}
test_split: {test}
metadata: {metadata}
"""


class Problem(Exception):
    """Something that the user can mend."""


def read_bytes(path):
    """The content of a file, unpacked."""
    content = path.read_bytes()
    if path.name.endswith(".gz"):
        return gzip.decompress(content)
    if path.name.endswith(".zst"):
        try:
            import zstandard
        except ImportError as error:
            raise Problem(f"{path}: to read .zst, install `zstandard`, or unpack it first") from error
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content), read_across_frames=True).read()
    return content


def read_rows(path):
    """The records of a file as dictionaries."""
    if path.name.endswith(".parquet"):
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise Problem(f"{path}: to read .parquet, run this with the Python that has lm_eval (it has pyarrow)") from error
        return pyarrow.parquet.read_table(path).to_pylist()
    text = read_bytes(path).decode("utf-8-sig")
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise Problem(f"{path}: expected JSON records, found {error}") from error


def labels_beside(path, count):
    """PIQA's labels, which its authors keep in a file of their own."""
    stem = path.name.split(".")[0]
    for name in (f"{stem}-labels.lst", f"{stem}_labels.lst"):
        labels = path.with_name(name)
        if labels.is_file():
            found = [int(line) for line in labels.read_text().split()]
            if len(found) != count:
                raise Problem(f"{labels}: expected {count} labels, one for each record, found {len(found)}")
            return found
    return None


def arc_row(row):
    """A record of ARC with the Hub's fields: its authors nest the choices below the question."""
    if isinstance(row.get("question"), dict):
        question = row["question"]
        choices = question["choices"]
        labels, texts = [choice["label"] for choice in choices], [choice["text"] for choice in choices]
        return {"id": row.get("id"), "question": question["stem"], "choices": {"text": texts, "label": labels},
                "answerKey": row["answerKey"]}
    return row


# The fields that each of the harness's tasks reads.
FIELDS = {
    "lambada_openai": {"text"},
    "hellaswag": {"activity_label", "ctx_a", "ctx_b", "endings", "label"},
    "piqa": {"goal", "sol1", "sol2", "label"},
    "arc_easy": {"question", "choices", "answerKey"},
    "arc_challenge": {"question", "choices", "answerKey"},
    "winogrande": {"sentence", "option1", "option2", "answer"},
}


def known(name, path, rows):
    """The rows in the harness's fields, and whether they are rendered already."""
    if not rows:
        raise Problem(f"{path}: expected records of {name}, found none")
    if name.startswith("arc"):
        rows = [arc_row(row) for row in rows]
    if name == "piqa" and "label" not in rows[0]:
        labels = labels_beside(path, len(rows))
        rows = rows if labels is None else [row | {"label": label} for row, label in zip(rows, labels)]
    if all({"query", "choices", "gold"} <= row.keys() for row in rows):
        return rows, True
    for number, row in enumerate(rows):
        missing = FIELDS[name] - row.keys()
        if missing:
            raise Problem(f"{path}, record {number}: expected the fields {sorted(FIELDS[name])} of {name} (or query, choices, "
                          f"gold), found {sorted(row)}; name another file with --task {name}=FILE")
        if "label" in FIELDS[name] and str(row["label"]) in ("", "-1"):
            raise Problem(f"{path}, record {number}: expected an answer, found none: a test split without answers cannot be "
                          "scored, take the validation split")
    return [{field: row[field] for field in sorted(FIELDS[name])} for row in rows], False


def split_of(path, folder):
    """The split that a file's name says, from its last part on."""
    for part in reversed(path.relative_to(folder).parts):
        for split, pattern in SPLITS.items():
            if re.search(rf"(?<![a-z])({pattern})(?![a-z])", part.lower()):
                return split
    return None


def find(name, folder):
    """The file of a task: in the split that the harness scores, or else another one that has answers."""
    pattern, wanted = TASKS[name][4], TASKS[name][1]
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name.endswith(ENDINGS)]
    named = [path for path in paths if re.search(rf"(?<![a-z])({pattern})", str(path.relative_to(folder)).lower())]
    by_split = {}
    for path in named:
        by_split.setdefault(split_of(path, folder), []).append(path)
    for split in (wanted, "validation", "test", None):
        found = by_split.get(split, [])
        # The first folder level wins: what lies deeper is a copy in another form.
        depth = min((len(path.parts) for path in found), default=0)
        found = [path for path in found if len(path.parts) == depth]
        if len(found) > 1:
            raise Problem(f"{name}: expected one file, found {', '.join(map(str, found))}; name one with --task {name}=FILE")
        if found:
            return found[0], split or wanted
    return None


def harness_tasks(given):
    """The folder of the harness's own tasks."""
    if given:
        folder = pathlib.Path(given)
    else:
        spec = importlib.util.find_spec("lm_eval")
        if spec is None or not spec.submodule_search_locations:
            raise Problem("lm_eval is not installed for this Python; run this with the one that has it "
                          "(python3 -m venv lm-eval && lm-eval/bin/pip install 'lm_eval[api]==0.4.13')")
        folder = pathlib.Path(spec.submodule_search_locations[0]) / "tasks"
    return folder.resolve()


def quoted(value):
    """A value for YAML: JSON is YAML."""
    return json.dumps(str(value) if isinstance(value, pathlib.Path) else value, ensure_ascii=False)


def write_task(name, path, split, out, harness):
    """Writes a task's rows and file; returns a line about it."""
    source, _, official, metric, _ = TASKS[name]
    rows, rendered = known(name, path, read_rows(path))
    file = out / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    metadata = quoted({"version": 1.0, "source": str(path), "sha256": digest, "split": split})
    if rendered:
        text = RENDERED.format(name=name, split=split, file=quoted(file), metadata=metadata)
    else:
        own = harness / source
        if not own.is_file():
            raise Problem(f"{own}: expected the harness's own task, found none: this was written for lm_eval 0.4.13")
        text = INCLUDED.format(
            harness=quoted(own), name=name, split=split, file=quoted(file), metadata=metadata,
            validation=split if split == "validation" else "null", test=split if split == "test" else "null",
        )
    (out / f"local_{name}.yaml").write_text(text, encoding="utf-8")
    count = f"{len(rows)} rows" if len(rows) == official else f"{len(rows)} rows (the harness's split has {official})"
    other = "" if split == TASKS[name][1] else f" instead of the harness's {TASKS[name][1]}"
    return f"local_{name}: {count}, {split}{other}, paper's metric {metric}, {path}, SHA-256 {digest}"


def choose(arguments, folder):
    """The files to use, by task."""
    given = {}
    for text in arguments.task:
        name, _, file = text.partition("=")
        if name not in TASKS or not file:
            raise Problem(f"--task {text}: expected NAME=FILE with a name of {', '.join(TASKS)}")
        given[name] = pathlib.Path(file).resolve()
        if not given[name].is_file():
            raise Problem(f"--task {text}: no such file")
    found = {}
    for name in TASKS:
        if name in given:
            found[name] = (given[name], split_of(given[name], given[name].parent) or TASKS[name][1])
        elif (own := find(name, folder)) is not None:
            found[name] = own
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the tasks' files are")
    parser.add_argument("--out", required=True, help="folder for the task files")
    parser.add_argument("--task", action="append", default=[], metavar="NAME=FILE", help="a task's file; may be given again")
    parser.add_argument("--context", type=int, default=2048, help="tokens that the model was trained with [default: 2048]")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1/completions", help="what `xlstm-eval serve` printed")
    parser.add_argument("--harness", help="folder of the harness's tasks [default: that of the installed lm_eval]")
    arguments = parser.parse_args()
    folder, out = pathlib.Path(arguments.folder).resolve(), pathlib.Path(arguments.out).resolve()
    if not folder.is_dir():
        raise Problem(f"{folder}: no such folder")
    found = choose(arguments, folder)
    if not found:
        raise Problem(f"{folder}: expected files of {', '.join(TASKS)}, found none; name them with --task NAME=FILE")
    harness = harness_tasks(arguments.harness)
    out.mkdir(parents=True, exist_ok=True)
    for name, (path, split) in found.items():
        print(write_task(name, path, split, out, harness))
    for name in TASKS.keys() - found.keys():
        print(f"local_{name}: MISSING: no file for it below {folder}")
    # The harness takes one token off for generation.
    model = f"base_url={arguments.url},model=xlstm,tokenizer_backend=remote,max_length={arguments.context + 1}"
    tasks = ",".join(f"local_{name}" for name in found)
    command = ["lm_eval", "--model", "local-completions", "--model_args", model, "--batch_size", "16",
               "--include_path", str(out), "--tasks", tasks]
    print("\nHF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 " + shlex.join(command))


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(f"error: {problem}")
