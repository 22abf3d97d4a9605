"""The target of a distribution loss: a weighted sum of other heads' logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from megatron_gopd.kernels.job import Job

Divergence = Literal["reverse_kl", "forward_kl"]


@dataclass(frozen=True)
class TargetHead:
    """A frozen model's LM head and the hidden states that go into it, in the student's dtype."""

    hidden: Tensor  # [tokens, h_k]: rows given as the student's (all rows, or this rank's slice under rows_per_rank)
    weight: Tensor  # [rows, h_k]: this rank's shard; its first row is the id of the student shard's first row
    rows: int  # of weight that stand for tokens; the last rank's shard may be longer or shorter than the student's
    log_sum: Tensor | None = None  # [tokens] log sum exp z over all its rows, given as targets are; needed with clamp


@dataclass(frozen=True)
class Target:
    """q = softmax(D) over the shared ids, from the logits z* and z_r of teacher and reference at the temperature:

    without clamp   D = lambda z* + (1 - lambda) z_r; without a reference D = z*
    with clamp c    D = z* + clamp((lambda - 1) ((z* - log_sum*) - (z_r - log_sum_r)), -c, c)
    """

    teacher: TargetHead
    reference: TargetHead | None
    lambda_: float
    shared: int  # ids 0 .. shared - 1 over all ranks, which every head has
    clamp: float | None = None
    divergence: Divergence = "reverse_kl"

    @property
    def heads(self) -> dict[str, TargetHead]:
        named = {"teacher": self.teacher, "reference": self.reference}
        return {name: head for name, head in named.items() if head is not None}

    @property
    def log_sums(self) -> Tensor | None:
        """[2, tokens] of teacher and reference, where D needs them."""
        if self.clamp is None or self.reference is None:
            return None
        return torch.stack([self.teacher.log_sum, self.reference.log_sum])

    def mixture(self, logits: list[Tensor], log_sums: Tensor | None) -> Tensor:
        """D [tokens, rows] from the logits of teacher and reference, [tokens, rows] each; log_sums of these tokens."""
        if self.reference is None:
            return logits[0]
        teacher, reference = logits
        if log_sums is None:
            return self.lambda_ * teacher + (1 - self.lambda_) * reference
        gain = (teacher - log_sums[0][:, None]) - (reference - log_sums[1][:, None])
        return teacher + ((self.lambda_ - 1) * gain).clamp(-self.clamp, self.clamp)

    def shared_rows(self, job: Job) -> int:
        """How many of this rank's first rows are shared ids."""
        return max(0, min(self.shared, job.head.first + job.head.valid) - job.head.first)

    def check(self, job: Job, hidden: Tensor, weight: Tensor) -> None:
        """Raises ValueError for what does not fit the student's `hidden` and `weight`."""
        if self.divergence not in get_args(Divergence):
            raise ValueError(f"divergence {self.divergence!r} must be one of {', '.join(get_args(Divergence))}")
        if self.reference is None and self.lambda_ != 1:
            raise ValueError(f"lambda = {self.lambda_} needs a reference; only at 1 is the target the teacher's alone")
        if self.clamp is not None and not self.clamp >= 0:
            raise ValueError(f"clamp {self.clamp} must not be negative")
        group, first, last = job.head.group, job.head.first, job.head.first + job.head.valid
        ends = group is None or group.rank() == group.size() - 1  # no shard follows
        if self.shared < 1 or self.shared > last and (ends or job.head.valid < len(weight)):
            raise ValueError(f"the student's head has ids up to {last - 1}, but 0 .. {self.shared - 1} are shared")
        for name, head in self.heads.items():
            self._check_head(name, head, job, hidden)
            if head.rows < self.shared_rows(job):
                raise ValueError(
                    f"the {name}'s head has {head.rows} rows from id {first} on, but ids up to "
                    f"{first + self.shared_rows(job) - 1} of this shard are shared"
                )
            if not ends and head.rows > len(weight):
                raise ValueError(
                    f"the {name}'s shard has {head.rows} rows from id {first} on, but the next starts at "
                    f"{first + len(weight)}"
                )

    def _check_head(self, name: str, head: TargetHead, job: Job, hidden: Tensor) -> None:
        given = f"the {name}'s hidden {tuple(head.hidden.shape)}, weight {tuple(head.weight.shape)}"
        if head.hidden.dim() != 2 or head.weight.dim() != 2 or head.hidden.shape[1] != head.weight.shape[1]:
            raise ValueError(f"{given} must be [tokens, h] and [V, h]")
        if len(head.hidden) != len(hidden):
            raise ValueError(f"{given}: the student's hidden has {len(hidden)} rows")
        if not 0 <= head.rows <= len(head.weight):
            raise ValueError(f"{given}: {head.rows} rows do not fit")
        if {head.hidden.dtype, head.weight.dtype} != {hidden.dtype}:
            raise ValueError(f"{given} are {head.hidden.dtype}, {head.weight.dtype}; the student is {hidden.dtype}")
        if self.clamp is not None and self.reference is not None:
            if head.log_sum is None:
                raise ValueError(f"clamp needs the {name}'s log_sum")
            if head.log_sum.shape != (job.tokens,):
                raise ValueError(f"the {name}'s log_sum {tuple(head.log_sum.shape)} must be [tokens] = [{job.tokens}]")
