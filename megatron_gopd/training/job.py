"""Everything one run holds, built in an order that fails early and cheaply."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.data import PromptLoader, Tokenizers, build_prompts, load_tokenizers
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.model import check_fp8
from megatron_gopd.policies.scorers import Scorers
from megatron_gopd.policies.student import Student
from megatron_gopd.ranks import is_first
from megatron_gopd.rollout import EmbeddedEngine, RolloutEngine, SGLangEngine
from megatron_gopd.training.batches import Batches


@dataclass
class Job:
    """The parts of a distillation run, the same objects on every rank."""

    config: Config
    tokenizers: Tokenizers
    loader: PromptLoader
    student: Student
    scorers: Scorers
    rollout: RolloutEngine
    batches: Batches

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_) -> None:
        """End what the job started besides its own ranks."""
        self.rollout.close()
        self.scorers.close()


@dataclass
class Material:
    """What a run works on, before any weight is loaded."""

    tokenizers: Tokenizers
    loader: PromptLoader


def prepare(config: Config) -> Material:
    """Check the models and read the data: whatever can be refused early is refused here, as a UserError. Collective."""
    _check_models(config)
    tokenizers = load_tokenizers(config)
    prompts = build_prompts(config, tokenizers)
    if is_first():
        _announce(prompts.skipped_too_long, prompts.warnings, config)
    return Material(tokenizers, PromptLoader(prompts.prompts, config.data.batch_size, config.run.seed))


def build_job(config: Config, material: Material, logs: Path) -> Job:
    """Load the models, and start servers where some are asked for; their logs go to the folder `logs`. Collective.

    Raises UserError for whatever the user can mend.
    """
    student = Student(config)
    scorers = Scorers(config, logs)
    sampled_by_servers = config.rollout.engine == "sglang"
    engine = SGLangEngine(config, student, logs) if sampled_by_servers else EmbeddedEngine.of_student(config)
    batches = Batches(config, material.loader, engine)
    return Job(config, material.tokenizers, material.loader, student, scorers, engine, batches)


def _check_models(config: Config) -> None:
    """Architectures, layouts and files of every model, before the first weight is read."""
    world = dist.get_world_size()
    for role, settings in {"student": config.student, **config.scorers()}.items():
        Architecture.read(settings.model).check_layout(settings.layout, f"{role} ({settings.model})")
        settings.layout.span(world, role)
        check_fp8(settings.fp8, settings.dtype, f"{role} ({settings.model})")
        weights.check(settings.model)


def _announce(skipped: int, warnings: list[str], config: Config) -> None:
    if skipped:
        print(f"left out {skipped} prompt(s) longer than data.max_prompt_tokens ({config.data.max_prompt_tokens})")
    for warning in warnings:
        print(f"warning: {warning}")
