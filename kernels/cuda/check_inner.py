"""Checks and times the kernels between an mLSTM block's up-projection and its cell on a GPU.

    python3 check_inner.py check [--raw FILE]
    python3 check_inner.py bench [--raw FILE]     runs of several lengths

Errors are against float64, beside those of PyTorch's operations on bf16 activations and fp32 parameters.
"""

import ctypes
import sys

import torch
from torch.nn import functional

from harness import compile_all, emit, machine, median_milliseconds, script_parser, start_gpu

P, INT, I64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
POINTERS = ("input conv_weight conv_bias query_weight key_weight value_weight gate_weight gate_bias conv query key value gates "
            "query_gradient key_gradient value_gradient added gate_gradient input_gradient partial resets window window_gradient").split()
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
        wanted = [(g, boundaries) for g in gates for boundaries in (0, 1)]
        jobs = [("inner.cu", {"GATES": g, "BOUNDARIES": boundaries}) for g, boundaries in wanted]
        *inner, self.sums = compile_all([*jobs, ("sums.cu", {})], architecture, 16)
        self.inner = dict(zip(wanted, inner))

    def launch(self, cubin, name, grid, threads, parameters):
        function = self.driver.function(cubin, name, 0)
        self.driver.launch(function, grid, threads, 0, parameters, torch.cuda.current_stream().cuda_stream)

    def both(self, a, weights, upstream, runs=(8, 64), resets=None, window=None):
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
        past = {} if resets is None else {"resets": resets, "window": window, "window_gradient": torch.empty_like(window)}
        for name, tensor in {"input": a, **weights, **upstream, **made, **past}.items():
            for one in p:
                setattr(one, name, tensor.data_ptr())
        total = Columns(grid(runs[1]), columns, made["partial"].data_ptr(), sums.data_ptr())
        cubin = self.inner[(gates, int(resets is not None))]

        def forward():
            self.launch(cubin, "conv_projections", (grid(runs[0]), 1, 1), 256, p[0])
            return [made[n] for n in ("conv", "query", "key", "value", "gates")]

        def backward():
            self.launch(cubin, "conv_projections_backward", (-(-width // 64), grid(runs[1]), 1), 128, p[1])
            self.launch(self.sums, "column_sums", (-(-columns // 32), 1, 1), 1024, total)
            blocks, gate, conv = sums.split([12 * width, 2 * gates * width, 5 * width])
            conv = conv.view(width, 5)
            own = [past["window_gradient"]] if past else []
            return [made["input_gradient"], *own, conv[:, :4], conv[:, 4], *blocks.view(3, width // 4, 4, 4), gate.view(2, gates, width)]

        return forward, backward


def convolved(a, weight, bias, resets, window):
    """The convolution, each sequence and document by itself, the first after what the window holds."""
    rows = []
    for row in range(a.shape[0]):
        starts = sorted({0, *torch.nonzero(resets[row]).flatten().tolist()}) if resets is not None else [0]
        parts = []
        for start, end in zip(starts, [*starts[1:], a.shape[1]]):
            before = torch.zeros_like(a[row, :1]).expand(3, -1)
            if resets is not None and start == 0 and not resets[row, 0]:
                before = window[row]
            padded = torch.cat([before, a[row, start:end]]).T[None]
            parts.append(functional.conv1d(padded, weight[:, None], bias, groups=a.shape[-1])[0].T)
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def plain(a, conv_weight, conv_bias, query, key, value, gate_weight, gate_bias, window=None, resets=None):
    exact = a.dtype == torch.float64
    like = lambda w: w.to(a.dtype)
    c = functional.silu(convolved(a, like(conv_weight), like(conv_bias), resets, window))
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


def reference(a, weights, upstream, exact, resets, window):
    to = lambda x: x.detach().to(torch.float64 if exact else x.dtype).requires_grad_()
    leaves, own = [to(x) for x in (a, *weights.values())], [] if window is None else [to(window)]
    outputs = plain(*leaves, *own, resets=resets)
    wanted = [leaves[0], *own, *leaves[1:-1]]
    upstream = [g.to(o.dtype) for g, o in zip(upstream.values(), outputs)]
    gradients = torch.autograd.grad(outputs, wanted, upstream, allow_unused=True)
    gradients = [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, wanted)]
    return [*[o.detach() for o in outputs], *gradients]


def check(driver, raw):
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    failures, kernels = 0, Kernels(driver, [8, 4])
    names = ["c", "q", "k", "v", "gates", "da", "dtaps", "dbias", "dWq", "dWk", "dWv", "dM"]
    shapes = [(2, 130, 384, 8), (3, 1, 64, 8), (1, 67, 2056, 8), (9, 300, 72, 4), (1, 1100, 1536, 8), (5, 64, 8, 4)]
    for shape, share in [(shape, share) for shape in shapes for share in (None, 0, 0.02, 0.3, 1)]:
        for runs in [(8, 64), (4, 32)]:
            a, weights, upstream = draw(*shape)
            resets = window = None
            own = list(names)
            if share is not None:
                resets = torch.rand(*shape[:2], device="cuda") < share
                window = torch.randn(shape[0], 3, shape[2], device="cuda").bfloat16()
                own.insert(6, "dwindow")
            forward, backward = kernels.both(a, weights, upstream, runs, resets, window)
            ours, again = ([t.clone() for t in [*forward(), *backward()]] for _ in range(2))
            exact, theirs = (reference(a, weights, upstream, e, resets, window) for e in (True, False))
            relative = lambda x, y: ((x.double() - y).norm() / y.norm().clamp_min(1e-30)).item()
            errors = {n: (relative(x, y), relative(z, y)) for n, x, y, z in zip(own, ours, exact, theirs)}
            equal = all(torch.equal(x, y) for x, y in zip(ours, again))
            good = equal and all(x <= max(2 * y, 2**-8) for x, y in errors.values())
            failures += not good
            emit({"case": "x".join(map(str, shape)), "share of tokens that begin anew": share, "runs": runs, "bit-equal": equal, "passed": good,
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
            resets, window = torch.rand(*shape[:2], device="cuda") < 1 / 500, torch.zeros(shape[0], 3, shape[2], device="cuda").bfloat16()
            past = [median_milliseconds(pass_) for pass_ in kernels.both(a, weights, upstream, runs, resets, window)]
            forward, backward = kernels.both(a, weights, upstream, runs)
            times = median_milliseconds(forward), median_milliseconds(backward)
            emit({"case": "x".join(map(str, shape)), "runs": runs, "forward ms (median, least, most)": times[0],
                  "backward ms": times[1], "forward, backward ms with resets": past, "TB/s forward, backward": [round(moved * n / t[0], 2) for n, t in zip((5, 6), times)]}, raw)


def main():
    parser = script_parser(__doc__, ["check", "bench"])
    arguments = parser.parse_args()
    torch.manual_seed(5)
    driver = start_gpu()
    sys.exit(bench(driver, arguments.raw) if arguments.what == "bench" else 1 if check(driver, arguments.raw) else 0)


if __name__ == "__main__":
    main()
