"""Distributions of which a few tokens are known: these tokens, and one tail with the mass of all others."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from megatron_gopd.objective.advantage import refuse_no_reference

LEAST_TAIL = 8  # in roundings of 1: log-probs do not tell a smaller tail from none


def coarse_divergence(
    student: Tensor,
    teacher: Tensor,
    reference: Tensor | None,
    used: Tensor,
    lambda_: float | Tensor,
    clamp: float | None = None,
    divergence: Literal["reverse_kl", "forward_kl"] = "reverse_kl",
) -> tuple[Tensor, Tensor]:
    """The divergence of the student's coarse distribution p from q, to be differentiated in `student`.

        p = (pi_theta(v), v in S; 1 - their sum),   pi* and pi_ref likewise
        q = pi*^lambda pi_ref^(1 - lambda) / Z = pi* exp((lambda - 1)(log pi* - log pi_ref)) / Z,   over S and the tail
        reverse_kl: KL(p || q),   forward_kl: KL(q || p)

    To merge tokens makes no divergence larger, and the tail's share of q is that of merged tails: where lambda is not
    1, another one than the sum of q over the tail.

    Args:
        student, teacher, reference: [tokens, k] log-probs of the ids in S, nats; the reference is not read at lambda 1.
        lambda_: of all tokens, or [tokens].
        used: [tokens, k] which columns stand for an id of S; each id once.
        clamp: bound of |(lambda - 1)(log pi* - log pi_ref)|, of the tail too; None: there is none.

    Returns:
        [tokens] divergence, [tokens] mass of the student's tail.

    Raises:
        ValueError: lambda_ != 1 without a reference.
    """
    refuse_no_reference(lambda_, reference)
    known = torch.cat([used, used.new_ones(len(used), 1)], dim=1)
    mine, target = with_tail(student, used), with_tail(teacher, used)
    if reference is not None:
        scale = torch.as_tensor(lambda_ - 1, dtype=target.dtype, device=target.device).reshape(-1, 1)
        beyond = scale * (target - with_tail(reference, used))
        target = target + (beyond if clamp is None else beyond.clamp(-clamp, clamp))
    target = target.masked_fill(~known, -torch.inf).log_softmax(dim=1).masked_fill(~known, 0.0)
    leading, trailing = (mine, target) if divergence == "reverse_kl" else (target, mine)
    distance = torch.where(known, leading.exp() * (leading - trailing), 0.0).sum(dim=1)
    return distance, mine[:, -1].detach().exp()


def with_tail(logprobs: Tensor, used: Tensor) -> Tensor:
    """[tokens, k] log-probs -> [tokens, k + 1] with the tail's, at least LEAST_TAIL; 0 in columns not used."""
    logprobs = torch.where(used, logprobs, 0.0)
    mass = torch.where(used, logprobs.exp(), 0.0).sum(dim=1, keepdim=True)
    least = LEAST_TAIL * torch.finfo(logprobs.dtype).eps
    return torch.cat([logprobs, (1 - mass).clamp(min=least).log()], dim=1)
