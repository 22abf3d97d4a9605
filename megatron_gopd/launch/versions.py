"""The versions that decide what a run computes, and the GPUs that decide how fast."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_gopd.gpu_of_rank import nccl_version
from megatron_gopd.runs.machine import PACKAGES
from megatron_gopd.runs.machine import versions as installed

DRIVER = Path("/sys/module/nvidia/version")


def versions() -> dict[str, str]:
    """Of Python, this package and those it computes with."""
    found = dict.fromkeys(PACKAGES, "missing") | installed()
    if torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
        found["nccl"] = ".".join(map(str, nccl_version()))
    return found


def hardware() -> dict[str, str]:
    """Of the GPU, by its name, and the driver."""
    if not torch.cuda.is_available():
        return {"gpu": "none"}
    driver = DRIVER.read_text().strip() if DRIVER.exists() else "unknown"
    return {"gpu": torch.cuda.get_device_name(), "driver": driver}
