#!/usr/bin/env python3
"""Runs the real programs over altered files of every kind, and watches how each run ends.

    python tests/python/hostile_programs.py BINARIES [COUNT] [SEED] [KIND ...]

BINARIES is the folder of `xlstm-data`, `xlstm-train` and `xlstm-eval` (`hubs`, `parts` and `sources` need the first alone). COUNT
files of each kind are altered; each is drawn by its own number, so that FROM-TO instead of a count runs a part of them: a long run
can be divided, and one that was stopped goes on. A run must end with exit code 0 or 1, within 30 seconds, with at most 1 GiB of
memory, with a message where the code is 1, and without a panic or a trace of C++. What does not is printed and kept, and this
script ends with code 1. The scratch folder goes where TMPDIR says: commands wait for the disk (fsync), so a folder in memory is faster.
"""

import functools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
SIGNS = ("panicked at", "frame #", "Exception raised from", "terminate called", "fault of the program")
WORDS = ["0", "-1", "1e308", "-0.0", "9007199254740993", "18446744073709551615", "1e18", "null", "true", '""', "[]", "{}",
         "inf", "nan", '"\\u0000"', '"../../x"', "0.5", "4294967296", "1000000000", "2", "16777216", "65536"]

RECIPE = """
[model]
embedding_dim = 8
blocks = 2
slstm_at = [1]
[model.mlstm]
heads = 2
[model.slstm]
heads = 2
[training]
context_length = 128
tokens_per_step = 2048
steps = 2
precision = "float32"
[schedule]
warmup_steps = 1
[checkpoint]
every_steps = 1
[validation]
every_steps = 1
"""


def altered(sound: bytes, draw: random.Random) -> bytes:
    """Bytes replaced, cut out, doubled or cut off; numbers become other numbers, in binary and in text."""
    data = bytearray(sound)
    for _ in range(draw.randint(1, 3)):
        if not data:
            break
        size = len(data)
        at = draw.choice([draw.randrange(min(size, 900)), size - 1 - draw.randrange(min(size, 1200)), draw.randrange(size)])
        kind = draw.randrange(12)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + draw.choice([1, 4, 8, 64])]
        elif kind == 2:
            data[at:at] = data[at : at + draw.randint(1, 64)]
        elif kind == 3:
            data[at : at + 8] = b"\xff" * len(data[at : at + 8])
        elif kind in (4, 5):
            width = draw.choice([4, 8])
            at -= at % width
            old = int.from_bytes(data[at : at + width], "little")
            new = draw.choice([0, 1, old + 1, old - 1, old * 2, 8, 1 << 31, (1 << 63) - 1, -1, draw.getrandbits(63)])
            data[at : at + width] = (new % (1 << (8 * width))).to_bytes(width, "little")
        elif kind in (6, 7, 8, 9):
            inside = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-+_\""
            start = end = at
            while start > 0 and data[start - 1] in inside:
                start -= 1
            while end < size and data[end] in inside:
                end += 1
            if 0 < end - start < 100:
                data[start:end] = draw.choice(WORDS).encode()
        else:
            data[at] = draw.randrange(256)
    return bytes(data)


class Programs:
    """Runs programs, and counts how they end."""

    def __init__(self, binaries: Path, work: Path):
        self.binaries, self.work = binaries, work
        self.faults, self.ends, self.slowest, self.largest = 0, Counter(), 0.0, 0

    def __str__(self) -> str:
        ends = [f"{times} {kind} ended with exit code {code}" for (kind, code), times in sorted(self.ends.items())]
        return "; ".join([*ends, f"{self.faults} faults; the slowest run took {self.slowest:.1f} s, the largest {self.largest} MiB"])

    def run(self, kind: str, arguments: list, files: list, environment: dict | None = None) -> None:
        said = tempfile.TemporaryFile()
        begin = time.time()
        process = subprocess.Popen(
            [self.binaries / arguments[0], *arguments[1:]], stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=self.work,
            env={**os.environ, "NO_COLOR": "1", **(environment or {})},
        )
        timer = threading.Timer(35, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds, memory = time.time() - begin, usage.ru_maxrss // 1024
        said.seek(0)
        text = said.read().decode(errors="replace")
        self.slowest, self.largest = max(self.slowest, seconds), max(self.largest, memory)
        self.ends[kind, process.returncode] += 1
        wrong = []
        if process.returncode not in (0, 1):
            wrong.append(f"exit code {process.returncode}")
        wrong += [f"says `{sign}`" for sign in SIGNS if sign in text]
        if process.returncode == 1 and not text.strip():
            wrong.append("no message")
        if seconds > 30:
            wrong.append(f"{seconds:.0f} s")
        if memory > 1024:
            wrong.append(f"{memory} MiB")
        if wrong:
            self.faults += 1
            kept = Path(tempfile.gettempdir()) / f"hostile-{kind}-{self.faults}"
            kept.mkdir(exist_ok=True)
            for file in files:
                shutil.copy(file, kept)
            print(f"{kind}: {', '.join(wrong)}: {' '.join(map(str, arguments))} (kept in {kept})\n  {text[-700:]}", flush=True)


def prepare(programs: Programs, kinds: list) -> None:
    """Sound files, as far as `kinds` need them."""
    work, binaries = programs.work, programs.binaries
    (work / "in").mkdir()
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"Document {number} of file {name}, " * 9, "id": f"{name}{number}", "set": "s"}) for number in range(20)]
        (work / "in" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (work / "recipe.toml").write_text(RECIPE)

    def must(*arguments) -> None:
        subprocess.run([binaries / arguments[0], *arguments[1:]], cwd=work, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    fields = ["--id-field", "id", "--set-field", "set"]
    must("xlstm-data", "prepare", "local", "in", *fields, "--out", "data")
    must("xlstm-data", "prepare", "local", "in", *fields, "--out", "tasks", "--task", "1/2")
    must("xlstm-data", "prepare", "local", "in", *fields, "--out", "tasks", "--task", "2/2")
    if not set(kinds) - {"hubs", "parts", "sources"}:
        return
    must("xlstm-train", "--manifest", "data/train", "--validation", "data/train", "--recipe", "recipe.toml", "--out", "run", "--device", "cpu")
    must("xlstm-eval", "perplexity", "run", "--manifest", "data/train", "--out", "evaluation", "--device", "cpu")


def seal(split: Path, name: str) -> None:
    """Writes a file's digest and size into the manifest."""
    import hashlib

    manifest = json.loads((split / "manifest.json").read_text())
    content = (split / name).read_bytes()
    for shard in manifest["shards"]:
        for file in (shard["file"], shard["companion"]):
            if file["path"] == name:
                file["sha256"], file["size"] = hashlib.sha256(content).hexdigest(), len(content)
    (split / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False) + "\n")


def with_altered(path: Path, draw: random.Random, body) -> None:
    """Alters a file for the time of `body`. It is written anew: one that is mapped must not change."""
    sound = path.read_bytes()
    path.unlink()
    path.write_bytes(altered(sound, draw))
    try:
        body()
    finally:
        path.unlink()
        path.write_bytes(sound)


def splits(programs: Programs, draw: random.Random, number: int) -> None:
    split = programs.work / "data/train"
    name = draw.choice(["shard-00000.arrow", "spans-00000.arrow", "manifest.json", "manifest-sha256.txt"])
    manifest = (split / "manifest.json").read_bytes()
    commands = [
        ["xlstm-data", "audit", "data/train"],
        ["xlstm-data", "audit", "data/train", "--deep", "all", "--json"],
        ["xlstm-data", "trace", "data/train", "--row", "0", "--token", "70"],
        ["xlstm-data", "overlap", "data/train", "data/train"],
        ["xlstm-data", "export", "data/train", "--to", draw.choice(["parquet", "arrow-stream"]), "--as", draw.choice(["rows", "documents"]), "--out", "export"],
        ["xlstm-data", "diff", "data/train", "data/train"],
        ["xlstm-train", "--manifest", "data/train", "--recipe", "recipe.toml", "--out", "other", "--device", "cpu", "--set", "training.steps=1"],
        ["xlstm-eval", "perplexity", "run", "--manifest", "data/train", "--out", "e", "--device", "cpu"],
    ]

    def body() -> None:
        if name.endswith(".arrow"):
            seal(split, name)
        # The last two take most of the time.
        command = commands[number % 8] if number % 240 < 8 else commands[number % 6]
        programs.run("splits", command, [split / name, split / "manifest.json"])
        for folder in ("export", "other", "e"):
            shutil.rmtree(programs.work / folder, ignore_errors=True)

    with_altered(split / name, draw, body)
    (split / "manifest.json").write_bytes(manifest)


def parts(programs: Programs, draw: random.Random, number: int) -> None:
    folders = sorted((programs.work / "tasks/parts").glob("*/train"))
    split = folders[0]
    name = draw.choice(["shard-00000.arrow", "spans-00000.arrow", "manifest.json"])
    manifest = (split / "manifest.json").read_bytes()

    def body() -> None:
        if name.endswith(".arrow"):
            seal(split, name)
        programs.run("parts", ["xlstm-data", "merge", *folders, "--out", "merged"], [split / name])
        shutil.rmtree(programs.work / "merged", ignore_errors=True)

    with_altered(split / name, draw, body)
    (split / "manifest.json").write_bytes(manifest)


def checkpoints(programs: Programs, draw: random.Random, number: int) -> None:
    work = programs.work
    file = work / "model.safetensors"
    sound = next((work / "run/checkpoints").glob("*/model.safetensors")).read_bytes()
    length = 8 + int.from_bytes(sound[:8], "little")
    head = altered(sound[:length], draw)
    if draw.random() < 0.7 and len(head) > 8:
        # The length says what it is now, so that the description is read at all.
        head = (len(head) - 8).to_bytes(8, "little") + head[8:]
    file.write_bytes(head + sound[length:])
    command = draw.choice([
        ["xlstm-train", "sample", file, "--prompt", "a", "--tokens", "2", "--device", "cpu"],
        ["xlstm-eval", "perplexity", file, "--manifest", "data/train", "--out", "e", "--device", "cpu"],
        ["xlstm-train", "export", file, "--output", "exported.safetensors"],
    ])
    programs.run("checkpoints", command, [file])
    shutil.rmtree(work / "e", ignore_errors=True)
    (work / "exported.safetensors").unlink(missing_ok=True)


def runs(programs: Programs, draw: random.Random, number: int) -> None:
    run = programs.work / "run"
    step = draw.choice(sorted(path.name for path in (run / "checkpoints").iterdir()))
    name = draw.choice(["run.json", "recipe.toml", "metrics.jsonl", f"checkpoints/{step}/state.json", f"checkpoints/{step}/optimizer.safetensors"])
    commands = [
        ["xlstm-train", "chain", "run"],
        ["xlstm-train", "plot", "run", "-o", "loss.svg"],
        ["xlstm-eval", "verify", "run"],
        ["xlstm-eval", "report", "run", "--out", "page"],
        ["xlstm-data", "trace", "--run", "run", "--step", "1"],
        ["xlstm-train", "sample", "run", "--prompt", "a", "--tokens", "1", "--device", "cpu"],
        ["xlstm-train", "--resume", "--out", "again", "--device", "cpu", "--set", "logging.every_steps=1"],
    ]

    def body() -> None:
        command = commands[number % len(commands)]
        if "again" in command:
            shutil.copytree(run, programs.work / "again")
        programs.run("runs", command, [run / name])
        shutil.rmtree(programs.work / "again", ignore_errors=True)
        shutil.rmtree(programs.work / "page", ignore_errors=True)

    with_altered(run / name, draw, body)


def reports(programs: Programs, draw: random.Random, number: int) -> None:
    files = sorted(path for path in (programs.work / "evaluation").rglob("*") if path.is_file() and path.suffix in (".json", ".csv", ".jsonl"))
    file = draw.choice(files)
    commands = [["xlstm-eval", "verify", "evaluation"], ["xlstm-eval", "report", "evaluation", "--out", "page"]]
    with_altered(file, draw, lambda: programs.run("reports", commands[number % 2], [file]))
    shutil.rmtree(programs.work / "page", ignore_errors=True)


def recipes(programs: Programs, draw: random.Random, number: int) -> None:
    file = programs.work / "recipe.toml"
    command = ["xlstm-train", "--manifest", "data/train", "--recipe", "recipe.toml", "--out", "other", "--device", "cpu", "--dry-run"]
    with_altered(file, draw, lambda: programs.run("recipes", command, [file]))


def sources(programs: Programs, draw: random.Random, number: int) -> None:
    import gzip

    lines = (programs.work / "in/a.jsonl").read_bytes()
    name, sound = draw.choice([("x.jsonl", lines), ("x.txt", lines), ("x.jsonl.gz", gzip.compress(lines)), *SOURCES])
    file = programs.work / name
    file.write_bytes(altered(sound, draw))
    programs.run("sources", ["xlstm-data", "prepare", "local", name, "--id-field", "id", "--set-field", "set", "--out", "made"], [file])
    shutil.rmtree(programs.work / "made", ignore_errors=True)
    file.unlink()


SOURCES: list = []


class Answer(BaseHTTPRequestHandler):
    body: bytes = b""

    def do_GET(self) -> None:
        try:
            self.wfile.write(Answer.body)
        except OSError:
            pass
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass


@functools.cache
def hub_port() -> int:
    """One server for all answers: to stop one takes half a second, more than the run that it serves."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def hubs(programs: Programs, draw: random.Random, number: int) -> None:
    sha = "2d0accdd58c5d5511943ca1f5ff0e3eb5e293543"
    oid = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    entry = {"type": "file", "path": "train/chunk1/example_train_0.jsonl.zst", "size": 5, "oid": sha, "lfs": {"oid": oid, "size": 5, "pointerSize": 134}}
    body = draw.choice([json.dumps([entry]), json.dumps({"sha": sha, "gated": False, "cardData": {"license": "mit"}}), "hello"])
    head = draw.choice(["200 OK", "200 OK\r\nLink: </api/x>; rel=\"next\"", "403 Forbidden\r\nX-Error-Message: Bearer hf_thisIsTheToken12345", "206 Partial Content\r\nContent-Range: bytes 0-4/5", "302 Found\r\nLocation: /y"])
    Answer.body = altered(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode(), draw)
    kept = programs.work / "answer"
    kept.write_bytes(Answer.body)
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub_port()}", "HF_TOKEN": "hf_thisIsTheToken12345", "HF_HOME": str(programs.work / "hf"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "1", "XLSTM_HUB_RETRY_DELAY": "0", "XDG_CACHE_HOME": str(programs.work / "cache"),
    }
    programs.run("hubs", ["xlstm-data", "prepare", "slimpajama", "--max-tokens", "1000", "--out", "made"], [kept], environment)
    shutil.rmtree(programs.work / "made", ignore_errors=True)
    shutil.rmtree(programs.work / "cache", ignore_errors=True)


KINDS = {kind.__name__: kind for kind in (splits, parts, checkpoints, runs, reports, recipes, sources, hubs)}


def main() -> int:
    binaries = Path(sys.argv[1]).resolve()
    begin, _, end = (sys.argv[2] if len(sys.argv) > 2 else "100").rpartition("-")
    numbers = range(int(begin or 0), int(end))
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    kinds = sys.argv[4:] or list(KINDS)
    files = Path(__file__).parent.parent / "files"
    SOURCES.extend(("x" + "".join(path.suffixes), path.read_bytes()) for path in sorted(files.iterdir()))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(binaries, Path(folder))
        prepare(programs, kinds)
        for kind in kinds:
            since = said = time.time()
            for number in numbers:
                KINDS[kind](programs, random.Random(f"{seed} {kind} {number}"), number)
                if time.time() - said > 60:
                    said = time.time()
                    print(f"{kind}: numbers {numbers.start} to {number} are done, {said - since:.0f} s: {programs}", file=sys.stderr, flush=True)
        print(programs)
        return 1 if programs.faults else 0


if __name__ == "__main__":
    sys.exit(main())
