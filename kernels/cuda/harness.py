"""NVRTC and driver calls for the check scripts beside this file: compile a `.cu`, launch a kernel.

Needs PyTorch (memory, references, timing) and NVRTC 13, whose wheel PyTorch brings; no CUDA toolkit. The
compile options are those the Rust side uses, so that what is checked here is what runs there.
"""

import argparse
import ctypes
import glob
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
_COMPILER = """
import ctypes, sys, os
builtins, library, source, output = sys.argv[1:5]
options = sys.argv[5:]
ctypes.CDLL(builtins, ctypes.RTLD_GLOBAL)
nvrtc = ctypes.CDLL(library)
program, size = ctypes.c_void_p(), ctypes.c_size_t()
text = open(source, "rb").read()
nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, os.path.basename(source).encode(), 0, None, None)
array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
code = nvrtc.nvrtcCompileProgram(program, len(options), array)
nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
log = ctypes.create_string_buffer(size.value)
nvrtc.nvrtcGetProgramLog(program, log)
open(output + ".log", "wb").write(log.value)
if code:
    sys.exit(log.value.decode())
nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
cubin = ctypes.create_string_buffer(size.value)
nvrtc.nvrtcGetCUBIN(program, cubin)
open(output, "wb").write(cubin.raw)
"""


def nvrtc_libraries():
    """Paths of libnvrtc-builtins and libnvrtc in whatever `nvidia` wheel is installed."""
    for root in sys.path:
        for library in sorted(glob.glob(os.path.join(root, "nvidia", "**", "libnvrtc.so.*"), recursive=True)):
            builtins = glob.glob(os.path.join(os.path.dirname(library), "libnvrtc-builtins.so.*"))
            if builtins:
                return builtins[0], library
    sys.exit("no libnvrtc found: install the wheel nvidia-cuda-nvrtc (13.0)")


def compile_all(jobs, architecture, workers):
    """Compiles `(source, defines)` jobs in parallel processes; returns cubin paths in order."""
    builtins, library = nvrtc_libraries()
    cache = os.path.join(tempfile.gettempdir(), "xlstm-cubins")
    os.makedirs(cache, exist_ok=True)
    headers = b"".join(open(h, "rb").read() for h in sorted(glob.glob(os.path.join(HERE, "*.cuh"))))

    def one(job):
        source, defines = job
        path = os.path.join(HERE, source)
        options = [f"--gpu-architecture={architecture}", "--std=c++17", "--ptxas-options=-v", "-lineinfo", "-I" + HERE]
        options += [f"-D{name}={value}" for name, value in sorted(defines.items())]
        digest = hashlib.sha256(headers + open(path, "rb").read() + repr(options).encode()).hexdigest()[:24]
        output = os.path.join(cache, f"{source[:-3]}-{digest}.cubin")
        if not os.path.exists(output):
            subprocess.run([sys.executable, "-c", _COMPILER, builtins, library, path, output, *options], check=True)
        return output

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, jobs))


def resources(cubin):
    """Lines of the assembler's report: kernel, registers, shared memory, spills."""
    lines, name = [], "?"
    for line in open(cubin + ".log").read().splitlines():
        if "Compiling entry function" in line:
            name = line.split("'")[1]
        elif "Used" in line or ("spill" in line and "0 bytes spill stores, 0 bytes spill loads" not in line):
            lines.append(f"{name}: {line.split(':', 1)[-1].strip()}")
    return lines


def script_parser(description, actions):
    """A parser of what every check script takes: what to do, and where raw output goes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=actions)
    parser.add_argument("--raw")
    return parser


def start_gpu():
    """PyTorch's context, made and used by its autograd thread too, and the driver on it."""
    import torch

    torch.cuda.init()
    torch.ones(16, 16, device="cuda", requires_grad=True).matmul(torch.ones(16, 16, device="cuda")).sum().backward()
    return Driver()


class Driver:
    """The few driver calls a launch needs, on PyTorch's primary context."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.modules = {}

    def call(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else code}")

    def function(self, cubin, name, shared_bytes):
        key = (cubin, name)
        if key not in self.modules:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            self.call("cuModuleLoadData", ctypes.byref(module), open(cubin, "rb").read())
            self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
            if shared_bytes > 32 * 1024:  # with static memory beside it, 48 KiB is reached early
                self.call("cuFuncSetAttribute", function, 8, shared_bytes)
            self.modules[key] = function
        return self.modules[key]

    def tensor_map(self, tensor):
        """The 128 bytes of a map of a bf16 tensor of four axes, for boxes of 64 rows of 64 (bulk.cuh)."""
        memory = ctypes.create_string_buffer(192)
        aligned = -(-ctypes.addressof(memory) // 64) * 64
        sizes = (ctypes.c_uint64 * 4)(*reversed(tensor.shape))
        strides = (ctypes.c_uint64 * 3)(*[max(2 * s, 16) for s in reversed(tensor.stride()[:3])])
        box, ones = (ctypes.c_uint32 * 4)(64, 64, 1, 1), (ctypes.c_uint32 * 4)(1, 1, 1, 1)
        # bf16, rank 4; not interleaved, swizzled over 128 bytes, whole lines of 256 bytes in L2, zeros outside.
        self.call("cuTensorMapEncodeTiled", ctypes.c_void_p(aligned), 9, 4, ctypes.c_void_p(tensor.data_ptr()), sizes,
                  strides, box, ones, 0, 3, 3, 0)
        return ctypes.string_at(aligned, 128)

    def launch_cooperative(self, function, grid, threads, shared_bytes, parameters, stream):
        """All blocks run at once, or the launch is refused."""
        array = (ctypes.c_void_p * 1)(ctypes.addressof(parameters))
        self.call("cuLaunchCooperativeKernel", function, *[ctypes.c_uint(g) for g in grid], ctypes.c_uint(threads), 1, 1,
                  ctypes.c_uint(shared_bytes), ctypes.c_void_p(stream), array)

    def launch(self, function, grid, threads, shared_bytes, parameters, stream):
        array = (ctypes.c_void_p * 1)(ctypes.addressof(parameters))
        self.call("cuLaunchKernel", function, *[ctypes.c_uint(g) for g in grid], ctypes.c_uint(threads), 1, 1,
                  ctypes.c_uint(shared_bytes), ctypes.c_void_p(stream), array, None)


def machine():
    """What a figure must be read with: GPU, driver, versions."""
    import torch

    try:
        driver = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                                capture_output=True, text=True).stdout.strip()
    except OSError:
        driver = "unknown"
    return {"gpu": driver, "torch": torch.__version__, "cuda": torch.version.cuda}


def median_milliseconds(function, repeats=10, warm_up=3):
    """Median and spread of device time by events, one pair per call."""
    import torch

    for _ in range(warm_up):
        function()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in pairs:
        begin.record()
        function()
        end.record()
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) for begin, end in pairs)
    return times[len(times) // 2], times[0], times[-1]


def emit(record, path):
    """Appends one JSON line to the raw output and prints it."""
    line = json.dumps(record)
    print(line, flush=True)
    if path:
        with open(path, "a") as file:
            file.write(line + "\n")
