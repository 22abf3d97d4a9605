"""Bytes on the disk, before anything is written."""

from __future__ import annotations

import math
from pathlib import Path

from megatron_gopd.config import Config
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.hf_shapes import promised

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}
STATE_BYTES = {"adam": 12, "sgd": 4}  # a parameter: float32 master weight, and Adam's two moments


def checkpoint_bytes(config: Config) -> int:
    """All checkpoints that a run holds at once (one more than it keeps, while it writes), and the final model."""
    parameters = sum(map(math.prod, promised(Architecture.read(config.student.model)).values()))
    weights = parameters * WEIGHT_BYTES[config.student.dtype]
    kept = config.checkpoint.keep + 1 if config.checkpoint.every else 0
    return weights + kept * (weights + parameters * STATE_BYTES[config.optimizer.type])


def bytes_there(run: Path) -> int:
    """What an earlier attempt has written of that: it stays, or makes room for what comes."""
    files = (file for name in ("checkpoints", "model") for file in (run / name).rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file())
