"""Cross-entropy with a z-loss by PyTorch, with gradients: writes z_loss.json beside this file.

python3 -m venv venv && venv/bin/pip install torch && venv/bin/python tests/golden/z_loss.py
"""

import json
import pathlib

import torch

WEIGHT, TARGETS = 0.05, [1, 2, -100, 10, 0, 3]

torch.manual_seed(5)
hidden = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
output = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
targets = torch.tensor(TARGETS)
logits = hidden @ output.T
cross_entropy = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100)
counted = targets != -100
minimized = cross_entropy + WEIGHT * torch.logsumexp(logits, -1)[counted].square().mean()
minimized.backward()

golden = {
    "weight": WEIGHT,
    "targets": TARGETS,
    "hidden": hidden.detach().flatten().tolist(),
    "output": output.detach().flatten().tolist(),
    "minimized": minimized.item(),
    "cross_entropy": cross_entropy.item(),
    "hidden_gradient": hidden.grad.flatten().tolist(),
    "output_gradient": output.grad.flatten().tolist(),
}
pathlib.Path(__file__).with_name("z_loss.json").write_text(json.dumps(golden, indent=1) + "\n")
