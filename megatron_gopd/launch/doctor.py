"""The pre-flight: one process a node looks at what a run will need there."""

from __future__ import annotations

import os
from collections import Counter
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.config.placement import Node, check_placement, idle, own_servers
from megatron_gopd.config.schema import Sandbox
from megatron_gopd.gpu_of_rank import check_sharing
from megatron_gopd.launch import probes
from megatron_gopd.launch.estimate import bytes_there, checkpoint_bytes
from megatron_gopd.launch.findings import Finding, Verdict, verdict
from megatron_gopd.launch.inputs import Inputs
from megatron_gopd.launch.versions import hardware, versions
from megatron_gopd.machine import check_device
from megatron_gopd.ranks import TIMEOUT_S
from megatron_gopd.srun import this_node


def examine(config: Config | None, *, gpus_per_node: int | None, ranks: int | None, port: int | None) -> list[Finding]:
    """Every check on every node, on all ranks. Collective over one rank a node.

    `ranks`: of the run to come, default: one a GPU, at least one a node; `port`: where its first rank will listen.
    """
    visible = _everywhere(torch.cuda.device_count())
    # a node that reads the data from a cold file system is slow, not lost
    patient = dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT_S))
    ranks = ranks or sum(max(1, count) for count in visible)
    here = [
        _compared("versions", versions(), "failed", "use one environment on all nodes"),
        _compared("hardware", hardware(), "warning", "the slowest node sets the pace; --exclude the odd ones"),
        verdict("gpus", lambda: _gpus(config, gpus_per_node)),
        verdict("ranks", lambda: _ranks(ranks, sum(visible))),
        verdict("all-reduce", probes.all_reduce),
        verdict("clock", probes.clock),
        verdict("sandbox", lambda: probes.sandbox(config.sandbox if config else Sandbox())),
        *([verdict("port", lambda: probes.port(port))] if port else []),
    ]
    if config:
        here += [
            verdict("folder", lambda: probes.canary(Path(config.run.folder))),
            verdict("placement", lambda: _placement(config, len(visible), ranks)),
            *Inputs(config, ranks).findings(),
        ]
        if not any(found.verdict == "failed" for found in here if found.check == "models"):
            here.append(verdict("disk", lambda: _disk(config)))
            if torch.cuda.is_available():
                here.append(verdict("memory", lambda: _memory(config, _nodes(config, len(visible), ranks))))
    return [found for same_check in zip_longest(*_everywhere(here, patient)) for found in same_check if found]


def _everywhere(mine, group: dist.ProcessGroup | None = None) -> list:
    """What each node has. Collective."""
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine, group)
    return gathered


def _compared(check: str, here: dict[str, str], otherwise: str, mend: str) -> Finding:
    """Whether this node says what most do; `otherwise` the verdict. Collective."""
    everywhere = _everywhere(here)
    usual = {
        name: Counter(said.get(name, "missing") for said in everywhere).most_common(1)[0][0]
        for name in dict.fromkeys(name for said in everywhere for name in said)
    }
    mine = {name: here.get(name, "missing") for name in usual}
    other = [f"{name} {value}, elsewhere {usual[name]}" for name, value in mine.items() if value != usual[name]]
    if other:
        return Finding(this_node(), check, otherwise, "; ".join(other), mend)
    return Finding(this_node(), check, "ok", ", ".join(f"{name} {value}" for name, value in mine.items()))


def _gpus(config: Config | None, promised: int | None) -> Verdict:
    """Raises UserError: run.device asks for what is not there."""
    if config:
        check_device(config.run.device)
        promised = None if config.run.device == "cpu" else promised
    return probes.gpus(promised)


def _ranks(ranks: int, gpus: int) -> Verdict:
    """Raises UserError: they would share GPUs, which NCCL allows only where it is asked to."""
    if gpus and ranks > gpus:
        check_sharing(f"{ranks} ranks have {gpus} GPU(s)")
    return "ok", f"{ranks} rank(s), on {gpus} GPU(s)" if gpus else f"{ranks} rank(s), on CPUs", ""


def _placement(config: Config, nodes: int, ranks: int) -> Verdict:
    """Raises UserError: this node has no room for the servers."""
    here = _nodes(config, nodes, ranks)
    check_placement(config, here)
    if told := idle(config, here).told:
        return "warning", "; ".join(told), "count, gpus and nodes of the servers"
    started = [f"{servers.count} server(s) of {key}" for key, servers in own_servers(config).items()]
    return "ok", f"room for {', '.join(started) or 'no servers of the run'}", ""


def _nodes(config: Config, nodes: int, ranks: int) -> list[Node]:
    """As many as this one."""
    from megatron_gopd.rollout.nodes import gpus_here

    return [Node(gpus_here(config), -(-ranks // nodes))] * nodes


def _memory(config: Config, nodes: list[Node]) -> Verdict:
    """The levers that a run would take on cards like this node's."""
    from megatron_gopd.training.memory import counted

    free, whole = torch.cuda.mem_get_info()
    taken = counted(config, nodes, torch.cuda.get_device_name(), whole, free)
    return (
        "ok" if taken.fits else "warning",
        taken.line,
        "" if taken.fits else "`megatron-gopd plan` says what to change",
    )


def _disk(config: Config) -> Verdict:
    needed = max(0, checkpoint_bytes(config) - bytes_there(Path(config.run.folder, config.run.name)))
    status = os.statvfs(config.run.folder)
    free = status.f_bavail * status.f_frsize
    room = f"{free / 1e9:,.1f} GB free, {needed / 1e9:,.1f} GB more needed"
    text = f"{config.run.folder}: {room} for checkpoints and the model"
    if free < needed:
        return "failed", text, "make room, lower checkpoint.keep, or set another run.folder"
    return "ok", text, ""
