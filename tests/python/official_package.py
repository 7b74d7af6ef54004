#!/usr/bin/env python3
"""Parameters go both ways between this project and the official package, and logits stay the same.

    python3 -m venv PEER && PEER/bin/pip install torch==2.11.0 xlstm==2.0.6 dacite safetensors tensorboard
    cargo build --release -p xlstm-trainer --bins --examples
    PEER/bin/python tests/python/official_package.py [RUN]

1. A model made by the official package (both kinds of block, every parameter moved off its first value) is written
   with its configuration, read by ours, and gives the same logits.
2. `xlstm-train export` writes that model again; the official package builds itself from the metadata, loads every
   parameter (strict), and gives the same logits.
3. With RUN, the folder of a finished run: its newest checkpoint goes the same way, and its TensorBoard events are read
   by TensorBoard's own reader and compared with metrics.jsonl.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import dacite
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from xlstm import xLSTMLMModel, xLSTMLMModelConfig

from logits import RELEASE, compare, logits_of_ours

LIMIT = 1e-5

FLAT = {
    "embedding_dim": 64, "num_blocks": 4, "slstm_at": [1], "num_heads": 4, "slstm_num_heads": 4,
    "context_length": 48, "vocab_size": 101, "tie_weights": False, "conv1d_kernel_size": 4,
    "qkv_proj_blocksize": 4, "mlstm_proj_factor": 2.0, "ffn_proj_factor": 1.3, "ffn_act": "gelu",
}


def official_model():
    config = {key: FLAT[key] for key in ("embedding_dim", "num_blocks", "slstm_at", "context_length", "vocab_size")}
    config["mlstm_block"] = {"mlstm": {"num_heads": 4, "conv1d_kernel_size": 4, "qkv_proj_blocksize": 4}}
    slstm = {"backend": "vanilla", "num_heads": 4, "conv1d_kernel_size": 4}
    config["slstm_block"] = {"slstm": slstm, "feedforward": {"proj_factor": 1.3, "act_fn": "gelu"}}
    model = xLSTMLMModel(dacite.from_dict(xLSTMLMModelConfig, config))
    model.reset_parameters()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def logits_of_official(model, inputs):
    with torch.no_grad():
        return model(inputs)


def export(source, folder):
    out = folder / "export.safetensors"
    subprocess.run([RELEASE / "xlstm-train", "export", source, "-o", out], check=True, stderr=subprocess.DEVNULL)
    return out


def official_from_file(path):
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["xlstm_config"])
    model = xLSTMLMModel(dacite.from_dict(xLSTMLMModelConfig, config))
    model.load_state_dict(load_file(path), strict=True)
    return model


def check_events(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    assert found.keys() == expected.keys() and found, (len(found), len(expected))
    worst = max(abs(found[step] - expected[step]) / expected[step] for step in found)
    print("TensorBoard's reader: %d steps, %s, worst %.1e" % (len(found), ", ".join(events.Tags()["scalars"]), worst))
    assert worst < 1e-6


def main():
    torch.manual_seed(1)
    folder = Path(tempfile.mkdtemp())
    model = official_model()
    path = folder / "official.safetensors"
    save_file({name: part.contiguous() for name, part in model.state_dict().items()}, path,
              {"config": json.dumps(FLAT)})
    inputs = torch.randint(101, (2, 48))
    expected = logits_of_official(model, inputs)
    compare("official file, our logits against the official package's", logits_of_ours(path, inputs, folder), expected, LIMIT)
    back = official_from_file(export(path, folder))
    compare("our export, official logits against those before", logits_of_official(back, inputs), expected, LIMIT)
    if len(sys.argv) > 1:
        run = Path(sys.argv[1])
        exported = export(run, folder)
        model = official_from_file(exported)
        inputs = torch.randint(model.config.vocab_size, (1, 64))
        expected = logits_of_official(model, inputs)
        compare("our run's export, our logits against the official package's",
                logits_of_ours(exported, inputs, folder), expected, LIMIT)
        check_events(run)


if __name__ == "__main__":
    main()
