"""Teachers behind SGLang that tell of their most likely tokens, and references that are asked about these."""

from __future__ import annotations

import numpy as np

from megatron_gopd.config import Config, schema
from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.policies import scoring
from megatron_gopd.policies.scorers import Scorers, refuse_non_finite
from megatron_gopd.policies.support import Support
from megatron_gopd.policies.support_payload import SupportPayload


class TopKScorers(Scorers):
    """What they tell waits on every rank for the update: 8 to 12 bytes a token of the support, of the whole batch."""

    def __init__(self, config: Config):
        """Collective over all ranks. Raises UserError for a model, a layout or a top_k that cannot be used."""
        self.rows = _rows_of_all(config)
        super().__init__(config)
        self._supports: dict[int, Support] = {}  # by identity of the trajectory
        self.payload = SupportPayload(config, self.take)

    def take(self, batch: list[Trajectory]) -> list[Support]:
        """Of every trajectory, which are held here no longer."""
        taken = [self._supports.pop(id(trajectory)) for trajectory in batch]
        if not self.config.extrapolates():
            return taken
        # at lambda 1 any reference will do, as its term is 0
        return [each if each.reference is not None else each._replace(reference=each.teacher) for each in taken]

    def _ask(self, settings: schema.Scorer, who: str, rows: list[Row], taught: list[Trajectory]) -> list[np.ndarray]:
        """A teacher is asked before its reference, which tells of the tokens that the teacher named."""
        told = self._teacher if settings.engine == "sglang" else self._reference
        logprobs = told(settings, rows, taught)
        for values, trajectory in zip(logprobs, taught, strict=True):
            refuse_non_finite(who, settings, values.sum(axis=1), trajectory)
        return [values[:, 0] for values in logprobs]

    def _teacher(self, settings: schema.Scorer, rows: list[Row], taught: list[Trajectory]) -> list[np.ndarray]:
        names = [trajectory.name for trajectory in taught]
        answers = self._servers(settings).score_top(rows, self.config.algorithm.top_k, names)
        for trajectory, scored in zip(taught, answers, strict=True):
            self._supports[id(trajectory)] = Support.of(trajectory.response_tokens, scored, self.rows)
        return [self._supports[id(trajectory)].teacher for trajectory in taught]

    def _reference(self, settings: schema.Scorer, rows: list[Row], taught: list[Trajectory]) -> list[np.ndarray]:
        ids = [self._supports[id(trajectory)].ids for trajectory in taught]
        served, names = self._servers(settings), [trajectory.name for trajectory in taught]
        found = served.score_ids(rows, ids, names) if served else self._in_this_job(settings, rows, ids)
        for trajectory, values in zip(taught, found, strict=True):
            self._supports[id(trajectory)] = self._supports[id(trajectory)]._replace(reference=values)
        return found

    def _in_this_job(self, settings: schema.Scorer, rows: list[Row], ids: list[np.ndarray]) -> list[np.ndarray]:
        with self._resident(settings) as model:
            return scoring.score_support(
                model,
                rows,
                ids,
                temperature=self.config.rollout.temperature,
                max_tokens=self.config.training.max_tokens_per_micro_batch,
                naive=self.config.training.logprob == "naive",
            )


def _rows_of_all(config: Config) -> int:
    """Ids for which every model has a row of vocabulary: 0 .. n - 1.

    Raises UserError: algorithm.top_k asks a teacher for more tokens than it has, which would end its server.
    """
    for who, settings in config.named_teachers().items():
        rows, asked = Architecture.read(settings.model).vocab_size, config.algorithm.top_k
        if asked > rows:
            raise UserError(
                f"algorithm.top_k is {asked}, but {who} ({settings.model}) has {rows} tokens: choose a smaller one"
            )
    every = [config.student, *config.scorers().values()]
    return min(Architecture.read(settings.model).vocab_size for settings in every)
