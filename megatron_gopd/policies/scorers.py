"""Teachers and references: frozen models that say how likely a trajectory is to them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from megatron_gopd.config import Config, schema
from megatron_gopd.config.own_code import OwnCode
from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.frozen import frozen_model
from megatron_gopd.mcore.levers import settle
from megatron_gopd.mcore.model import Model
from megatron_gopd.policies import scoring
from megatron_gopd.policies.outside import OutsideScorer, OwnScorer
from megatron_gopd.policies.payload import LOGPROBS, Payload
from megatron_gopd.policies.served import ServedScorer
from megatron_gopd.policies.turns import Turns


class Asked(NamedTuple):
    """What one model is asked to score."""

    who: str  # it is, in messages
    settings: schema.Scorer
    role: Literal["teacher", "reference"]  # whose prompt it reads, and whose log-probs it gives
    trajectories: list[Trajectory]

    @property
    def rows(self) -> list[Row]:
        prompts = (getattr(each.prompt, f"{self.role}_tokens") for each in self.trajectories)
        return [Row(prompt, each.response_tokens) for prompt, each in zip(prompts, self.trajectories, strict=True)]

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.trajectories]


class Scorers:
    """Every frozen model of the job, each held once, and who scores what.

    A trajectory is scored by its own teacher only; by its reference only where lambda != 1, or GRPO has a KL.
    """

    def __init__(self, config: Config):
        """Collective over all ranks. Raises UserError for a model or layout that cannot be used."""
        self.config = config
        self.payload: Payload = LOGPROBS
        self._models: dict[str, Model | None] = {}  # None where this rank holds no part
        self._turns = Turns()
        self._served: dict[str, OutsideScorer] = {}
        self._under_way: list[tuple[Asked, Callable[[], list[np.ndarray]]]] = []  # at servers
        for who, settings in config.scorers().items():
            self._hold(settings, who)

    def start(self, logs: Path) -> None:
        """Start or find the servers of scorers that are not in this job; their logs go to the folder `logs`."""
        for served in self._served.values():
            served.start(logs)

    def prepare(self) -> None:
        """A chunk is on its way."""
        self._turns.prepare()

    def score(self, chunk: list[Trajectory]) -> None:
        """Begin to fill in teacher_logprobs and reference_logprobs, as far as the algorithm reads them: models of this
        job have scored the chunk when this returns, servers that were asked go on beside what comes next, until wait().

        Collective; every rank passes the same chunk.
        """
        here = []
        for asked in self._asked(chunk):
            if served := self._servers(asked.settings):
                self._under_way.append((asked, served.ask(asked.rows, asked.names)))
            else:
                here.append(asked)
        with self._in_turn(chunk):
            for asked in here:
                self._fill(asked, self._in_this_job(asked))

    def wait(self) -> None:
        """Until what servers were asked is filled in. Collective."""
        under_way, self._under_way = self._under_way, []
        for asked, answers in under_way:
            self._fill(asked, answers())

    def close(self) -> None:
        """End the servers that were started here."""
        for served in self._served.values():
            served.close()

    @contextlib.contextmanager
    def teacher(self, name: str) -> Iterator[Model | None]:
        """The model of a teacher, its weights on the device within the block; None where this rank has no part."""
        with self._resident(self.config.teachers[name]) as model:
            yield model

    def _in_turn(self, chunk: list[Trajectory]) -> contextlib.AbstractContextManager[None]:
        """Within the block the chunk is scored, by the reference of all, or by each teacher and then its own."""
        asked, present = self.config.scorers(), {trajectory.prompt.teacher for trajectory in chunk}
        order = ["the reference"]
        for name in self.config.teachers:
            order += [f"teachers.{name}", f"the reference of teachers.{name}"] if name in present else []
        return self._turns.of(_identity(asked[who]) for who in order if who in asked)

    @contextlib.contextmanager
    def _resident(self, settings: schema.Scorer) -> Iterator[Model | None]:
        identity = _identity(settings)
        with self._turns.resident(identity):
            yield self._models[identity]

    def _servers(self, settings: schema.Scorer) -> OutsideScorer | None:
        return self._served.get(_identity(settings))

    def _hold(self, settings: schema.Scorer, who: str) -> None:
        """Load a model, or note that servers hold it, unless the same one, held in the same way, is there already."""
        if settings.engine != "megatron":
            if _identity(settings) not in self._served:
                self._served[_identity(settings)] = self._behind_servers(settings, who)
        elif _identity(settings) not in self._models:
            model = frozen_model(settings.model, settings.layout, settings.dtype, fp8=settings.fp8)
            if model is not None and (away := settle(settings).offload):
                self._turns.send_away(_identity(settings), model, ahead=away == "ahead")
            self._models[_identity(settings)] = model

    def _behind_servers(self, settings: schema.Scorer, who: str) -> OutsideScorer:
        if code := OwnCode.parse(settings.engine):
            return OwnScorer(code, settings, who, self.config.rollout.temperature)
        return ServedScorer(settings, who, self.config.rollout.temperature)

    def _asked(self, chunk: list[Trajectory]) -> Iterator[Asked]:
        """Who is asked for what of a chunk; a teacher before its reference."""
        scorers = self.config.scorers()
        if "the reference" in scorers:  # of GRPO, for all
            yield Asked("the reference", scorers["the reference"], "reference", chunk)
        for name in self.config.teachers:
            taught = [trajectory for trajectory in chunk if trajectory.prompt.teacher == name]
            for who, role in ((f"teachers.{name}", "teacher"), (f"the reference of teachers.{name}", "reference")):
                if taught and who in scorers:
                    yield Asked(who, scorers[who], role, taught)

    def _in_this_job(self, asked: Asked) -> list[np.ndarray]:
        with self._resident(asked.settings) as model:
            return scoring.score(
                model,
                asked.rows,
                temperature=self.config.rollout.temperature,
                max_tokens=self.config.training.max_tokens_per_micro_batch,
                naive=self.config.training.logprob == "naive",
            )[0]

    def _fill(self, asked: Asked, logprobs: list[np.ndarray]) -> None:
        # where only others have a reference, any will do: at lambda 1 its term is 0
        alone = f"the reference of {asked.who}" not in self.config.scorers()
        for trajectory, values in zip(asked.trajectories, logprobs, strict=True):
            refuse_non_finite(asked.who, asked.settings, values, trajectory)
            setattr(trajectory, f"{asked.role}_logprobs", values)
            if asked.role == "teacher" and alone and self.config.extrapolates():
                trajectory.reference_logprobs = values


def refuse_non_finite(who: str, settings: schema.Scorer, values: np.ndarray, trajectory: Trajectory) -> None:
    """Raises UserError: names the first response token whose log-prob is not finite."""
    if not np.isfinite(values).all():
        token = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(
            f"{who} ({settings.model}) gave log-prob {values[token]} to response token {token} of "
            f"{trajectory.name}; its weights or dtype are unfit"
        )


def _identity(settings: schema.Scorer) -> str:
    return schema.Scorer(**settings.model_dump(include=set(schema.Scorer.model_fields))).model_dump_json()
