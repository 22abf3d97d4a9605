"""What a rank of test_scoring does, and the rows it scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_gopd.config import Layout
from megatron_gopd.data.packing import Row
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.model import build_model
from megatron_gopd.policies.scoring import distribution, score
from tests.tiny_models import VOCABULARY

TEMPERATURE = 0.8
LENGTHS = [(3, 5), (200, 1), (1, 300), (17, 64), (5, 5)]  # prompt, response
WHOLE_ROW = 3  # the row whose whole distribution is asked for


def rows() -> list[Row]:
    random = np.random.default_rng(0)
    return [Row(*(random.integers(0, VOCABULARY, length).tolist() for length in pair)) for pair in LENGTHS]


def score_all(folders: dict[str, Path], layouts: list[str], budgets: list[int]) -> dict:
    """{(model, layout): {"law": [response, V], budget: (logprobs, entropy)}} as numpy arrays."""
    return {(name, layout): _score(folder, layout, budgets) for name, folder in folders.items() for layout in layouts}


def _score(folder: Path, layout: str, budgets: list[int]) -> dict:
    model = build_model(folder, Layout.parse(layout), "float32")
    if model is not None:
        weights.load(model, folder)
    answers = {budget: score(model, rows(), temperature=TEMPERATURE, max_tokens=budget) for budget in budgets}
    return answers | {"law": distribution(model, rows()[WHOLE_ROW], temperature=TEMPERATURE).numpy()}
