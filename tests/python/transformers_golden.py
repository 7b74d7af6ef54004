#!/usr/bin/env python3
"""Small random models of Hugging Face transformers, with what it computes: tests/golden/transformers.

    python3 -m venv PEER && PEER/bin/pip install torch==2.11.0 transformers==5.24.0 safetensors
    PEER/bin/python tests/python/transformers_golden.py [FOLDER]

For each architecture FOLDER/NAME holds config.json and model.safetensors as `save_pretrained` writes them, and
expected.safetensors with `input_ids` (2, 23; int64) and `logits` (2, 23, V; float32). Every parameter is moved off its first
value, and what a configuration decides is off its default. `trainer/tests/transformers.rs` reads them.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig, RwkvConfig

ROOT = Path(__file__).resolve().parent.parent.parent

CONFIGURATIONS = {
    "llama": LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, max_position_embeddings=64),
    "gpt2": GPT2Config(vocab_size=61, n_embd=24, n_inner=40, n_layer=2, n_head=3, n_positions=32,
        bos_token_id=None, eos_token_id=None),
    "mamba": MambaConfig(
        vocab_size=61, hidden_size=24, state_size=6, num_hidden_layers=2, expand=3, layer_norm_epsilon=1e-4),
    "rwkv4": RwkvConfig(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, context_length=64),
}


def random_model(config, seed):
    """A model in float32 whose parameters are all random."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Matrices large enough that attention and gates are far from even.
            parameter.add_((0.3 if parameter.dim() == 2 and not name.endswith("A_log") else 0.1) * torch.randn_like(parameter))
    return model


def logits_of(model, inputs):
    """What the model computes for a batch without padding, in one pass."""
    with torch.no_grad():
        return model(inputs, use_cache=False).logits


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/golden/transformers"
    for seed, (name, config) in enumerate(CONFIGURATIONS.items()):
        model = random_model(config, seed)
        model.save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        inputs = torch.randint(config.vocab_size, (2, 23))
        save_file({"input_ids": inputs, "logits": logits_of(model, inputs)}, folder / name / "expected.safetensors")
        print("%-8s %6d parameters" % (name, sum(parameter.numel() for parameter in model.parameters())))


if __name__ == "__main__":
    main()
