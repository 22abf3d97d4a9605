"""What a rank of test_engine does."""

from __future__ import annotations

from pathlib import Path

from megatron_gopd.data.trajectory import Prompt, Trajectory
from tests.chat_models import prompt_tokens


def prompts(count: int) -> list[Prompt]:
    asked = []
    for number in range(count):
        question = f"What is {number} plus {number}?" + " Well?" * (number % 3)
        tokens = prompt_tokens(question)
        asked.append(Prompt(f"p{number}", [], None, "teacher", tokens, tokens, tokens, f"train.jsonl:{number + 1}"))
    return asked


def build_engine(folder: Path, **settings):
    from megatron_gopd.rollout import EmbeddedEngine

    return EmbeddedEngine(folder, **{"dtype": "float32", "max_response_tokens": 12, "seed": 7} | settings)


def sample(engine, asked: list[Prompt], step: int = 1, **keys) -> list[Trajectory]:
    return [trajectory for chunk in engine.generate(asked, step, **keys) for trajectory in chunk]


def sample_tokens(folder: Path, questions: int, **settings) -> list[tuple]:
    """(prompt id, sample, tokens) of every trajectory, in order."""
    return [
        (trajectory.prompt.id, trajectory.sample, trajectory.response_tokens.tolist())
        for trajectory in sample(build_engine(folder, **settings), prompts(questions))
    ]
