"""Checks and times the bf16 sLSTM kernels on a GPU of compute capability 9.0, as clusters and as an older GPU runs them.

    python3 check_slstm.py check [--raw FILE]
    python3 check_slstm.py bench [--raw FILE] [--units 192,256,384,512] [--batches 16,64,256]
    python3 check_slstm.py resets [--raw FILE]                what document boundaries and states cost
    python3 check_slstm.py peer --units 256 --batches 16     flashrnn `cuda_fused` (compiles for minutes)

Errors are against float64, beside those of PyTorch's own composition (products in bf16, the rest in float32).
The gradient of R is a matrix product of the gate gradients with the output, by PyTorch; timings include it.
"""

import ctypes
import fcntl
import itertools
import os
import sys
import tempfile

import torch

from harness import HERE, compile_all, emit, machine, median_milliseconds, resources, script_parser, start_gpu

POINTERS = ["input", "recurrent", "output", "gates", "states", "output_gradient", "input_gradient", "resets", "state", "last",
            "messages", "sent"]
# D: (blocks of a group, parts of the sum, clustered) to choose from; the first is the default.
CHOICES = {192: [(3, 1, 1), (6, 1, 1), (6, 2, 1), (3, 1, 0), (6, 1, 0), (6, 2, 0)],
           256: [(4, 1, 1), (8, 1, 1), (8, 2, 1), (4, 1, 0), (8, 1, 0), (8, 2, 0)],
           384: [(6, 2, 1), (12, 2, 1), (12, 1, 1), (6, 2, 0), (12, 1, 0), (12, 2, 0)],
           512: [(16, 2, 1), (16, 2, 0)], 640: [(20, 2, 0)]}
HEADS, TOKENS = 4, 2048


class Parameters(ctypes.Structure):
    """`SlstmParameters` of slstm.cu."""

    _fields_ = [(n, ctypes.c_int) for n in ("batch", "tokens", "heads", "first_group")] + [(n, ctypes.c_void_p) for n in POINTERS]


class Kernels:
    def __init__(self, driver, cubin, units, group, split, clustered, tiles):
        self.driver, self.cubin, self.units, self.group, self.tiles = driver, cubin, units, group, tiles
        self.clustered = clustered
        own, rows = units // group, 16 * tiles
        exchange = lambda row_bytes: (2 * group + 2) * rows * row_bytes + 16 if clustered else group * rows * row_bytes
        self.forward_threads, self.forward_shared = own // 8 * split * 32, exchange(2 * own)
        self.backward_threads = own // 32 * 4 * split * 32
        padding = 4 if units > 512 else 8
        self.backward_shared = exchange(8 * own) + 4 * split * rows * (own + padding) * 4
        self.message_bytes = 2 * group * rows * 8 * own

    def fits(self):
        return self.backward_shared <= 227 * 1024

    def groups(self, batch, heads):
        return heads * -(-batch // (16 * self.tiles))

    def run(self, name, parameters):
        threads, shared = ((self.forward_threads, self.forward_shared) if name == "slstm_forward"
                           else (self.backward_threads, self.backward_shared))
        function = self.driver.function(self.cubin, name, shared)
        stream = torch.cuda.current_stream().cuda_stream
        if self.clustered:
            if self.group > 8:
                self.driver.call("cuFuncSetAttribute", function, 14, 1)  # cluster sizes above the portable 8
            grid = (self.group, parameters.heads, -(-parameters.batch // (16 * self.tiles)))
            return self.driver.launch(function, grid, threads, shared, parameters, stream)
        groups = self.groups(parameters.batch, parameters.heads)
        at_once = torch.cuda.get_device_properties(0).multi_processor_count // self.group
        for first in range(0, groups, at_once):
            parameters.first_group = first
            grid = (self.group, min(at_once, groups - first), 1)
            self.driver.launch_cooperative(function, grid, threads, shared, parameters, stream)


class Layer:
    """inputs [B, T, 4, H, D] and recurrent [H, 4, D, D] in bf16; resets [B, T] and state [4, B, H, D], or None."""

    def __init__(self, kernels, inputs, recurrent, output_gradient, resets=None, state=None):
        batch, tokens, _, heads, units = inputs.shape
        nan = lambda *s, d: torch.full(s, float("nan"), dtype=d, device="cuda")
        groups = kernels.groups(batch, heads)
        self.kernels, self.resets, self.state = kernels, resets, state
        self.tensors = {"input": inputs, "recurrent": recurrent, "output_gradient": output_gradient,
                        "output": nan(batch, tokens, heads, units, d=torch.bfloat16),
                        "gates": nan(batch, tokens, heads, 5, units, d=torch.bfloat16),
                        "states": nan(batch, tokens, heads, 2, units, d=torch.float32),
                        "input_gradient": torch.full_like(inputs, float("nan")), "resets": resets, "state": state,
                        "last": nan(4, batch, heads, units, d=torch.float32),
                        "messages": torch.empty(groups * kernels.message_bytes, dtype=torch.uint8, device="cuda"),
                        "sent": torch.zeros(groups, dtype=torch.int32, device="cuda")}
        self.parameters = Parameters(batch=batch, tokens=tokens, heads=heads)
        for name in POINTERS:
            tensor = self.tensors[name]
            setattr(self.parameters, name, None if tensor is None else tensor.data_ptr())

    def forward(self):
        self.tensors["sent"].zero_()
        self.kernels.run("slstm_forward", self.parameters)

    def backward(self):
        self.tensors["sent"].zero_()
        self.kernels.run("slstm_backward", self.parameters)
        output, gradient = self.tensors["output"], self.tensors["input_gradient"]
        batch, tokens, heads, units = output.shape
        first = torch.zeros_like(output[:, :1]) if self.state is None else self.state[0].to(output.dtype).unsqueeze(1)
        before = torch.cat([first, output[:, :-1]], 1)
        if self.resets is not None:
            before = before * (self.resets == 0).view(batch, tokens, 1, 1)
        before = before.view(-1, heads, units).permute(1, 0, 2)
        rows = gradient.view(-1, 4, heads, units)
        return torch.stack([torch.bmm(rows[:, gate].permute(1, 2, 0), before) for gate in range(4)], 1)


def composition(inputs, recurrent, matrix_type, resets=None, state=None):
    """The recurrence step by step, as the official package states it; returns h of all steps and the last state."""
    kind = torch.float64 if matrix_type == torch.float64 else torch.float32
    batch, tokens, _, heads, units = inputs.shape
    zero = torch.zeros(batch, heads, units, dtype=kind, device="cuda")
    h, c, n, m = [zero] * 4 if state is None else state.to(kind).unbind(0)
    outputs = []
    for t in range(tokens):
        if resets is not None:
            keep = (resets[:, t] == 0).view(batch, 1, 1)
            h, c, n, m = h * keep, c * keep, n * keep, m * keep
        raw = torch.einsum("hgtf,bhf->bght", recurrent.to(matrix_type), h.to(matrix_type)).to(kind) + inputs[:, t].to(kind)
        carried, empty = m + torch.nn.functional.logsigmoid(raw[:, 1]), n == 0
        m = torch.where(empty, raw[:, 0], torch.maximum(raw[:, 0], carried)).detach()
        i, f = torch.exp(raw[:, 0] - m), torch.where(empty, 0, torch.exp((carried - m).clamp_max(0)))
        c, n = f * c + i * torch.tanh(raw[:, 2]), f * n + i
        h = torch.sigmoid(raw[:, 3]) * c / n
        outputs.append(h)
    return torch.stack(outputs, 1), torch.stack([h, c, n, m])


def reference(inputs, recurrent, gradient, matrix_type, resets=None, state=None):
    leaves = [x.detach().to(torch.float64 if matrix_type == torch.float64 else x.dtype).requires_grad_() for x in (inputs, recurrent)]
    h, last = composition(*leaves, matrix_type, resets, state)
    h.backward(gradient.to(h.dtype))
    return {"h": h.detach(), "last": last.detach(), "dx": leaves[0].grad, "dR": leaves[1].grad}


def boundaries(batch, tokens, units, kind, seed):
    """Resets and a first state, by the words in `kind`."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    resets = state = None
    if "resets" in kind:
        resets = (torch.rand(batch, tokens, device="cuda", generator=generator) < 0.1).to(torch.uint8)
    if "every" in kind:
        resets = torch.ones(batch, tokens, dtype=torch.uint8, device="cuda")
    if "state" in kind:
        state = torch.randn(4, batch, HEADS, units, device="cuda", generator=generator)
        state[0] = state[0].bfloat16().float()
        state[2] = state[2].abs() + 1
    return resets, state


def draw(batch, tokens, units, gates, seed):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    normal = lambda *s: torch.randn(*s, device="cuda", generator=generator)
    inputs = normal(batch, tokens, 4, HEADS, units)
    if gates == "extreme":
        inputs[:, :, :2] *= 15
    inputs[:, :, 1] += 2
    recurrent = normal(HEADS, 4, units, units) * units**-0.5 * (0.3 if gates == "extreme" else 0.7)
    return inputs.bfloat16(), recurrent.bfloat16(), normal(batch, tokens, HEADS, units).bfloat16()


def specialize(driver, choices):
    choices = sorted(set(choices))
    jobs = [("slstm.cu", {"UNITS": u, "GROUP": g, "SPLIT": s, "CLUSTERED": c, "BATCH_TILES": b}) for u, g, s, c, b in choices]
    table = {}
    for choice, cubin in zip(choices, compile_all(jobs, "sm_90a", 16)):
        table[choice] = Kernels(driver, cubin, *choice)
        for line in resources(cubin):
            if "spill" in line:
                print("SPILL", choice, line, file=sys.stderr)
    return table


def check(driver, raw, units_list):
    cases = [(units, *choice, tiles, batch, tokens, gates)
             for units in units_list
             for choice in [CHOICES[units][0], CHOICES[units][-1]]
             for tiles, batch, tokens, gates in [(1, 16, 65, "plain"), (1, 5, 33, "extreme"), (1, 20, 1, "plain state"), (2, 40, 40, "plain"),
                                                 (1, 40, 50, "resets state"), (1, 16, 9, "every")]]
    cases += [(units, *choice, 1, 7, 50, "resets") for units in units_list for choice in CHOICES[units][1:]]
    table = specialize(driver, [c[:5] for c in cases])
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    failures = 0
    for number, case in enumerate(cases):
        units, group, split, clustered, tiles, batch, tokens, gates = case
        kernels = table[case[:5]]
        if not kernels.fits():
            continue
        inputs, recurrent, gradient = draw(batch, tokens, units, gates, number)
        resets, state = boundaries(batch, tokens, units, gates, number)
        exact, plain = (reference(inputs, recurrent, gradient, t, resets, state) for t in (torch.float64, torch.bfloat16))
        runs = []
        for _ in range(2):
            layer = Layer(kernels, inputs, recurrent, gradient, resets, state)
            layer.forward()
            d_recurrent = layer.backward()
            torch.cuda.synchronize()
            runs.append({"h": layer.tensors["output"], "last": layer.tensors["last"], "dx": layer.tensors["input_gradient"],
                         "dR": d_recurrent})
        error = lambda a, b: ((a.double() - b).norm() / b.norm().clamp_min(1e-30)).item()
        errors = {n: (error(runs[0][n], exact[n]), error(plain[n], exact[n])) for n in exact}
        equal = all(torch.equal(runs[0][n], runs[1][n]) for n in ("h", "last", "dx"))
        bad = [n for n, (ours, theirs) in errors.items() if not ours <= max(2 * theirs, 2**-8)]
        failures += bool(bad) or not equal
        emit({"case": f"D {units} group {group} split {split} {'cluster' if clustered else 'spread'} rows {16 * tiles} batch {batch} tokens {tokens} {gates}",
              "errors (ours, libtorch bf16)": {n: [float(f"{x:.3g}") for x in e] for n, e in errors.items()},
              "bit-equal": equal, "failed": bad}, raw)
    print("FAILED" if failures else "passed")
    return failures


def bench(driver, raw, units_list, batches):
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    choices = [(u, *c, b) for u in units_list for c in CHOICES[u] for b in (1, 2, 4)]
    table = specialize(driver, choices)
    for units, batch in itertools.product(units_list, batches):
        inputs, recurrent, gradient = draw(batch, TOKENS, units, "plain", 3)
        for choice in choices:
            kernels = table[choice]
            if choice[0] != units or 16 * choice[4] > max(16, batch):
                continue
            layer = Layer(kernels, inputs, recurrent, gradient)
            record = {"kernel": "ours", "units": units, "batch": batch, "tokens": TOKENS, "heads": HEADS,
                      "group": choice[1], "split": choice[2], "clustered": choice[3], "rows": 16 * choice[4]}
            try:
                record["forward ms (median, least, most)"] = median_milliseconds(layer.forward, 5, 1)
                if kernels.fits():
                    record["backward ms"] = median_milliseconds(layer.backward, 5, 1)
            except RuntimeError as error:
                record["failed"] = str(error)
            emit(record, raw)
            del layer
        torch.cuda.empty_cache()


def resets(driver, raw):
    """Forward and backward without and with resets, a first and a last state, in turns."""
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    cases = [(192, 6, 1, 1, 1, 22), (192, 6, 2, 1, 1, 22), (256, 8, 2, 1, 1, 11), (384, 12, 2, 1, 1, 16), (512, 16, 2, 1, 1, 8), (192, 6, 1, 0, 1, 22)]
    table = specialize(driver, [c[:5] for c in cases])
    for case in cases:
        units, batch = case[0], case[5]
        inputs, recurrent, gradient = draw(batch, TOKENS, units, "plain", 3)
        generator = torch.Generator(device="cuda").manual_seed(1)
        at = (torch.rand(batch, TOKENS, device="cuda", generator=generator) < 0.002).to(torch.uint8)
        state = torch.ones(4, batch, HEADS, units, device="cuda")
        layers = {"without": Layer(table[case[:5]], inputs, recurrent, gradient), "with": Layer(table[case[:5]], inputs, recurrent, gradient, at, state)}
        layers["without"].parameters.last = None
        for _ in range(2):
            for name, layer in layers.items():
                emit({"resets and states": name, "units": units, "batch": batch, "group": case[1], "split": case[2], "clustered": case[3],
                      "forward ms (median, least, most)": median_milliseconds(layer.forward, 7, 1),
                      "backward ms": median_milliseconds(lambda: layer.kernels.run("slstm_backward", layer.parameters) if case[3] else layer.backward(), 7, 1)}, raw)


def peer(raw, units_list, batches):
    import flashrnn.flashrnn.flashrnn  # noqa: F401

    # flashrnn 1.0.8 asks the GPU through a C++ extension that CUDA 13 no longer compiles (fields removed from
    # cudaDeviceProp). The same answers for compute capability 9.0:
    module = sys.modules["flashrnn.flashrnn.flashrnn"]
    count = torch.cuda.get_device_properties(0).multi_processor_count
    module.get_gpu_info = lambda **_: {"maxThreadsPerBlock": 1024, "regsPerMultiprocessor": 65536,
                                      "multiProcessorCount": count, "sharedMemPerBlockOptin": 232448}
    flashrnn = module.flashrnn
    lock = open(os.path.join(tempfile.gettempdir(), "measure.lock"), "w")
    for units, batch in itertools.product(units_list, batches):
        inputs, recurrent, gradient = draw(batch, TOKENS, units, "plain", 3)
        leaves = [inputs.requires_grad_(), recurrent.permute(1, 0, 2, 3).contiguous().requires_grad_(),
                  torch.zeros(4, HEADS, units, dtype=torch.bfloat16, device="cuda", requires_grad=True)]

        def forward():
            return flashrnn(*leaves, function="slstm", backend="cuda_fused", dtype="bfloat16")[0]

        def both():
            h = forward()
            torch.autograd.grad(h[0], leaves, gradient.reshape(h[0].shape))

        record = {"kernel": "flashrnn cuda_fused", "units": units, "batch": batch, "tokens": TOKENS, "heads": HEADS}
        try:
            shape = forward().shape
            fcntl.flock(lock, fcntl.LOCK_EX)
            record |= {"output shape": list(shape), "forward ms (median, least, most)": median_milliseconds(forward, 5, 1),
                       "forward+backward ms": median_milliseconds(both, 5, 1)}
        except Exception as error:  # a peer that cannot run a shape is a result too
            record["failed"] = f"{type(error).__name__}: {error}"[:400]
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
        emit(record, raw)


def main():
    parser = script_parser(__doc__, ["check", "bench", "resets", "peer"])
    parser.add_argument("--units", default="192,256,384,512,640")
    parser.add_argument("--batches", default="16,64,256")
    arguments = parser.parse_args()
    units, batches = ([int(x) for x in text.split(",")] for text in (arguments.units, arguments.batches))
    driver = start_gpu()
    if arguments.what == "peer":
        return peer(arguments.raw, units, batches)
    if arguments.what == "resets":
        return resets(driver, arguments.raw)
    if arguments.what == "bench":
        return bench(driver, arguments.raw, units, batches)
    return sys.exit(1 if check(driver, arguments.raw, units) else 0)


if __name__ == "__main__":
    sys.path.insert(0, HERE)
    main()
