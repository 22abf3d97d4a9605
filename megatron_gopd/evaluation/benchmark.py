"""`megatron-gopd evaluate`: avg@K on labelled prompts."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_gopd.data import Trajectory, load_tokenizer
from megatron_gopd.evaluation.labelled import Labelled
from megatron_gopd.evaluation.node_graders import NodeGraders, check_machines
from megatron_gopd.evaluation.options import check_length, check_options
from megatron_gopd.evaluation.statistics import Estimate
from megatron_gopd.ranks import is_first
from megatron_gopd.rewards import Grade, grader_of
from megatron_gopd.rollout import EmbeddedEngine
from megatron_gopd.runs import write_text
from megatron_gopd.terminal import say


def evaluate_model(
    model: Path,
    labelled: Labelled,
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
    check_length(model, max_response_tokens)
    tokenizer = load_tokenizer(model)
    prompts = labelled.prompts(tokenizer)
    check_machines({grader_of(labelled.grader, prompt) for prompt in prompts}, labelled.sandbox)
    engine = EmbeddedEngine(
        model,
        dtype=dtype,
        max_response_tokens=max_response_tokens,
        temperature=temperature,
        samples_per_prompt=samples,
        seed=seed,
    )
    answers = [trajectory for chunk in engine.generate(prompts, step=0) for trajectory in chunk]
    with NodeGraders(labelled.grader, labelled.sandbox) as graders:
        grades = graders.grade(answers, tokenizer)
    scores = [grade.score for grade in grades]
    result = Estimate.of([sum(scores[i : i + samples]) / samples for i in range(0, len(scores), samples)])
    if is_first():
        _report(result, answers, grades, samples, tokenizer, output)
    return result


def _report(
    result: Estimate,
    answers: list[Trajectory],
    grades: list[Grade],
    samples: int,
    tokenizer,
    output: Path | None,
) -> None:
    length = sum(map(len, answers)) / len(answers)
    truncated = sum(answer.finish_reason == "length" for answer in answers) / len(answers)
    say(
        f"avg@{samples} {result} over {result.items} problems; "
        f"{length:.1f} tokens a response, {truncated:.0%} truncated"
    )
    if output:
        rows = (
            {
                "id": answer.prompt.id,
                "sample": answer.sample,
                "response": answer.text(tokenizer),
                "label": answer.prompt.label,
                "score": grade.score,
                "problem": grade.problem,
                "finish_reason": answer.finish_reason,
            }
            for answer, grade in zip(answers, grades, strict=True)
        )
        write_text(output, "".join(json.dumps(row) + "\n" for row in rows))
