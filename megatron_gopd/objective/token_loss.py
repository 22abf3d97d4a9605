"""The one shape every objective has: log-probs in, loss and its gradient out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class TokenRows:
    """What an objective may know of every response token besides the student's view of it. All [tokens].

    Only `weights` is always there; an objective says which of the others it reads.
    """

    weights: Tensor  # from aggregation.token_weights, over the whole batch
    behaviour_logprobs: Tensor | None = None  # by the engine that sampled
    teacher_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None  # the student's before the first of several steps; None: as they are now
    outcome: Tensor | None = None  # the group advantage of the token's response, from objective.group
    lambda_: Tensor | None = None  # of the token's teacher; None: one for all

    def lambda_or(self, usual: float) -> float | Tensor:
        return usual if self.lambda_ is None else self.lambda_

    def select(self, tokens: slice | Tensor, device: torch.device | None = None) -> TokenRows:
        """The rows of some tokens."""
        picked = {name: None if column is None else column[tokens] for name, column in vars(self).items()}
        return TokenRows(**{name: column if column is None else column.to(device) for name, column in picked.items()})


class TokenLoss(NamedTuple):
    """A loss and its exact gradient, so that the LM-head kernel never needs autograd through logits."""

    loss: Tensor  # scalar
    dloss_dlogprobs: Tensor  # [tokens]
    dloss_dentropy: Tensor | None  # [tokens]; None: the loss does not use the entropy
    metrics: dict[str, Tensor]  # name -> [tokens], to log
