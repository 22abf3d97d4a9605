"""Engines that sample y ~ pi_theta, behind one protocol."""

from megatron_gopd.rollout.embedded import EmbeddedEngine
from megatron_gopd.rollout.protocol import Exports, RolloutEngine
from megatron_gopd.rollout.sglang import SGLangEngine

__all__ = ["EmbeddedEngine", "Exports", "RolloutEngine", "SGLangEngine"]
