#!/usr/bin/env python3
"""How far the official package is from itself: ten optimizer steps of the golden vectors, computed in other ways.

The golden vectors' ten AdamW steps are float32. Here the official package repeats them from the same parameters on
the same batch, changing only what leaves the mathematics as it is: the number of threads, the order of the batch's
sequences, one unit in the last place of the token embedding, and float64. The table shows the largest relative
difference of losses and gradient norms from the golden ones, and from the float64 run, over the ten steps.

    PEER/bin/python docs/benchmarks/cpu/golden_noise.py tests/golden > docs/benchmarks/cpu/epyc-zen4/golden-noise.txt

(PEER as in models.py.) trainer/tests/golden.rs takes its tolerances from this table.
"""

import json
import sys
from pathlib import Path

import dacite
import torch
from safetensors import safe_open
from xlstm import xLSTMLMModel, xLSTMLMModelConfig


def configuration(flat):
    """The package's own form of the flat configuration in the files."""
    keys = ("embedding_dim", "num_blocks", "context_length", "vocab_size", "slstm_at")
    config = {key: flat[key] for key in keys if key in flat}
    config.update(tie_weights=False, add_post_blocks_norm=True)
    heads, taps = flat.get("num_heads", 4), flat.get("conv1d_kernel_size", 4)
    if len(config["slstm_at"]) < config["num_blocks"]:
        mlstm = {"num_heads": heads, "conv1d_kernel_size": taps, "qkv_proj_blocksize": flat.get("qkv_proj_blocksize", 4)}
        config["mlstm_block"] = {"mlstm": mlstm}
    if config["slstm_at"]:
        slstm = {"backend": "vanilla", "num_heads": flat.get("slstm_num_heads", heads)}
        slstm["conv1d_kernel_size"] = flat.get("slstm_conv1d_kernel_size", taps)
        feedforward = {"proj_factor": flat.get("ffn_proj_factor", 1.3), "act_fn": "gelu"}
        config["slstm_block"] = {"slstm": slstm, "feedforward": feedforward}
    return dacite.from_dict(xLSTMLMModelConfig, config)


def train(tensors, config, threads=1, kind=torch.float32, reverse=False, nudge=False):
    torch.set_num_threads(threads)
    torch.set_default_dtype(kind)
    model = xLSTMLMModel(config).to(kind)
    parameters = {name[6:]: value.to(kind) for name, value in tensors.items() if name.startswith("param.")}
    if nudge:
        name = "token_embedding.weight"
        parameters[name] = torch.nextafter(parameters[name], torch.full_like(parameters[name], torch.inf))
    model.load_state_dict(parameters, strict=False)
    missing = set(dict(model.named_parameters())) - set(parameters)
    assert not missing, missing
    inputs, targets = tensors["inputs"], tensors["targets"]
    if reverse:
        inputs, targets = inputs.flip(0), targets.flip(0)
    decay, rest = model.get_weight_decay_optim_groups()
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-5)
    losses, norms = [], []
    for rate in tensors["train.lrs"].tolist():
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(inputs)
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def worst(found, expected):
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected))


VARIANTS = {
    "1 thread": {},
    "2 threads": {"threads": 2},
    "sequences in reverse order": {"reverse": True},
    "embedding + 1 unit in the last place": {"nudge": True},
    "float64": {"kind": torch.float64},
}


def main():
    print("%-6s %-38s %12s %12s %12s %12s" % ("model", "variant", "loss-golden", "norm-golden", "loss-float64", "norm-float64"))
    for path in sorted(Path(sys.argv[1]).glob("lm_*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            config = configuration(json.loads(file.metadata()["config"]))
        golden = tensors["train.losses"].tolist(), tensors["train.grad_norms"].tolist()
        runs = {name: train(tensors, config, **options) for name, options in VARIANTS.items()}
        exact = runs["float64"]
        for name, run in {"golden": golden, **runs}.items():
            errors = [worst(run[part], other[part]) for other in (golden, exact) for part in (0, 1)]
            print("%-6s %-38s %12.1e %12.1e %12.1e %12.1e" % (path.stem[3:], name, *errors))


if __name__ == "__main__":
    main()
