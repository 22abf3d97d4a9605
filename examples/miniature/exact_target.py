"""Answers sampled from the law that G-OPD aims at: pi*^lambda pi_ref^(1-lambda) / Z(y_<t), prefix by prefix.

    python examples/miniature/exact_target.py runs/miniature/target-math-1.25 --lambda 1.25 \\
        --teacher examples/miniature/models/math --reference examples/miniature/models/base \\
        --suite assets/miniature/math_held_out.jsonl

Both models are run beside each other on the same prefixes, so nothing is estimated but the mean over answers. These are
an evaluation folder, as `evaluate --suite` writes one, whose settings name the law instead of a model.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from torch import Tensor

from megatron_gopd.config import Layout
from megatron_gopd.data import Prompt, load_tokenizer, stop_ids
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.answers import Answer, Answers
from megatron_gopd.evaluation.run_suites import Settings, problems_of
from megatron_gopd.evaluation.suite_report import SuiteResult, write_summary
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.model import build_model
from megatron_gopd.policies.scoring import distribution
from megatron_gopd.ranks import ranks
from megatron_gopd.rewards import Graders
from megatron_gopd.rollout.embedded import load_for_decoding
from megatron_gopd.runs import write_text


@dataclass(frozen=True)
class Law:
    """pi*^lambda pi_ref^(1-lambda) / Z(y_<t)."""

    teacher: Path
    reference: Path
    lambda_: float

    def settings(self) -> dict:
        return {"teacher": str(self.teacher), "reference": str(self.reference), "lambda": self.lambda_}


def mixture(teacher: Tensor, reference: Tensor, lambda_: float) -> Tensor:
    """[rows, vocab] log-probs of the target, from those of teacher and reference at the same prefixes."""
    return (lambda_ * teacher + (1 - lambda_) * reference).log_softmax(dim=-1)


@torch.inference_mode()
def sample(law: Law, prompts: Tensor, max_tokens: int, end: int, seed: int) -> tuple[Tensor, Tensor]:
    """Responses to prompts [rows, length], all as long.

    Returns:
        tokens [rows, max_tokens]: `end` and whatever follows it included.
        logprobs [rows, max_tokens]: of these tokens under the law, nats.
    """
    from transformers import DynamicCache

    models = [load_for_decoding(folder, "float32") for folder in (law.teacher, law.reference)]
    caches = [DynamicCache(config=model.config) for model in models]
    generator = torch.Generator().manual_seed(seed)
    tokens, finished, drawn, known = prompts, torch.zeros(len(prompts), dtype=torch.bool), [], []
    for _ in range(max_tokens):
        teacher, reference = (
            model(input_ids=tokens, past_key_values=cache, logits_to_keep=1).logits[:, -1].log_softmax(dim=-1)
            for model, cache in zip(models, caches, strict=True)
        )
        logprobs = mixture(teacher, reference, law.lambda_)
        tokens = torch.multinomial(logprobs.exp(), 1, generator=generator)
        drawn.append(tokens)
        known.append(logprobs.gather(1, tokens))
        finished |= tokens[:, 0] == end
        if finished.all():
            break
    return torch.cat(drawn, dim=1), torch.cat(known, dim=1)


@torch.inference_mode()
def divergences(law: Law, student: Path, answers: list[tuple[list[int], list[int]]]) -> list[float]:
    """KL(pi_theta || q) at every prefix of an answer, a mean over them: nats a token. Collective.

    answers: (prompt tokens, response tokens)
    """
    models = [load_for_decoding(folder, "float32") for folder in (student, law.teacher, law.reference)]
    whole = [torch.tensor(prompt + response) for prompt, response in answers]
    found = []
    for start in range(0, len(whole), 256):
        tokens = torch.nn.utils.rnn.pad_sequence(whole[start : start + 256], batch_first=True)  # behind the answers
        ours, teacher, reference = (model(input_ids=tokens).logits.log_softmax(dim=-1) for model in models)
        of_token = (ours.exp() * (ours - mixture(teacher, reference, law.lambda_))).sum(dim=-1)
        for row, (prompt, response) in zip(of_token, answers[start : start + 256], strict=True):
            found.append(row[len(prompt) - 1 :][: len(response)].mean().item())
    return found


def measure(law: Law, student: Path, suite: Path, answered: Path, settings: Settings) -> None:
    """Write SUITE.target_kl.json beside the student's answers: {problem id: its distance from the law}. Collective."""
    tokenizer = load_tokenizer(student)
    (problems,) = problems_of([str(suite)], settings, tokenizer)
    (end,) = stop_ids(student, tokenizer)
    prompts = {prompt.id: prompt.student_tokens for prompt in problems.prompts}
    rows = Answers(answered, problems.samples).rows
    ends = [[end] if row.finish_reason == "stop" else [] for row in rows]
    answers = [
        (prompts[row.id], tokenizer(row.response)["input_ids"] + last) for row, last in zip(rows, ends, strict=True)
    ]
    found: dict[str, list[float]] = {}
    for row, distance in zip(rows, divergences(law, student, answers), strict=True):
        found.setdefault(row.id, []).append(distance)
    write_text(answered.with_suffix(".target_kl.json"), json.dumps({id: fmean(each) for id, each in found.items()}))


def evaluate(law: Law, suite: Path, folder: Path, settings: Settings, seed: int, checked: int = 64) -> SuiteResult:
    """Answer, grade and write the problems of `suite`. Collective, on one rank.

    checked: answers on which the law is computed a second time, by Megatron.
    """
    tokenizer = load_tokenizer(law.reference)
    (problems,) = problems_of([str(suite)], settings, tokenizer)
    (end,) = stop_ids(law.reference, tokenizer)
    if len({len(prompt.student_tokens) for prompt in problems.prompts}) > 1:
        raise UserError(f"{suite}: the target is sampled for prompts of one length, and these have several")
    asked = [(prompt, number) for prompt in problems.prompts for number in range(problems.samples)]
    prompts = torch.tensor([prompt.student_tokens for prompt, _ in asked])  # all are as long
    tokens, logprobs = sample(law, prompts, settings.max_response_tokens, end, seed)
    responses = [row[: row.index(end) + 1] if end in row else row for row in tokens.tolist()]
    with Graders(problems.grader, settings.sandbox) as graders:
        answers = _graded([prompt for prompt, _ in asked], responses, end, tokenizer, graders)
    rows = [replace(answer, sample=number) for answer, (_, number) in zip(answers, asked, strict=True)]
    result = SuiteResult.of(problems.name, None, problems.samples, rows)
    worst = worst_disagreement(law, list(zip(prompts.tolist(), responses, logprobs, strict=False))[:checked])
    described = {"target": law.settings(), "samples": problems.samples, "temperature": 1.0, "seed": seed}
    described |= {"max_response_tokens": settings.max_response_tokens, "megatron_logprob_abs_diff_max": worst}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{problems.name}.jsonl", "".join(json.dumps(asdict(row)) + "\n" for row in rows))
    write_text(folder / "settings.json", json.dumps(described, indent=1) + "\n")
    write_summary([result], {"settings": described}, folder)
    return result


def _graded(prompts: list[Prompt], responses: list[list[int]], end: int, tokenizer, graders: Graders) -> list[Answer]:
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in responses]
    reasons = ["stop" if tokens[-1] == end else "length" for tokens in responses]
    grades = graders.grade(prompts, texts, reasons)
    return [
        Answer(prompt.id, 0, text, len(tokens), grade.score, grade.problem, reason)
        for prompt, text, tokens, grade, reason in zip(prompts, texts, responses, grades, reasons, strict=True)
    ]


def worst_disagreement(law: Law, answers: list[tuple[list[int], list[int], Tensor]]) -> float:
    """The largest difference, in nats, of the law's log-prob of a token from what Megatron's models make of it.

    Collective. An independent way to the same number: other code, whole sequences, no cache.

    answers: (prompt tokens, response tokens, their log-probs under the law)
    """
    models = [build_model(folder, Layout(), "float32") for folder in (law.teacher, law.reference)]
    for model, folder in zip(models, (law.teacher, law.reference), strict=True):
        weights.load(model, folder)
    worst = 0.0
    for prompt, response, known in answers:
        teacher, reference = (distribution(model, Row(prompt, response), temperature=1.0) for model in models)
        expected = mixture(teacher, reference, law.lambda_).gather(1, torch.tensor(response)[:, None])[:, 0]
        worst = max(worst, (expected - known[: len(response)]).abs().max().item())
    return worst


def main(
    folder: Annotated[Path, typer.Argument(help="new folder")],
    lambda_: Annotated[float, typer.Option("--lambda")],
    teacher: Annotated[Path, typer.Option(help="Hugging Face directory")],
    reference: Annotated[Path, typer.Option(help="Hugging Face directory")],
    suite: Annotated[Path, typer.Option(help="jsonl of labelled prompts, all of one length")],
    grader: Annotated[str, typer.Option()] = "examples/miniature/rewards.py:ends_with_label",
    samples: Annotated[int, typer.Option(min=1)] = 4,
    max_response_tokens: Annotated[int, typer.Option(min=1)] = 19,
    seed: Annotated[int, typer.Option(min=0)] = 42,
) -> None:
    """Write answers sampled from the exact target."""
    settings = Settings(samples=samples, max_response_tokens=max_response_tokens, grader=grader)
    with ranks():
        result = evaluate(Law(teacher, reference, lambda_), suite, folder, settings, seed)
    print(f"{folder}: accuracy {result.accuracy}, {result.response_tokens.mean:.1f} tokens")


if __name__ == "__main__":
    typer.run(main)
