"""Everything one run holds, built in an order that fails early and cheaply."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.data import PromptLoader, Tokenizers, build_prompts, load_tokenizers
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.model import check_fp8
from megatron_gopd.policies.scorers import Scorers
from megatron_gopd.policies.student import Student
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.rollout import EmbeddedEngine, RolloutEngine
from megatron_gopd.runs import RunFolder


@dataclass
class Job:
    """The parts of a distillation run, the same objects on every rank."""

    config: Config
    tokenizers: Tokenizers
    loader: PromptLoader
    student: Student
    scorers: Scorers
    rollout: RolloutEngine


def build_job(config: Config) -> Job:
    """Load data, tokenizers and models. Collective. Raises UserError for what the user can mend, cheapest first."""
    on_first(lambda: RunFolder.check(config))
    check_models(config, dist.get_world_size())
    tokenizers = load_tokenizers(config)
    prompts = build_prompts(config, tokenizers)
    if is_first():
        _announce(prompts.skipped_too_long, prompts.warnings, config)
    loader = PromptLoader(prompts.prompts, config.data.batch_size, config.run.seed)
    student = Student(config)
    scorers = Scorers(config)
    return Job(config, tokenizers, loader, student, scorers, EmbeddedEngine.of_student(config))


def check_models(config: Config, world: int) -> None:
    """Architectures, layouts on `world` ranks and files of every model, before the first weight is read.

    Raises:
        UserError: names the first that cannot be.
    """
    roles = {"student": config.student}
    for name, teacher in config.teachers.items():
        roles[f"teachers.{name}"] = teacher
        if config.algorithm.lambda_ != 1:
            roles[f"the reference of teachers.{name}"] = config.reference_of(name)
    for role, settings in roles.items():
        Architecture.read(settings.model).check_layout(settings.layout, f"{role} ({settings.model})")
        settings.layout.span(world, role)
        check_fp8(settings.fp8, settings.dtype, f"{role} ({settings.model})")
        weights.check(settings.model)


def _announce(skipped: int, warnings: list[str], config: Config) -> None:
    if skipped:
        print(f"left out {skipped} prompt(s) longer than data.max_prompt_tokens ({config.data.max_prompt_tokens})")
    for warning in warnings:
        print(f"warning: {warning}")
