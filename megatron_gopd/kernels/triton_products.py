"""From the gradient of a block's logits to those of hidden and weight: launches of product_kernel."""

from __future__ import annotations

from torch import Tensor

from megatron_gopd.kernels import triton_kernels as kernels
from megatron_gopd.kernels.triton_tiles import launch, programs, tile_of


def into_both(
    grad: Tensor,
    hidden: Tensor,
    rows: Tensor,
    grad_hidden: Tensor,
    grad_rows: Tensor | None,
    first: bool,
    add: bool,
    capability: int,
) -> None:
    """grad [tokens, rows] of the logits hidden @ rows.T, into grad_hidden and grad_rows.

    first: write over grad_hidden; else add to it. add: to grad_rows, as Backend.gradients.
    """
    _product(grad, rows, grad_hidden, not first, capability)
    if grad_rows is not None:
        _product(grad.T, hidden, grad_rows, add, capability)


def _product(a: Tensor, b: Tensor, out: Tensor, add: bool, capability: int) -> None:
    """out = a @ b or out += a @ b; rows of b and out are contiguous, of a its rows or its columns."""
    (rows, inner), columns, tile = a.shape, b.shape[1], tile_of(b.dtype, capability)
    if rows and columns:
        kernels.product_kernel[(programs(rows, columns, tile),)](
            a, b, out, rows, columns, inner, *a.stride(), b.stride(0), out.stride(0),
            ADD=add, EVEN=inner % tile.inner == 0, **launch(tile),
        )  # fmt: skip
