"""Everything one run holds, built in an order that fails early and cheaply."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.config.own_code import OwnCode
from megatron_gopd.data import PromptLoader, PromptSet, Tokenizers
from megatron_gopd.machine import check_device
from megatron_gopd.nodes import Nodes
from megatron_gopd.policies.scorers import Scorers
from megatron_gopd.policies.student import Student
from megatron_gopd.ranks import give_back_memory, is_first, on_first
from megatron_gopd.rollout import (
    EmbeddedEngine,
    RolloutEngine,
    SGLangEngine,
    Source,
    TeacherResponses,
    WrittenResponses,
)
from megatron_gopd.rollout.nodes import check_nodes
from megatron_gopd.rollout.shared_gpus import check_sync
from megatron_gopd.runs import progress
from megatron_gopd.runs.console import width
from megatron_gopd.runs.step_line import folded
from megatron_gopd.terminal import say
from megatron_gopd.training.batches import Batches
from megatron_gopd.training.cautions import cautions
from megatron_gopd.training.checks import (
    check_models,
    check_models_here,
    check_rewards,
    check_rewards_here,
    check_tokenizers,
    read_held_out,
    read_prompts,
)
from megatron_gopd.training.exams import check_suites
from megatron_gopd.training.headline import headline
from megatron_gopd.training.memory import take_levers
from megatron_gopd.training.own_code import refuse_other_code

if TYPE_CHECKING:
    from megatron_gopd.plan.of_run import Taken


@dataclass
class Job:
    """The parts of a run, the same objects on every rank."""

    config: Config
    tokenizers: Tokenizers
    loader: PromptLoader
    student: Student
    scorers: Scorers
    rollout: RolloutEngine | None  # samples from the student; None where nothing asks it to
    source: Source  # of what is trained on: the rollout engine, or whoever writes what SFT imitates
    batches: Batches
    taken: Taken | None = None  # levers that the memory of GPUs decided

    @contextlib.contextmanager
    def serving(self, logs: Path) -> Iterator[None]:
        """Servers that sample or score are up within the block, their logs in the folder `logs`. Collective."""
        engines = [self.rollout, self.source] if self.source is not self.rollout else [self.rollout]
        engines = [engine for engine in engines if engine]
        progress.enter("starting")
        give_back_memory()  # to servers, which count what is free when they start
        try:
            self.scorers.start(logs)
            for engine in engines:
                engine.start(self.student, logs)
            yield
        finally:
            for engine in engines:
                engine.close()
            self.scorers.close()


def build_job(config: Config) -> Job:
    """Load data, tokenizers and models. Collective. Raises UserError for what the user can mend, cheapest first."""
    progress.enter("reading the data")
    refuse_other_code(config)
    check_device(config.run.device)
    check_models(config, dist.get_world_size())
    check_models_here(config)
    nodes, idle = check_nodes(config)
    check_sync(config)
    tokenizers = check_tokenizers(config)
    prompts, loader = read_prompts(config, tokenizers)
    Nodes.of_job().each(lambda: check_rewards_here(config, check_rewards(config, prompts)))
    read_held_out(config, tokenizers)
    check_suites(config, tokenizers)
    warnings = on_first(lambda: cautions(config, tokenizers, prompts.prompts))
    if is_first():
        _announce(config, prompts, [*prompts.warnings, *warnings, *idle])
    taken = take_levers(config, nodes)
    if taken and is_first():
        say(taken.line, flush=True)
    held = taken.config if taken else config
    progress.enter("loading the models")
    student = Student(held)
    scorers = resolve_name(config.algorithm.SCORERS)(held)
    rollout = _rollout(held)
    source = rollout if config.algorithm.SAMPLES_STUDENT else _writers(config)
    return Job(config, tokenizers, loader, student, scorers, rollout, source, Batches(config, loader, source), taken)


def _rollout(config: Config) -> RolloutEngine | None:
    if not (config.algorithm.SAMPLES_STUDENT or config.evaluation):
        return None
    if code := OwnCode.parse(config.rollout.engine):
        with code.errors("rollout.engine: "):
            return code.load()(config)
    return SGLangEngine(config) if config.rollout.engine == "sglang" else EmbeddedEngine.of(config.student, config)


def _writers(config: Config) -> Source:
    return TeacherResponses(config) if config.teachers else WrittenResponses()


def _announce(config: Config, prompts: PromptSet, warnings: list[str]) -> None:
    say(folded(headline(config, prompts.prompts), width()), flush=True)
    for setting, count in prompts.left_out.items():
        say(f"left out {count} prompt(s) longer than {setting}")
    for warning in warnings:
        say(f"warning: {warning}")
