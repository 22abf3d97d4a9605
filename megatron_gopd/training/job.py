"""Everything one run holds, built in an order that fails early and cheaply."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.data import PromptLoader, PromptSet, Tokenizers, build_prompts, load_tokenizers, stop_ids
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.front_door import open_weights
from megatron_gopd.mcore.model import check_model
from megatron_gopd.nodes import Nodes
from megatron_gopd.policies.scorers import Scorers
from megatron_gopd.policies.student import Student
from megatron_gopd.ranks import give_back_memory, is_first, on_first
from megatron_gopd.rewards import check_gradable
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
from megatron_gopd.training.batches import Batches
from megatron_gopd.training.cautions import cautions, check_context
from megatron_gopd.training.exams import check_suites
from megatron_gopd.training.headline import headline


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
    check_models(config, dist.get_world_size())
    idle = check_nodes(config)
    check_sync(config)
    tokenizers = check_tokenizers(config)
    prompts = build_prompts(config, tokenizers)
    if config.algorithm.SAMPLES_STUDENT:  # nothing else is graded
        every = config.needs_rewards
        Nodes.of_job().each(lambda: check_gradable(config.rewards, prompts.prompts, config.sandbox, every=every))
    check_suites(config, tokenizers)
    warnings = on_first(lambda: cautions(config, tokenizers, prompts.prompts))
    if is_first():
        _announce(config, prompts, [*prompts.warnings, *warnings, *idle])
    loader = PromptLoader(prompts.prompts, config.data.batch_size, config.run.seed)
    progress.enter("loading the models")
    student = Student(config)
    scorers = resolve_name(config.algorithm.SCORERS)(config)
    rollout = _rollout(config)
    source = rollout if config.algorithm.SAMPLES_STUDENT else _writers(config)
    return Job(config, tokenizers, loader, student, scorers, rollout, source, Batches(config, loader, source))


def _rollout(config: Config) -> RolloutEngine | None:
    if not (config.algorithm.SAMPLES_STUDENT or config.evaluation):
        return None
    return SGLangEngine(config) if config.rollout.engine == "sglang" else EmbeddedEngine.of(config.student, config)


def _writers(config: Config) -> Source:
    return TeacherResponses(config) if config.teachers else WrittenResponses()


def check_models(config: Config, world: int) -> None:
    """Architectures, layouts on `world` ranks, precisions and files of every model, before the first weight is read.

    Raises:
        UserError: names the first that cannot be.
    """
    for role, settings in {"student": config.student, **config.scorers()}.items():
        architecture, where = Architecture.read(settings.model), f"{role} ({settings.model})"
        check_model(architecture, settings.layout, settings.dtype, settings.fp8, where)
        settings.layout.span(world, role)
        open_weights(settings.model)
    check_context(config)


def check_tokenizers(config: Config) -> Tokenizers:
    """Of every model, with the ids that end a response. Raises UserError: the first that is unfit."""
    tokenizers = load_tokenizers(config)
    stop_ids(config.student.model, tokenizers.student)
    for name, tokenizer in tokenizers.teachers.items():
        stop_ids(config.teachers[name].model, tokenizer)
    return tokenizers


def _announce(config: Config, prompts: PromptSet, warnings: list[str]) -> None:
    print(folded(headline(config, prompts.prompts), width()), flush=True)
    for setting, count in prompts.left_out.items():
        print(f"left out {count} prompt(s) longer than {setting}")
    for warning in warnings:
        print(f"warning: {warning}")
