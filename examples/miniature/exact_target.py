"""Answers sampled from the law that G-OPD aims at: pi*^lambda pi_ref^(1-lambda) / Z(y_<t), prefix by prefix.

    python examples/miniature/exact_target.py runs/miniature/target-math-1.25 --lambda 1.25 \\
        --teacher examples/miniature/models/math --reference examples/miniature/models/base \\
        --suite assets/miniature/math_held_out.jsonl

Both models are run beside each other on the same prefixes, so nothing is estimated but the mean over answers. The answers
are an evaluation folder as `evaluate --suite` writes one, whose settings name the law instead of a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from megatron_gopd.data import Prompt, load_tokenizer, stop_ids
from megatron_gopd.evaluation.answers import Answer
from megatron_gopd.evaluation.suite_report import SuiteResult, write_summary
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
