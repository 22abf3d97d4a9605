"""Rows of random tokens, and how far two models' scores of them are apart."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from scripts.gpu.checks.sizes import size_of

LENGTHS = [(3, 5), (40, 1), (1, 60), (17, 24), (120, 130), (5, 5)]  # prompt, response


def write_rows(file: Path, model: str, device: str) -> Path:
    """Rows for `score`, of ids that the model `model` knows."""
    draw, words = random.Random(1), size_of(model, device).vocabulary
    rows = []
    for number, (prompt, response) in enumerate(LENGTHS):
        tokens = [draw.randrange(3, words) for _ in range(prompt + response)]
        rows.append({"id": number, "prompt_tokens": tokens[:prompt], "response_tokens": tokens[prompt:]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read_scores(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def largest(one: list[dict], other: list[dict]) -> float:
    """Difference of a log-prob or an entropy, nats."""
    return float(max(gap.max() for gap in _gaps(one, other, ("logprobs", "entropy"))))


def mean(one: list[dict], other: list[dict]) -> float:
    """Of the absolute differences of log-probs, nats."""
    return float(np.concatenate(_gaps(one, other, ("logprobs",))).mean())


def _gaps(one: list[dict], other: list[dict], columns: tuple[str, ...]) -> list[np.ndarray]:
    pairs = zip(one, other, strict=True)
    return [np.abs(np.array(a[name]) - np.array(b[name])) for a, b in pairs for name in columns]
