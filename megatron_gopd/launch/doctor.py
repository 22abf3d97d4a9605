"""The pre-flight: one process a node looks at what a run will need there."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.launch.estimate import bytes_there, checkpoint_bytes
from megatron_gopd.launch.findings import Finding
from megatron_gopd.launch.versions import versions

MESSAGE_BYTES = {"gloo": 8 << 20, "nccl": 256 << 20}
SLOW_GB_PER_S = {"gloo": 0.05, "nccl": 5.0}  # below this a run is bound by the network, whatever else is right
SKEW_S = 1.0


def examine(config: Config | None, *, gpus_per_node: int | None, ranks: int | None, port: int | None) -> list[Finding]:
    """Every check on every node, on all ranks. Collective over one rank a node.

    `ranks`: of the run to come, default: as many as here; `port`: where its first rank will listen.
    """
    here = [
        _compared("versions", versions()),
        _verdict("gpus", lambda: _gpus(gpus_per_node)),
        _verdict("all-reduce", _all_reduce),
        _verdict("clock", _clock),
        *([_verdict("port", lambda: _port(port))] if port else []),
    ]
    if config:
        here += [
            _verdict("folder", lambda: _canary(Path(config.run.folder))),
            _verdict("models", lambda: _models(config, ranks or dist.get_world_size())),
        ]
        if here[-1].verdict == "ok":
            here.append(_verdict("disk", lambda: _disk(config)))
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, here)
    return [found for same_check in zip_longest(*gathered) for found in same_check if found]


def _verdict(check: str, look: Callable[[], tuple[str, str, str]]) -> Finding:
    try:
        verdict, text, mend = look()
    except (UserError, OSError) as error:  # the other nodes wait for what this one finds
        verdict, text, mend = "failed", str(error), ""
    return Finding(_node(), check, verdict, text, mend)


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())


def _compared(check: str, here: dict[str, str]) -> Finding:
    """Whether every node says what the first does."""
    first: list = [here]
    dist.broadcast_object_list(first, src=0)
    other = [
        f"{name} {value}, elsewhere {first[0].get(name)}" for name, value in here.items() if first[0][name] != value
    ]
    if other:
        return Finding(_node(), check, "failed", "; ".join(other), "use one environment on all nodes")
    return Finding(_node(), check, "ok", ", ".join(f"{name} {value}" for name, value in here.items()))


def _gpus(promised: int | None) -> tuple[str, str, str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None and promised is not None:
        count = len(given.split(",")) if given else 0
        ok = count == promised
        text = f"SLURM gives {count} GPU(s), {promised} promised; this torch is a CPU build, so ranks run on CPUs"
        return ("warning" if ok else "failed"), text, "install torch for CUDA where GPUs are meant to be used"
    visible = torch.cuda.device_count()
    for index in range(visible):
        try:
            torch.ones(1, device=f"cuda:{index}").sum().item()
        except RuntimeError as error:
            return (
                "failed",
                f"GPU {index} does not compute: {error}",
                "nvidia-smi -q on that node; exclude it till then",
            )
    if promised is not None and visible != promised:
        return "failed", f"{visible} GPU(s) visible, {promised} promised", "nvidia-smi on that node; or --gpus-per-node"
    return "ok", f"{visible} GPU(s)", ""


def _all_reduce() -> tuple[str, str, str]:
    """Correct, and how fast: bus bandwidth, 2 (n - 1) / n bytes a second, which does not depend on n."""
    backend, count = dist.get_backend(), dist.get_world_size()
    device = "cuda" if backend == "nccl" else "cpu"
    data = torch.full((MESSAGE_BYTES[backend] // 4,), float(dist.get_rank() + 1), device=device)
    dist.all_reduce(data)
    expected = count * (count + 1) / 2
    if not bool((data == expected).all()):
        return "failed", f"{backend} sums {count} ranks to {data[0].item()}, not {expected}", "exclude a node at a time"
    if count == 1:
        return "ok", f"{backend}, one node only", ""
    rounds, start = 3, time.perf_counter()
    for _ in range(rounds):
        dist.all_reduce(data)
    data[0].item()  # waits for a GPU
    speed = 2 * (count - 1) / count * data.nbytes * rounds / (time.perf_counter() - start) / 1e9
    slow = speed < SLOW_GB_PER_S[backend]
    mend = "NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME: the fast interface?" if slow else ""
    return ("warning" if slow else "ok"), f"{backend}, {count} nodes: {speed:.1f} GB/s", mend


def _clock() -> tuple[str, str, str]:
    dist.barrier()
    mine, all_clocks = time.time(), [None] * dist.get_world_size()
    dist.all_gather_object(all_clocks, mine)
    skew = abs(mine - sorted(all_clocks)[len(all_clocks) // 2])
    if skew > SKEW_S:
        return "warning", f"{skew:.1f} s from the other clocks", "chronyc tracking on that node"
    return "ok", f"within {SKEW_S} s of the others", ""


def _port(port: int) -> tuple[str, str, str]:
    if dist.get_rank() != 0:
        return "ok", f"{port} is needed on the first node only", ""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return "failed", f"{port} cannot be listened on: {error.strerror}", f"ss -ltnp 'sport = :{port}'"
    return "ok", f"{port} is free", ""


def _canary(folder: Path) -> tuple[str, str, str]:
    """A file that the first node writes must be seen by all."""
    token = [None]
    mend = "--set run.folder=PATH with a path on a file system that all nodes mount"
    if dist.get_rank() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = folder / f".canary-{secrets.token_hex(8)}"
            name.write_text(name.name)
            token = [name.name]
        except OSError as error:
            token = [error]
    dist.broadcast_object_list(token, src=0)
    if isinstance(token[0], OSError):
        return "failed", f"the first node cannot write to {folder}: {token[0]}", mend
    seen = _sees(folder / token[0])
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / token[0]).unlink()
    return ("ok", f"{folder} is shared", "") if seen else ("failed", f"{folder} is not the first node's", mend)


def _sees(file: Path, patience_s: float = 10) -> bool:
    end = time.monotonic() + patience_s  # NFS clients remember for some seconds what was not there
    while time.monotonic() < end:
        try:
            return file.read_text() == file.name
        except OSError:
            time.sleep(0.2)
    return False


def _models(config: Config, ranks: int) -> tuple[str, str, str]:
    from megatron_gopd.training.job import check_models

    check_models(config, ranks)
    files = [config.data.train] if isinstance(config.data.train, str) else config.data.train
    for file in files:
        if not os.access(file, os.R_OK):
            return "failed", f"data.train {file} cannot be read", "a path that all nodes see"
    return "ok", f"{1 + len(config.scorers())} models fit their layouts on {ranks} ranks", ""


def _disk(config: Config) -> tuple[str, str, str]:
    needed = max(0, checkpoint_bytes(config) - bytes_there(Path(config.run.folder, config.run.name)))
    status = os.statvfs(config.run.folder)
    free = status.f_bavail * status.f_frsize
    room = f"{free / 1e9:,.1f} GB free, {needed / 1e9:,.1f} GB more needed"
    text = f"{config.run.folder}: {room} for checkpoints and the model"
    if free < needed:
        return "failed", text, "make room, lower checkpoint.keep, or set another run.folder"
    return "ok", text, ""
