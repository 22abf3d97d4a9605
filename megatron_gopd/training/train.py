"""`megatron-gopd train`: the loop of the configuration's algorithm."""

from __future__ import annotations

from megatron_gopd.config import Config
from megatron_gopd.training.distill import distill
from megatron_gopd.training.grpo import grpo
from megatron_gopd.training.sft import sft

LOOPS = {"gopd": distill, "grpo": grpo, "sft": sft}


def train(config: Config) -> None:
    """Run the whole training of `config`. Collective over the ranks of the job."""
    LOOPS[config.algorithm.type](config)
