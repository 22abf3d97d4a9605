"""Real scale before the machines: the job's own models built and stepped as any rank of any world, then priced."""

from megatron_gopd import mcore  # noqa: F401 (prepares Megatron, whose modules the seams import)
