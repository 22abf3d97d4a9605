"""What the heads say of every token, once the statistics of all shards are merged."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from torch import Tensor

from megatron_gopd.kernels.backend import DistributionStatistics, DistributionUpstream, Statistics
from megatron_gopd.kernels.job import Job, Values
from megatron_gopd.objective.token_loss import TokenRows

NAMES = "student", "teacher", "reference"


class DistributionValues(NamedTuple):
    """Columns of every token, in nats: [tokens], or [heads, tokens] of each head over all of its rows."""

    divergence: Tensor
    log_sum: Tensor  # this and the next two: see DistributionUpstream
    mixture_log_sum: Tensor
    gap: Tensor
    log_sums: Tensor  # [heads, tokens]
    logprobs: Tensor  # [heads, tokens]
    entropies: Tensor  # [heads, tokens]

    @classmethod
    def of(cls, found: DistributionStatistics, forward: bool) -> DistributionValues:
        """found: rows of z over the shared ids, each head over all of its own, D."""
        leading, trailing = (-1, 0) if forward else (0, -1)
        log_total = found.total.log()
        gap = found.weighted[-1] / found.total[leading]
        own = Values.of(Statistics(*(column[1:-1] for column in found[:3]), found.target_logit))
        return cls(
            # not through log-sums: the divergence is small beside them
            gap - (log_total[leading] - log_total[trailing]),
            found.peak[0] + log_total[0],
            found.peak[-1] + log_total[-1],
            gap + (found.peak[leading] - found.peak[trailing]),
            own.log_sum,
            own.logprobs + 0 * own.entropy,  # a logit of minus infinity shows in the entropy alone
            own.entropy,
        )

    def upstream(self, on_divergence: Tensor, on_logprobs: Tensor | None) -> DistributionUpstream:
        """Given d loss / d divergence and d loss / d logprob of the sampled token."""
        own = self.log_sums[0], self.logprobs[0]
        return DistributionUpstream(self.log_sum, self.mixture_log_sum, self.gap, *own, on_divergence, on_logprobs)

    def rows(self, rows: TokenRows) -> TokenRows:
        """rows, with the targets' log-probs of the sampled tokens."""
        names = [f"{name}_logprobs" for name in NAMES[1 : len(self.logprobs)]]
        return dataclasses.replace(rows, **dict(zip(names, self.logprobs[1:], strict=True)))

    def check(self, targets: Tensor, finite: bool) -> None:
        """Job.check of every head, and of the divergence. Raises ValueError."""
        for name, *columns in zip(NAMES, self.log_sums, self.logprobs, self.entropies, strict=False):
            Job.check(targets, Values(*columns), finite, f"{name}'s ")
        if finite and not (whole := self.divergence.isfinite()).all():
            raise ValueError(f"the divergence of row {int((~whole).nonzero()[0, 0])} is not finite")
