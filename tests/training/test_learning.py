"""Distillation teaches: a tiny student comes nearer to a tiny teacher of another architecture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from megatron_gopd.config import Config
from megatron_gopd.evaluation.probe import Measurement
from megatron_gopd.evaluation.statistics import Estimate
from tests.chat_models import tokenizer, write_questions

HELD_OUT = 96  # prompts: another draw of as many differs by 0.03 nats


@pytest.fixture(scope="module")
def run(chat_models, distill, tmp_path_factory) -> dict[str, Measurement]:
    """What held-out prompts say before and after 40 steps."""
    folder = tmp_path_factory.mktemp("learning")
    fp32 = {"dtype": "float32"}
    held_out = write_questions(folder / "held_out.jsonl", HELD_OUT, prompt=lambda number: f"What is 9 plus {number}?")
    tree = {
        "run": {"name": "learning", "steps": 40, "folder": str(folder)},
        "student": {"model": str(chat_models["student"])} | fp32,
        "teachers": {"teacher": {"model": str(chat_models["teacher"])} | fp32},
        "data": {"train": str(write_questions(folder / "train.jsonl", 400)), "batch_size": 16},
        "rollout": {"max_response_tokens": 12, "samples_per_prompt": 2},
        "optimizer": {"lr": 4e-3, "schedule": "linear"},
        "evaluation": {"prompts": str(held_out), "limit": HELD_OUT, "max_response_tokens": 8},
    }
    distill(Config.model_validate(tree))
    files = Path(folder, "learning", "evaluation")
    return {when: Measurement(**json.loads((files / f"{when}.json").read_text())) for when in ("before", "after")}


@pytest.mark.parametrize("continuations", ["reverse_kl_fixed", "reverse_kl_fresh"])
def test_the_exact_divergence_on_held_out_prompts_falls_by_half(run, continuations):
    before, after = (getattr(run[when], continuations) for when in ("before", "after"))
    fall = Estimate.of_difference(after, [value / 2 for value in before])
    assert fall.mean + 4 * fall.standard_error < 0


def test_the_teacher_s_own_words_become_likelier_than_by_chance(run):
    chance = math.log(len(tokenizer()))
    assert Estimate.of(run["before"].teacher_nll).mean > chance
    assert Estimate.of(run["after"].teacher_nll).mean < chance - 0.1
