"""How a SGLang server is started: command line and environment."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from megatron_gopd.errors import UserError
from megatron_gopd.servers import keyed
from megatron_gopd.servers.environment import of_no_rank

STUBS = Path(__file__).parent / "stubs"
ON_CPU = {
    "device": "cpu",
    "attention-backend": "torch_native",
    "sampling-backend": "pytorch",
    "grammar-backend": "none",
    "disable-overlap-schedule": True,
    "disable-cuda-graph": True,
    "max-total-tokens": 65536,
    "max-running-requests": 64,
    "mem-fraction-static": 0.5,
    "sleep-on-idle": True,  # or it polls, and takes a core from who trains meanwhile
}


def command(
    model: str | Path,
    port: int,
    dtype: str,
    options: Mapping[str, object],
    *,
    host: str = "127.0.0.1",
    key: Path | None = None,
) -> list[str]:
    """`python -m sglang.launch_server ...`; `options` are its own, and replace those given here.

    `key`: a file with what those who ask must know; without one, whoever reaches `host` may ask.

    Raises:
        UserError: SGLang is not installed.
    """
    if importlib.util.find_spec("sglang") is None:
        raise UserError("SGLang is not installed in this environment; run make install")
    chosen = {
        "model-path": str(model),
        "dtype": dtype,
        "host": host,
        "port": port,
        "skip-tokenizer-init": True,  # token ids in, token ids out
        "log-level": "info",
        **({} if torch.cuda.is_available() else ON_CPU),
        **{name.replace("_", "-"): value for name, value in options.items()},
    }
    words = []
    for name, value in chosen.items():
        if value is not False:
            words += [f"--{name}", *([] if value is True else [str(value)])]
    return [sys.executable, *(["-m", "sglang.launch_server"] if key is None else [keyed.__file__, str(key)]), *words]


def environment(gpus: list[str] | None = None) -> dict[str, str]:
    """This process's, without what makes a rank of it; on a CPU, with the stand-ins for GPU packages in front."""
    kept = of_no_rank(os.environ) | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if gpus is not None:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    if not torch.cuda.is_available():
        path = os.pathsep.join(filter(None, [str(STUBS), kept.get("PYTHONPATH")]))
        # one thread: several of a tiny model's wait for each other most of the time
        kept |= {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return kept
