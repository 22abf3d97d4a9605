"""What this machine computes with: its GPU, and Transformer Engine where that can be imported."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os

import torch

from megatron_gopd.errors import UserError
from megatron_gopd.srun import this_node

OLDEST_FOR_BF16 = 80  # sm_80: bf16 on tensor cores, and what the Triton kernels are compiled for


def capability() -> int | None:
    """Compute capability of this rank's GPU, 90 for sm_90; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def device() -> torch.device:
    """Where this rank holds models: its GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def check_device(asked: str) -> None:
    """Raises UserError: run.device asks for what this process does not have."""
    found = torch.cuda.is_available()
    if asked == "cuda" and not found:
        raise UserError(f"run.device is cuda, and there is no GPU on {this_node()}: {_why_no_gpu()}")
    if asked == "cpu" and found:  # the command line hides them; a program of the user's own has not
        raise UserError("run.device is cpu, and GPUs are in sight: set CUDA_VISIBLE_DEVICES= before the program starts")


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return f"this torch, {torch.__version__}, is a build for CPUs; install one for CUDA, or set run.device: auto"
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "CUDA_VISIBLE_DEVICES is empty; unset it, or set run.device: auto"
    return "look at nvidia-smi there, or set run.device: auto to compute on CPUs"


def visible_gpus() -> list[str]:
    """The GPUs of this process in its own order, each by what CUDA_VISIBLE_DEVICES calls it: its number on the host."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return named[:count] if named else [str(number) for number in range(count)]


@functools.cache
def te_problem() -> str | None:
    """Why Transformer Engine does not run here, to follow a colon; None where it does.

    A package is not enough: its extension is compiled for one version of torch, and may miss or refuse this one.
    """
    if not torch.cuda.is_available():
        return "there is no GPU"
    if importlib.util.find_spec("transformer_engine") is None:
        return "it is not installed"
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # whatever a broken installation raises
        said = str(error).strip().splitlines()
        return f"it does not import: {type(error).__name__}: {said[0] if said else ''}".rstrip(": ")
    return None


def have_te() -> bool:
    """Whether models are built of Transformer Engine's layers (in bfloat16).

    Raises:
        UserError: it is installed, and does not import.
    """
    problem = te_problem()
    if problem and problem.startswith("it does not import"):
        raise UserError(
            f"Transformer Engine is installed, but {problem}. Build it against the torch that is installed "
            f"(make install does), or remove it: pip uninstall transformer_engine transformer_engine_torch"
        )
    return problem is None


def check_dtype(dtype: str, where: str) -> None:
    """Raises UserError: a GPU too old for `dtype`; `where` the model is named."""
    found = capability()
    if dtype == "bfloat16" and found is not None and found < OLDEST_FOR_BF16:
        raise UserError(
            f"{where}: dtype bfloat16 needs a GPU of compute capability 8.0 (A100) or newer, and this one, "
            f"{torch.cuda.get_device_name()}, has {found / 10:.1f}; set dtype: float32"
        )
