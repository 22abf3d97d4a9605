"""Teachers and references: frozen models that say how likely a trajectory is to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from megatron_gopd.config import Config, schema
from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.levers import settle
from megatron_gopd.mcore.model import Model, build_model
from megatron_gopd.mcore.offload import Offloader
from megatron_gopd.policies import scoring


class Scorers:
    """Every frozen model of the job, each held once, and who scores what.

    A trajectory is scored by its own teacher only; by its reference only where lambda != 1.
    """

    def __init__(self, config: Config):
        """Collective over all ranks. Raises UserError for a model or layout that cannot be used."""
        self.config = config
        self._models: dict[str, Model | None] = {}  # None where this rank holds no part
        self._offloaders: dict[str, Offloader] = {}
        for name, teacher in config.teachers.items():
            self._hold(teacher)
            if config.algorithm.lambda_ != 1:
                self._hold(config.reference_of(name))

    def score(self, chunk: list[Trajectory]) -> None:
        """Fill in teacher_logprobs and reference_logprobs. Collective; every rank passes the same chunk."""
        for name, teacher in self.config.teachers.items():
            taught = [trajectory for trajectory in chunk if trajectory.prompt.teacher == name]
            if not taught:
                continue
            rows = [Row(trajectory.prompt.teacher_tokens, trajectory.response_tokens) for trajectory in taught]
            for trajectory, values in zip(taught, self._ask(teacher, f"teachers.{name}", rows, taught), strict=True):
                trajectory.teacher_logprobs = values
            if self.config.algorithm.lambda_ == 1:
                continue
            reference = self.config.reference_of(name)
            rows = [Row(trajectory.prompt.reference_tokens, trajectory.response_tokens) for trajectory in taught]
            answers = self._ask(reference, f"the reference of teachers.{name}", rows, taught)
            for trajectory, values in zip(taught, answers, strict=True):
                trajectory.reference_logprobs = values

    @contextlib.contextmanager
    def teacher(self, name: str) -> Iterator[Model | None]:
        """The model of a teacher, its weights on the device within the block; None where this rank has no part."""
        with self._resident(self.config.teachers[name]) as model:
            yield model

    @contextlib.contextmanager
    def _resident(self, settings: schema.Model) -> Iterator[Model | None]:
        identity = _identity(settings)
        with self._offloaders[identity].resident() if identity in self._offloaders else contextlib.nullcontext():
            yield self._models[identity]

    def _hold(self, settings: schema.Model) -> None:
        """Load a model unless the same one, in the same layout and dtype, is held already."""
        if _identity(settings) not in self._models:
            model = build_model(settings.model, settings.layout, settings.dtype, fp8=settings.fp8)
            if model is not None:
                weights.load(model, settings.model)
                model.module.eval().requires_grad_(False)
                if settle(settings).offload:
                    self._offloaders[_identity(settings)] = Offloader(model.module.parameters())
                    self._offloaders[_identity(settings)].release()
            self._models[_identity(settings)] = model

    def _ask(self, settings: schema.Model, who: str, rows: list[Row], taught: list[Trajectory]) -> list[np.ndarray]:
        with self._resident(settings) as model:
            logprobs, _ = scoring.score(
                model,
                rows,
                temperature=self.config.rollout.temperature,
                max_tokens=self.config.training.max_tokens_per_micro_batch,
                naive=self.config.training.logprob == "naive",
            )
        for values, trajectory in zip(logprobs, taught, strict=True):
            if not np.isfinite(values).all():
                token = int(np.flatnonzero(~np.isfinite(values))[0])
                raise UserError(
                    f"{who} ({settings.model}) gave log-prob {values[token]} to response token {token} of prompt "
                    f"{trajectory.prompt.id!r} ({trajectory.prompt.source}); its weights or dtype are unfit"
                )
        return logprobs


def _identity(settings: schema.Model) -> str:
    return schema.Model(**settings.model_dump(include=set(schema.Model.model_fields))).model_dump_json()
