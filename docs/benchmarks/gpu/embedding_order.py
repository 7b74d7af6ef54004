"""Whether gradients of an embedding agree from run to run on a GPU, and what each way costs.

    python docs/benchmarks/gpu/embedding_order.py        (PyTorch 2.11 with CUDA; output: training/recorded/)

For each size: how many of 20 repeats differ from the first, and microseconds a call, of libtorch's embedding backward pass,
of index_put with accumulation, and of a product with ones and zeros; then the gradient of a block-diagonal weight.
"""

import time

import torch


def differing(function, repeats=20):
    first = function()
    return sum(not torch.equal(first, function()) for _ in range(repeats))


def microseconds(function, repeats=50):
    function()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    torch.cuda.synchronize()
    return round((time.perf_counter() - begin) * 1e6 / repeats, 1)


def main():
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), torch.__version__)
    for tokens, rows, width in [(10240, 8, 128), (10240, 1000, 128), (65536, 50304, 768), (32768, 50304, 2048)]:
        weights = torch.rand(rows, device="cuda").pow(8) + 1e-4
        index = torch.multinomial(weights, tokens, replacement=True)
        upstream = torch.randn(tokens, width, device="cuda")

        def libtorch():
            return torch.ops.aten.embedding_dense_backward(upstream, index, rows, -1, False)

        def index_put():
            return torch.zeros(rows, width, device="cuda").index_put_((index,), upstream, accumulate=True)

        def product():
            return (torch.arange(rows, device="cuda")[:, None] == index[None]).float() @ upstream

        ways = {"libtorch": libtorch, "index_put": index_put}
        if rows <= 512:
            ways["product"] = product
        for name, way in ways.items():
            print(f"{tokens} tokens, {rows} x {width}, {name}: {differing(way)} of 20 differ, {microseconds(way)} us")
    blocks, width, tokens = 4, 32, 10240
    x, upstream = (torch.randn(tokens, blocks * width, device="cuda") for _ in range(2))

    def batched():
        split = (tensor.view(tokens, blocks, width).transpose(0, 1) for tensor in (upstream, x))
        left, right = split
        return left.transpose(1, 2) @ right

    print(f"block-diagonal weight: batched {microseconds(batched)} us, dense {microseconds(lambda: upstream.t() @ x)} us")


main()
