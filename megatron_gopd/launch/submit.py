"""Render, check, submit, and say how to follow."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from megatron_gopd.errors import UserError
from megatron_gopd.launch import slurm
from megatron_gopd.launch.refuse import check_bash, check_cluster, check_request
from megatron_gopd.launch.render import render
from megatron_gopd.launch.request import Request
from megatron_gopd.runs.atomic import write_text
from megatron_gopd.runs.folder import remove


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
        print(f"warning: {told}", file=sys.stderr)
    script = render(request)
    check_bash(script)
    folder = Path(configs[0].run.folder)
    if slurm.available():
        with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as file:
            file.write(script)
            file.flush()
            check_cluster(request, Path(file.name), folder, shared=shared)
    elif not dry_run:
        raise UserError("no SLURM answers here: submit from a login node, or look at the script with --dry-run")
    if dry_run:
        return script
    if overwrite:
        for config in configs:
            remove(config)
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
