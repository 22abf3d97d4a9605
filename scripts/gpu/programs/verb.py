"""A verb of megatron_gopd, with what only a check asks for: verb.py VERB ...

Environment:
    GPU_CHECK_HIDE   a package that is not to be found
    GPU_CHECK_PEAKS  file for {phase: the highest memory, bytes, of any of its turns}
    GPU_CHECK_DIE    PHASE:N: killed with SIGKILL at the start of the Nth turn of a phase
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path

import psutil


def main() -> None:
    if package := os.environ.get("GPU_CHECK_HIDE"):
        sys.modules[package] = None  # find_spec and import then say that there is none
    if "GPU_CHECK_PEAKS" in os.environ or "GPU_CHECK_DIE" in os.environ:
        watch_phases()
    runpy.run_module("megatron_gopd", run_name="__main__", alter_sys=True)


def watch_phases() -> None:
    """Look at every phase of a step from around its span."""
    from megatron_gopd.runs.spans import Spans

    plain, turns, peaks = Spans.__call__, Counter(), {}

    @contextlib.contextmanager
    def watched(self, name: str):
        if name == "step":  # the phases are within it
            with plain(self, name):
                yield
            return
        turns[name] += 1
        die_if_told(name, turns[name])
        forget_peak()
        with plain(self, name):
            yield
        peaks[name] = max(peak(), peaks.get(name, 0))
        if file := os.environ.get("GPU_CHECK_PEAKS"):
            Path(file).write_text(json.dumps(peaks))

    Spans.__call__ = watched


def die_if_told(name: str, turn: int) -> None:
    """As on a machine that loses its power: with all that this process started."""
    if os.environ.get("GPU_CHECK_DIE") == f"{name}:{turn}":
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os.kill(os.getpid(), signal.SIGKILL)


def forget_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # a container may forbid it: then it is the peak so far
            Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes that this process had at once since forget_peak: of the GPU, or resident ones."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
