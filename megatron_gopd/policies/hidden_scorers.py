"""Teachers and references that give hidden states, from which an update judges every token of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist

from megatron_gopd.config import Config, schema
from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.policies.distribution_payload import DistributionPayload
from megatron_gopd.policies.hidden_states import Held, Piece, hidden_states
from megatron_gopd.policies.scorer_states import ScorerStates
from megatron_gopd.policies.scorers import Scorers, _identity
from megatron_gopd.policies.served_states import ServedStates, ranks_that_ask
from megatron_gopd.policies.sglang_states import SGLangStates
from megatron_gopd.policies.target_heads import shared_ids


class HiddenScorers(Scorers):
    """Scorers whose answers stay where they were computed until the update asks for them.

    A rank holds at most half of training.hidden_states_gib; what does not fit is computed in the update.
    """

    def __init__(self, config: Config):
        """Collective over all ranks. Raises UserError for a model, a layout or a head that cannot be used."""
        self.shared = shared_ids(config)  # refuses before the models are loaded
        super().__init__(config)
        self.dtype = getattr(torch, config.student.dtype)
        self.budget = int(config.training.hidden_states_gib * 2**30 / 2)
        self.ahead: list[Piece] = []
        self.payload = DistributionPayload(self)

    def score(self, chunk: list[Trajectory]) -> None:
        """Hold the hidden states of a chunk, as far as memory allows. Collective; every rank passes the same chunk."""
        with self._in_turn(chunk):
            self._score(chunk)

    def _score(self, chunk: list[Trajectory]) -> None:
        for name in self.config.teachers:
            taught = [trajectory for trajectory in chunk if trajectory.prompt.teacher == name]
            held = sum(piece.tokens * self.token_bytes_held(piece.teacher) for piece in self.ahead)
            if taught and held + sum(map(len, taught)) * self.token_bytes_held(name) <= self.budget:
                self.ahead.append(self.piece(name, taught))

    def take(self) -> list[Piece]:
        """What is held, which is held here no longer."""
        taken, self.ahead = self.ahead, []
        return taken

    def judges(self, teacher: str) -> dict[str, schema.Scorer]:
        return judges_of(self.config, teacher)

    def piece(self, teacher: str, taught: list[Trajectory]) -> Piece:
        """Compute. Collective over all ranks."""
        lengths = torch.tensor([len(trajectory) for trajectory in taught])
        starts = lengths.cumsum(0) - lengths
        prompts = {f"teachers.{teacher}": "teacher_tokens"}
        asked, judges = {}, self.judges(teacher)
        for who, settings in judges.items():
            tokens = prompts.get(who, "reference_tokens")
            rows = [Row(getattr(each.prompt, tokens), each.response_tokens) for each in taught]
            asked[who] = self._begin(settings, rows, starts, taught)
        order = sorted(asked, key=lambda who: judges[who].engine != "megatron")  # servers are waited for last
        return Piece(teacher, taught, {who: asked[who]() for who in order})

    def token_bytes_held(self, teacher: str) -> float:
        """Of a token's hidden states, of all that judge it, on a rank that computes them; about."""
        return sum(bytes_ / ranks for bytes_, ranks in map(self._token, self.judges(teacher).values()))

    def token_bytes(self, teacher: str) -> int:
        """Of the hidden states of one token, of all that judge it."""
        return sum(self._token(settings)[0] for settings in self.judges(teacher).values())

    def _token(self, settings: schema.Scorer) -> tuple[int, int]:
        """Bytes, and the ranks over which tokens are shared out."""
        layout, ranks = settings.layout, dist.get_world_size()
        if settings.engine == "megatron":
            ranks = len(layout.span(ranks, "")) // layout.pp
        else:
            ranks = ranks_that_ask(settings, ranks)
        return Architecture.read(settings.model).hidden_size * self.dtype.itemsize, ranks

    def _behind_servers(self, settings: schema.Scorer, who: str) -> ServedStates:
        kind = SGLangStates if settings.engine == "sglang" else ScorerStates
        return kind(settings, who, getattr(torch, self.config.student.dtype))

    def _begin(
        self, settings: schema.Scorer, rows: Sequence[Row], starts: torch.Tensor, taught: list[Trajectory]
    ) -> Callable[[], Held]:
        """What gives the hidden states of `rows`; servers compute them until it is called, beside this job."""
        if served := self._served.get(_identity(settings)):
            return served.begin(rows, [each.name for each in taught], starts)
        return partial(self._hidden_states, settings, rows, starts)

    def _hidden_states(self, settings: schema.Scorer, rows: Sequence[Row], starts: torch.Tensor) -> Held:
        with self._resident(settings) as model:
            if model is None:
                return Held.nothing(Architecture.read(settings.model).hidden_size, self.dtype)
            budget = self.config.training.max_tokens_per_micro_batch
            return hidden_states(model, rows, starts, self.dtype, budget)


def judges_of(config: Config, teacher: str) -> dict[str, schema.Scorer]:
    """{who: settings} of the models that judge a teacher's trajectories, itself first."""
    asked = config.scorers()
    names = (f"teachers.{teacher}", f"the reference of teachers.{teacher}")
    return {who: asked[who] for who in names if who in asked}
