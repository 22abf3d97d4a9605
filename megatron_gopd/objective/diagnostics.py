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
    log_p, modal = teacher.double().max(dim=1)
    log_b = reference.double().gather(1, modal[:, None])[:, 0]
    against_p, against_b = _log_odds_against(log_p), _log_odds_against(log_b)
    reached = torch.log(-torch.expm1(log_p)) - torch.log(cap + torch.expm1(log_p))
    limit = (reached - against_b) / (against_p - against_b)
    return torch.where(log_p > log_b, limit, torch.inf).float()


def disagreement(teacher: Tensor, reference: Tensor) -> Tensor:
    """The probability mass that teacher and reference put on different tokens: their total variation, [tokens].

    Args:
        teacher, reference: [tokens, vocabulary] log-probs.
    """
    return (teacher.exp() - reference.exp()).abs().sum(dim=1) / 2


def _log_odds_against(log_p: Tensor) -> Tensor:
    """log((1 - p) / p)."""
    return torch.log(-torch.expm1(log_p)) - log_p
