"""What tells a process that it is a rank or a SLURM task: a server would take itself for one."""

from __future__ import annotations

from collections.abc import Mapping

PREFIXES = ("SLURM", "PMI_", "PMIX_", "OMPI_", "TORCHELASTIC_", "GROUP_", "ROLE_")
NAMES = set(
    "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK MASTER_ADDR MASTER_PORT "
    "TORCH_NCCL_ASYNC_ERROR_HANDLING".split()
)


def of_no_rank(variables: Mapping[str, str]) -> dict[str, str]:
    """Without the variables of SLURM, PMI and torchrun; CUDA_VISIBLE_DEVICES, which SLURM sets too, stays."""
    return {name: value for name, value in variables.items() if not name.startswith(PREFIXES) and name not in NAMES}
