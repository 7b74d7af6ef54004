"""Checks and times the kernels between an mLSTM block's up-projection and its cell on a card.

    python3 check_inner.py check [--raw FILE]
    python3 check_inner.py bench [--raw FILE]     runs of several lengths

Errors are against float64, beside those of PyTorch's operations on bf16 activations and fp32 parameters.
"""

import ctypes
import sys

import torch
from torch.nn import functional

from harness import compile_all, emit, machine, median_milliseconds, script_parser, start_card

P, INT, I64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
POINTERS = ("input conv_weight conv_bias query_weight key_weight value_weight gate_weight gate_bias conv query key value gates "
            "query_gradient key_gradient value_gradient added gate_gradient input_gradient partial").split()
WEIGHTS = POINTERS[1:8]


class Inner(ctypes.Structure):
    """`InnerParameters` of inner.cu."""

    _fields_ = [(n, INT) for n in ("batch", "tokens", "width", "run")] + [("input_stride", I64)] + [(n, P) for n in POINTERS]


class Columns(ctypes.Structure):
    _fields_ = [("rows", INT), ("columns", INT), ("values", P), ("sums", P)]


class Kernels:
    def __init__(self, driver, gates):
        architecture = {(9, 0): "sm_90a"}.get(torch.cuda.get_device_capability(), "sm_80")
        self.driver = driver
        *inner, self.sums = compile_all([*[("inner.cu", {"GATES": g}) for g in gates], ("sums.cu", {})], architecture, 16)
        self.inner = dict(zip(gates, inner))

    def launch(self, cubin, name, grid, threads, parameters):
        function = self.driver.function(cubin, name, 0)
        self.driver.launch(function, grid, threads, 0, parameters, torch.cuda.current_stream().cuda_stream)

    def both(self, a, weights, upstream, runs=(8, 64)):
        """Forward and backward, of `a` [B, T, D] (the first half of a wider tensor)."""
        batch, tokens, width = a.shape
        gates = weights["gate_bias"].numel()
        bf16 = lambda: torch.full((batch, tokens, width), float("nan"), dtype=torch.bfloat16, device="cuda")
        grid = lambda run: -(-batch * -(-tokens // run) // 8)
        columns = (17 + 2 * gates) * width
        made = {n: bf16() for n in ("conv", "query", "key", "value")}
        made["gates"] = torch.full((batch, tokens, gates), float("nan"), device="cuda")
        wide = torch.full((batch, tokens, 2 * width), float("nan"), dtype=torch.bfloat16, device="cuda")
        made["input_gradient"] = wide[..., :width]
        made["partial"] = torch.full((grid(runs[1]), columns), float("nan"), device="cuda")
        sums = torch.empty(columns, device="cuda")
        p = [Inner(batch, tokens, width, run, a.stride(1)) for run in runs]
        for name, tensor in {"input": a, **weights, **upstream, **made}.items():
            for one in p:
                setattr(one, name, tensor.data_ptr())
        total = Columns(grid(runs[1]), columns, made["partial"].data_ptr(), sums.data_ptr())
        cubin = self.inner[gates]

        def forward():
            self.launch(cubin, "conv_projections", (grid(runs[0]), 1, 1), 256, p[0])
            return [made[n] for n in ("conv", "query", "key", "value", "gates")]

        def backward():
            self.launch(cubin, "conv_projections_backward", (-(-width // 64), grid(runs[1]), 1), 128, p[1])
            self.launch(self.sums, "column_sums", (-(-columns // 32), 1, 1), 256, total)
            blocks, gate, conv = sums.split([12 * width, 2 * gates * width, 5 * width])
            conv = conv.view(width, 5)
            return [made["input_gradient"], conv[:, :4], conv[:, 4], *blocks.view(3, width // 4, 4, 4), gate.view(2, gates, width)]

        return forward, backward


def plain(a, conv_weight, conv_bias, query, key, value, gate_weight, gate_bias):
    exact = a.dtype == torch.float64
    like = lambda w: w.to(a.dtype)
    padded = functional.pad(a.transpose(1, 2), (3, 0))
    c = functional.silu(functional.conv1d(padded, like(conv_weight)[:, None], like(conv_bias), groups=a.shape[-1])).transpose(1, 2)
    blocks = lambda x, w: torch.einsum("btni,noi->btno", x.unflatten(-1, (-1, 4)), like(w)).flatten(2)
    wide = (lambda x: x) if exact else (lambda x: x.float())
    gates = wide(c) @ gate_weight[0].T + wide(a) @ gate_weight[1].T + gate_bias
    return c, blocks(c, query), blocks(c, key), blocks(a, value), gates


def draw(batch, tokens, width, gates):
    normal = lambda *shape: torch.randn(*shape, device="cuda")
    half = lambda: normal(batch, tokens, width).bfloat16()
    a = normal(batch, tokens, 2 * width).bfloat16()[..., :width]
    weights = {"conv_weight": normal(width, 4) * 0.5, "conv_bias": normal(width) * 0.5}
    weights |= {f"{n}_weight": normal(width // 4, 4, 4) * 0.5 for n in ("query", "key", "value")}
    weights |= {"gate_weight": normal(2, gates, width) * 0.05, "gate_bias": normal(gates)}
    upstream = {n: half() for n in ("added", "query_gradient", "key_gradient", "value_gradient")}
    upstream["gate_gradient"] = normal(batch, tokens, gates)
    return a, weights, upstream


def reference(a, weights, upstream, exact):
    leaves = [x.detach().to(torch.float64 if exact else x.dtype).requires_grad_() for x in (a, *weights.values())]
    outputs = plain(*leaves)
    gradients = torch.autograd.grad(outputs, leaves[:-1], [g.to(o.dtype) for g, o in zip(upstream.values(), outputs)])
    return [*[o.detach() for o in outputs], *gradients]


def check(driver, raw):
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    failures, kernels = 0, Kernels(driver, [8, 4])
    names = ["c", "q", "k", "v", "gates", "da", "dtaps", "dbias", "dWq", "dWk", "dWv", "dM"]
    for shape in [(2, 130, 384, 8), (3, 1, 64, 8), (1, 67, 2056, 8), (9, 300, 72, 4), (1, 1100, 1536, 8), (5, 64, 8, 4)]:
        for runs in [(8, 64), (4, 32)]:
            a, weights, upstream = draw(*shape)
            forward, backward = kernels.both(a, weights, upstream, runs)
            ours, again = ([t.clone() for t in [*forward(), *backward()]] for _ in range(2))
            exact, theirs = (reference(a, weights, upstream, e) for e in (True, False))
            relative = lambda x, y: ((x.double() - y).norm() / y.norm().clamp_min(1e-30)).item()
            errors = {n: (relative(x, y), relative(z, y)) for n, x, y, z in zip(names, ours, exact, theirs)}
            equal = all(torch.equal(x, y) for x, y in zip(ours, again))
            good = equal and all(x <= max(2 * y, 2**-8) for x, y in errors.values())
            failures += not good
            emit({"case": "x".join(map(str, shape)), "runs": runs, "bit-equal": equal, "passed": good,
                  "errors (ours, PyTorch)": {n: [float(f"{x:.3g}") for x in e] for n, e in errors.items()}}, raw)
    print("FAILED" if failures else "passed")
    return failures


def bench(driver, raw):
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    kernels = Kernels(driver, [8])
    for shape in [(32, 2048, 1536, 8), (13, 2048, 2048, 8), (4, 2048, 4096, 8)]:
        a, weights, upstream = draw(*shape)
        moved = a.numel() * 2 / 1e9
        for runs in [(8, 128), (8, 64), (4, 32)]:
            forward, backward = kernels.both(a, weights, upstream, runs)
            times = median_milliseconds(forward), median_milliseconds(backward)
            emit({"case": "x".join(map(str, shape)), "runs": runs, "forward ms (median, least, most)": times[0],
                  "backward ms": times[1], "TB/s forward, backward": [round(moved * n / t[0], 2) for n, t in zip((5, 6), times)]}, raw)


def main():
    parser = script_parser(__doc__, ["check", "bench"])
    arguments = parser.parse_args()
    torch.manual_seed(5)
    driver = start_card()
    sys.exit(bench(driver, arguments.raw) if arguments.what == "bench" else 1 if check(driver, arguments.raw) else 0)


if __name__ == "__main__":
    main()
