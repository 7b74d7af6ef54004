"""Checks and times the kernels between the matrix products on a GPU.

    python3 check_pointwise.py check [--raw FILE]
    python3 check_pointwise.py bench [--raw FILE]     beside PyTorch's own operations, run one by one

Errors are against float64, beside those of PyTorch's operations on bf16 activations and fp32 parameters.
"""

import ctypes
import sys

import torch
from torch.nn import functional

from harness import HERE, compile_all, emit, machine, median_milliseconds, script_parser, start_gpu

P, INT, I64, F32 = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_float


def structure(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


pointers = lambda names: [(n, P) for n in names.split()]
Conv = structure("Conv", ("batch", INT), ("tokens", INT), ("width", INT), ("run", INT), ("input_stride", I64),
                 *pointers("input weight bias output output_gradient added input_gradient partial resets window window_gradient"),
                 ("linear", INT), ("unused", INT))
Norm = structure("Norm", ("heads", INT), ("tokens_per_warp", INT), ("tokens", I64), ("epsilon", F32), ("gate_stride", I64),
                 *pointers("input weight skip branch gate output statistics output_gradient input_gradient "
                           "branch_gradient gate_gradient partial rest inverse_denominator dots"))
Gelu = structure("Gelu", ("rows", I64), ("width", INT), *pointers("projected output output_gradient projected_gradient"))
Columns = structure("Columns", ("rows", INT), ("columns", INT), *pointers("values sums"))
RUN = 64


def fill(kind, tensors, **numbers):
    return kind(**numbers, **{n: t.data_ptr() for n, t in tensors.items() if t is not None})


def poisoned(like, *shape, dtype=None):
    return torch.full(shape or like.shape, float("nan"), dtype=dtype or like.dtype, device="cuda")


class Kernels:
    def __init__(self, driver, heads):
        self.driver = driver
        cubins = compile_all([("pointwise.cu", {"HEAD": head}) for head in heads], architecture(), 16)
        self.cubins = dict(zip(heads, cubins))
        self.sums, = compile_all([("sums.cu", {})], architecture(), 16)

    def launch(self, name, grid, threads, parameters, head=None):
        cubin = self.sums if name == "column_sums" else self.cubins[head or next(iter(self.cubins))]
        function = self.driver.function(cubin, name, 0)
        self.driver.launch(function, grid, threads, 0, parameters, torch.cuda.current_stream().cuda_stream)

    def sum_columns(self, values):
        sums = poisoned(values, values.shape[1])
        parameters = fill(Columns, {"values": values, "sums": sums}, rows=values.shape[0], columns=values.shape[1])
        self.launch("column_sums", (-(-values.shape[1] // 32), 1, 1), 1024, parameters)
        return sums

    def conv(self, x, weight, bias, dy):
        batch, tokens, width = x.shape
        runs, blocks = -(-tokens // RUN), -(-width // 512)
        made = {"output": poisoned(x), "input_gradient": poisoned(x),
                "partial": poisoned(weight, batch * runs, width * 5)}
        p = fill(Conv, {"input": x, "weight": weight, "bias": bias, "output_gradient": dy, **made},
                 batch=batch, tokens=tokens, width=width, run=RUN, input_stride=width)

        def forward():
            self.launch("conv_silu", (blocks, runs, batch), 64, p)
            return [made["output"]]

        def backward():
            self.launch("conv_silu_backward", (blocks, runs, batch), 128, p)
            sums = self.sum_columns(made["partial"]).view(width, 5)
            return [made["input_gradient"], sums[:, :4], sums[:, 4]]

        return forward, backward

    def norm(self, h, weight, skip, branch, gate, dout):
        tokens, heads, head = h.shape
        per_warp = max(1, min(64, tokens * heads // 4096))
        warps = -(-tokens // per_warp // 4) * 4
        made = {"output": poisoned(h), "statistics": poisoned(weight, tokens, heads, 2), "input_gradient": poisoned(h),
                "branch_gradient": poisoned(h), "gate_gradient": poisoned(h),
                "partial": poisoned(weight, warps, 2 * heads * head)}
        if gate is not None:  # as the mLSTM's block asks for them
            made |= {"rest": torch.zeros_like(h, dtype=torch.int8), "dots": poisoned(weight, tokens, heads),
                     "inverse_denominator": torch.ones(tokens, heads, device="cuda")}
        p = fill(Norm, {"input": h, "weight": weight, "skip": skip, "branch": branch, "gate": gate, "output_gradient": dout, **made},
                 heads=heads, tokens_per_warp=per_warp, tokens=tokens, epsilon=1e-5, gate_stride=heads * head)

        def forward():
            self.launch("head_norm_gate", (-(-tokens * heads // 4), 1, 1), 128, p, head)
            return [made["output"]]

        def backward():
            self.launch("head_norm_gate_backward", (warps // 4, heads, 1), 128, p, head)
            sums = self.sum_columns(made["partial"])
            whole = [made["input_gradient"], sums[:heads * head]]
            return whole if gate is None else [*whole, sums[heads * head:], made["branch_gradient"], made["gate_gradient"]]

        return forward, backward

    def gelu(self, projected, dout):
        rows, width = dout.shape
        made = {"output": poisoned(dout), "projected_gradient": poisoned(projected)}
        p = fill(Gelu, {"projected": projected, "output_gradient": dout, **made}, rows=rows, width=width)
        grid = (-(-rows * width // 2048), 1, 1)

        def forward():
            self.launch("gelu_gate", grid, 256, p)
            return [made["output"]]

        def backward():
            self.launch("gelu_gate_backward", grid, 256, p)
            return [made["projected_gradient"]]

        return forward, backward


def architecture():
    capability = torch.cuda.get_device_capability()
    return {(9, 0): "sm_90a"}.get(capability, "sm_%d%d" % capability)


def plain_conv(x, weight, bias):
    width = weight.shape[0]
    padded = functional.pad(x.transpose(1, 2), (3, 0))
    return functional.silu(functional.conv1d(padded, weight[:, None].to(x.dtype), bias.to(x.dtype), groups=width)).transpose(1, 2)


def plain_norm(h, weight, skip=None, branch=None, gate=None):
    tokens, heads, head = h.shape
    normal = functional.layer_norm(h, (head,), eps=1e-5) * (1 + weight.view(heads, head).to(h.dtype))
    if gate is None:
        return normal
    return (normal + skip.view(heads, head).to(h.dtype) * branch) * functional.silu(gate)


def plain_gelu(projected):
    gate, up = projected.chunk(2, -1)
    return functional.gelu(gate) * up


def normal(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device="cuda").to(dtype)


def cases(kernels, sizes):
    """Name, our forward and backward, the plain function, its arguments, the output gradient."""
    for batch, tokens, width in sizes["conv"]:
        x, weight, bias = normal(batch, tokens, width), normal(width, 4, dtype=torch.float32), normal(width, dtype=torch.float32)
        dy = normal(batch, tokens, width)
        yield f"conv_silu {batch}x{tokens}x{width}", *kernels.conv(x, weight, bias, dy), plain_conv, [x, weight, bias], dy
    for tokens, heads, head, gated in sizes["norm"]:
        h, dout = normal(tokens, heads, head) * 3 + 1, normal(tokens, heads, head)
        weight, skip = (normal(heads * head, dtype=torch.float32) * 0.3 for _ in range(2))
        rest = [skip, normal(tokens, heads, head), normal(tokens, heads, head)] if gated else []
        ours = kernels.norm(h, weight, *(rest or [None, None, None]), dout)
        yield f"head_norm{'_gate' * gated} {tokens}x{heads}x{head}", *ours, plain_norm, [h, weight, *rest], dout
    for rows, width in sizes["gelu"]:
        projected, dout = normal(rows, 2 * width) * 2, normal(rows, width)
        yield f"gelu_gate {rows}x{width}", *kernels.gelu(projected, dout), plain_gelu, [projected], dout


def gradients(function, arguments, output_gradient, exact):
    leaves = [x.detach().to(torch.float64 if exact else x.dtype).requires_grad_() for x in arguments]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, output_gradient.to(output.dtype))]


def check(kernels, raw):
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    sizes = {"conv": [(2, 130, 384), (3, 1, 64), (1, 67, 2056)], "gelu": [(33, 256), (5, 1000)],
             "norm": [(130, 4, 384, True), (7, 3, 192, True), (33, 2, 1024, True), (65, 4, 192, False), (1, 1, 64, True)]}
    failures = 0
    for name, forward, backward, function, arguments, dout in cases(kernels, sizes):
        exact, plain = (gradients(function, arguments, dout, e) for e in (True, False))
        runs = [[t.clone() for t in [*forward(), *backward()]] for _ in range(2)]
        relative = lambda a, b: ((a.double().reshape(b.shape) - b).norm() / b.norm().clamp_min(1e-30)).item()
        errors = [(relative(a, b), relative(c, b)) for a, b, c in zip(runs[0], exact, plain)]
        equal = all(torch.equal(a, b) for a, b in zip(*runs))
        # The output alone is rounded once, to 2^-9: that is the least any bf16 result can have.
        good = equal and len(errors) == len(exact) and all(ours <= max(2 * theirs, 2**-8) for ours, theirs in errors)
        failures += not good
        emit({"case": name, "errors (ours, libtorch)": [[float(f"{x:.3g}") for x in e] for e in errors], "bit-equal": equal,
              "passed": good}, raw)
    print("FAILED" if failures else "passed")
    return failures


def bench(kernels, raw):
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    sizes = {"conv": [(32, 2048, 1536)], "norm": [(65536, 4, 384, True), (65536, 4, 512, True), (32768, 4, 1024, True), (65536, 4, 192, False)], "gelu": [(65536, 1024)]}
    passes = {"conv_silu": (2, 3), "head_norm_gate": (4, 7.5), "head_norm": (2, 3), "gelu_gate": (3, 5)}
    for name, forward, backward, function, arguments, dout in cases(kernels, sizes):
        leaves = [x.detach().clone().requires_grad_() for x in arguments]
        plain_both = lambda: torch.autograd.grad(function(*leaves), leaves, dout)
        moved = [dout.numel() * 2 * n / 1e9 for n in passes[name.split()[0]]]
        ours = median_milliseconds(forward), median_milliseconds(backward)
        emit({"case": name, "forward ms (median, least, most)": ours[0], "backward ms": ours[1],
              "TB/s forward, backward": [round(g / t[0], 2) for g, t in zip(moved, ours)],
              "PyTorch forward ms": median_milliseconds(lambda: function(*arguments)),
              "PyTorch forward+backward ms": median_milliseconds(plain_both)}, raw)


def main():
    parser = script_parser(__doc__, ["check", "bench"])
    arguments = parser.parse_args()
    torch.manual_seed(5)
    kernels = Kernels(start_gpu(), [64, 192, 384, 512, 1024])
    if arguments.what == "bench":
        return bench(kernels, arguments.raw)
    return sys.exit(1 if check(kernels, arguments.raw) else 0)


if __name__ == "__main__":
    sys.path.insert(0, HERE)
    main()
