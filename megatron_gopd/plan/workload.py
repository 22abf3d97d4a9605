"""What a step of a run has to do: how many sequences, and how long."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_gopd.config import Config
from megatron_gopd.data.packing import pack, share
from megatron_gopd.plan.lengths import read_lengths

SPREAD = 0.8  # standard deviation of log response length: a mean of 4K then comes with a tail beyond 16K


@dataclass(frozen=True)
class Workload:
    """The sequences of one step: responses as in a file, or spread log-normally and cut at the longest."""

    prompt_tokens: int
    responses: np.ndarray  # [sequences] tokens, ascending
    _packed: dict[tuple, list[np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )  # a search asks often

    @classmethod
    def of(
        cls,
        config: Config,
        response_tokens: int | None = None,
        prompt_tokens: int | None = None,
        lengths: Path | None = None,
    ) -> Workload:
        """response_tokens: the mean; default: a quarter of the longest. prompt_tokens: of each; default: 200.

        lengths: a file with those of responses, in place of the law; see read_lengths for what it raises."""
        longest = config.rollout.max_response_tokens
        mean = min(response_tokens or max(1, longest // 4), longest)
        prompt = min(prompt_tokens or 200, config.data.max_prompt_tokens)
        sequences = config.data.batch_size * config.rollout.samples_per_prompt
        if lengths:
            quantiles = (np.arange(sequences) + 0.5) / sequences
            return cls(prompt, np.quantile(read_lengths(lengths, longest), quantiles, method="nearest"))
        return cls(prompt, log_normal(mean, longest, sequences))

    @property
    def sequences(self) -> int:
        return len(self.responses)

    @property
    def lengths(self) -> np.ndarray:
        """[sequences] positions a forward pass computes."""
        return self.responses + self.prompt_tokens - 1

    @property
    def response_tokens(self) -> int:
        return int(self.responses.sum())

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum()) + self.sequences

    def spread_over(self, replicas: int) -> Workload:
        """What each of several engines gets."""
        return Workload(
            self.prompt_tokens,
            self.responses[np.linspace(0, self.sequences - 1, max(1, -(-self.sequences // replicas))).astype(int)],
        )

    @property
    def longest(self) -> Workload:
        """The longest response alone."""
        return Workload(self.prompt_tokens, self.responses[-1:])

    def micro_batches(self, replicas: int, budget: int, fraction: float = 1.0) -> list[np.ndarray]:
        """Row lengths of each micro-batch of the replica with most, packed as the job packs them.

        fraction: of the sequences, where a model reads only some of them.
        """
        count = max(1, round(self.sequences * fraction))
        if (key := (replicas, budget, count)) not in self._packed:
            lengths = self.lengths[np.linspace(0, self.sequences - 1, count).astype(int)].tolist()
            packed = [pack(rows, lengths, budget) for rows in share(lengths, replicas)]
            self._packed[key] = [np.array([lengths[row] for row in rows]) for rows in max(packed, key=len)]
        return self._packed[key]


def log_normal(mean: float, longest: int, count: int) -> np.ndarray:
    """[count] quantiles of a log-normal distribution cut at `longest`, its mean after the cut as asked for."""
    normal = statistics.NormalDist()
    scores = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    low, high = -20.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        lengths = np.clip(np.exp(np.minimum(middle + SPREAD * scores, 60)), 1, longest)
        low, high = (middle, high) if lengths.mean() < mean else (low, middle)
    return np.clip(np.rint(lengths), 1, longest).astype(int)
