"""Checks and times the float32 sLSTM and LSTM kernels (recurrent.cu) on a GPU.

    python3 check_recurrent.py check [--raw FILE]
    python3 check_recurrent.py bench [--raw FILE]

Errors are against float64, beside those of the same composition in float32 by PyTorch: resets, a given first state, gradients
of the last state, of the first, of R and of the bias. `bench` times forward and backward (the gradients of R and bias included)
for the sizes of the paper's section 4.1, at several numbers of rows a block.
"""

import ctypes
import sys

import torch

from harness import HERE, compile_all, emit, machine, median_milliseconds, script_parser, start_gpu

INTEGERS = ["batch", "tokens", "heads", "exponential_forget"]
POINTERS = ["input", "recurrent", "bias", "resets", "state", "output", "saved", "last", "output_gradient", "last_gradient",
            "input_gradient", "state_gradient", "recurrent_gradient", "bias_gradient"]


class Parameters(ctypes.Structure):
    """`RecurrentParameters` of recurrent.cu."""

    _fields_ = ([(n, ctypes.c_int) for n in INTEGERS] + [("clip", ctypes.c_float), ("splits", ctypes.c_int)]
                + [(n, ctypes.c_void_p) for n in POINTERS])


def cached_of(units):
    return 64 if units <= 64 else 32 if units <= 256 else 0


def slices_of(units):
    return 4 if units <= 128 else 2 if units <= 256 else 1


def splits_of(units, heads, batch, tokens):
    """`RecurrentPlan::splits` of src/recurrent.rs."""
    tile = 32 if units % 32 == 0 else 16 if units % 16 == 0 else 8
    blocks = min(132 * 1024 // (tile * tile // 4), 132 * 32)
    return max(1, min(blocks // ((units // tile) ** 2 * heads), -(-batch * tokens // 16)))


def defines(units, rows, lstm, cached):
    return {"UNITS": units, "ROWS": rows, "SLICES": slices_of(units), "LSTM": int(lstm), "CACHED": cached}


class Layer:
    def __init__(self, driver, cubin, units, rows, data, splits=32):
        self.driver, self.cubin, self.units, self.rows, self.data = driver, cubin, units, rows, data
        batch, tokens, _, heads, _ = data["input"].shape
        nan = lambda *s: torch.full(s, float("nan"), device="cuda")
        has = data["state"] is not None
        self.tensors = {name: data[name] for name in ("input", "recurrent", "bias", "resets", "state", "output_gradient", "last_gradient")}
        self.tensors |= {"output": nan(batch, tokens, heads, units), "saved": nan(batch, tokens, heads, 7, units),
                         "last": nan(4, batch, heads, units), "input_gradient": nan(batch, tokens, 4, heads, units),
                         "state_gradient": nan(4, batch, heads, units) if has else None,
                         "recurrent_gradient": nan(splits, heads, units, 4, units), "bias_gradient": nan(splits, 4, heads, units)}
        self.p = Parameters(batch=batch, tokens=tokens, heads=heads, exponential_forget=int(data["exponential"]), clip=0.0, splits=splits)
        for name in POINTERS:
            setattr(self.p, name, self.tensors[name].data_ptr() if self.tensors[name] is not None else None)
        tile = 32 if units % 32 == 0 else 16 if units % 16 == 0 else 8
        self.weights = ((units // tile) ** 2, heads, splits), tile * 4 * tile // 16
        self.blocks = (-(-batch // rows), heads, 1)

    def run(self, name, grid, threads, shared):
        function = self.driver.function(self.cubin, name, max(shared, 0))
        if shared > 32 * 1024:
            self.driver.call("cuFuncSetAttribute", function, 8, shared)
        self.driver.launch(function, grid, threads, shared, self.p, torch.cuda.current_stream().cuda_stream)

    def forward(self):
        self.run("recurrent_forward", self.blocks, slices_of(self.units) * self.units, 0)

    def backward(self):
        self.run("recurrent_backward", self.blocks, slices_of(self.units) * self.units, 2 * self.rows * (4 * self.units + 4) * 4)

    def gradients(self):
        self.run("recurrent_weights", *self.weights, 0)
        return self.tensors["recurrent_gradient"].sum(0), self.tensors["bias_gradient"].sum(0)


def composition(x, recurrent, bias, state, data):
    """Step by step; recurrent [H, in, 4, out]."""
    batch, tokens, _, heads, units = x.shape
    h, c, n, m = state.unbind(0)
    weight = recurrent.reshape(heads, units, 4 * units)
    outputs = []
    for t in range(tokens):
        if data["resets"] is not None:
            keep = (data["resets"][:, t] == 0).to(x.dtype).view(batch, 1, 1)
            h, c, n, m = h * keep, c * keep, n * keep, m * keep
        mixed = (h.transpose(0, 1) @ weight).view(heads, batch, 4, units).permute(1, 2, 0, 3)
        i, f, z, o = (x[:, t] + mixed + bias).unbind(1)
        if data["lstm"]:
            c = f.sigmoid() * c + i.sigmoid() * z.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            carried = m + (f if data["exponential"] else torch.nn.functional.logsigmoid(f))
            m = torch.where(n == 0, i, torch.maximum(i, carried))
            i, f = (i - m).exp(), (carried - m).exp().clamp_max(1)
            c, n = f * c + i * z.tanh(), f * n + i
            h = o.sigmoid() * c / n
        outputs.append(h)
    return torch.stack(outputs, 1), torch.stack([h, c, n, m])


def reference(data, dtype):
    leaves = [data[n].detach().to(dtype).requires_grad_() for n in ("input", "recurrent", "bias")]
    state = data["state"] if data["state"] is not None else torch.zeros_like(data["last_gradient"])
    leaves.append(state.detach().to(dtype).requires_grad_())
    y, last = composition(*leaves, data)
    used = 2 if data["lstm"] else 4
    ((y * data["output_gradient"].to(dtype)).sum() + (last[:used] * data["last_gradient"][:used].to(dtype)).sum()).backward()
    found = {"y": y.detach(), "last": last.detach()[:used], "dx": leaves[0].grad, "dR": leaves[1].grad, "db": leaves[2].grad}
    if data["state"] is not None:
        found["dstate"] = leaves[3].grad[:used]
    return found


def draw(batch, tokens, heads, units, kind, seed):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    normal = lambda *s: torch.randn(*s, device="cuda", generator=generator)
    scale = 15 if "extreme" in kind else 1
    x = normal(batch, tokens, 4, heads, units)
    x[:, :, :2] *= scale
    state = None
    if "state" in kind:
        state = normal(4, batch, heads, units)
        state[2] = state[2].abs() + 1
    resets = (torch.rand(batch, tokens, device="cuda", generator=generator) < 0.1).to(torch.uint8) if "resets" in kind else None
    if "every" in kind:
        resets = torch.ones(batch, tokens, dtype=torch.uint8, device="cuda")
    last = normal(4, batch, heads, units)
    if "lstm" in kind:
        last[2:] = 0
    return {"input": x, "recurrent": normal(heads, units, 4, units) * units**-0.5 * 0.7, "bias": normal(4, heads, units),
            "resets": resets, "state": state, "output_gradient": normal(batch, tokens, heads, units), "last_gradient": last,
            "lstm": "lstm" in kind, "exponential": "exponential" in kind}


def check(driver, raw):
    cases = [(8, 4, 4), (8, 4, 16), (16, 2, 8), (24, 3, 8), (32, 4, 4), (32, 4, 8), (32, 4, 16), (64, 2, 8), (128, 1, 4), (128, 4, 8), (256, 2, 4), (384, 1, 4), (512, 1, 4), (640, 2, 4)]
    kinds = ["plain", "resets state", "lstm resets state", "extreme state", "exponential resets", "every", "lstm"]
    jobs = [("recurrent.cu", defines(u, r, lstm, cached_of(u))) for u, _, r in cases for lstm in (False, True)]
    cubins = dict(zip([str(j) for j in jobs], compile_all(jobs, "sm_90a", 16)))
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    failures = 0
    for number, (units, heads, rows) in enumerate(cases):
        for kind in kinds:
            batch, tokens = [(5, 17), (33, 40), (16, 1)][(number + len(kind)) % 3]
            data = draw(batch, tokens, heads, units, kind, number)
            cubin = cubins[str(("recurrent.cu", defines(units, rows, data["lstm"], cached_of(units))))]
            exact, plain = reference(data, torch.float64), reference(data, torch.float32)
            runs = []
            for _ in range(2):
                layer = Layer(driver, cubin, units, rows, data, 3)
                layer.forward(), layer.backward()
                d_recurrent, d_bias = layer.gradients()
                torch.cuda.synchronize()
                used = 2 if data["lstm"] else 4
                found = {"y": layer.tensors["output"], "last": layer.tensors["last"][:used], "dx": layer.tensors["input_gradient"],
                         "dR": d_recurrent, "db": d_bias}
                if data["state"] is not None:
                    found["dstate"] = layer.tensors["state_gradient"][:used]
                runs.append(found)
            error = lambda a, b: ((a.double() - b).norm() / b.norm().clamp_min(1e-30)).item()
            errors = {n: (error(runs[0][n], exact[n]), error(plain[n], exact[n])) for n in exact}
            equal = all(torch.equal(runs[0][n], runs[1][n]) for n in exact)
            bad = [n for n, (ours, theirs) in errors.items() if not ours <= max(2 * theirs, 2e-6)]
            failures += bool(bad) or not equal
            emit({"case": f"{batch}x{tokens}x{heads}x{units}, {rows} rows, {kind}", "bit-equal": equal, "failed": bad,
                  "errors (ours, float32 by PyTorch)": {n: [float(f"{x:.2g}") for x in e] for n, e in errors.items()}}, raw)
    print("FAILED" if failures else "passed", failures)
    return failures


def bench(driver, raw):
    # batch, tokens, heads, units of a head: formal languages; its long test rows; MQAR; Long Range Arena; one dense LSTM layer
    shapes = [(256, 40, 4, 32), (256, 256, 4, 32), (256, 40, 4, 16), (512, 64, 4, 16), (128, 756, 4, 64), (24, 2048, 4, 128), (64, 1024, 4, 128),
              (4096, 40, 4, 32), (256, 40, 4, 8), (256, 40, 1, 128), (256, 40, 8, 64), (64, 1024, 1, 512), (8, 2048, 4, 192)]
    choices = lambda u: [(r, cached_of(u)) for r in ((4, 8) if u <= 128 else (4,))]
    jobs = [("recurrent.cu", defines(u, r, False, c)) for u in sorted({s[3] for s in shapes}) for r, c in choices(u)]
    cubins = dict(zip([str(j) for j in jobs], compile_all(jobs, "sm_90a", 16)))
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    for batch, tokens, heads, units in shapes:
        data = draw(batch, tokens, heads, units, "plain", 3)
        for rows, cached in choices(units):
            layer = Layer(driver, cubins[str(("recurrent.cu", defines(units, rows, False, cached)))], units, rows, data,
                          splits_of(units, heads, batch, tokens))
            times = {name: median_milliseconds(getattr(layer, name), 10, 2)[0] for name in ("forward", "backward", "gradients")}
            emit({"shape": f"{batch}x{tokens}x{heads}x{units}", "rows": rows, "cached": cached,
                  "ms": {n: round(t, 4) for n, t in times.items()},
                  "million tokens/s": round(batch * tokens / sum(times.values()) / 1e3, 2)}, raw)
            del layer
        torch.cuda.empty_cache()


def main():
    arguments = script_parser(__doc__, ["check", "bench"]).parse_args()
    driver = start_gpu()
    if arguments.what == "bench":
        return bench(driver, arguments.raw)
    return sys.exit(1 if check(driver, arguments.raw) else 0)


if __name__ == "__main__":
    sys.path.insert(0, HERE)
    main()
