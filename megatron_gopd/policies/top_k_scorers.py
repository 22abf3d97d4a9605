"""Teachers behind SGLang that tell of their most likely tokens, and references that are asked about these."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from megatron_gopd.config import Config
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.policies import scoring
from megatron_gopd.policies.scorers import Asked, Scorers, refuse_non_finite
from megatron_gopd.policies.support import Support
from megatron_gopd.policies.support_payload import SupportPayload
from megatron_gopd.servers.top_logprobs import Scored

# what a teacher is asked, what waits for the tokens that it names, and the references of its chunk, by who they are
Naming = tuple[Asked, Callable[[], list[Scored]], dict[str, Asked]]


class TopKScorers(Scorers):
    """What they tell waits on every rank for the update: 8 to 12 bytes a token of the support, of the whole batch."""

    def __init__(self, config: Config):
        """Collective over all ranks. Raises UserError for a model, a layout or a top_k that cannot be used."""
        self.rows = _rows_of_all(config)
        super().__init__(config)
        self._supports: dict[int, Support] = {}  # by identity of the trajectory
        self._naming: list[Naming] = []
        self.payload = SupportPayload(config, self.take)

    def take(self, batch: list[Trajectory]) -> list[Support]:
        """Of every trajectory, which are held here no longer."""
        taken = [self._supports.pop(id(trajectory)) for trajectory in batch]
        if not self.config.extrapolates():
            return taken
        # at lambda 1 any reference will do, as its term is 0
        return [each if each.reference is not None else each._replace(reference=each.teacher) for each in taken]

    def score(self, chunk: list[Trajectory]) -> None:
        """See Scorers.score. Teachers are asked now; references when what their teachers named has come: that of a
        chunk is looked at when the next is there."""
        named, self._naming = self._naming, []
        references: dict[str, Asked] = {}
        for asked in self._asked(chunk):
            if asked.role == "teacher":
                top = self._servers(asked.settings).ask_top(asked.rows, self.config.algorithm.top_k, asked.names)
                self._naming.append((asked, top, references))
            else:
                references[asked.who] = asked
        self._refer(named)

    def wait(self) -> None:
        """See Scorers.wait."""
        named, self._naming = self._naming, []
        self._refer(named)
        super().wait()

    def _refer(self, named: list[Naming]) -> None:
        """Teachers' answers, and what references are asked of them."""
        for asked, top, references in named:
            for trajectory, scored in zip(asked.trajectories, top(), strict=True):
                self._supports[id(trajectory)] = Support.of(trajectory.response_tokens, scored, self.rows)
            self._fill(asked, [self._supports[id(trajectory)].teacher for trajectory in asked.trajectories])
            reference = references.get(f"the reference of {asked.who}")
            if reference is None:
                continue
            ids = [self._supports[id(trajectory)].ids for trajectory in reference.trajectories]
            if served := self._servers(reference.settings):
                self._under_way.append((reference, served.ask_ids(reference.rows, ids, reference.names)))
            else:
                self._fill(reference, self._in_this_job(reference, ids))

    def _fill(self, asked: Asked, logprobs: list[np.ndarray]) -> None:
        """`logprobs`: [response, k] of each trajectory, of which the response's own token is the first."""
        for trajectory, values in zip(asked.trajectories, logprobs, strict=True):
            refuse_non_finite(asked.who, asked.settings, values.sum(axis=1), trajectory)
            if asked.role == "reference":
                self._supports[id(trajectory)] = self._supports[id(trajectory)]._replace(reference=values)
        super()._fill(asked, [values[:, 0] for values in logprobs])

    def _in_this_job(self, asked: Asked, ids: list[np.ndarray]) -> list[np.ndarray]:
        with self._resident(asked.settings) as model:
            return scoring.score_support(
                model,
                asked.rows,
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
