#!/usr/bin/env python3
"""Draws docs/images/speed.svg, the README's chart, from the raw files in docs/benchmarks.

    python3 tools/speed_chart.py [--check]

Each row is how many times faster this project is than the peer in the same run: a dot for one measurement, a bar from the
least to the most where several sizes were measured. `--check` writes nothing and fails where the picture differs from what
the raw files say; `make test-docs` runs it.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RAW = ROOT / "docs" / "benchmarks"
PICTURE = ROOT / "docs" / "images" / "speed.svg"
LEFT, WIDTH, ROW, TOP = 400, 760, 34, 58
TICKS = (1, 2, 5, 10, 20, 50, 100)
BOTH = "forward+backward ms"
FORWARD = "forward ms (median, least, most)"


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (RAW / name).read_text(encoding="utf-8").splitlines() if line.startswith("{")]


def prepare() -> list[float]:
    return [json.loads((RAW / "data/prepare-real.json").read_text())["median"]["times_datatrove"]]


def step(case: str) -> list[float]:
    results = json.loads((RAW / f"cpu/epyc-zen4/models-{case}.json").read_text())["results"]
    return [result["ratio_median"] for result in results]


def mlstm() -> list[float]:
    """By size, the fastest chunk of each side."""
    best: dict[tuple, dict[str, float]] = collections.defaultdict(dict)
    for line in lines("gpu/kernels/mlstm-bench.jsonl"):
        side = {"ours": "ours", "TFLA chunkwise--triton_xl_chunk": "peer"}.get(line.get("kernel", ""))
        if side and BOTH in line:
            size = (line["batch"], line["heads"], line["tokens"], line["head"])
            best[size][side] = min(best[size].get(side, math.inf), line[BOTH][0])
    return [both["peer"] / both["ours"] for both in best.values() if len(both) == 2]


def slstm() -> list[float]:
    """By size, the fastest split of each pass of ours, and the peer's two passes."""
    ours: dict[tuple, dict[str, float]] = collections.defaultdict(lambda: {FORWARD: math.inf, "backward ms": math.inf})
    peer: dict[tuple, float] = {}
    for line in lines("gpu/kernels/slstm-bench.jsonl") + lines("gpu/kernels/slstm-peer.jsonl"):
        size = (line.get("units"), line.get("batch"))
        if line.get("kernel") == "ours" and "backward ms" in line:
            for which in ours[size]:
                ours[size][which] = min(ours[size][which], line[which][0])
        elif "flashrnn" in line.get("kernel", "") and BOTH in line:
            peer[size] = line[BOTH][0]
    return [peer[size] / sum(passes.values()) for size, passes in ours.items() if size in peer]


def rows() -> list[tuple[str, str, list[float]]]:
    return [
        ("prepare: English to shards, 2 CPU cores", "datatrove", prepare()),
        ("training step, d 256, 2 CPU cores", "official package", step("small")),
        ("training step, 125M, 2 CPU cores", "official package", step("125m")),
        ("mLSTM, forward and backward, H200", "TFLA (Triton)", mlstm()),
        ("sLSTM, forward and backward, H200", "flashrnn", slstm()),
    ]


def at(value: float) -> float:
    return LEFT + (WIDTH - LEFT - 40) * math.log(value) / math.log(TICKS[-1])


def said(values: list[float]) -> str:
    low, high = min(values), max(values)
    text = lambda value: f"{value:.0f}" if value >= 20 else f"{value:.1f}"  # noqa: E731
    return f"{text(low)}×" if len(values) == 1 else f"{text(low)} to {text(high)}×"


def picture() -> str:
    data = rows()
    height = TOP + ROW * len(data) + 34
    words = "; ".join(f"{what}: {said(values)} {peer}" for what, peer, values in data)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
           'font-family="system-ui, DejaVu Sans, sans-serif" font-size="13" fill="#1c2227">',
           f"<title>How many times faster than the peer in the same run</title><desc>{words}</desc>",
           f'<rect width="{WIDTH}" height="{height}" fill="#fdfdfb"/>',
           '<text x="14" y="24" font-weight="600">Times faster than the peer in the same run (logarithmic)</text>']
    floor = TOP + ROW * len(data)
    for tick in TICKS:
        out.append(f'<line x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="{TOP - 12}" y2="{floor}" stroke="#d5dadd"/>'
                   f'<text x="{at(tick):.1f}" y="{floor + 18}" text-anchor="middle" fill="#56616b">{tick}×</text>')
    for number, (what, peer, values) in enumerate(data):
        y = TOP + ROW * number
        low, high = at(min(values)), at(max(values))
        out.append(f'<text x="14" y="{y + 8}">{what}</text><text x="14" y="{y + 22}" fill="#56616b" font-size="11">beside {peer}</text>')
        if len(values) == 1:
            out.append(f'<circle cx="{low:.1f}" cy="{y + 8}" r="6" fill="#027caa"/>')
        else:
            out.append(f'<rect x="{low:.1f}" y="{y + 3}" width="{high - low:.1f}" height="10" rx="5" fill="#027caa"/>'
                       f'<line x1="{at(statistics.median(values)):.1f}" x2="{at(statistics.median(values)):.1f}" y1="{y}" y2="{y + 16}" '
                       'stroke="#1c2227" stroke-width="2"/>')
        left = high > at(40)
        out.append(f'<text x="{(low - 12) if left else (high + 12):.1f}" y="{y + 12}" font-weight="600" '
                   f'text-anchor="{"end" if left else "start"}">{said(values)}</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the picture differs")
    text = picture()
    if not parser.parse_args().check:
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(text, encoding="utf-8")
    elif not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != text:
        print(f"{PICTURE.relative_to(ROOT)}: expected what docs/benchmarks says, found something else; "
              "run `python3 tools/speed_chart.py`", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
