"""The shape of an objective that judges the whole distribution: divergences in, loss and its gradient out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DistributionLoss(NamedTuple):
    """What `f(divergence, logprobs, entropy, rows: TokenRows)` gives; the sibling of TokenLoss.

    The kernel fills rows.teacher_logprobs and rows.reference_logprobs, of the sampled token, before it calls f.
    """

    loss: Tensor  # scalar
    dloss_ddivergence: Tensor  # [tokens]
    dloss_dlogprobs: Tensor | None  # [tokens], of the sampled token; None: the loss does not use it
    metrics: dict[str, Tensor]  # name -> [tokens], to log
