"""`megatron-gopd evaluate`: avg@K on labelled prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.data import (
    PROMPT_TEMPLATES,
    Prompt,
    Row,
    Trajectory,
    apply_prompt_template,
    load_rows,
    load_tokenizer,
    render,
)
from megatron_gopd.data.rows import errors_at
from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.options import check_options
from megatron_gopd.evaluation.statistics import Estimate
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.rewards import Grade, GraderPool, check_sandbox, parse_tests
from megatron_gopd.rollout import EmbeddedEngine
from megatron_gopd.runs import write_text


@dataclass(frozen=True)
class Benchmark:
    """Labelled prompts and how an answer is graded."""

    data: Path
    grader: str = "math"
    prompt_template: str = "none"
    limit: int | None = None
    sandbox: Sandbox = field(default_factory=Sandbox)

    def prompts(self, tokenizer) -> list[Prompt]:
        """Raises UserError: an unknown grader or template, a row without a label, or without tests that can be read."""
        if self.grader not in ("math", "exact", "code"):
            raise UserError(f"--grader {self.grader}: choose math, exact or code")
        if self.prompt_template not in PROMPT_TEMPLATES:
            raise UserError(f"--prompt-template {self.prompt_template}: choose {', '.join(PROMPT_TEMPLATES)}")
        prompts = []
        for row in load_rows(self.data)[: self.limit]:
            with errors_at(row.source):
                self._check(row)
            messages = apply_prompt_template(row.messages, self.prompt_template)
            tokens = render(tokenizer, messages, {"enable_thinking": False})
            prompts.append(Prompt(row.id, messages, row.label, "", tokens, tokens, tokens, row.source, row.tests))
        return prompts

    def answer(self, prompt: Prompt) -> str | None:
        """What an answer to `prompt` is graded against."""
        return prompt.tests if self.grader == "code" else prompt.label

    def _check(self, row: Row) -> None:
        if self.grader != "code" and row.label is None:
            raise UserError("no label to grade against; add `label`, `answer` or `ground_truth`")
        if self.grader == "code":
            if row.tests is None:
                raise UserError("no tests to grade against; add `tests`")
            parse_tests(row.tests)


def evaluate_model(
    model: Path,
    benchmark: Benchmark,
    *,
    samples: int,
    max_response_tokens: int,
    temperature: float,
    dtype: str,
    seed: int,
    output: Path | None = None,
) -> Estimate:
    """Sample `samples` answers to each prompt, grade them, print avg@K. Collective.

    Raises:
        UserError: an option, a row or the model is unfit.

    Returns:
        the mean over problems of the mean over a problem's answers; its standard error is over problems (clustered).
    """
    check_options(dtype, temperature, output)
    tokenizer = load_tokenizer(model)
    prompts = benchmark.prompts(tokenizer)
    if benchmark.grader == "code":
        on_first(lambda: check_sandbox(benchmark.sandbox))
    engine = EmbeddedEngine(
        model,
        dtype=dtype,
        max_response_tokens=max_response_tokens,
        temperature=temperature,
        samples_per_prompt=samples,
        seed=seed,
    )
    answers = [trajectory for chunk in engine.generate(prompts, step=0) for trajectory in chunk]
    texts = [tokenizer.decode(answer.response_tokens, skip_special_tokens=True) for answer in answers]
    grades: list = [None]
    if is_first():
        with GraderPool(benchmark.grader, sandbox=benchmark.sandbox) as pool:
            grades = [pool.grade(texts, [benchmark.answer(answer.prompt) for answer in answers])]
    dist.broadcast_object_list(grades, src=0)
    scores = [grade.score for grade in grades[0]]
    result = Estimate.of([sum(scores[i : i + samples]) / samples for i in range(0, len(scores), samples)])
    if is_first():
        _report(result, answers, texts, grades[0], samples, output)
    return result


def _report(
    result: Estimate,
    answers: list[Trajectory],
    texts: list[str],
    grades: list[Grade],
    samples: int,
    output: Path | None,
) -> None:
    length = sum(map(len, answers)) / len(answers)
    truncated = sum(answer.finish_reason == "length" for answer in answers) / len(answers)
    print(
        f"avg@{samples} {result} over {result.items} problems; "
        f"{length:.1f} tokens a response, {truncated:.0%} truncated"
    )
    if output:
        rows = (
            {
                "id": answer.prompt.id,
                "sample": answer.sample,
                "response": text,
                "label": answer.prompt.label,
                "score": grade.score,
                "problem": grade.problem,
                "finish_reason": answer.finish_reason,
            }
            for answer, text, grade in zip(answers, texts, grades, strict=True)
        )
        write_text(output, "".join(json.dumps(row) + "\n" for row in rows))
