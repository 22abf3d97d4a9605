"""The pre-flight: one process a node looks at what a run will need there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.config.placement import Node, check_placement, idle, own_servers
from megatron_gopd.config.schema import Sandbox
from megatron_gopd.errors import UserError
from megatron_gopd.gpu_of_rank import check_sharing
from megatron_gopd.launch import probes
from megatron_gopd.launch.estimate import bytes_there, checkpoint_bytes
from megatron_gopd.launch.findings import Finding
from megatron_gopd.launch.versions import hardware, versions
from megatron_gopd.srun import this_node


def examine(config: Config | None, *, gpus_per_node: int | None, ranks: int | None, port: int | None) -> list[Finding]:
    """Every check on every node, on all ranks. Collective over one rank a node.

    `ranks`: of the run to come, default: one a GPU, at least one a node; `port`: where its first rank will listen.
    """
    visible = _everywhere(torch.cuda.device_count())
    ranks = ranks or sum(max(1, count) for count in visible)
    here = [
        _compared("versions", versions(), "failed", "use one environment on all nodes"),
        _compared("hardware", hardware(), "warning", "the slowest node sets the pace; --exclude the odd ones"),
        _verdict("gpus", lambda: probes.gpus(gpus_per_node)),
        _verdict("ranks", lambda: _ranks(ranks, sum(visible))),
        _verdict("all-reduce", probes.all_reduce),
        _verdict("clock", probes.clock),
        _verdict("sandbox", lambda: probes.sandbox(config.sandbox if config else Sandbox())),
        *([_verdict("port", lambda: probes.port(port))] if port else []),
    ]
    if config:
        here += [
            _verdict("folder", lambda: probes.canary(Path(config.run.folder))),
            _verdict("placement", lambda: _placement(config, len(visible), ranks)),
            _verdict("models", lambda: _models(config, ranks)),
        ]
        if here[-1].verdict == "ok":
            here.append(_verdict("disk", lambda: _disk(config)))
    return [found for same_check in zip_longest(*_everywhere(here)) for found in same_check if found]


def _everywhere(mine) -> list:
    """What each node has. Collective."""
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def _verdict(check: str, look: Callable[[], probes.Verdict]) -> Finding:
    try:
        verdict, text, mend = look()
    except (UserError, OSError) as error:  # the other nodes wait for what this one finds
        verdict, text, mend = "failed", str(error), ""
    return Finding(this_node(), check, verdict, text, mend)


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


def _ranks(ranks: int, gpus: int) -> probes.Verdict:
    """Raises UserError: they would share GPUs, which NCCL allows only where it is asked to."""
    if gpus and ranks > gpus:
        check_sharing(f"{ranks} ranks have {gpus} GPU(s)")
    return "ok", f"{ranks} rank(s), on {gpus} GPU(s)" if gpus else f"{ranks} rank(s), on CPUs", ""


def _placement(config: Config, nodes: int, ranks: int) -> probes.Verdict:
    """Raises UserError: this node has no room for the servers."""
    from megatron_gopd.rollout.nodes import gpus_here

    here = [Node(gpus_here(config), -(-ranks // nodes))] * nodes
    check_placement(config, here)
    if told := idle(config, here).told:
        return "warning", "; ".join(told), "count, gpus and nodes of the servers"
    started = [f"{servers.count} server(s) of {key}" for key, servers in own_servers(config).items()]
    return "ok", f"room for {', '.join(started) or 'no servers of the run'}", ""


def _models(config: Config, ranks: int) -> probes.Verdict:
    """Raises UserError: a model, its tokenizer, a layout, or a precision that this node's GPU lacks."""
    from megatron_gopd.training.job import check_models, check_tokenizers

    check_models(config, ranks)
    check_tokenizers(config)
    files = [config.data.train] if isinstance(config.data.train, str) else config.data.train
    for file in files:
        if not os.access(file, os.R_OK):
            return "failed", f"data.train {file} cannot be read", "a path that all nodes see"
    return "ok", f"{1 + len(config.scorers())} models fit their layouts on {ranks} ranks", ""


def _disk(config: Config) -> probes.Verdict:
    needed = max(0, checkpoint_bytes(config) - bytes_there(Path(config.run.folder, config.run.name)))
    status = os.statvfs(config.run.folder)
    free = status.f_bavail * status.f_frsize
    room = f"{free / 1e9:,.1f} GB free, {needed / 1e9:,.1f} GB more needed"
    text = f"{config.run.folder}: {room} for checkpoints and the model"
    if free < needed:
        return "failed", text, "make room, lower checkpoint.keep, or set another run.folder"
    return "ok", text, ""
