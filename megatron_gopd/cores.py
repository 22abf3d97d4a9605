"""Which of the machine's processor cores a process may run on: SLURM, for one, may bind each task to its own."""

from __future__ import annotations

import math
import os
from collections.abc import Collection

from megatron_gopd.cgroups import cores_of_quota


def usable_cores() -> frozenset[int]:
    """Those of this process, by their numbers on the machine."""
    known = hasattr(os, "sched_getaffinity")  # on Linux
    return frozenset(os.sched_getaffinity(0) if known else range(os.cpu_count() or 1))


def processes_for(cores: Collection[int]) -> int:
    """How many can compute at a time on these: a control group, as of a container, may give less than their time."""
    quota = cores_of_quota()
    return len(cores) if quota is None else min(len(cores), math.ceil(quota))


def run_on(cores: frozenset[int]) -> None:
    """Bind this process to `cores`, where the system has such a thing."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
