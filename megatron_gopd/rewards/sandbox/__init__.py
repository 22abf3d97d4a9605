"""Runs programs that nobody has read, against tests they cannot see."""

from megatron_gopd.rewards.sandbox.jail import SandboxError
from megatron_gopd.rewards.sandbox.judge import judge, too_large
from megatron_gopd.rewards.sandbox.memory_cgroup import remove_those_of_the_dead

__all__ = ["SandboxError", "judge", "remove_those_of_the_dead", "too_large"]
