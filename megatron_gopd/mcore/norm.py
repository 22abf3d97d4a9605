"""RMS norm where there is no Transformer Engine."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight in Hugging Face's order: normalised in float32, cast back, then scaled. x [..., h], weight
    [h].

    Its gradient takes half of autograd's passes over memory, which is what a norm takes on a CPU, and keeps x alone.
    """
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """With n = x / rms(x): (w g - n mean(w g n)) / rms(x), and sum(g n)."""
        x, weight, inverse = ctx.saved_tensors
        normalised = x.float() * inverse
        product = gradient * normalised.to(x.dtype)
        of_weight = product.flatten(0, -2).sum(0)
        mean = (product.float() @ weight.float() / len(weight)).unsqueeze(-1)
        of_x = torch.addcmul((gradient * weight).float(), normalised, mean, value=-1).mul_(inverse)
        return of_x.to(x.dtype), of_weight, None
