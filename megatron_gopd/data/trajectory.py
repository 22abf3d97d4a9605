"""What flows through the loop: prompts in, trajectories out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """One training prompt, rendered to token ids once for every model that will read it."""

    id: str
    messages: list[dict]
    label: str | None
    teacher: str  # "" where there is none
    student_tokens: list[int]
    teacher_tokens: list[int]
    reference_tokens: list[int]
    source: str = ""  # FILE:LINE, for messages
    tests: str | None = None  # JSON, of a prompt that asks for a program
    response_tokens: list[int] | None = None  # that the data holds, end included; where it is what is learned
    golds: tuple[str, ...] = ()  # several answers, each right where the data's convention says so: any_of
    any_of: bool = False
    columns: dict = field(default_factory=dict)  # of its row, where a reward of the user's own reads them

    @property
    def name(self) -> str:
        """In messages."""
        return f"prompt {self.id!r} ({self.source})"


@dataclass(frozen=True, eq=False)
class RoutedExperts:
    """Of one row; of a batch they are gigabytes, so they stay on the rank that asked for them until others read them.

    A copy that travels to another rank tells of how many positions they are, and no more.
    """

    positions: int  # the first of prompt and response
    chosen: np.ndarray | None  # [positions, layers, top_k] uint8 or int16; None: another rank holds them

    @classmethod
    def of(cls, chosen: np.ndarray) -> Self:
        return cls(len(chosen), chosen)

    def __reduce__(self) -> tuple:
        return type(self), (self.positions, None)


@dataclass
class Trajectory:
    """One response, y ~ pi_theta(. | prompt), and what scorers and graders said of it.

    In SFT the teacher sampled it, or the data holds it. Log-probs are float32 nats, one per response token (EOS
    included), at the rollout temperature.
    """

    prompt: Prompt
    sample: int  # which of the prompt's samples
    response_tokens: np.ndarray  # [response] int32
    behaviour_logprobs: np.ndarray | None  # [response] by the engine that sampled; None: nobody did
    finish_reason: Literal["stop", "length"]
    weight_versions: np.ndarray | None = None  # [response] int32, updates that each token's had seen; None: not told
    ended_by_age: bool = False  # cut off by rollout.max_age
    early: int | None = None  # steps before its turn in the data's order; None: batches are the data's own
    teacher_logprobs: np.ndarray | None = None  # [response]
    reference_logprobs: np.ndarray | None = None  # [response]; None where lambda = 1 does not need it
    old_logprobs: np.ndarray | None = None  # [response] the trainer's before the first of several optimizer steps
    routed_experts: RoutedExperts | None = None  # that the engine chose; of the last token nothing is computed
    reward: float | None = None
    outcome: float | None = None  # its group advantage
    metadata: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.response_tokens)

    @property
    def name(self) -> str:
        """In messages."""
        return self.prompt.name

    def text(self, tokenizer) -> str:
        """The response in words, without special tokens: what is graded."""
        return tokenizer.decode(self.response_tokens, skip_special_tokens=True)
