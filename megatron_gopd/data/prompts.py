"""Rows -> prompts: templates, the teacher each prompt goes to, and what every model reads of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megatron_gopd.config import Config
from megatron_gopd.config.schema import Context
from megatron_gopd.data.balance import equal_sample
from megatron_gopd.data.context import render_with_context, teacher_messages
from megatron_gopd.data.render import apply_prompt_template, render
from megatron_gopd.data.rows import Row, column_of, errors_at, load_rows
from megatron_gopd.data.side_files import stop_ids
from megatron_gopd.data.tokenizer import Tokenizers
from megatron_gopd.data.trajectory import Prompt
from megatron_gopd.errors import UserError


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a run, in the order of their files."""

    prompts: list[Prompt]
    left_out: dict[str, int]  # setting, with its value -> how many prompts were too long for it
    warnings: list[str]


def build_prompts(config: Config, tokenizers: Tokenizers, *, held_out: bool = False) -> PromptSet:
    """Read data.train, choose each row's teacher and render what student, teacher and reference read.

    With `held_out` it is evaluation.prompts that is read, and data.balance does not apply.
    Raises UserError naming FILE:LINE of a row that has no teacher or cannot be rendered.
    """
    key, files = ("evaluation.prompts", config.evaluation.prompts) if held_out else ("data.train", config.data.train)
    learned = not config.algorithm.SAMPLES_STUDENT and not config.teachers
    ends = _ends_of_response(config, tokenizers) if learned else None
    every, cut = [], Counter()
    for row in load_rows(files):
        with errors_at(row.source):
            prompt, shortened = _prompt(row, config, tokenizers, ends)
        every.append(prompt)
        cut[prompt.teacher] += shortened
    exceeded = [_exceeded(prompt, config) for prompt in every]
    prompts = [prompt for prompt, too_long in zip(every, exceeded, strict=True) if too_long is None]
    left_out = Counter(too_long[0] for too_long in exceeded if too_long)
    if not prompts:
        raise UserError(
            f"{key}: all {len(every)} prompts are longer than {' or '.join(left_out)}; "
            f"the shortest has {min(tokens for _, tokens in exceeded)} tokens"
        )
    warnings = [
        f"teacher {name!r} has no prompts in {key}: it will not be asked"
        for name in config.teachers
        if not any(prompt.teacher == name for prompt in prompts)
    ]
    warnings += [
        f"the context of {count} prompt(s) was cut to teachers.{name}.prompt.max_tokens "
        f"({config.teachers[name].prompt.max_tokens})"
        for name, count in cut.items()
        if count
    ]
    if config.data.balance == "equal" and not held_out:
        prompts = _balanced(prompts, config)
    return PromptSet(prompts, dict(left_out), warnings)


def choose_teacher(row: Row, teachers: Iterable[str]) -> str:
    """opd_teacher, else a data_source that names a teacher, else the only teacher; UserError where none fits.

    "" where there are no teachers.
    """
    names = list(teachers)
    if not names:
        return ""
    known = f"the teachers are {', '.join(names)}"
    if row.tag is not None:
        if row.tag not in names:
            raise UserError(f"opd_teacher {row.tag!r} is no teacher; {known}: add teachers.{row.tag}, or mend the row")
        return row.tag
    if row.data_source in names:
        return row.data_source
    if len(names) > 1:
        given = f"no opd_teacher here, and data_source is {row.data_source!r}"
        raise UserError(f"{given}; {known}: name one of them in opd_teacher")
    return names[0]


def _prompt(row: Row, config: Config, tokenizers: Tokenizers, ends: list[int] | None) -> tuple[Prompt, bool]:
    """The prompt, and whether its context was cut; `ends`: what ends the row's own response, where that is learned."""
    teacher = choose_teacher(row, config.teachers)
    messages = apply_prompt_template(row.messages, config.data.prompt_template)
    kwargs = config.data.chat_template_kwargs
    student_tokens = render(tokenizers.student, messages, kwargs)
    teacher_tokens, reference_tokens, cut = student_tokens, student_tokens, False
    kind = config.teachers[teacher].prompt if teacher else "student_tokens"
    if kind == "own_template":
        teacher_tokens = render(tokenizers.teachers[teacher], messages, kwargs)
        if teacher in tokenizers.references:
            reference_tokens = render(tokenizers.references[teacher], messages, kwargs)
    elif isinstance(kind, Context):
        teacher_tokens, cut = render_with_context(kind, row, messages, tokenizers.student, kwargs)
    elif kind != "student_tokens":
        teacher_tokens = render(tokenizers.student, teacher_messages(kind, row, messages), kwargs)
    prompt = Prompt(
        id=row.id,
        messages=messages,
        label=row.label,
        teacher=teacher,
        student_tokens=student_tokens,
        teacher_tokens=teacher_tokens,
        reference_tokens=reference_tokens,
        source=row.source,
        tests=row.tests,
        golds=row.gold.golds,
        any_of=row.gold.any_of,
        response_tokens=None if ends is None else _response(row, tokenizers, ends),
        columns=row.columns if "rewards" in config.own_code else {},
    )
    return prompt, cut


def _response(row: Row, tokenizers: Tokenizers, ends: list[int]) -> list[int]:
    """Its tokens, with one end: the first of `ends`, unless the text has one already."""
    text = column_of(row, "response")
    if not isinstance(text, str) or not text:
        raise UserError(f"'response' is not text: {str(text)[:50]!r}")
    tokens = tokenizers.student(text, add_special_tokens=False)["input_ids"]
    written = tokenizers.student(text.rstrip(), add_special_tokens=False)["input_ids"]  # a template adds a newline
    if written and written[-1] in ends:
        return written
    return [*tokens, ends[0]]


def _ends_of_response(config: Config, tokenizers: Tokenizers) -> list[int]:
    """What ends a response of the student; the tokenizer's own end first, where there is one."""
    ends, own = stop_ids(config.student.model, tokenizers.student), tokenizers.student.eos_token_id
    return sorted(ends, key=lambda end: end != own)


def _limits(prompt: Prompt, config: Config) -> Iterator[tuple[str, int, int]]:
    """(setting, its value, the tokens it bounds)"""
    kind = config.teachers[prompt.teacher].prompt if prompt.teacher else None
    read = [prompt.student_tokens, prompt.reference_tokens]
    if isinstance(kind, Context):
        yield f"teachers.{prompt.teacher}.prompt.max_tokens", kind.max_tokens, len(prompt.teacher_tokens)
    else:
        read.append(prompt.teacher_tokens)
    yield "data.max_prompt_tokens", config.data.max_prompt_tokens, max(map(len, read))
    if prompt.response_tokens:
        yield "rollout.max_response_tokens", config.rollout.max_response_tokens, len(prompt.response_tokens)


def _exceeded(prompt: Prompt, config: Config) -> tuple[str, int] | None:
    """The first setting that the prompt is too long for, and its tokens."""
    for setting, limit, tokens in _limits(prompt, config):
        if tokens > limit:
            return f"{setting} ({limit})", tokens
    return None


def _balanced(prompts: list[Prompt], config: Config) -> list[Prompt]:
    """As many prompts of each teacher as the teacher with the fewest has, drawn from run.seed."""
    groups = [prompt.teacher for prompt in prompts]
    without = ", ".join(name for name in config.teachers if name not in groups)
    if without:
        raise UserError(f"data.balance: equal leaves nothing: no prompts for {without}; add some, or set it to none")
    return [prompts[i] for i in equal_sample(groups, config.run.seed)]
