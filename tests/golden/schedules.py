"""Learning rates of PyTorch's schedulers, step by step: writes schedules.json beside this file.

python3 -m venv venv && venv/bin/pip install torch && venv/bin/python tests/golden/schedules.py
"""

import json
import pathlib

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR

PEAK, STEPS = 2e-3, 60


def optimizer():
    return torch.optim.SGD([torch.zeros(1, dtype=torch.float64)], lr=PEAK)


def at(scheduler, epoch):
    """The rate after `epoch` steps of a scheduler, in closed form: no error adds up."""
    scheduler.last_epoch = epoch
    if hasattr(scheduler, "_get_closed_form_lr"):
        return scheduler._get_closed_form_lr()[0]
    return scheduler.get_lr()[0]


def rates(warmup, begin, end, decay):
    """Rates of steps 1 to STEPS; `decay` makes the scheduler between the steps `begin` and `end`."""
    values = []
    for step in range(1, STEPS + 1):
        if step < warmup:
            values.append(at(LambdaLR(optimizer(), lambda epoch: epoch / warmup), step))
        elif decay is None or step < begin:
            values.append(PEAK)
        else:
            values.append(at(decay(optimizer()), min(step, end) - begin))
    return values


def cosine(length, fraction):
    return lambda sgd: CosineAnnealingLR(sgd, T_max=length, eta_min=PEAK * fraction)


def linear(length, fraction):
    return lambda sgd: LinearLR(sgd, start_factor=1.0, end_factor=fraction, total_iters=length)


def case(name, values, *schedule):
    base = [f"training.steps={STEPS}", f"optimizer.learning_rate={PEAK}"]
    return {"name": name, "set": base + [f"schedule.{text}" for text in schedule], "rates": values}


CASES = [
    case("cosine to a tenth", rates(10, 10, 60, cosine(50, 0.1)), "warmup_steps=10"),
    case("cosine to zero", rates(10, 10, 50, cosine(40, 0.0)), "warmup_steps=10", "decay_steps=50", "final_fraction=0"),
    case("linear", rates(10, 10, 60, linear(50, 0.25)), "warmup_steps=10", "shape=linear", "final_fraction=0.25"),
    case("constant", rates(5, 0, 0, None), "warmup_steps=5", "shape=constant"),
    case(
        "warmup-stable-decay",
        rates(10, 40, 60, linear(20, 0.0)),
        "warmup_steps=10",
        "shape=warmup-stable-decay",
        "stable_until=40",
        "final_fraction=0",
    ),
    case(
        "warmup-stable-decay by default",
        rates(0, 54, 60, linear(6, 0.1)),
        "warmup_steps=0",
        "shape=warmup-stable-decay",
    ),
]

if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("schedules.json")
    path.write_text(json.dumps(CASES, indent=1) + "\n")
    print(f"{len(CASES)} schedules by PyTorch {torch.__version__}")
