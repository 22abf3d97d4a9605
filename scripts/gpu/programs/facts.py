"""What this machine has: facts.py FILE"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import sys
from pathlib import Path

import torch

PACKAGES = ("torch", "triton", "transformer_engine", "megatron-core", "transformers", "sglang")
RECIPES = {
    "tensorwise": "is_fp8_available",
    "delayed": "is_fp8_available",
    "blockwise": "is_fp8_block_scaling_available",
    "mxfp8": "is_mxfp8_available",
}


def versions() -> dict[str, str | None]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def gpu() -> dict | None:
    """None: torch finds none."""
    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(0)
    capability = 10 * about.major + about.minor
    return {"name": about.name, "capability": capability, "memory_gib": about.total_memory / 2**30}


def nccl() -> tuple[int, int, int] | None:
    """The version that runs, which may be another than torch was built with; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    number = ctypes.c_int()
    try:
        ctypes.CDLL("libnccl.so.2").ncclGetVersion(ctypes.byref(number))
    except OSError:  # a part of torch's own library
        return tuple(torch.cuda.nccl.version())
    return number.value // 10000, number.value // 100 % 100, number.value % 100


def fp8_problems(te_problem: str | None) -> dict[str, str]:
    """{recipe: why this card has it not, or ""}"""
    if te_problem:
        return dict.fromkeys(RECIPES, f"no Transformer Engine: {te_problem}")
    try:
        from transformer_engine.pytorch.quantization import FP8GlobalStateManager as manager
    except ImportError:  # before 2.9
        from transformer_engine.pytorch.fp8 import FP8GlobalStateManager as manager
    answers = {recipe: getattr(manager, question)() for recipe, question in RECIPES.items()}
    return {recipe: "" if good else str(why) or "not on this card" for recipe, (good, why) in answers.items()}


def main() -> None:
    from megatron_gopd.machine import te_problem

    problem = te_problem()
    about = {"gpu": gpu(), "cuda": torch.version.cuda, "nccl": nccl(), "versions": versions()}
    Path(sys.argv[1]).write_text(json.dumps(about | {"te_problem": problem, "fp8": fp8_problems(problem)}))


if __name__ == "__main__":
    main()
