"""What whole distributions tell of a run's lambda; nothing here is trained on."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_limit(teacher: Tensor, reference: Tensor, cap: float) -> Tensor:
    """Up to which lambda the fixed point stays within a truncated importance weight's reach, prefix by prefix.

        l* = [log((1 - p) / (c - 1 + p)) - log((1 - b) / b)] / [log((1 - p) / p) - log((1 - b) / b)]

    p is the teacher's probability of its most likely token, b the reference's of the same token: at l* the fixed point
    q has (1 - p) / (1 - q) = c. Infinite where p <= b: there lambda does not sharpen. A diagnostic, not a bound.
    Source: arXiv:2605.08737, Theorem 4.1.

    Args:
        teacher, reference: [tokens, vocabulary] log-probs.
        cap: c, of the importance weight.

    Returns:
        [tokens] float32.
    """
    modal = teacher.argmax(dim=1, keepdim=True)
    rest_p, against_p = _against(teacher, modal)
    _, against_b = _against(reference, modal)
    reached = rest_p - torch.log(cap - rest_p.exp())
    limit = (reached - against_b) / (against_p - against_b)
    return torch.where(against_p < against_b, limit, torch.inf).float()


def disagreement(teacher: Tensor, reference: Tensor) -> Tensor:
    """The probability mass that teacher and reference put on different tokens: their total variation, [tokens].

    Args:
        teacher, reference: [tokens, vocabulary] log-probs.
    """
    return (teacher.exp() - reference.exp()).abs().sum(dim=1) / 2


def _against(law: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 - p) and log((1 - p) / p), p the probability of `token` [tokens, 1]; of the others' sum, since the p of a
    sure model rounds to 1."""
    rest = law.scatter(1, token, -torch.inf).logsumexp(dim=1).double()
    return rest, rest - law.gather(1, token)[:, 0].double()
