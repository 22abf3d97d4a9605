"""What a run may do and should not: told at the start, where it costs a sentence and not a week."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from megatron_gopd.config import Config
from megatron_gopd.config.models import Model
from megatron_gopd.config.rules import reads_as_the_student
from megatron_gopd.data import Prompt, Tokenizers, stop_ids
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.front_door import open_weights
from megatron_gopd.mcore.hf_folder import HFFolder
from megatron_gopd.mcore.row_length import too_long

HARDLY_ANY = 0.1  # of the prompts that a teacher would have if all had as many


def cautions(config: Config, tokenizers: Tokenizers, prompts: list[Prompt]) -> list[str]:
    """Sentences for the user. Reads a few tensors. Raises UserError: rows that the student's servers would refuse."""
    return [
        *_cache_outlives_its_weights(config),
        *_stop_ids_differ(config, tokenizers),
        *_rows_run_past_a_context(config, prompts),
        *_teachers_have_few_prompts(config, prompts),
        *_references_are_not_asked(config),
        *_teachers_are_copies_of_the_student(config, tokenizers),
    ]


def _cache_outlives_its_weights(config: Config) -> Iterator[str]:
    if not config.rollout.sglang.flushes:
        yield (
            "rollout.sglang.on_update is in_place: after an update, responses under way and new ones that begin alike "
            "read what older weights computed, so the engine's log-probs, and the rollout correction, are those of no "
            "single policy; retract computes it anew"
        )


def _stop_ids_differ(config: Config, tokenizers: Tokenizers) -> Iterator[str]:
    """A base student under an instruct teacher: what ends a response for one goes on for the other."""
    ours = stop_ids(config.student.model, tokenizers.student)
    for name, teacher in config.teachers.items():
        theirs = stop_ids(teacher.model, tokenizers.teachers[name])
        if set(theirs) != set(ours):
            yield (
                f"the student ({config.student.model}) stops at {_named(ours, tokenizers)} and teachers.{name} "
                f"({teacher.model}) at {_named(theirs, tokenizers)}: responses may grow without end; name the same ids "
                f"in eos_token_id of both generation_config.json"
            )


def _named(ids: list[int], tokenizers: Tokenizers) -> str:
    return ", ".join(f"{i} ({tokenizers.student.convert_ids_to_tokens(i)})" for i in ids)


def _rows_run_past_a_context(config: Config, prompts: list[Prompt]) -> Iterator[str]:
    """Raises UserError where servers will: they refuse what does not fit."""
    read = (max(map(len, (each.student_tokens, each.teacher_tokens, each.reference_tokens))) for each in prompts)
    tokens = max(read, default=0) + config.rollout.max_response_tokens
    served = config.algorithm.SAMPLES_STUDENT and config.rollout.engine == "sglang"
    for who, model in {"the student": config.student, **config.scorers()}.items():
        limit = Architecture.read(model.model).context
        if tokens > limit and served and who == "the student":
            raise UserError(too_long(config, tokens, who, model.model, limit))
        if tokens > limit:
            yield too_long(config, tokens, who, model.model, limit)


def _teachers_have_few_prompts(config: Config, prompts: list[Prompt]) -> Iterator[str]:
    counts = Counter(prompt.teacher for prompt in prompts)
    for name in config.teachers:
        if 0 < counts[name] < HARDLY_ANY * len(prompts) / len(config.teachers):
            yield (
                f"teachers.{name} has {counts[name]} of {len(prompts)} prompts and will hardly be heard; add some, or "
                f"set data.balance: equal"
            )


def _references_are_not_asked(config: Config) -> Iterator[str]:
    named = {f"teachers.{name}.reference": teacher.reference for name, teacher in config.teachers.items()}
    named["algorithm.reference"] = getattr(config.algorithm, "reference", None)
    asked = list(config.scorers().values())
    for key, reference in named.items():
        if reference and reference not in asked:
            yield f"{key} ({reference.model}) is never asked: lambda is 1, or nothing weighs it; leave it out"


def _teachers_are_copies_of_the_student(config: Config, tokenizers: Tokenizers) -> Iterator[str]:
    """Under another name: the same folder is refused with the configuration."""
    for name, teacher in config.teachers.items():
        same_prompt = tokenizers.teachers[name].chat_template == tokenizers.student.chat_template
        if reads_as_the_student(config, name, same_prompt=same_prompt) and _same_weights(config.student, teacher):
            yield (
                f"teachers.{name} ({teacher.model}) holds the weights of the student ({config.student.model}), and "
                f"nothing makes it another: every advantage would be 0; name another model"
            )


def _same_weights(one: Model, other: Model) -> bool:
    """By the last norm and the first and last layers' attention, which any training moves."""
    if Path(one.model).resolve() == Path(other.model).resolve():
        return True
    if Architecture.read(one.model) != Architecture.read(other.model):
        return False
    folders = [open_weights(each.model) for each in (one, other)]
    if not all(isinstance(folder, HFFolder) for folder in folders):
        return False
    layers = Architecture.read(one.model).layers
    names = [f"model.layers.{layer}.self_attn.{which}_proj.weight" for layer in {0, layers - 1} for which in "qo"]
    return all(
        torch.equal(*(folder.tensor(name).float() for folder in folders)) for name in ["model.norm.weight", *names]
    )
