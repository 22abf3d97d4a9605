"""What a rank of test_long_rows does: 18K-token rows, and the memory they take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil

from megatron_gopd.config import Layout
from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import Prompt, Trajectory
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.model import build_model
from megatron_gopd.objective import gopd_loss
from megatron_gopd.policies.scoring import score
from megatron_gopd.policies.student import Student
from tests.policies.steps_on_ranks import settings
from tests.tiny_models import VOCABULARY

PROMPT, RESPONSE = 2048, 16384


def row(share: int = 1) -> Row:
    """The long row, or one `share` times shorter."""
    random = np.random.default_rng(5)
    return Row(*(random.integers(0, VOCABULARY, length // share).tolist() for length in (PROMPT, RESPONSE)))


def score_long(folder: Path, layout: str) -> tuple[np.ndarray, np.ndarray, int]:
    """logprobs and entropy [response], and the bytes by which this process grew at its highest."""
    model = build_model(folder, Layout.parse(layout), "float32")
    weights.load(model, folder)
    before = psutil.Process().memory_info().rss
    (logprobs,), (entropy,) = score(model, [row()], temperature=1.0, max_tokens=1024)
    return logprobs, entropy, _highest_rss() - before


def learn_long(folder: Path, layout: str, share: int = 1) -> tuple[float, int]:
    """The gradient norm of a step on row(share), and the bytes by which this process grew at its highest."""
    student = Student(settings(folder, layout=layout, student={"recompute": "full"}, budget=PROMPT + RESPONSE))
    long = row(share)
    prompt = Prompt("p", [], None, "teacher", *([long.prompt_tokens] * 3), "train.jsonl:1")
    flat = np.full(RESPONSE // share, -np.log(VOCABULARY), dtype=np.float32)
    scores = {"teacher_logprobs": flat * 0.9, "reference_logprobs": flat}
    trajectory = Trajectory(prompt, 0, np.array(long.response_tokens, np.int32), flat, "length", **scores)
    before = psutil.Process().memory_info().rss
    update = student.update([trajectory], gopd_loss(1.25, 5.0))
    return update.grad_norm, _highest_rss() - before


def _highest_rss() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
