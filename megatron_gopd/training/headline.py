"""The first line of a run: what it is, before its models are loaded."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_gopd import machine
from megatron_gopd.config import Config
from megatron_gopd.config.models import Model
from megatron_gopd.data import Prompt


def headline(config: Config, prompts: list[Prompt]) -> list[str]:
    """Its parts: folder and steps, device and ranks, student, each teacher with its prompts, references."""
    counts = Counter(prompt.teacher for prompt in prompts)
    parts = [
        f"{os.path.join(config.run.folder, config.run.name)}: {config.algorithm.type}, {config.run.steps} steps",
        f"{_device()}, {_many(dist.get_world_size(), 'rank')}",
        f"student {_model(config.student)}, {_replicas(config.student)}",
    ]
    for name, teacher in config.teachers.items():
        strength = f", lambda {config.lambda_of(name):g}" if hasattr(config.algorithm, "lambda_") else ""
        parts.append(f"teacher {name} {_model(teacher)}, {_many(counts[name], 'prompt')}{strength}")
    if not config.teachers:
        parts.append(_many(len(prompts), "prompt"))
    return [*parts, *_references(config)]


def _device() -> str:
    return torch.cuda.get_device_name() if machine.device().type == "cuda" else "cpu"


def _model(model: Model) -> str:
    """What the folder is called, the precision, and what of the layout is not 1."""
    layout = model.layout.model_dump(exclude_defaults=True)
    shown = [f"{key}={value}" for key, value in layout.items()]
    return " ".join([Path(model.model).name, model.dtype, *shown])


def _replicas(model: Model) -> str:
    layout = model.layout
    size = layout.tp * layout.pp * layout.cp
    return f"dp={len(layout.span(dist.get_world_size(), 'student')) // size}"


def _references(config: Config) -> list[str]:
    """Each that is asked, once."""
    named = {}
    for name in config.teachers:
        if config.extrapolates(name):
            reference = config.reference_of(name)
            own = reference == config.initial_student()
            named.setdefault("the student's start" if own else _model(reference), []).append(name)
    if len(named) == 1:
        return [f"reference {next(iter(named))}"]
    return [f"reference of {', '.join(names)} {what}" for what, names in named.items()]


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
