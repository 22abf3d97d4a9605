"""What flows through the loop: prompts in, trajectories out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """One training prompt, rendered to token ids once for every model that will read it."""

    id: str
    messages: list[dict]
    label: str | None
    teacher: str
    student_tokens: list[int]
    teacher_tokens: list[int]
    reference_tokens: list[int]
    source: str = ""  # FILE:LINE, for messages
    tests: str | None = None  # JSON, of a prompt that asks for a program


@dataclass
class Trajectory:
    """One sampled response, y ~ pi_theta(. | prompt), and what the scorers said of it.

    Log-probs are float32 nats, one per response token (EOS included), at the rollout temperature.
    """

    prompt: Prompt
    sample: int  # which of the prompt's samples
    response_tokens: list[int]
    behaviour_logprobs: np.ndarray  # [response] by the engine that sampled
    finish_reason: Literal["stop", "length"]
    weight_version: int = 0
    teacher_logprobs: np.ndarray | None = None  # [response]
    reference_logprobs: np.ndarray | None = None  # [response]; None where lambda = 1 does not need it
    reward: float | None = None
    metadata: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.response_tokens)
