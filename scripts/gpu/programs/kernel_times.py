"""The LM-head kernel beside its peers, over one bare GEMM of the shape: kernel_times.py DEVICE FILE

Writes {"gemm_flops": {shape: FLOP/s}, "rows": [[shape, pass, who, times the GEMM, extra MB or null], ...]} after every
contender; of one that did not run, its error stands in place of the two.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import torch

from scripts.gpu.programs.kernel_peers import Operands, both, forward
from scripts.gpu.programs.timing import extra_mb, seconds

# tokens, hidden, vocabulary rows; the last is a rank's shard under tp 4
SHAPES = {
    "cuda": [(8192, 4096, 151936), (16384, 2560, 151936), (8192, 2048, 151936), (16384, 2560, 37984)],
    "cpu": [(64, 32, 1000), (64, 32, 250)],
}


def main(device: str, file: Path) -> None:
    found = {"gemm_flops": {}, "rows": []}
    for shape in SHAPES[device]:
        data = Operands.of(*shape, device)
        gemm = seconds(data.gemm)
        tokens, hidden, words = shape
        found["gemm_flops"][name_of(shape)] = 2 * tokens * hidden * words / gemm
        contenders = [("forward", forward(data)), ("both", both(data)), ("product", products(data, device))]
        for what, runs in contenders:
            for who, run in runs:
                found["rows"].append([name_of(shape), what, who, *measured(run, gemm)])
                file.write_text(json.dumps(found))
        del data, contenders, runs, run


def name_of(shape: tuple[int, int, int]) -> str:
    return "({}, {}, {})".format(*shape)


def measured(run, gemm: float) -> list:
    try:
        return [seconds(run) / gemm, extra_mb(run)]
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        return [f"{type(error).__name__}: {said[0][:120]}", None]
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def products(data: Operands, device: str):
    """What kernels/triton_products.py chooses from: both gradients' products of a chunk, scaled to all tokens."""
    if device == "cpu":
        return
    from megatron_gopd.kernels.triton_products import by_cublas, by_triton

    major, minor = torch.cuda.get_device_capability()
    chunk = min(4096, len(data.x))
    x, grad = data.x[:chunk], torch.randn(chunk, len(data.w), device=device, dtype=torch.bfloat16)
    out = torch.empty(chunk, data.x.shape[1], device=device)
    for name, by, rest in (("cuBLAS", by_cublas, ()), ("Triton", by_triton, (10 * major + minor,))):
        dx, dw = (by, grad, data.w, out, False, *rest), (by, grad.T, x, data.main_grad, True, *rest)
        for what, call in (("dX", dx), ("dW", dw)):
            yield f"{what} by {name}", functools.partial(repeated, len(data.x) // chunk, *call)


def repeated(times: int, run, *arguments) -> None:
    for _ in range(times):
        run(*arguments)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
