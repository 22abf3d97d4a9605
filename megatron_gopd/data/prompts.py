"""Rows -> prompts: templates, the teacher each prompt goes to, and what every model reads of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_gopd.config import Config
from megatron_gopd.config.schema import Column, Suffix
from megatron_gopd.data.balance import equal_sample
from megatron_gopd.data.render import apply_prompt_template, last_user_message, render, replace_user_message
from megatron_gopd.data.rows import Row, as_messages, column_of, errors_at, load_rows
from megatron_gopd.data.tokenizer import Tokenizers
from megatron_gopd.data.trajectory import Prompt
from megatron_gopd.errors import UserError


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a run, in the order of their files."""

    prompts: list[Prompt]
    skipped_too_long: int  # left out: longer than data.max_prompt_tokens for one of their models
    warnings: list[str]


def build_prompts(config: Config, tokenizers: Tokenizers, *, held_out: bool = False) -> PromptSet:
    """Read data.train, choose each row's teacher and render what student, teacher and reference read.

    With `held_out` it is evaluation.prompts that is read, and data.balance does not apply.
    Raises UserError naming FILE:LINE of a row that has no teacher or cannot be rendered.
    """
    key, files = ("evaluation.prompts", config.evaluation.prompts) if held_out else ("data.train", config.data.train)
    limit = config.data.max_prompt_tokens
    every = []
    for row in load_rows(files):
        with errors_at(row.source):
            every.append(_prompt(row, config, tokenizers))
    prompts = [prompt for prompt in every if _longest(prompt) <= limit]
    if not prompts:
        raise UserError(
            f"{key}: all {len(every)} prompts are longer than data.max_prompt_tokens ({limit}); "
            f"the shortest has {min(map(_longest, every))} tokens"
        )
    warnings = [
        f"teacher {name!r} has no prompts in {key}: it will not be asked"
        for name in config.teachers
        if not any(prompt.teacher == name for prompt in prompts)
    ]
    if config.data.balance == "equal" and not held_out:
        prompts = _balanced(prompts, config)
    return PromptSet(prompts, sum(_longest(prompt) > limit for prompt in every), warnings)


def choose_teacher(row: Row, teachers: Iterable[str]) -> str:
    """opd_teacher, else a data_source that names a teacher, else the only teacher; UserError where none fits."""
    names = list(teachers)
    known = f"the teachers are {', '.join(names)}"
    if row.tag is not None:
        if row.tag not in names:
            raise UserError(f"opd_teacher {row.tag!r} is no teacher; {known}")
        return row.tag
    if row.data_source in names:
        return row.data_source
    if len(names) > 1:
        given = f"no opd_teacher here, and data_source is {row.data_source!r}"
        raise UserError(f"{given}; {known}: name one of them in opd_teacher")
    return names[0]


def _prompt(row: Row, config: Config, tokenizers: Tokenizers) -> Prompt:
    teacher = choose_teacher(row, config.teachers)
    messages = apply_prompt_template(row.messages, config.data.prompt_template)
    kwargs = config.data.chat_template_kwargs
    student_tokens = render(tokenizers.student, messages, kwargs)
    teacher_tokens = reference_tokens = student_tokens
    kind = config.teachers[teacher].prompt
    if kind == "own_template":
        teacher_tokens = render(tokenizers.teachers[teacher], messages, kwargs)
        reference_tokens = render(tokenizers.references[teacher], messages, kwargs)
    elif kind != "student_tokens":
        teacher_tokens = render(tokenizers.student, _teacher_messages(kind, row, messages), kwargs)
    return Prompt(
        id=row.id,
        messages=messages,
        label=row.label,
        teacher=teacher,
        student_tokens=student_tokens,
        teacher_tokens=teacher_tokens,
        reference_tokens=reference_tokens,
        source=row.source,
        tests=row.tests,
    )


def _teacher_messages(kind: Suffix | Column, row: Row, messages: list[dict]) -> list[dict]:
    """What the teacher alone reads; data.prompt_template is no part of a column, which is read as written."""
    if isinstance(kind, Suffix):
        return replace_user_message(messages, f"{last_user_message(messages)['content']}\n{kind.suffix}")
    value = column_of(row, kind.column)
    column = as_messages(value, kind.column)
    return replace_user_message(messages, value) if isinstance(value, str) else column


def _longest(prompt: Prompt) -> int:
    return max(len(prompt.student_tokens), len(prompt.teacher_tokens), len(prompt.reference_tokens))


def _balanced(prompts: list[Prompt], config: Config) -> list[Prompt]:
    """As many prompts of each teacher as the teacher with the fewest has, drawn from run.seed."""
    groups = [prompt.teacher for prompt in prompts]
    without = ", ".join(name for name in config.teachers if name not in groups)
    if without:
        raise UserError(f"data.balance: equal leaves nothing: no prompts for {without}; add some, or set it to none")
    return [prompts[i] for i in equal_sample(groups, config.run.seed)]
