"""A process that srun started as one of several tasks is a rank: SLURM's variables, told in torchrun's words."""

from __future__ import annotations

import os
import socket
import subprocess

from megatron_gopd.errors import UserError


def adopt_srun() -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in a step of several tasks, one rank a task.

    Does nothing under torchrun, in a batch script or beside SLURM. MASTER_ADDR and MASTER_PORT are left as they are
    where they are given.

    Raises:
        UserError: the first node's name cannot be found out.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")  # a batch script has SLURM_NTASKS and SLURM_PROCID, but no step
    if "RANK" in os.environ or tasks == "1":
        return
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
    }
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_node()
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ["SLURM_JOB_ID"]) % 10000))


def this_node() -> str:
    """The name of this machine, as SLURM writes it where there is one."""
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())


def _first_node() -> str:
    nodes = os.environ["SLURM_STEP_NODELIST"]
    if "[" not in nodes:
        return nodes.split(",")[0]
    try:
        shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"cannot tell the first of the nodes {nodes}: there is no working scontrol here. "
            f"Set MASTER_ADDR to its name in the batch script"
        ) from None
    return shown.stdout.split()[0]
