"""The naive distribution loss: the logits of every head, softmax and autograd; tests compare the fused one with it."""

from __future__ import annotations

import dataclasses

import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels.job import Job
from megatron_gopd.kernels.linear_distribution_loss import DistributionLossFunction, LinearDistributionLoss
from megatron_gopd.kernels.one_pass import stated
from megatron_gopd.kernels.reference import log_sum_exp, naive_logprob, sum_over, to_shards
from megatron_gopd.kernels.target import Target
from megatron_gopd.objective.token_loss import TokenRows


def naive_distribution_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    distribution_loss: DistributionLossFunction,
    rows: TokenRows,
    target: Target,
    *,
    temperature: float = 1.0,
    vocab_range: tuple[int, int] | None = None,
    group: dist.ProcessGroup | None = None,
) -> LinearDistributionLoss:
    """linear_distribution_loss with this rank's logits materialised; float64 inputs are computed in float64.

    The gradient of hidden is this rank's share, as there. Values that are not finite come out as they are.
    """
    job = Job.of(hidden, weight, targets, temperature, vocab_range, group, None, None, None)
    target.check(job, hidden, weight)
    keywords = {"temperature": temperature, "group": job.head.group}
    first = job.head.first
    logprobs, entropy = naive_logprob(hidden, weight, targets, vocab_range=(first, first + job.head.valid), **keywords)
    of_heads = {
        f"{name}_logprobs": naive_logprob(
            head.hidden, head.weight, targets, vocab_range=(first, first + head.rows), **keywords
        )[0].detach()
        for name, head in target.heads.items()
    }
    divergence = _divergence(job, hidden, weight, target)
    filled = dataclasses.replace(rows, **of_heads)
    result = distribution_loss(divergence.detach(), logprobs.detach(), entropy.detach(), filled)
    loss = stated(result.loss, (divergence, result.dloss_ddivergence), (logprobs, result.dloss_dlogprobs))
    values = divergence.detach(), logprobs.detach(), entropy.detach(), of_heads["teacher_logprobs"]
    return LinearDistributionLoss(loss, *values, of_heads.get("reference_logprobs"), result.metrics)


def _divergence(job: Job, hidden: Tensor, weight: Tensor, target: Target) -> Tensor:
    """[tokens], over the shared ids of all ranks."""
    shared, group = target.shared_rows(job), job.head.group

    def logits(states: Tensor, rows: Tensor) -> Tensor:
        return states.to(job.dtype) @ rows[:shared].to(job.dtype).T / job.head.temperature

    of_target = [logits(head.hidden, head.weight).detach() for head in target.heads.values()]
    log_sums = None if target.log_sums is None else target.log_sums.to(job.dtype)
    sides = logits(hidden, weight), target.mixture(of_target, log_sums)
    p, q = (side - to_shards(log_sum_exp(side, group), group)[:, None] for side in sides)
    leading, trailing = (q, p) if target.divergence == "forward_kl" else (p, q)
    return sum_over((leading.exp() * (leading - trailing)).sum(dim=1), group)
