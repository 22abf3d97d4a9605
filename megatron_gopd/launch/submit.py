"""Render, check, submit, and say how to follow."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from megatron_gopd.errors import UserError
from megatron_gopd.launch import slurm
from megatron_gopd.launch.ahead import check_folders, check_inputs
from megatron_gopd.launch.refuse import check_bash, check_cluster, check_request
from megatron_gopd.launch.render import render
from megatron_gopd.launch.request import Request
from megatron_gopd.runs.atomic import write_text
from megatron_gopd.runs.folder import remove
from megatron_gopd.terminal import say


def submit(request: Request, *, dry_run: bool, shared: bool, new_name: bool = False, overwrite: bool = False) -> str:
    """Submit the job(s) of `request`; returns what to tell the user: ids and logs, or the script in a dry run.

    `new_name`, `overwrite`: what is done here and now, where runs of these names are there, so that a job that is
    requeued finds its own.

    Raises:
        UserError: whatever the cluster would refuse, as far as it can be told from here.
    """
    request = request.renamed() if new_name else request
    configs = [config for _, config in request.settings()]
    for told in check_request(request, configs):
        say(f"warning: {told}", file=sys.stderr)
    here = slurm.available()
    if here:
        request = with_cpus(request)
    script = render(request)
    check_bash(script)
    folder = Path(configs[0].run.folder)
    if here:
        with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as file:
            file.write(script)
            file.flush()
            check_cluster(request, Path(file.name), folder, shared=shared)
    elif not dry_run:
        raise UserError("no SLURM answers here: submit from a login node, or look at the script with --dry-run")
    if dry_run:
        return script
    for told in check_inputs(configs, request.nodes * request.ranks_per_node):
        say(f"warning: {told}", file=sys.stderr)
    if overwrite:
        for config in configs:
            remove(config)
    else:
        check_folders(configs)
    file = _log_folder(script) / "job.sbatch"
    try:
        for config in configs if new_name else ():
            (folder / config.run.name).mkdir(parents=True)  # of two that chose the same name one gets it
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, script)
        for config in configs:
            (folder / config.run.name / "slurm" / "stop").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write the job to {file.parent} ({error}); set run.folder to a folder that can be written"
        ) from None
    ids = _submitted(file, request.chain)
    return _told(ids, file, [folder / config.run.name for config in configs], sweep=bool(request.sweep))


def with_cpus(request: Request) -> Request:
    """With what a node has for each GPU as the CPUs of each rank, where the user does not say."""
    said = request.cpus_per_task or any(option.startswith("cpus-per-") for option in request.sbatch)
    if said:
        return request
    asked = [(request.partition, request.gpus_per_node)]
    if request.placement == "heterogeneous":
        gpus = request.serve_gpus_per_node or request.gpus_per_node
        asked.append((request.serve_partition or request.partition, gpus))
    found = [slurm.cpus_per_gpu(partition, gpus) for partition, gpus in asked]
    return replace(request, cpus_per_task=min(found)) if all(found) else request


def _submitted(script: Path, chain: int) -> list[str]:
    """The ids of the jobs of a chain; all, or a UserError that names those there are."""
    ids: list[str] = []
    try:
        while len(ids) < chain:
            ids.append(slurm.submit(script))
    except UserError as error:
        there = f"\n{len(ids)} of {chain} jobs are submitted; to take them back: scancel {' '.join(ids)}"
        raise UserError(f"{error}{there if ids else ''}") from None
    return ids


def _log_folder(script: str) -> Path:
    """Where the script has SLURM write its log: that folder must be there before the job is."""
    option = next(line for line in script.splitlines() if line.startswith("#SBATCH --output="))
    return Path(option.partition("=")[2].strip("'")).parent


def _told(ids: list[str], script: Path, runs: list[Path], *, sweep: bool) -> str:
    first = ids[0]
    chain = f", and after it {', '.join(ids[1:])}" if len(ids) > 1 else ""
    log = script.parent / f"job-{first}{'_0' if sweep else ''}.log"
    return "\n".join(
        [
            f"job {first}{chain}: {script}",
            f"log     {os.path.relpath(log)}",
            *(f"ranks   {run / 'slurm' / 'latest'}/" for run in runs),
            *(f"follow  megatron-gopd status {run}" for run in runs),
            *(f"stop    touch {run / 'slurm' / 'stop'}  (after its step, with a checkpoint)" for run in runs),
            f"cancel  scancel {' '.join(ids)}",
            "resume  the same submit again: it goes on from the newest checkpoint",
        ]
    )
