"""What SLURM's own programs say, as values."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from megatron_gopd.errors import UserError

TIMEOUT_S = 60


def available() -> bool:
    """Whether jobs can be submitted from here: SLURM's programs are there, and a controller answers them."""
    return shutil.which("sbatch") is not None and ask("scontrol", "ping")[0] == 0


def ask(*command: str, input: str | None = None) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one of SLURM's programs. Raises UserError where it does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, input=input)
    except FileNotFoundError:
        raise UserError(f"there is no {command[0]} here: run this on a login node, or add --dry-run") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]} has not answered for {TIMEOUT_S} s; is the controller up? (scontrol ping)"
        ) from None
    return done.returncode, done.stdout, done.stderr.strip()


def partitions(names: str | None) -> list[dict[str, str]]:
    """Name, nodes and state of the partitions in a list such as "a,b", of the default one for None.

    Raises:
        UserError: there is none of a name; lists those there are.
    """
    code, out, error = ask("scontrol", "show", "partition", "-o")
    if code:
        raise UserError(f"scontrol show partition: {error}")
    described = (dict(re.findall(r"(\w+)=(\S*)", line)) for line in out.splitlines())
    known = {one["PartitionName"]: one for one in described}
    asked = [name for name, one in known.items() if one.get("Default") == "YES"] if names is None else names.split(",")
    if asked and known.keys() >= set(asked):
        return [known[name] for name in asked]
    unknown = ", ".join(repr(name) for name in asked if name not in known)
    what = f"there is no partition {unknown}" if unknown else "this cluster has no default partition"
    raise UserError(f"{what}: name one of {', '.join(known)} with --partition")


def cpus_per_gpu(names: str | None, gpus: int) -> int | None:
    """The fewest CPUs for each GPU that a node of these partitions (None: of the default one) has, of those with as
    many as `gpus`. None: no node tells of GPUs."""
    listed = ",".join(one["PartitionName"] for one in partitions(names))
    out = ask("sinfo", "-h", "-N", "-p", listed, "-o", "%c %G")[1]
    shares = []
    for cpus, resources in (line.split(maxsplit=1) for line in out.splitlines() if " " in line):
        there = sum(int(count) for count in re.findall(r"\bgpu(?::[^:,(]+)?:(\d+)", resources))
        if there >= gpus:
            shares.append(max(1, int(cpus) // there))
    return min(shares, default=None)


def test_only(script: Path) -> str | None:
    """What sbatch would refuse in a script, in its words; None if it would take it."""
    code, _, error = ask("sbatch", "--test-only", str(script))
    refused = [line.split("failure: ")[-1].removeprefix("sbatch: error: ") for line in error.splitlines()]
    return "; ".join(dict.fromkeys(refused)) if code else None


def submit(script: Path) -> str:
    """The job's id."""
    code, out, error = ask("sbatch", "--parsable", str(script))
    if code:
        raise UserError(f"sbatch refuses {script}: {error.removeprefix('sbatch: error: ')}")
    return out.strip().split(";")[0]
