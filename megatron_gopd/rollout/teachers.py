"""Who writes what SFT imitates: each prompt's teacher, or whoever wrote the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_gopd.config import Config
from megatron_gopd.data import Prompt, Trajectory
from megatron_gopd.rollout.embedded import EmbeddedEngine
from megatron_gopd.rollout.protocol import Exports, RolloutEngine
from megatron_gopd.rollout.sglang import FrozenSGLangEngine


class TeacherResponses:
    """Samples from frozen teachers, each the prompts that are its own, in the words it reads them in."""

    def __init__(self, config: Config):
        self._engines = {name: _engine(config, name) for name in config.teachers}

    def start(self, policy: Exports, logs: Path) -> None:
        """See RolloutEngine.start; `policy` is not asked."""
        for engine in self._engines.values():
            engine.start(policy, logs)

    def generate(self, prompts: list[Prompt], step: int) -> Iterator[list[Trajectory]]:
        """See RolloutEngine.generate: teacher after teacher; servers of all begin at once."""
        asked = {prompt.id: prompt for prompt in prompts}
        streams = []
        for name, engine in self._engines.items():
            read = [replace(each, student_tokens=each.teacher_tokens) for each in prompts if each.teacher == name]
            streams.append(engine.generate(read, step) if read else iter(()))
        return (
            [replace(each, prompt=asked[each.prompt.id]) for each in chunk] for stream in streams for chunk in stream
        )

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()


class WrittenResponses:
    """The responses that the data holds."""

    def start(self, policy: Exports, logs: Path) -> None:
        """Nothing to do."""

    def generate(self, prompts: list[Prompt], step: int) -> Iterator[list[Trajectory]]:
        """All of them, in one chunk."""
        yield [Trajectory(prompt, 0, np.array(prompt.response_tokens, np.int32), None, "stop") for prompt in prompts]

    def close(self) -> None:
        """Nothing to do."""


def _engine(config: Config, name: str) -> RolloutEngine:
    teacher = config.teachers[name]
    if teacher.engine == "sglang":
        return FrozenSGLangEngine(config, teacher, f"teachers.{name}")
    return EmbeddedEngine.of(teacher, config)
