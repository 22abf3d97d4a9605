"""Engines that sample y ~ pi_theta, behind one protocol."""

from megatron_gopd.rollout.embedded import EmbeddedEngine
from megatron_gopd.rollout.protocol import Exports, RolloutEngine, Source
from megatron_gopd.rollout.sglang import FrozenSGLangEngine, SGLangEngine
from megatron_gopd.rollout.teachers import TeacherResponses, WrittenResponses

__all__ = [
    "EmbeddedEngine",
    "Exports",
    "FrozenSGLangEngine",
    "RolloutEngine",
    "SGLangEngine",
    "Source",
    "TeacherResponses",
    "WrittenResponses",
]
