"""Checks and times the chunkwise mLSTM kernels on a GPU.

    python3 check_mlstm.py check [--raw FILE]     errors against float64, determinism, odd and extreme inputs
    python3 check_mlstm.py boundaries [--raw FILE]  resets anywhere, states in and out, against float64 document by document;
                                                  what resets cost
    python3 check_mlstm.py bench [--raw FILE]     forward and backward beside TFLA's, where mlstm_kernels is there
    python3 check_mlstm.py profile                milliseconds of every kernel at the paper's shapes

A tensor passes when its relative error (up to 64 tokens: the median of 33 draws) is at most twice that of PyTorch's own bf16 composition (matrix
products in bf16, gates and pointwise in float32, as autocast runs it), or below 2^-8, one unit of bf16, which
stored products cost in any case. Head sizes written KxV.
"""

import ctypes
import sys

import torch

from harness import HERE, compile_all, emit, machine, median_milliseconds, resources, script_parser, start_gpu

P, I64 = ctypes.c_void_p, ctypes.c_longlong
TENSORS = ["query", "key", "value", "input_gate", "forget_gate", "output", "resets", "initial_matrix", "initial_norm",
           "initial_maximum", "final_matrix", "final_norm", "final_maximum", "final_matrix_gradient", "final_norm_gradient",
           "initial_matrix_gradient", "initial_norm_gradient", "log_forget_sum", "exponent",
           "local_maximum", "maximum", "carry", "keep", "chunk_forget", "chunk_maximum", "decay", "state_weight",
           "segment_start",
           "states", "norm_states", "scores", "row_sums", "query_norm", "output_rest",
           "inverse_denominator", "output_gradient", "divided_gradient", "gradient_scale", "query_gradient", "key_gradient",
           "value_gradient", "input_gate_gradient", "forget_gate_gradient", "norm_gradient", "gradient_weight", "gradient_column", "output_dot", "state_gradients",
           "norm_state_gradients",
           "score_gradients", "query_dot", "key_carry_dot", "key_dot", "decay_gradient"]


# Null unless a check sets them; without `output_dot` the kernels divide dh and form dh . h themselves.
OPTIONAL = ["output_dot", "resets", "segment_start"] + [n for n in TENSORS if n.startswith(("initial_", "final_"))]

# Tensors that the copy engine reads; activations as [B, H, T, size], the others as [1, B * H * N, rows, columns].
MAPPED = ["query", "key", "value", "output_gradient", "divided_gradient", "states", "state_gradients", "scores", "score_gradients"]
_SCALARS = ([(n, ctypes.c_int) for n in ("batch_heads", "heads", "tokens", "chunks")]
            + [("key_scale", ctypes.c_float), ("epsilon", ctypes.c_float)]
            + [(f"{t}_{a}", I64) for t in ("qk", "v", "gate") for a in ("batch", "head", "token")]
            + [(n, P) for n in TENSORS])


class Parameters(ctypes.Structure):
    """`MlstmParameters` of mlstm.cuh: maps lie on a boundary of 64 bytes."""

    _fields_ = (_SCALARS + [("padding", ctypes.c_ubyte * (-(24 + 9 * 8 + 8 * len(TENSORS)) % 64))]
                + [(f"{n}_map", ctypes.c_ubyte * 128) for n in MAPPED])


FILES = {"gates": "mlstm_gates.cu", "states": "mlstm_states.cu", "scores": "mlstm_scores.cu",
         "outputs": "mlstm_outputs.cu"}
KERNELS = {"mlstm_gates_local": "gates", "mlstm_gates_carry": "gates", "mlstm_backward_prepare": "gates",
           "mlstm_gate_gradients": "gates", "mlstm_states": "states", "mlstm_state_gradients": "states",
           "mlstm_scores": "scores", "mlstm_score_gradients": "scores",
           "mlstm_output": "outputs", "mlstm_query_gradient": "outputs", "mlstm_key_gradient": "outputs",
           "mlstm_value_gradient": "outputs"}


class Specialized:
    """The kernels compiled for one (K, V, chunk)."""

    def __init__(self, driver, shape, cubins):
        self.driver, self.cubins = driver, cubins
        self.dqk, self.dv, self.chunk, self.block_k, self.stages = shape
        tile = 128 * self.block_k * 2
        bulk = self.block_k == 64
        ring = lambda extra: (1024 if bulk else 0) + self.stages * (2 * tile + extra + (16 if bulk else 0))
        self.shared = {"gates": 0, "states": ring(4 * self.block_k), "scores": ring(0), "outputs": ring(0)}
        self.k_tiles, self.v_tiles = -(-self.dqk // 128), -(-self.dv // 128)
        self.row_tiles = self.chunk // 128

    def run(self, name, grid, threads, parameters):
        part = KERNELS[name]
        function = self.driver.function(self.cubins[part], name, self.shared[part])
        stream = torch.cuda.current_stream().cuda_stream
        self.driver.launch(function, grid, threads, self.shared[part], parameters, stream)


class Layer:
    """Workspace and launch order of one call; tensors are [B, H, T, size] in any stride order."""

    def __init__(self, kernels, q, k, v, i, f, poison=True):
        self.kernels = kernels
        batch, heads, tokens, _ = q.shape
        self.batch_heads, self.tokens = batch * heads, tokens
        self.chunks = -(-tokens // kernels.chunk)
        n, length = self.chunks, kernels.chunk
        row, per_chunk = (self.batch_heads, n * length), (self.batch_heads, n)
        float32, bf16 = torch.float32, torch.bfloat16
        shapes = {name: (row, float32) for name in
                  ("log_forget_sum", "exponent", "local_maximum", "maximum", "carry", "keep", "query_norm",
                   "norm_gradient", "gradient_scale")}
        shapes["inverse_denominator"] = ((batch, tokens, heads), float32)
        shapes |= {name: (row, bf16) for name in ("state_weight", "gradient_weight", "gradient_column")}
        shapes |= {name: (per_chunk, float32) for name in ("chunk_forget", "chunk_maximum", "decay")}
        shapes |= {name: ((*per_chunk, kernels.dqk, kernels.dv), bf16) for name in ("states", "state_gradients")}
        shapes |= {name: ((*per_chunk, kernels.dqk), float32) for name in ("norm_states", "norm_state_gradients")}
        shapes |= {name: ((kernels.k_tiles, *row), float32) for name in ("query_dot", "key_carry_dot", "key_dot")}
        shapes |= {name: ((*per_chunk, length, length), bf16) for name in ("scores", "score_gradients")}
        shapes["row_sums"] = ((kernels.row_tiles, *row), float32)
        shapes["decay_gradient"] = ((kernels.k_tiles * kernels.v_tiles, *per_chunk), float32)
        fill = float("nan") if poison else None
        make = (lambda s, d: torch.full(s, fill, dtype=d, device="cuda")) if poison else (
            lambda s, d: torch.empty(s, dtype=d, device="cuda"))
        self.tensors = {name: make(*spec) for name, spec in shapes.items()}
        like = lambda t: torch.full_like(t, float("nan"))
        self.tensors |= {"query": q, "key": k, "value": v, "input_gate": i, "forget_gate": f, "output": like(v),
                         "output_rest": torch.empty_like(v, dtype=torch.int8), "output_gradient": like(v), "divided_gradient": like(v),
                         "query_gradient": like(q), "key_gradient": like(k),
                         "value_gradient": like(v), "input_gate_gradient": like(i), "forget_gate_gradient": like(f)}
        self.parameters = Parameters(batch_heads=self.batch_heads, heads=heads, tokens=tokens, chunks=n,
                                     key_scale=kernels.dqk**-0.5, epsilon=1e-6)
        for name, tensor in (("qk", q), ("v", v), ("gate", i)):
            for axis, stride in zip(("batch", "head", "token"), tensor.stride()):
                setattr(self.parameters, f"{name}_{axis}", stride)
        assert k.stride() == q.stride() and i.stride() == f.stride() and q.stride(3) == v.stride(3) == 1
        for name in TENSORS:
            if name in OPTIONAL:
                continue
            setattr(self.parameters, name, self.tensors[name].data_ptr())
        for name in MAPPED:
            self.map(name)

    def map(self, name):
        tensor = self.tensors[name]
        if name.startswith(("state", "score")):
            tensor = tensor.flatten(0, 1)[None]
        getattr(self.parameters, f"{name}_map")[:] = self.kernels.driver.tensor_map(tensor)

    def set(self, **tensors):
        """Optional tensors, dense."""
        for name, tensor in tensors.items():
            assert tensor.is_contiguous()
            self.tensors[name] = tensor
            setattr(self.parameters, name, tensor.data_ptr())

    def set_resets(self, resets):
        self.set(resets=resets, segment_start=torch.full((self.batch_heads, self.chunks * self.kernels.chunk), -7,
                                                         dtype=torch.int32, device="cuda"))

    def set_output_gradient(self, gradient):
        assert gradient.stride() == self.tensors["value"].stride()
        self.tensors["output_gradient"] = gradient
        self.parameters.output_gradient = gradient.data_ptr()
        self.map("output_gradient")

    def sequence(self, backward, recompute):
        k, n, bh = self.kernels, self.chunks, self.batch_heads
        triangle = k.row_tiles * (k.row_tiles + 1) // 2
        by_value, by_key = (k.row_tiles * k.v_tiles, n, bh), (k.row_tiles * k.k_tiles, n, bh)
        states = ("mlstm_states", (k.k_tiles * k.v_tiles, bh, 1), 128)
        if not backward:
            return [("mlstm_gates_local", (n, bh, 1), k.chunk), ("mlstm_gates_carry", (n, bh, 1), k.chunk), states,
                    ("mlstm_scores", (triangle, n, bh), 128), ("mlstm_output", by_value, 128)]
        again = [states, ("mlstm_scores", (triangle, n, bh), 128)] if recompute else []
        return again + [
            ("mlstm_backward_prepare", (-(-bh * n * k.chunk // 8), 1, 1), 256),
            ("mlstm_state_gradients", (k.k_tiles * k.v_tiles, bh, 1), 128),
            ("mlstm_score_gradients", (triangle, n, bh), 128), ("mlstm_value_gradient", by_value, 128),
            ("mlstm_query_gradient", by_key, 128), ("mlstm_key_gradient", by_key, 128),
            ("mlstm_gate_gradients", (n, bh, 1), k.chunk)]

    def run(self, backward=False, recompute=True):
        for name, grid, threads in self.sequence(backward, recompute):
            self.kernels.run(name, grid, threads, self.parameters)

    def results(self):
        t = self.tensors
        return {"h": t["output"], "dq": t["query_gradient"], "dk": t["key_gradient"], "dv": t["value_gradient"],
                "di": t["input_gate_gradient"], "df": t["forget_gate_gradient"]}


def composition(q, k, v, i, f, matrix_type):
    """The parallel form (paper A.3) with matrix products in `matrix_type`."""
    gate_type = torch.float64 if matrix_type == torch.float64 else torch.float32
    q, k, v = (x.to(matrix_type) for x in (q, k, v))
    i, f = i.to(gate_type), f.to(gate_type)
    tokens = q.shape[2]
    total = torch.nn.functional.logsigmoid(f).cumsum(-1)
    exponents = total[..., :, None] - total[..., None, :] + i[..., None, :]
    exponents = exponents.masked_fill(~torch.ones(tokens, tokens, device=q.device, dtype=torch.bool).tril(), -torch.inf)
    m = exponents.max(-1, keepdim=True).values.detach()
    scores = (q @ (k * k.shape[-1] ** -0.5).transpose(-1, -2)) * torch.exp(exponents - m)
    norm = torch.maximum(scores.sum(-1, keepdim=True).abs(), torch.exp(-m)) + 1e-6
    return (scores / norm).to(matrix_type) @ v


def one_document(q, k, v, i, f, state, matrix_type):
    """The parallel form of one document that goes on from a state (C, n, m) or none, and the state after it."""
    gate_type = torch.float64 if matrix_type == torch.float64 else torch.float32
    q, k, v = (x.to(matrix_type) for x in (q, k, v))
    i, f = i.to(gate_type), f.to(gate_type)
    tokens, k = q.shape[2], k * k.shape[-1] ** -0.5
    total = torch.nn.functional.logsigmoid(f).cumsum(-1)
    exponents = total[..., :, None] - total[..., None, :] + i[..., None, :]
    exponents = exponents.masked_fill(~torch.ones(tokens, tokens, device=q.device, dtype=torch.bool).tril(), -torch.inf)
    m = exponents.max(-1, keepdim=True).values.detach()
    if state is not None:
        matrix, norm_state, before = (x.to(gate_type) for x in state)
        entering = total + before[..., None]
        m = torch.maximum(m, entering[..., None].detach())
        carry = torch.exp(entering[..., None] - m)
    scores = (q @ k.transpose(-1, -2)) * torch.exp(exponents - m)
    norm, top = scores.sum(-1, keepdim=True), scores.to(matrix_type) @ v
    left = torch.exp(exponents[..., -1, :] - m[..., -1, :])[..., None]
    last_matrix = (k * left).to(matrix_type).transpose(-1, -2) @ v
    last_norm = (k * left).sum(-2)
    if state is not None:
        norm = norm + carry * (q.to(gate_type) @ norm_state[..., None])
        top = top + carry * (q @ matrix.to(matrix_type))
        last_matrix = last_matrix + carry[..., -1:, :] * matrix
        last_norm = last_norm + carry[..., -1, :] * norm_state
    h = top / (torch.maximum(norm.abs(), torch.exp(-m)) + 1e-6)
    return h, (last_matrix, last_norm, m[..., -1, 0])


def by_documents(q, k, v, i, f, state, resets, matrix_type):
    """Every sequence and document by itself: h and the state after the last token."""
    rows, states = [], []
    for row in range(q.shape[0]):
        starts = sorted({0, *torch.nonzero(resets[row]).flatten().tolist()})
        parts = []
        for start, end in zip(starts, [*starts[1:], q.shape[2]]):
            own = [x[row : row + 1, :, start:end] for x in (q, k, v, i, f)]
            before = None
            if state is not None and start == 0 and not resets[row, 0]:
                before = [x[row : row + 1] for x in state]
            h, last = one_document(*own, before, matrix_type)
            parts.append(h)
        rows.append(torch.cat(parts, 2))
        states.append(last)
    return torch.cat(rows), [torch.cat(x) for x in zip(*states)]


def well_conditioned(q, k, v, i, f):
    """Tokens, [B, H, T], whose gradient bf16 products can determine.

    Not those whose n . q lies within a tenth of the floor exp(-m), where the denominator has a kink, and not those
    whose sum of scores cancels to a twentieth of its terms: there any rounding decides sign and size of the
    gradient, in every implementation, and one such row outweighs all others in the norm of the error.
    """
    q, k, i, f = (x.double() for x in (q, k, i, f))
    total = torch.nn.functional.logsigmoid(f).cumsum(-1)
    tokens = q.shape[2]
    exponents = total[..., :, None] - total[..., None, :] + i[..., None, :]
    exponents = exponents.masked_fill(~torch.ones(tokens, tokens, device=q.device, dtype=torch.bool).tril(), -torch.inf)
    m = exponents.max(-1, keepdim=True).values
    scores = (q @ (k * k.shape[-1] ** -0.5).transpose(-1, -2)) * torch.exp(exponents - m)
    norm, size, floor = scores.sum(-1).abs(), scores.abs().sum(-1), torch.exp(-m[..., 0])
    larger = torch.maximum(norm, floor)
    return ((norm - floor).abs() > 0.1 * larger) & (larger > 0.05 * size)


def gradients(inputs, output_gradient, matrix_type):
    leaves = [x.detach().to(torch.float64 if matrix_type == torch.float64 else x.dtype).requires_grad_() for x in inputs]
    h = composition(*leaves, matrix_type)
    h.backward(output_gradient.to(h.dtype))
    return dict(zip(("h", "dq", "dk", "dv", "di", "df"), [h.detach(), *[x.grad for x in leaves]]))


def relative(a, reference):
    return ((a.double().reshape(reference.shape) - reference).norm() / reference.norm().clamp_min(1e-30)).item()


def draw(batch, heads, tokens, dqk, dv, gates, token_major, seed):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    normal = lambda *s: torch.randn(*s, device="cuda", generator=generator)
    if token_major:
        q, k, v, dh = (normal(batch, tokens, heads, d).bfloat16().transpose(1, 2) for d in (dqk, dqk, dv, dv))
    else:
        q, k, v, dh = (normal(batch, heads, tokens, d).bfloat16() for d in (dqk, dqk, dv, dv))
    i_scale, f_scale, f_shift = {"plain": (1, 1, 3), "long": (0.1, 0.1, 6), "extreme": (20, 20, 0), "closed": (3, 1, -12),
                                 "low": (1, 1, 3)}[gates]
    i = normal(batch, heads, tokens) * i_scale - (60 if gates == "low" else 0)
    f = normal(batch, heads, tokens) * f_scale + f_shift
    if token_major:
        i, f = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (i, f))
    return [q, k, v, i, f], dh


# batch, heads, tokens, K, V, chunk, gates, token-major layout
CASES = [
    (2, 2, 512, 128, 128, 128, "plain", False), (1, 3, 333, 64, 128, 128, "plain", False),
    (2, 2, 1000, 384, 384, 256, "plain", True), (1, 2, 2048, 128, 256, 128, "long", False),
    (2, 2, 777, 192, 192, 256, "extreme", True), (1, 2, 700, 512, 512, 256, "closed", False),
    (1, 2, 1024, 768, 768, 256, "plain", True), (1, 2, 1300, 1024, 1024, 256, "plain", False),
    (1, 1, 1, 64, 64, 128, "low", False), (1, 2, 3, 64, 64, 128, "plain", False), (1, 2, 129, 256, 512, 128, "extreme", True),
    (1, 2, 2048, 384, 384, 256, "plain", True), (2, 2, 515, 128, 128, 128, "low", False),
]
PAPER = [(32, 4, 2048, 384, 384), (32, 4, 2048, 512, 512), (32, 4, 2048, 768, 768), (32, 16, 2048, 128, 256),
         (16, 4, 2048, 1024, 1024), (32, 4, 2048, 1024, 1024)]


def specialize(driver, shapes, workers=16):
    capability = torch.cuda.get_device_capability()
    architecture = {(9, 0): "sm_90a"}.get(capability, "sm_%d%d" % capability)
    shapes = sorted(set(shapes))
    jobs = [(FILES[part], {"DQK": s[0], "DV": s[1], "CHUNK": s[2], "BLOCK_K": s[3], "STAGES": s[4]})
            for s in shapes for part in FILES]
    cubins = compile_all(jobs, architecture, workers)
    table = {}
    for index, shape in enumerate(shapes):
        own = dict(zip(FILES, cubins[index * len(FILES):]))
        table[shape] = Specialized(driver, shape, own)
        for cubin in own.values():
            for line in resources(cubin):
                if "spill" in line:
                    print("SPILL", shape, line, file=sys.stderr)
    return table


def check(driver, raw, block, cases):
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    table = specialize(driver, [(c[3], c[4], c[5], *block) for c in cases])
    failures = 0
    for number, (batch, heads, tokens, dqk, dv, chunk, gates, token_major) in enumerate(cases):
        # The error of a few tokens is that of a few rounded scores, large or small by chance.
        seeds = [number] if tokens > 64 else [number + 100 * draw for draw in range(33)]
        drawn, equal, shares = {}, True, []
        for seed in seeds:
            inputs, dh = draw(batch, heads, tokens, dqk, dv, gates, token_major, seed)
            kept = well_conditioned(*inputs)
            shares.append(kept.double().mean().item())
            dh.mul_(kept[..., None])
            reference, plain = (gradients(inputs, dh, t) for t in (torch.float64, torch.bfloat16))
            runs = []
            for _ in range(2):
                layer = Layer(table[(dqk, dv, chunk, *block)], *inputs)
                layer.set_output_gradient(dh)
                layer.run()
                layer.tensors["states"].fill_(float("nan"))
                layer.tensors["scores"].fill_(float("nan"))
                layer.run(backward=True)
                torch.cuda.synchronize()
                runs.append(layer.results())
            equal = equal and all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])
            for n, t in runs[0].items():
                drawn.setdefault(n, []).append((relative(t, reference[n]), relative(plain[n], reference[n])))
        errors = {n: [sorted(s)[len(s) // 2] for s in zip(*pairs)] for n, pairs in drawn.items()}
        bad = [n for n, (ours, theirs) in errors.items() if not ours <= max(2 * theirs, 2**-8)]
        failures += bool(bad) or not equal
        emit({"case": f"{batch}x{heads}x{tokens} {dqk}x{dv} chunk {chunk} {gates}" + (" token-major" if token_major else ""),
              "draws": len(seeds), "errors (ours, libtorch bf16)": {n: [float(f"{x:.3g}") for x in e] for n, e in errors.items()},
              "tokens with a gradient": round(sum(shares) / len(shares), 3), "bit-equal": equal, "failed": bad}, raw)
    print("FAILED" if failures else "passed", f"{len(cases) - failures} of {len(cases)}")
    return failures


def drawn_resets(kind, batch, tokens, chunk):
    resets = torch.zeros(batch, tokens, dtype=torch.bool, device="cuda")
    if kind == "every":
        resets[:] = True
    elif kind == "edges":
        for at in (0, chunk - 1, chunk, chunk + 1, 2 * chunk, tokens - 1):
            resets[at % batch, at % tokens] = True
            resets[:, (at + chunk) % tokens] |= torch.arange(batch, device="cuda") % 2 == 0
    elif kind == "some":
        resets = torch.rand(batch, tokens, device="cuda") < 1 / 90
    return resets


BOUNDARIES = [
    # batch, heads, tokens, K, V, chunk, resets, state
    (2, 2, 300, 64, 128, 128, "none", False), (2, 2, 300, 64, 128, 128, "every", False), (2, 2, 300, 64, 128, 128, "edges", True),
    (3, 2, 1000, 128, 128, 128, "some", False), (3, 2, 1000, 128, 256, 256, "some", True), (1, 2, 1, 64, 64, 128, "none", True),
    (2, 2, 700, 384, 384, 256, "edges", True), (2, 2, 700, 384, 384, 256, "none", True), (2, 1, 1100, 512, 512, 512, "some", True),
    (1, 1, 600, 1024, 1024, 512, "edges", True), (1, 1, 600, 1280, 1280, 512, "some", True), (2, 2, 128, 72, 40, 128, "edges", True),
]


def boundary_case(table, block, case, seed):
    batch, heads, tokens, dqk, dv, chunk, kind, with_state = case
    torch.manual_seed(seed)
    (q, k, v, i, f), dh = draw(batch, heads, tokens, dqk, dv, "plain", seed % 2 == 0, seed)
    q, k = q.abs(), k.abs()  # sums of scores do not cancel: every row's denominator is one that bf16 determines
    resets = drawn_resets(kind, batch, tokens, chunk)
    state = [torch.randn(batch, heads, dqk, dv, device="cuda") * 0.2, torch.rand(batch, heads, dqk, device="cuda"),
             torch.randn(batch, heads, device="cuda")] if with_state else None
    upstream = [dh, torch.randn(batch, heads, dqk, dv, device="cuda"), torch.randn(batch, heads, dqk, device="cuda")]

    def composed(matrix_type):
        double = matrix_type == torch.float64
        to = lambda x: (x.double() if double else x).detach().requires_grad_()
        leaves = [to(x) for x in (q, k, v, i, f)]
        own = [to(x) for x in state] if with_state else None
        h, last = by_documents(*leaves, own, resets, matrix_type)
        outputs = [h, *last[:2]] if with_state else [h]
        wanted = leaves + (own[:2] if with_state else [])
        got = torch.autograd.grad(outputs, wanted, [u.to(o.dtype) for u, o in zip(upstream, outputs)], allow_unused=True)
        names = ["h", *(["C", "n"] if with_state else []), "dq", "dk", "dv", "di", "df", *(["dC", "dn"] if with_state else [])]
        got = [torch.zeros_like(w) if g is None else g for g, w in zip(got, wanted)]
        return dict(zip(names, [x.detach() for x in [*outputs, *got]])), last[2].detach()

    # Rows near the kink of the denominator say nothing: n . q / den is 1 beyond it.
    with torch.no_grad():
        ones = torch.ones_like(v[..., :1]).double()
        own = [state[1][..., None].double(), state[1].double(), state[2].double()] if with_state else None
        share, _ = by_documents(q.double(), k.double(), ones, i.double(), f.double(), own, resets, torch.float64)
        fine = ((share > 0.9999) | (share < 0.9)).expand_as(v)
    dh.mul_(fine)
    (exact, last_maximum), (plain, _) = composed(torch.float64), composed(torch.bfloat16)
    runs = []
    for _ in range(2):
        layer = Layer(table[(dqk, dv, chunk, *block)], q, k, v, i, f)
        layer.set_output_gradient(dh)
        if kind != "none":
            layer.set_resets(resets)
        if with_state:
            nan = lambda x: torch.full_like(x, float("nan"))
            layer.set(initial_matrix=state[0], initial_norm=state[1], initial_maximum=state[2], final_matrix=nan(state[0]),
                      final_norm=nan(state[1]), final_maximum=nan(state[2]), final_matrix_gradient=upstream[1],
                      final_norm_gradient=upstream[2], initial_matrix_gradient=nan(state[0]), initial_norm_gradient=nan(state[1]))
        layer.run()
        layer.run(backward=True)
        torch.cuda.synchronize()
        own = dict(layer.results())
        if with_state:
            t = layer.tensors
            own |= {"C": t["final_matrix"], "n": t["final_norm"], "dC": t["initial_matrix_gradient"], "dn": t["initial_norm_gradient"]}
            shift = torch.exp((t["final_maximum"].double() - last_maximum))
            own["C"], own["n"] = own["C"] * shift[..., None, None], own["n"] * shift[..., None]
        runs.append(own)
    equal = all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])
    keep = lambda n, x: x * fine if n == "h" else x
    return {n: (relative(keep(n, runs[0][n]), keep(n, exact[n])), relative(keep(n, plain[n]), keep(n, exact[n]))) for n in exact}, equal


def boundaries(driver, raw, block):
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    table = specialize(driver, [(c[3], c[4], c[5], *block) for c in BOUNDARIES] + [(384, 384, 256, *block)])
    failures = 0
    for number, case in enumerate(BOUNDARIES):
        drawn, equal = {}, True
        for seed in range(8):
            errors, same = boundary_case(table, block, case, 100 * number + seed)
            equal = equal and same
            for n, pair in errors.items():
                drawn.setdefault(n, []).append(pair)
        square = lambda values: (sum(x * x for x in values) / len(values)) ** 0.5
        errors = {n: [square(s) for s in zip(*pairs)] for n, pairs in drawn.items()}
        bad = [n for n, (ours, theirs) in errors.items() if not ours <= max(2 * theirs, 2**-8)]
        failures += bool(bad) or not equal
        emit({"case": "{}x{}x{} {}x{} chunk {} resets {} state {}".format(*case), "draws": 8,
              "errors (ours, libtorch bf16)": {n: [float(f"{x:.3g}") for x in e] for n, e in errors.items()},
              "bit-equal": equal, "failed": bad}, raw)
    for shape in PAPER[:2]:
        inputs, dh = draw(*shape, "plain", False, seed=7)
        chunk = 256
        own = specialize(driver, [(shape[3], shape[4], chunk, *block)])[(shape[3], shape[4], chunk, *block)]
        times = {}
        for kind in ("none", "some"):
            layer = Layer(own, *inputs, poison=False)
            layer.set_output_gradient(dh)
            if kind != "none":
                layer.set_resets(torch.rand(shape[0], shape[2], device="cuda") < 1 / 500)

            def both():
                layer.run()
                layer.run(backward=True, recompute=False)

            times[f"resets {kind}, forward + backward ms"] = median_milliseconds(both)
            del layer
        emit({"head": f"{shape[3]}x{shape[4]}", "batch": shape[0], "tokens": shape[2], **times}, raw)
    print("FAILED" if failures else "passed", f"{len(BOUNDARIES) - failures} of {len(BOUNDARIES)}")
    return failures


def peers(inputs, dh):
    """Name, chunks, forward of `leaves` and a chunk. TFLA is the peer; the others are lines of reference: the later cell
    with a sigmoid input gate and no maximum, and causal attention over the same width in heads of 128."""
    found = []
    try:
        from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk as tfla
        from mlstm_kernels.torch.chunkwise.triton_xl_chunk_siging import mlstm_siging_chunkwise__xl_chunk as siging

        half = {"autocast_kernel_dtype": torch.bfloat16}
        found.append(("TFLA chunkwise--triton_xl_chunk", inputs, dh, lambda leaves, chunk: tfla(*leaves, chunk_size=chunk, **half)))
        found.append(("reference: TFLA chunkwise--triton_xl_chunk_siging", inputs, dh,
                      lambda leaves, chunk: siging(*leaves, chunk_size=chunk, **half)))
    except ImportError as error:
        print("mlstm_kernels is not there:", error, file=sys.stderr)
    batch, heads, tokens, dv = inputs[2].shape
    attention = [torch.randn(batch, heads * dv // 128, tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    found.append(("reference: scaled_dot_product_attention, causal, heads of 128", attention[:3], attention[3],
                  lambda leaves, _: torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)))
    return found


def floors(batch, heads, tokens, dqk, dv, chunk):
    """TFLOP of the products a pass computes (triangle halved), and GB of inputs and outputs."""
    rows = batch * heads * tokens
    half = (chunk + 128) / 2
    forward = rows * (4 * dqk * dv + 2 * half * (dqk + dv))
    backward = rows * (8 * dqk * dv + 2 * half * (3 * dqk + 2 * dv))
    data = rows * 2 * (2 * dqk + 2 * dv)
    return forward / 1e12, backward / 1e12, data / 1e9, (data * 2 + rows * 2 * dv) / 1e9


def bench(driver, raw, blocks, chunks, with_peer, shapes):
    emit({"machine": machine(), "command": " ".join(sys.argv)}, raw)
    combos = [(s[3], s[4], c, *b) for s in shapes for c in chunks for b in blocks]
    table = specialize(driver, combos)
    for shape in shapes:
        inputs, dh = draw(*shape, "plain", False, seed=7)
        record = {"batch": shape[0], "heads": shape[1], "tokens": shape[2], "head": f"{shape[3]}x{shape[4]}"}
        for chunk in chunks:
            forward_work, backward_work, _, _ = floors(*shape, chunk)
            for block in blocks:
                layer = Layer(table[(shape[3], shape[4], chunk, *block)], *inputs, poison=False)
                layer.set_output_gradient(dh)
                forward = median_milliseconds(layer.run)

                def both(recompute=True):
                    layer.run()
                    layer.run(backward=True, recompute=recompute)

                total = median_milliseconds(both)
                kept = median_milliseconds(lambda: both(False))
                emit({**record, "kernel": "ours", "chunk": chunk, "block_k": block[0], "stages": block[1],
                      "forward ms (median, least, most)": forward, "forward+backward ms": total,
                      "forward+backward, states kept ms": kept,
                      "TFLOP/s forward": round(forward_work / forward[0] * 1e3, 1),
                      "TFLOP/s both": round((forward_work + backward_work) / total[0] * 1e3, 1)}, raw)
                del layer
        # TFLA indexes states with 32 bits: past 2^31 elements it reads out of bounds and ends the process's context.
        addressable = [c for c in (128, 256) if shape[0] * shape[1] * (shape[2] // c + 1) * shape[3] * shape[4] < 2**31]
        for name, arguments, gradient, function in peers(inputs, dh) if with_peer else []:
            for chunk in addressable if "TFLA" in name else [None]:
                leaves = [x.detach().clone().requires_grad_() for x in arguments]
                try:
                    forward = median_milliseconds(lambda: function(leaves, chunk))
                    total = median_milliseconds(lambda: torch.autograd.grad(function(leaves, chunk), leaves, gradient))
                    emit({**record, "kernel": name, "chunk": chunk, "forward ms (median, least, most)": forward,
                          "forward+backward ms": total}, raw)
                except Exception as error:  # a peer that cannot run a shape is a result too
                    emit({**record, "kernel": name, "chunk": chunk, "failed": str(error)[:300]}, raw)
                del leaves
        del inputs, dh
        torch.cuda.empty_cache()


def profile(driver, raw, block, chunks, shapes):
    table = specialize(driver, [(s[3], s[4], c, *block) for s in shapes for c in chunks])
    for shape in shapes:
        inputs, dh = draw(*shape, "plain", False, seed=7)
        for chunk in chunks:
            layer = Layer(table[(shape[3], shape[4], chunk, *block)], *inputs, poison=False)
            layer.set_output_gradient(dh)
            layer.run()
            layer.run(backward=True)
            times = {}
            for backward in (False, True):
                for name, grid, threads in layer.sequence(backward, False):
                    step = lambda: layer.kernels.run(name, grid, threads, layer.parameters)
                    times[name] = round(median_milliseconds(step, repeats=5, warm_up=1)[0], 4)
            emit({"head": f"{shape[3]}x{shape[4]}", "heads": shape[1], "chunk": chunk, "block": block, "ms": times}, raw)
            del layer
        torch.cuda.empty_cache()


def main():
    parser = script_parser(__doc__, ["check", "boundaries", "bench", "profile"])
    parser.add_argument("--blocks", default="64x3", help="BLOCK_K x STAGES, comma separated")
    parser.add_argument("--chunks", default="256")
    parser.add_argument("--shapes", default="", help="indices into PAPER, comma separated")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--small", action="store_true", help="check: only cases of at most 700 tokens, for a memory checker")
    arguments = parser.parse_args()
    blocks = [tuple(int(x) for x in b.split("x")) for b in arguments.blocks.split(",")]
    chunks = [int(c) for c in arguments.chunks.split(",")]
    shapes = [PAPER[int(x)] for x in arguments.shapes.split(",")] if arguments.shapes else PAPER
    driver = start_gpu()
    if arguments.what == "check":
        cases = [c for c in CASES if not arguments.small or c[2] <= 700]
        sys.exit(1 if check(driver, arguments.raw, blocks[0], cases) else 0)
    elif arguments.what == "boundaries":
        sys.exit(1 if boundaries(driver, arguments.raw, blocks[0]) else 0)
    elif arguments.what == "bench":
        bench(driver, arguments.raw, blocks, chunks, not arguments.no_peer, shapes)
    else:
        profile(driver, arguments.raw, blocks[0], chunks, shapes)


if __name__ == "__main__":
    sys.path.insert(0, HERE)
    main()
