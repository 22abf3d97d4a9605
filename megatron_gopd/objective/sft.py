"""Supervised fine-tuning as a token loss."""

from __future__ import annotations

from torch import Tensor

from megatron_gopd.objective.token_loss import TokenLoss, TokenRows


def sft_loss():
    """Build `token_loss(logprobs, entropy, rows)`: the negative log-likelihood, L = - sum_t weight_t log pi_theta(y_t).

    Of rows it reads the weights only.
    """

    def token_loss(logprobs: Tensor, entropy: Tensor, rows: TokenRows) -> TokenLoss:
        weights = rows.weights.to(logprobs.dtype)
        return TokenLoss(-(weights * logprobs.detach()).sum(), -weights, None, {})

    return token_loss
