"""Jobs on several ranks of one GPU (or of a CPU), as many as there are in one life of a process group."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from scripts.gpu.checks.bench import PROGRAMS, Bench
from scripts.gpu.checks.children import ChildError

MPS = "nvidia-cuda-mps-control"


def run_jobs(bench: Bench, jobs: list[dict], ranks: int, name: str) -> dict[str, str]:
    """{job: its error, or ""}: a start costs most of a minute, so only a job that fails costs another."""
    found: dict[str, str] = {}
    with sharing(bench, ranks) as extra:
        while left := [job for job in jobs if job["name"] not in found]:
            done = bench.folder / f"{name}-{len(found)}.done"
            error = _life(bench, left, ranks, f"{name}-{len(found)}", done, extra)
            ended = done.read_text().splitlines() if done.exists() else []
            found |= dict.fromkeys(ended, "")
            if error:
                failed = next(job["name"] for job in left if job["name"] not in ended)
                found[failed] = error
    return found


def _life(bench: Bench, jobs: list[dict], ranks: int, name: str, done: Path, extra: dict[str, str]) -> str:
    """One process group, until all jobs are done or one fails: the error, or ""."""
    listed = bench.folder / f"{name}.jobs"
    listed.write_text(json.dumps(jobs))
    module = ["-m", f"{PROGRAMS}.rank_jobs", listed, done]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", ranks]
    try:
        bench.children.python(name, *(launcher if ranks > 1 else []), *module, timeout=bench.timeout, extra=extra)
    except ChildError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def sharing(bench: Bench, ranks: int) -> Iterator[dict[str, str]]:
    """The environment in which several ranks share a GPU: by MPS where there is its daemon, else they take turns."""
    if not bench.gpu or ranks == 1:
        yield {}
        return
    shared = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
    folders = {
        "CUDA_MPS_PIPE_DIRECTORY": str(bench.folder / "mps"),
        "CUDA_MPS_LOG_DIRECTORY": str(bench.folder / "mps"),
    }
    control, started = shutil.which(MPS), False
    if control:
        (bench.folder / "mps").mkdir(exist_ok=True)
        daemon = {"env": os.environ | folders, "capture_output": True, "timeout": 30}
        started = subprocess.run([control, "-d"], **daemon).returncode == 0
    try:
        yield shared | folders | {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(100 // ranks)} if started else shared
    finally:
        if started:
            subprocess.run([control], input=b"quit\n", **daemon)
