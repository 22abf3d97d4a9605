"""Rotary position embedding where there is no Transformer Engine: Megatron's bits, with half of its passes over memory.

Megatron concatenates the halves turned, then these with an empty rest, and autograd takes both apart again.
"""

from __future__ import annotations

import torch
from torch import Tensor


def turn(t: Tensor, freqs: Tensor, mscale: float = 1.0) -> Tensor:
    """t [tokens, batch, heads, dim], freqs [tokens, 1, 1, turned] in radians -> as t. The first `turned` numbers of a
    head are turned, each with the one half of them further on.

    As megatron.core.models.common.embeddings.rope_utils._apply_rotary_pos_emb_bshd without interleaving.
    """
    size = freqs.shape[-1]
    cos, sin = ((of(freqs) * mscale).to(t.dtype) for of in (torch.cos, torch.sin))
    turned = _Turn.apply(t[..., :size], cos, *sin.chunk(2, dim=-1))
    return turned if size == t.shape[-1] else torch.cat((turned, t[..., size:]), dim=-1)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t: Tensor, cos: Tensor, sin: Tensor, sin_further: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin, sin_further)
        return _added(t, cos, -sin, sin_further)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        cos, sin, sin_further = ctx.saved_tensors
        return _added(gradient, cos, sin_further, -sin), None, None, None


def _added(t: Tensor, cos: Tensor, of_further: Tensor, of_first: Tensor) -> Tensor:
    """t * cos, to whose halves the other half of t is added, times its factor."""
    turned = t * cos
    for half, other, factor in zip(turned.chunk(2, -1), reversed(t.chunk(2, -1)), (of_further, of_first), strict=True):
        half += other * factor
    return turned
