#!/usr/bin/env python3
"""Models go both ways between this project and Hugging Face transformers, and logits stay the same.

    python3 -m venv PEER && PEER/bin/pip install torch==2.11.0 transformers==5.24.0 safetensors
    cargo build --release -p xlstm-trainer --bins --examples
    PEER/bin/python tests/python/transformers_package.py [RUN]

1. Fresh random models of each architecture, tied and untied, are saved by transformers and read by `xlstm-train import`: ours
   gives the same logits.
2. `xlstm-train export --format transformers` writes them again. `AutoModelForCausalLM.from_pretrained` opens the folder with no
   parameter missing, left over or of another shape, gives the same logits, in a batch and token by token, and every
   parameter is the same to the bit.
3. With RUN, the folder of a finished run of one of these architectures: its newest checkpoint goes the same way.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig, RwkvConfig

from logits import RELEASE, compare, logits_of_ours
from transformers_golden import CONFIGURATIONS, logits_of, random_model

LIMIT = 2e-5

MODELS = dict(CONFIGURATIONS) | {
    "llama, defaults, tied": LlamaConfig(vocab_size=50304, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                         num_attention_heads=2, tie_word_embeddings=True),
    "gpt2, erf GELU, 4d": GPT2Config(vocab_size=50304, n_embd=16, n_layer=3, n_head=2, n_positions=64, activation_function="gelu"),
    "mamba, untied": MambaConfig(vocab_size=97, hidden_size=40, state_size=16, num_hidden_layers=3, tie_word_embeddings=False),
    "rwkv4, tied": RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, tie_word_embeddings=True),
    # From six blocks on, transformers halves the residual unless it is told not to.
    "rwkv4, eight blocks": RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=8, rescale_every=0),
}


def program(*arguments):
    done = subprocess.run([RELEASE / "xlstm-train", *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"`xlstm-train {' '.join(map(str, arguments))}` ended with {done.returncode}: {done.stderr}")


def open_folder(folder):
    """The model in a folder, and whether every parameter found its place."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    wrong = {key: names for key, names in report.items() if names}
    if wrong or model.dtype != torch.float32:
        sys.exit(f"{folder}: {wrong}, {model.dtype}")
    return model.eval()


def logits_by_token(model, inputs):
    """Logits with the state carried from token to token."""
    states, logits = {}, []
    name = "state" if model.config.model_type == "rwkv" else "cache"
    with torch.no_grad():
        for token in inputs.split(1, dim=1):
            output = model(token, use_cache=True, **states)
            states = {name: output[name]}
            logits.append(output.logits)
    return torch.cat(logits, dim=1)


def both_ways(name, config, seed, folder):
    model = random_model(config, seed)
    model.save_pretrained(folder / "theirs")
    inputs = torch.randint(config.vocab_size, (2, 19))
    expected = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    logits = logits_of(model, inputs)
    program("import", folder / "theirs", "-o", folder / "ours.safetensors")
    compare(f"{name}: theirs read by ours", logits_of_ours(folder / "ours.safetensors", inputs, folder), logits, LIMIT)
    program("export", folder / "ours.safetensors", "--format", "transformers", "-o", folder / "back")
    back = open_folder(folder / "back")
    for key, tensor in back.state_dict().items():
        if not tensor.equal(expected[key]):
            sys.exit(f"{name}: {key} is not what it was")
    compare(f"{name}: ours read by theirs", logits_of(back, inputs), logits, LIMIT)
    # One sequence: with a state, transformers' RWKV-4 mixes the sequences of a batch.
    compare(f"{name}: the same token by token", logits_by_token(back, inputs[:1]), logits[:1], LIMIT)


def main():
    folder = Path(tempfile.mkdtemp())
    for seed, (name, config) in enumerate(MODELS.items()):
        place = folder / str(seed)
        place.mkdir()
        both_ways(name, config, 100 + seed, place)
    if len(sys.argv) > 1:
        run = Path(sys.argv[1])
        program("export", run, "-o", folder / "run.safetensors")
        program("export", run, "--format", "transformers", "-o", folder / "run")
        model = open_folder(folder / "run")
        inputs = torch.randint(model.config.vocab_size, (1, 64))
        found = logits_of_ours(folder / "run.safetensors", inputs, folder)
        compare(f"{run.name}: our run's export, {model.config.model_type}", found, logits_of(model, inputs), LIMIT)


if __name__ == "__main__":
    main()
