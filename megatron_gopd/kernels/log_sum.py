"""The log-sum-exp of a head's logits, for a target that compares normalised log-probs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels.job import Job, Values


@torch.no_grad()
def linear_log_sum(
    hidden: Tensor,
    weight: Tensor,
    tokens: int,
    *,
    temperature: float = 1.0,
    vocab_range: tuple[int, int] | None = None,
    group: dist.ProcessGroup | None = None,
    rows_per_rank: Sequence[int] | None = None,
) -> Tensor:
    """log sum exp(hidden @ weight.T / temperature) of every token, [tokens] float32, on every rank; one GEMM.

    Args:
        tokens: of all slices. The other arguments are linear_logprob's.
    """
    targets = torch.zeros(tokens, dtype=torch.int64, device=hidden.device)
    job = Job.of(hidden, weight, targets, temperature, vocab_range, group, rows_per_rank, None, None)
    found = torch.empty(tokens, dtype=job.dtype, device=job.device)
    for chunk in job.cut():
        statistics, _ = job.head.statistics(chunk.gather(hidden), weight, targets[chunk.rows], keep=False)
        found[chunk.rows] = Values.of(statistics).log_sum
    return found
