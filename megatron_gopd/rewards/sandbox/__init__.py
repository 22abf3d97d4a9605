"""Runs programs that nobody has read, against tests they cannot see."""

from megatron_gopd.rewards.sandbox.jail import SandboxError
from megatron_gopd.rewards.sandbox.judge import judge

__all__ = ["SandboxError", "judge"]
