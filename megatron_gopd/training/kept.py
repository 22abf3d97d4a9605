"""Kept trajectories: some rows of each step, token by token, for a person and for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from megatron_gopd.config import Config
from megatron_gopd.data.pieces import Pieces
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.objective import advantage_parts
from megatron_gopd.policies.update import Update
from megatron_gopd.runs import RunFolder, Sinks, TrajectoryFolder
from megatron_gopd.training.choice import choose

if TYPE_CHECKING:
    import pyarrow

SAMPLE = "step id teacher prompt response finish_reason reward".split()  # of samples.jsonl
PARTS = ("advantage_of_teacher", "advantage_beyond_teacher")


class Keeper:
    """Writes trajectories/step-N.parquet, hands the rows to the sinks, and one at random to samples.jsonl."""

    def __init__(self, config: Config, tokenizer, folder: RunFolder, sinks: Sinks) -> None:
        self._config, self._settings, self._tokenizer = config, config.logging.trajectories, tokenizer
        self._samples, self._sinks = folder.samples, sinks
        if self._settings:
            self._folder = TrajectoryFolder(folder.trajectories, self._settings.max_mb)
            self._pieces = Pieces(tokenizer)

    def keep(self, step: int, batch: list[Trajectory], update: Update) -> None:
        """Those of one step, counted from 1, where this step is one that is kept."""
        if not self._settings or (step - 1) % self._settings.every:
            return
        chosen = choose(batch, update, self._settings.per_teacher, self._config.run.seed)
        rows = [self._row(step, batch[at], why) | self._tokens(batch[at], update, at) for at, why in chosen]
        self._folder.write(step, table_of(rows, list(update.metrics)))
        self._sinks.show(step, rows)
        with self._samples.open("a", encoding="utf-8") as samples:
            at_random = [row for row in rows if row["kept_as"] == "random"]
            sample = at_random[step // self._settings.every % len(at_random)]  # of one teacher after the other
            samples.write(json.dumps({name: sample[name] for name in SAMPLE}) + "\n")

    def _row(self, step: int, trajectory: Trajectory, why: str) -> dict[str, Any]:
        """What is told of the whole response."""
        prompt = trajectory.prompt
        lambda_ = self._config.lambda_of(prompt.teacher) if trajectory.teacher_logprobs is not None else None
        return {
            "step": step,
            "kept_as": why,
            "id": writable(prompt.id),
            "sample": trajectory.sample,
            "teacher": writable(prompt.teacher),
            "prompt": writable(self._tokenizer.decode(prompt.student_tokens)),
            "response": writable(self._tokenizer.decode(trajectory.response_tokens)),
            "label": None if prompt.label is None else writable(str(prompt.label)),
            "reward": trajectory.reward,
            "outcome": trajectory.outcome,
            "lambda": lambda_,
            "finish_reason": trajectory.finish_reason,
            "trained_from_version": step - 1,
        }

    def _tokens(self, trajectory: Trajectory, update: Update, at: int) -> dict[str, Any]:
        """What is told of every token: log-probs and the entropy are of the weights before the step."""
        student = update.logprobs[at]
        return {
            **{name: rows[at] for name, rows in update.metrics.items()},
            "prompt_tokens": np.asarray(trajectory.prompt.student_tokens, np.int32),
            "response_tokens": np.asarray(trajectory.response_tokens, np.int32),
            "pieces": [writable(piece) for piece in self._pieces.of(trajectory.response_tokens)],
            "student_logprobs": student,
            "teacher_logprobs": trajectory.teacher_logprobs,
            "reference_logprobs": trajectory.reference_logprobs,
            "behaviour_logprobs": trajectory.behaviour_logprobs,
            "sampled_with_versions": trajectory.weight_versions,
            "entropy": update.entropy[at],
            **self._parts(trajectory, student),
        }

    def _parts(self, trajectory: Trajectory, student: np.ndarray) -> dict[str, np.ndarray | None]:
        """The terms of the advantage that teacher and reference give; a reward adds reward_weight * outcome."""
        if trajectory.teacher_logprobs is None:
            return dict.fromkeys(PARTS)
        reference = trajectory.reference_logprobs
        parts = advantage_parts(
            torch.from_numpy(student),
            torch.from_numpy(trajectory.teacher_logprobs),
            None if reference is None else torch.from_numpy(reference),
            self._config.lambda_of(trajectory.prompt.teacher),
            getattr(self._config.algorithm, "clamp", None),
        )
        return {name: None if part is None else part.numpy() for name, part in zip(PARTS, parts, strict=True)}


def table_of(rows: list[dict[str, Any]], of_objective: list[str]) -> pyarrow.Table:
    """The rows with one type a column, whatever is null in them. `of_objective`: columns that the objective adds."""
    import pyarrow as pa

    ids, values = pa.list_(pa.int32()), pa.list_(pa.float32())
    types = {
        **dict.fromkeys(("step", "sample", "trained_from_version"), pa.int32()),
        **dict.fromkeys(("reward", "outcome", "lambda"), pa.float32()),
        **dict.fromkeys(("prompt_tokens", "response_tokens", "sampled_with_versions"), ids),
        "pieces": pa.list_(pa.string()),
        **dict.fromkeys((name for name in rows[0] if name.endswith("_logprobs")), values),
        **dict.fromkeys((*PARTS, "entropy", *of_objective), values),
    }
    return pa.table({name: pa.array([row[name] for row in rows], types.get(name, pa.string())) for name in rows[0]})


def writable(text: str) -> str:
    """As UTF-8 can hold it: half a surrogate pair is written as what it is, \\ud800."""
    return text.encode("utf-8", "backslashreplace").decode()
