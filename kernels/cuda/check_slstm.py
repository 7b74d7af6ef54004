"""Checks and times the sLSTM kernels on a card (compute capability 9.0: they need clusters).

    python3 check_slstm.py check [--raw FILE]
    python3 check_slstm.py bench [--raw FILE] [--units 192,256,384,512] [--batches 16,64,256]
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

from harness import HERE, compile_all, emit, machine, median_milliseconds, resources, script_parser, start_card

POINTERS = ["input", "recurrent", "output", "gates", "states", "output_gradient", "input_gradient"]
# D: (blocks of a cluster, parts of the sum) to choose from; the first is the default.
CHOICES = {192: [(3, 1), (6, 1), (6, 2)], 256: [(4, 1), (8, 1), (8, 2)], 384: [(6, 2), (12, 2), (12, 1)], 512: [(16, 2)]}
HEADS, TOKENS = 4, 2048


class Parameters(ctypes.Structure):
    """`SlstmParameters` of slstm.cu."""

    _fields_ = [(n, ctypes.c_int) for n in ("batch", "tokens", "heads")] + [(n, ctypes.c_void_p) for n in POINTERS]


class Kernels:
    def __init__(self, driver, cubin, units, cluster, split, tiles):
        self.driver, self.cubin, self.units, self.cluster, self.split, self.tiles = driver, cubin, units, cluster, split, tiles
        own, rows = units // cluster, 16 * tiles
        exchange = lambda row_bytes: (2 * cluster + 2) * rows * row_bytes + 16
        self.forward_threads, self.forward_shared = own // 8 * split * 32, exchange(2 * own)
        self.backward_threads = own // 32 * 4 * split * 32
        self.backward_shared = exchange(8 * own) + 4 * split * rows * (own + 8) * 4

    def fits(self):
        return self.backward_shared <= 227 * 1024

    def run(self, name, parameters):
        threads, shared = ((self.forward_threads, self.forward_shared) if name == "slstm_forward"
                           else (self.backward_threads, self.backward_shared))
        function = self.driver.function(self.cubin, name, shared)
        if self.cluster > 8:
            self.driver.call("cuFuncSetAttribute", function, 14, 1)  # cluster sizes above the portable 8
        grid = (self.cluster, parameters.heads, -(-parameters.batch // (16 * self.tiles)))
        self.driver.launch(function, grid, threads, shared, parameters, torch.cuda.current_stream().cuda_stream)


class Layer:
    """inputs [B, T, 4, H, D] and recurrent [H, 4, D, D] in bf16."""

    def __init__(self, kernels, inputs, recurrent, output_gradient):
        batch, tokens, _, heads, units = inputs.shape
        nan = lambda *s, d: torch.full(s, float("nan"), dtype=d, device="cuda")
        self.kernels = kernels
        self.tensors = {"input": inputs, "recurrent": recurrent, "output_gradient": output_gradient,
                        "output": nan(batch, tokens, heads, units, d=torch.bfloat16),
                        "gates": nan(batch, tokens, heads, 5, units, d=torch.bfloat16),
                        "states": nan(batch, tokens, heads, 2, units, d=torch.float32),
                        "input_gradient": torch.full_like(inputs, float("nan"))}
        self.parameters = Parameters(batch=batch, tokens=tokens, heads=heads)
        for name in POINTERS:
            setattr(self.parameters, name, self.tensors[name].data_ptr())

    def forward(self):
        self.kernels.run("slstm_forward", self.parameters)

    def backward(self):
        self.kernels.run("slstm_backward", self.parameters)
        output, gradient = self.tensors["output"], self.tensors["input_gradient"]
        batch, tokens, heads, units = output.shape
        before = torch.cat([torch.zeros_like(output[:, :1]), output[:, :-1]], 1).view(-1, heads, units).permute(1, 0, 2)
        rows = gradient.view(-1, 4, heads, units)
        return torch.stack([torch.bmm(rows[:, gate].permute(1, 2, 0), before) for gate in range(4)], 1)


def composition(inputs, recurrent, matrix_type):
    """The recurrence step by step, as the official package states it."""
    kind = torch.float64 if matrix_type == torch.float64 else torch.float32
    batch, tokens, _, heads, units = inputs.shape
    h = torch.zeros(batch, heads, units, dtype=matrix_type, device="cuda")
    c = n = m = torch.zeros(batch, heads, units, dtype=kind, device="cuda")
    outputs = []
    for t in range(tokens):
        raw = torch.einsum("hgtf,bhf->bght", recurrent.to(matrix_type), h).to(kind) + inputs[:, t].to(kind)
        carried = m + torch.nn.functional.logsigmoid(raw[:, 1])
        m_next = (raw[:, 0] if t == 0 else torch.maximum(raw[:, 0], carried)).detach()
        i, f = torch.exp(raw[:, 0] - m_next), torch.exp(carried - m_next) if t else torch.zeros_like(c)
        c, n, m = f * c + i * torch.tanh(raw[:, 2]), f * n + i, m_next
        outputs.append(torch.sigmoid(raw[:, 3]) * c / n)
        h = outputs[-1].to(matrix_type)
    return torch.stack(outputs, 1)


def reference(inputs, recurrent, gradient, matrix_type):
    leaves = [x.detach().to(torch.float64 if matrix_type == torch.float64 else x.dtype).requires_grad_() for x in (inputs, recurrent)]
    h = composition(*leaves, matrix_type)
    h.backward(gradient.to(h.dtype))
    return {"h": h.detach(), "dx": leaves[0].grad, "dR": leaves[1].grad}


def draw(batch, tokens, units, gates, seed):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    normal = lambda *s: torch.randn(*s, device="cuda", generator=generator)
    inputs = normal(batch, tokens, 4, HEADS, units)
    if gates == "extreme":
        inputs[:, :, :2] *= 15
    inputs[:, :, 1] += 2
    recurrent = normal(HEADS, 4, units, units) * units**-0.5 * (0.3 if gates == "extreme" else 0.7)
    return inputs.bfloat16(), recurrent.bfloat16(), normal(batch, tokens, HEADS, units).bfloat16()


def specialise(driver, choices):
    choices = sorted(set(choices))
    jobs = [("slstm.cu", {"UNITS": u, "CLUSTER": c, "SPLIT": s, "BATCH_TILES": b}) for u, c, s, b in choices]
    table = {}
    for choice, cubin in zip(choices, compile_all(jobs, "sm_90a", 16)):
        table[choice] = Kernels(driver, cubin, *choice)
        for line in resources(cubin):
            if "spill" in line:
                print("SPILL", choice, line, file=sys.stderr)
    return table


def check(driver, raw, units_list):
    cases = [(units, *CHOICES[units][0], tiles, batch, tokens, gates)
             for units in units_list
             for tiles, batch, tokens, gates in [(1, 16, 65, "plain"), (1, 5, 33, "extreme"), (1, 20, 1, "plain"), (2, 40, 40, "plain")]]
    cases += [(units, *choice, 1, 7, 50, "plain") for units in units_list for choice in CHOICES[units][1:]]
    table = specialise(driver, [c[:4] for c in cases])
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    failures = 0
    for number, case in enumerate(cases):
        units, cluster, split, tiles, batch, tokens, gates = case
        kernels = table[case[:4]]
        if not kernels.fits():
            continue
        inputs, recurrent, gradient = draw(batch, tokens, units, gates, number)
        exact, plain = (reference(inputs, recurrent, gradient, t) for t in (torch.float64, torch.bfloat16))
        runs = []
        for _ in range(2):
            layer = Layer(kernels, inputs, recurrent, gradient)
            layer.forward()
            d_recurrent = layer.backward()
            torch.cuda.synchronize()
            runs.append({"h": layer.tensors["output"], "dx": layer.tensors["input_gradient"], "dR": d_recurrent})
        error = lambda a, b: ((a.double() - b).norm() / b.norm().clamp_min(1e-30)).item()
        errors = {n: (error(runs[0][n], exact[n]), error(plain[n], exact[n])) for n in exact}
        equal = all(torch.equal(runs[0][n], runs[1][n]) for n in ("h", "dx"))
        bad = [n for n, (ours, theirs) in errors.items() if not ours <= max(2 * theirs, 2**-8)]
        failures += bool(bad) or not equal
        emit({"case": f"D {units} cluster {cluster} split {split} rows {16 * tiles} batch {batch} tokens {tokens} {gates}",
              "errors (ours, libtorch bf16)": {n: [float(f"{x:.3g}") for x in e] for n, e in errors.items()},
              "bit-equal": equal, "failed": bad}, raw)
    print("FAILED" if failures else "passed")
    return failures


def bench(driver, raw, units_list, batches):
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    choices = [(u, c, s, b) for u in units_list for c, s in CHOICES[u] for b in (1, 2, 4)]
    table = specialise(driver, choices)
    for units, batch in itertools.product(units_list, batches):
        inputs, recurrent, gradient = draw(batch, TOKENS, units, "plain", 3)
        for choice in choices:
            kernels = table[choice]
            if choice[0] != units or 16 * choice[3] > max(16, batch):
                continue
            layer = Layer(kernels, inputs, recurrent, gradient)
            record = {"kernel": "ours", "units": units, "batch": batch, "tokens": TOKENS, "heads": HEADS,
                      "cluster": choice[1], "split": choice[2], "rows": 16 * choice[3]}
            try:
                record["forward ms (median, least, most)"] = median_milliseconds(layer.forward, 5, 1)
                if kernels.fits():
                    record["backward ms"] = median_milliseconds(layer.backward, 5, 1)
            except RuntimeError as error:
                record["failed"] = str(error)
            emit(record, raw)
            del layer
        torch.cuda.empty_cache()


def peer(raw, units_list, batches):
    import flashrnn.flashrnn.flashrnn  # noqa: F401

    # flashrnn 1.0.8 asks the card through a C++ extension that CUDA 13 no longer compiles (fields removed from
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
    parser = script_parser(__doc__, ["check", "bench", "peer"])
    parser.add_argument("--units", default="192,256,384,512")
    parser.add_argument("--batches", default="16,64,256")
    arguments = parser.parse_args()
    units, batches = ([int(x) for x in text.split(",")] for text in (arguments.units, arguments.batches))
    driver = start_card()
    if arguments.what == "peer":
        return peer(arguments.raw, units, batches)
    if arguments.what == "bench":
        return bench(driver, arguments.raw, units, batches)
    return sys.exit(1 if check(driver, arguments.raw, units) else 0)


if __name__ == "__main__":
    sys.path.insert(0, HERE)
    main()
