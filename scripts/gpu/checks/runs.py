"""Configurations of runs, and what a run left behind."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.gpu.checks.result import Check, at_most, both

if TYPE_CHECKING:
    from scripts.gpu.checks.bench import Bench

AGREE = {"float32": 2e-5, "bfloat16": 0.02}  # nats a token in the mean, of engine and trainer by the same weights
REWARD = "def odd(response, label, **row):\n    return len(response) % 3 / 2\n"


@dataclass(frozen=True)
class Run:
    path: Path

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def untimed(self) -> list[dict]:
        """The rows without what a clock says."""
        clock = ("timing/", "tokens_per_s")
        return [{key: value for key, value in row.items() if not key.startswith(clock)} for row in self.rows]

    def differences(self, other: Run) -> list[str]:
        """What is not the same, bit for bit: metrics by step, files of the model."""
        pairs = zip(self.untimed, other.untimed, strict=False)
        found = [f"step {a['step']}: {key}" for a, b in pairs for key in a if a[key] != b.get(key)]
        if len(self.rows) != len(other.rows):
            found.append(f"{len(self.rows)} and {len(other.rows)} steps")
        for file in sorted((self.path / "model").glob("*.safetensors")):
            if file.read_bytes() != (other.path / "model" / file.name).read_bytes():
                found.append(file.name)
        return found


def tree(bench: Bench, name: str, *, dtype: str, steps: int = 3, student="student", teacher="teacher", **sections):
    """Steps of gopd at lambda 1.25; `student` and `teacher` are names of models."""
    batch, response = (16, 32) if bench.gpu else (8, 10)
    return {
        "run": {"name": name, "steps": steps, "folder": str(bench.folder / "runs"), "seed": 5},
        "student": {"model": str(bench.model(student)), "dtype": dtype},
        "teachers": {"one": {"model": str(bench.model(teacher)), "dtype": dtype}},
        "algorithm": {"lambda": 1.25},
        "data": {"train": str(bench.model(student).parent / "prompts.jsonl"), "batch_size": batch},
        "rollout": {"max_response_tokens": response},
        "optimizer": {"lr": 1e-3},
        "checkpoint": {"every": 0, "resume": "never"},
    } | sections


def reward(bench: Bench) -> str:
    """FILE.py:FUNCTION of one that tells random responses apart."""
    file = bench.folder / "reward.py"
    file.write_text(REWARD)
    return f"{file}:odd"


def sound(name: str, run: Run, *, steps: int, dtype: str, agree: float | None = None) -> Check:
    """It ran to the saved model, every metric a finite number; engine and trainer agree where both saw the tokens."""
    rows = run.rows
    finite = all(math.isfinite(value) for row in rows for value in row.values())
    saved = any((run.path / "model").glob("*.safetensors"))
    done = Check("steps", f"{len(rows)}", f"{steps}, finite", len(rows) == steps and finite and saved)
    gaps = [row["train_rollout_logprob_abs_diff"] for row in rows if "train_rollout_logprob_abs_diff" in row]
    if not gaps:
        return both(name, done)
    return both(name, done, at_most("engine - trainer", max(gaps), agree or AGREE[dtype], "nats"))
