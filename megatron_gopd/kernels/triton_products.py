"""From the gradient of a block's logits to those of hidden and weight: two products, by whom it takes least."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_gopd.kernels import triton_kernels as kernels
from megatron_gopd.kernels.triton_tiles import launch, programs, tile_of

BF16, FP32 = torch.bfloat16, torch.float32
# (dtype of the operands, of the result) -> by whom. Time over one bare GEMM of (16384, 2560, 151936) on an H100, in
# chunks of 4096 tokens, cuBLAS against product_kernel: grad_hidden 0.82, 0.99; grad_weight added in float32 0.92,
# 1.09; in bf16 0.90 by cuBLAS. Any other pair is product_kernel's: cuBLAS may be told to make TF32 of float32.
PRODUCTS = {(BF16, FP32): "cublas", (BF16, BF16): "cublas"}


def into_both(
    grad: Tensor,
    hidden: Tensor,
    rows: Tensor,
    grad_hidden: Tensor,
    grad_rows: Tensor | None,
    first: bool,
    add: bool,
    capability: int,
    factor: Tensor | None = None,
) -> None:
    """grad [tokens, rows] of the logits hidden @ rows.T, into grad_hidden and grad_rows.

    first: write over grad_hidden; else add to it. add: to grad_rows, as Backend.gradients. factor: [tokens], by which
    every row of grad is to be multiplied; only with `first`.
    """
    product(grad, rows, grad_hidden, not first, capability)
    if factor is not None:
        grad_hidden *= factor[:, None]
    if grad_rows is not None:
        if factor is not None:
            hidden = torch.mul(hidden, factor[:, None], out=torch.empty_like(hidden))  # rounded once
        product(grad.T, hidden, grad_rows, add, capability)


def product(a: Tensor, b: Tensor, out: Tensor, add: bool, capability: int) -> None:
    """out = a @ b or out += a @ b, summed in float32; rows of b and out are contiguous, of a its rows or columns."""
    if PRODUCTS.get((a.dtype, out.dtype)) == "cublas":
        by_cublas(a, b, out, add)
    else:
        by_triton(a, b, out, add, capability)


def by_cublas(a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
    wide = {} if out.dtype == a.dtype else {"out_dtype": out.dtype}
    torch.addmm(out, a, b, **wide, out=out) if add else torch.mm(a, b, **wide, out=out)


def by_triton(a: Tensor, b: Tensor, out: Tensor, add: bool, capability: int) -> None:
    (rows, inner), columns, tile = a.shape, b.shape[1], tile_of(b.dtype, capability)
    if not out.numel():
        return
    kernels.product_kernel[(programs(rows, columns, tile),)](
        a, b, out, rows, columns, inner, *a.stride(), b.stride(0), out.stride(0),
        ADD=add, EVEN=inner % tile.inner == 0, **launch(tile),
    )  # fmt: skip
