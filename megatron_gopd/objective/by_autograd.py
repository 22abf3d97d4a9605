"""A token loss whose gradient autograd finds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_gopd.objective.token_loss import TokenLoss, TokenRows

LossOfTokens = Callable[[Tensor, Tensor, TokenRows], tuple[Tensor, dict[str, Tensor]]]


def by_autograd(loss: LossOfTokens) -> Callable[[Tensor, Tensor, TokenRows], TokenLoss]:
    """Turn `loss(logprobs, entropy, rows) -> scalar, {name: [tokens]}` into a token loss; usable as a decorator.

    Only the graph from [tokens] log-probs and entropies to the scalar is differentiated: the LM head's kernel takes the
    gradients from there. What shall be a constant to the gradient is detached by `loss`. Where the scalar depends on
    neither, TokenLoss has no gradient, and is refused.
    """

    def token_loss(logprobs: Tensor, entropy: Tensor, rows: TokenRows) -> TokenLoss:
        with torch.enable_grad():
            leaves = logprobs.detach().requires_grad_(), entropy.detach().requires_grad_()
            found = loss(*leaves, rows)
            if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor)):
                raise TypeError(f"{token_loss.__name__} must return (scalar tensor, {{name: [tokens]}})")
            value, metrics = found
            slopes = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else (None, None)
        detached = {name: column.detach() for name, column in metrics.items()}
        return TokenLoss(value.detach(), *slopes, detached)

    token_loss.__wrapped__ = loss  # whose line is told
    token_loss.__name__ = getattr(loss, "__name__", "token_loss")
    return token_loss
