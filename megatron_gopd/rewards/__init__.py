"""Graders of responses with a known answer, behind one bounded process pool. No torch here."""

from megatron_gopd.rewards.graders import exact, math
from megatron_gopd.rewards.pool import Grade, GraderPool

__all__ = ["Grade", "GraderPool", "exact", "math"]
