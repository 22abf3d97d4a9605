"""Teachers and references that give hidden states, from which an update judges every token of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from megatron_gopd.config import Config, schema
from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.policies.distribution_payload import DistributionPayload
from megatron_gopd.policies.hidden_states import Held, Piece, hidden_states
from megatron_gopd.policies.scorer_states import ScorerStates
from megatron_gopd.policies.scorers import Asked, Scorers
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
        self._of_servers: list[tuple[Piece, str, Callable[[], Held]]] = []  # what they were asked
        self.payload = DistributionPayload(self)

    def score(self, chunk: list[Trajectory]) -> None:
        """Begin to hold the hidden states of a chunk, as far as memory allows; servers go on until wait(). Collective;
        every rank passes the same chunk."""
        with self._in_turn(chunk):
            self._score(chunk)

    def _score(self, chunk: list[Trajectory]) -> None:
        for name in self.config.teachers:
            taught = [trajectory for trajectory in chunk if trajectory.prompt.teacher == name]
            held = sum(piece.tokens * self.token_bytes_held(piece.teacher) for piece in self.ahead)
            if taught and held + sum(map(len, taught)) * self.token_bytes_held(name) <= self.budget:
                self.ahead.append(self._begin_piece(name, taught))

    def wait(self) -> None:
        """Until what servers were asked is held."""
        asked, self._of_servers = self._of_servers, []
        for piece, who, states in asked:
            piece.held[who] = states()

    def take(self) -> list[Piece]:
        """What is held, which is held here no longer. Collective."""
        self.wait()
        taken, self.ahead = self.ahead, []
        return taken

    def judges(self, teacher: str) -> dict[str, schema.Scorer]:
        return judges_of(self.config, teacher)

    def piece(self, teacher: str, taught: list[Trajectory]) -> Piece:
        """Compute. Collective over all ranks."""
        piece = self._begin_piece(teacher, taught)
        self.wait()
        return piece

    def _begin_piece(self, teacher: str, taught: list[Trajectory]) -> Piece:
        """It holds what models of this job gave; what servers give comes in wait()."""
        lengths = torch.tensor([len(trajectory) for trajectory in taught])
        starts = lengths.cumsum(0) - lengths
        piece, here = Piece(teacher, taught, {}), []
        for who, settings in self.judges(teacher).items():
            asked = Asked(who, settings, "teacher" if who == f"teachers.{teacher}" else "reference", taught)
            if served := self._servers(settings):
                self._of_servers.append((piece, who, served.begin(asked.rows, asked.names, starts)))
            else:
                here.append(asked)
        for asked in here:
            piece.held[asked.who] = self._hidden_states(asked.settings, asked.rows, starts)
        return piece

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
