"""What the pre-flight tries on a node: its GPUs, the network, the clock, the port, the folder.

Each returns (verdict, text, mend), see Finding. Those that say so are collective over one rank a node.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_gopd import machine
from megatron_gopd.config.schema import Sandbox
from megatron_gopd.errors import UserError
from megatron_gopd.launch.findings import Verdict
from megatron_gopd.ranks import device_backend
from megatron_gopd.rewards.code import check_sandbox
from megatron_gopd.rewards.sandbox import memory_cgroup

MESSAGE_BYTES = {"gloo": 8 << 20, "nccl": 256 << 20}
SLOW_GB_PER_S = {"gloo": 0.05, "nccl": 5.0}  # below this a run is bound by the network, whatever else is right
SKEW_S = 1.0


def gpus(promised: int | None) -> Verdict:
    """Raises UserError: Transformer Engine is installed and does not import."""
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
    if not visible:
        return "ok", "0 GPU(s)", ""
    layers = "with" if machine.have_te() else "without"
    return "ok", f"{visible} GPU(s), {layers} Transformer Engine", ""


def all_reduce() -> Verdict:
    """Correct, and how fast: bus bandwidth, 2 (n - 1) / n bytes a second, which does not depend on n. Collective."""
    backend, count = device_backend(), dist.get_world_size()
    backends: list[str] = [""] * count
    dist.all_gather_object(backends, backend)
    if len(set(backends)) > 1:
        text = "not tried, as some nodes have a GPU that computes, and some none"
        return ("ok" if backend == "nccl" else "failed"), text, "nvidia-smi on the nodes without"
    data = torch.full((MESSAGE_BYTES[backend] // 4,), float(dist.get_rank() + 1), device=machine.device())
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
    took = torch.tensor(time.perf_counter() - start)
    dist.all_reduce(took, op=dist.ReduceOp.MAX)  # every node tells the same speed
    speed = 2 * (count - 1) / count * data.nbytes * rounds / took.item() / 1e9
    slow = speed < SLOW_GB_PER_S[backend]
    mend = "NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME: the fast interface?" if slow else ""
    return ("warning" if slow else "ok"), f"{backend}, {count} nodes: {speed:.1f} GB/s", mend


def clock() -> Verdict:
    """Collective."""
    dist.barrier()
    mine, all_clocks = time.time(), [None] * dist.get_world_size()
    dist.all_gather_object(all_clocks, mine)
    skew = abs(mine - sorted(all_clocks)[len(all_clocks) // 2])
    if skew > SKEW_S:
        return "warning", f"{skew:.1f} s from the other clocks", "chronyc tracking on that node"
    return "ok", f"within {SKEW_S} s of the others", ""


def sandbox(settings: Sandbox) -> Verdict:
    """What programs of `rewards: code` would run in, and which of docs/security.md's promises this kernel keeps."""
    try:
        check_sandbox(settings)
    except UserError as error:
        return "warning", str(error), "of concern with rewards: code alone"
    whose = "made as root" if os.getuid() == 0 else "of a user"
    namespaces = f"namespaces {whose}" if settings.isolation == "namespaces" else "no namespaces"
    group = "a memory cgroup" if memory_cgroup.place() else "no memory cgroup: docs/security.md says what that leaves"
    return "ok", f"{namespaces}, a filter of system calls, {group}", ""


def port(number: int) -> Verdict:
    if dist.get_rank() != 0:
        return "ok", f"{number} is needed on the first node only", ""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", number))
        except OSError as error:
            return "failed", f"{number} cannot be listened on: {error.strerror}", f"ss -ltnp 'sport = :{number}'"
    return "ok", f"{number} is free", ""


def canary(folder: Path) -> Verdict:
    """A file that the first node writes must be seen by all. Collective."""
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
