"""What would fail on the cluster, refused before it is submitted."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import get_args, get_type_hints

from megatron_gopd.config import Config, Layout
from megatron_gopd.config.placement import idle, lay_out
from megatron_gopd.errors import UserError
from megatron_gopd.launch import slurm
from megatron_gopd.launch.request import Request
from megatron_gopd.launch.words import check_words

# file systems of one machine; NFS, Lustre, GPFS, BeeGFS, CephFS, WekaFS and the like are of all
OF_ONE_MACHINE = {"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "ramfs", "overlay", "zfs", "f2fs"}
MOST = 100_000  # nodes, GPUs of one, jobs in a chain: nobody waits for more to be laid out


def check_request(request: Request, configs: list[Config]) -> list[str]:
    """What to warn of. Raises UserError for what can be told from the request alone."""
    check_words(request, configs)
    _check_counts(request)
    _check_times(request)
    _check_container(request)
    _check_setup(request)
    _check_names(configs)
    ranks = request.ranks_per_node
    for config in configs:
        _check_goes_on(request, config)
        for role, layout in _layouts(config):
            _check_fills(request.nodes, ranks, role, layout)
    laid_out = [(config, lay_out(config, request.nodes, request.trainer_gpus_per_node)) for config in configs]
    return list(dict.fromkeys(told for config, nodes in laid_out for told in idle(config, nodes).told))


def check_cluster(request: Request, script: Path, folder: Path, *, shared: bool) -> None:
    """Raises UserError for what the cluster will refuse. `folder` holds the runs; `shared`: the user vouches for it."""
    nodes = request.nodes + request.serve_nodes
    partitions = slurm.partitions(request.partition)
    there = {one["PartitionName"]: int(one.get("TotalNodes", 0)) for one in partitions}
    if request.placement != "heterogeneous" and nodes > max(there.values()):
        told = ", ".join(f"{name} has {count}" for name, count in there.items())
        raise UserError(f"--nodes {nodes}: the partition {told}; ask for fewer, or name another --partition")
    refused = slurm.test_only(script)
    if refused:
        raise UserError(f"the cluster refuses this job: {refused}.{_mend(refused, request, ','.join(there))}")
    kind = file_system(folder)
    if nodes > 1 and kind in OF_ONE_MACHINE and not shared:
        raise UserError(
            f"run.folder {folder} is on a {kind} file system, which {nodes} nodes do not share; "
            f"--set run.folder=PATH with a path that they do, or say --shared-folder if each node mounts it there"
        )
    for partition in partitions:
        _check_default_time(request, partition)


def check_bash(script: str) -> None:
    """That bash can read the script. A failure is a mistake of this package."""
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"the rendered script is not bash: {done.stderr}")


def file_system(path: Path) -> str | None:
    """The type of the file system of `path`, or of the nearest folder above it that is there; None where unknown."""
    path = path.absolute()
    while not os.path.exists(path):  # where a folder cannot be entered, too
        path = path.parent
    found = ("", None)
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return None
    for line in mounts:
        _, mounted, kind, *_ = line.split()
        mounted = mounted.replace("\\040", " ")
        inside = mounted == "/" or os.path.commonpath([mounted, os.path.realpath(path)]) == mounted
        if inside and len(mounted) >= len(found[0]):
            found = (mounted, kind)
    return found[1]


def _check_counts(request: Request) -> None:
    for name in ("nodes", "gpus_per_node", "chain"):
        if getattr(request, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(request, name)}: at least 1")
        if getattr(request, name) > MOST:
            raise UserError(f"--{name.replace('_', '-')} {getattr(request, name)}: at most {MOST}")
    if request.serve is None:
        about = ("serve_nodes", "serve_gpus_per_node", "serve_partition", "serve_urls")
        given = [f"--{name.replace('_', '-')}" for name in about if getattr(request, name)]
        if given:
            raise UserError(f"{', '.join(given)}: what shall be served? Name the command with --serve")
        return
    try:
        shlex.split(request.serve)
    except ValueError as error:
        raise UserError(f"--serve {request.serve!r} cannot be taken apart into words: {error}") from None
    if "{port}" not in request.serve:
        raise UserError(f"--serve {request.serve!r} holds no {{port}}: the server must listen where it is told to")
    here = request.serve_gpus_per_node
    if request.placement == "split" and not (here and 0 < here < request.gpus_per_node):
        raise UserError(
            f"--serve without --serve-nodes splits the GPUs of each node: --serve-gpus-per-node 1 to "
            f"{request.gpus_per_node - 1} of the {request.gpus_per_node}, the rest train (given: {here})"
        )
    if request.placement == "heterogeneous" and request.sweep:
        raise UserError("SLURM has no arrays of heterogeneous jobs: submit each point of the --sweep by itself")


def _check_times(request: Request) -> None:
    if request.time is None:
        return
    seconds = seconds_of(request.time)
    if seconds <= request.stop_before_s:
        raise UserError(
            f"--time {request.time} leaves nothing before the stop signal, {request.stop_before_s} s before the end; "
            f"ask for more time, or a smaller --stop-before (a step and a checkpoint must fit into it)"
        )


def _check_default_time(request: Request, partition: dict[str, str]) -> None:
    """Without --time a job gets the partition's, which may be over before it has begun."""
    times = [partition.get(name, "NONE") for name in ("DefaultTime", "MaxTime")]
    given = next((time for time in times if time != "NONE"), "UNLIMITED")
    if request.time is None and given != "UNLIMITED" and seconds_of(given) <= request.stop_before_s:
        raise UserError(
            f"without --time the partition {partition['PartitionName']} gives a job {given}, which leaves nothing "
            f"before the stop signal, {request.stop_before_s} s before the end; ask for a --time, or a smaller "
            f"--stop-before"
        )


def _check_goes_on(request: Request, config: Config) -> None:
    """A job that is requeued, or the next of a chain, has something to go on from, and goes on from it."""
    again = "the next job of the chain" if request.chain > 1 else "a requeued job" if request.max_requeues else None
    alone = "leave --chain out" if request.chain > 1 else "give --max-requeues 0"
    if again and config.checkpoint.every == 0:
        raise UserError(f"checkpoint.every is 0, so {again} would start from the beginning; set it, or {alone}")
    if again and config.checkpoint.resume != "auto":
        raise UserError(
            f"checkpoint.resume is {config.checkpoint.resume}, so {again} would start from the beginning; "
            f"to start anew once, say --overwrite or --new-name instead, or {alone}"
        )


def _check_container(request: Request) -> None:
    known = get_args(get_type_hints(Request)["container_runtime"])
    if request.container_runtime not in known:
        raise UserError(f"--container-runtime {request.container_runtime}: choose {' or '.join(known)}")
    if request.container_mounts and not request.container_image:
        raise UserError("--container-mounts without a container: name its --container-image")


def _check_setup(request: Request) -> None:
    if request.setup is None:
        return
    if not request.setup.is_file():
        raise UserError(f"--setup {request.setup}: no such file; it is sourced by bash on every node")
    done = subprocess.run(["bash", "-n", request.setup.absolute()], text=True, capture_output=True)
    if done.returncode:
        raise UserError(f"--setup {request.setup} is not bash: {done.stderr.strip().splitlines()[0]}")


def _check_names(configs: list[Config]) -> None:
    """Jobs of a sweep run side by side, each in a folder of its own."""
    names = [config.run.name for config in configs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--sweep gives two runs the name {twice!r}: leave out one of its values")


def seconds_of(time: str) -> float:
    """SLURM's times: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    days, dash, rest = time.rpartition("-")
    try:
        if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
            raise ValueError
        parts = [int(part) for part in rest.split(":")]
        if dash:
            hours, minutes, seconds = [*parts, 0, 0][:3]
        else:
            hours, minutes, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    except (ValueError, KeyError):
        raise UserError(f"--time {time!r}: write minutes, hours:minutes:seconds or days-hours:minutes") from None


def _layouts(config: Config) -> list[tuple[str, Layout]]:
    roles = {"student": config.student, **config.scorers()}
    return [(role, model.layout) for role, model in roles.items()]


def _check_fills(nodes: int, ranks_per_node: int, role: str, layout: Layout) -> None:
    world, ranks = nodes * ranks_per_node, f"{nodes} nodes of {ranks_per_node} rank(s)"
    try:
        layout.span(world, role)
    except UserError as error:
        raise UserError(f"{error} ({ranks}: --nodes, --gpus-per-node)") from None


def _mend(refused: str, request: Request, partition: str) -> str:
    if "accounting/qos policy" in refused.lower():  # a limit, whichever names are given
        return " Ask for fewer nodes, GPUs or jobs, or less --time; or name another --qos or --account"
    if "account" in refused.lower():
        accounts = _accounts()
        known = f" (yours: {accounts})" if accounts else ""
        given = "is not yours there" if request.account else "needs one"
        return f" The partition {partition} {given}: name it with --account{known}"
    if "qos" in refused.lower():
        return " Name one that you may use with --qos (sacctmgr show assoc user=$USER format=qos)"
    if "configuration is not available" in refused:
        here = slurm.ask("sinfo", "-h", "-p", partition, "-o", "%D nodes with %c CPUs, %m MB, %G")[1].strip()
        return f" {partition} has: {here}. Change --nodes, --gpus-per-node, --cpus-per-task, --mem or --exclude"
    return ""


def _accounts() -> str:
    try:
        code, out, _ = slurm.ask(
            "sacctmgr", "-nP", "show", "assoc", f"user={os.environ.get('USER', '')}", "format=account"
        )
    except UserError:
        return ""
    return ", ".join(sorted(set(out.split()))) if not code else ""
