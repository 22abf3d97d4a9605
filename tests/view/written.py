"""Run folders as a run would have left them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from megatron_gopd.runs.trajectories import TrajectoryFolder

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!-- {{DATA}} ]]>",
    "\x1b[31mred\x1b[0m\x00\r\u2028",
    "\u202egnirts",
    "\u0645\u0631\u062d\u0628\u0627",
    "\\ud800",
]
WORDS = [" the", " number", "\n", " is", " 3", ".", " so", "\u4e16", " \U0001f642", "\t"]


def write_run(path: Path, *, steps: int = 40, asked: int | None = None, trajectories=(), config=None, **series) -> Path:
    """A run of `steps`. series: {metric: value, or a function of the step}; trajectories: rows, as `response` makes."""
    path.mkdir(parents=True, exist_ok=True)
    told = {"run": {"name": path.name, "steps": asked or steps}, "logging": {"trajectories": {"every": 1}}}
    (path / "config.yaml").write_text(yaml.safe_dump(told | (config or {})))
    usual = {"loss": 1.0, "entropy": 0.5, "response_tokens_mean": 50.0, "truncated_fraction": 0.0, "timing/step_s": 2.0}
    names = usual | {name.replace("__", "/"): value for name, value in series.items()}
    rows = (
        {"step": step} | {name: value(step) if callable(value) else value for name, value in names.items()}
        for step in range(1, steps + 1)
    )
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not asked or steps >= asked:
        (path / "model").mkdir(exist_ok=True)
    write_kept(path, trajectories)
    return path


def write_kept(path: Path, rows) -> None:
    from megatron_gopd.training.kept import table_of

    folder = TrajectoryFolder(path / "trajectories", 500)
    for step in sorted({row["step"] for row in rows}):
        folder.write(step, table_of([row for row in rows if row["step"] == step], ["advantage", "rollout_correction"]))


def response(step: int, *, tokens: int = 12, seed: int = 0, pieces=None, scored: bool = True, **changes) -> dict:
    """A kept row. The advantage of token t is t / 10; every log-prob is told, unless not `scored`."""
    rng = np.random.default_rng([seed, step])
    ids = rng.integers(0, len(WORDS), tokens).astype(np.int32)
    pieces = [WORDS[each] for each in ids] if pieces is None else pieces
    ids = np.resize(ids, len(pieces))
    student, teacher, reference, engine = (-rng.exponential(1.0, len(pieces)).astype(np.float32) for _ in range(4))
    row = {
        **{"step": step, "kept_as": "random", "id": "p1", "sample": 0, "teacher": "math"},
        **{"prompt": "What is 1 + 2?", "response": "".join(pieces), "label": "3", "reward": 1.0, "outcome": None},
        **{"lambda": 1.25, "finish_reason": "stop", "trained_from_version": step - 1},
        "sampled_with_versions": np.full(len(pieces), step - 1, np.int32),
        "advantage": (np.arange(len(pieces)) / 10).astype(np.float32),
        "rollout_correction": np.ones(len(pieces), np.float32),
        **{"prompt_tokens": np.arange(4, dtype=np.int32), "response_tokens": ids, "pieces": pieces},
        **{"student_logprobs": student, "teacher_logprobs": teacher, "reference_logprobs": reference},
        **{"behaviour_logprobs": engine, "entropy": -student},
        **{"advantage_of_teacher": teacher - student, "advantage_beyond_teacher": 0.25 * (teacher - reference)},
    }
    nothing = ("teacher_logprobs", "reference_logprobs", "advantage_of_teacher", "advantage_beyond_teacher", "lambda")
    return row | ({} if scored else dict.fromkeys(nothing)) | changes
