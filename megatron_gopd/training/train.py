"""`megatron-gopd train`: the loop of the configuration's algorithm."""

from __future__ import annotations

from pkgutil import resolve_name

from megatron_gopd.config import Config
from megatron_gopd.training.own_code import blamed


def train(config: Config) -> None:
    """Run the whole training of `config`. Collective over the ranks of the job."""
    with blamed(config):
        resolve_name(config.algorithm.LOOP)(config)
