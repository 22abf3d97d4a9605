"""How many tokens the scorers of a job take at a time."""

from __future__ import annotations

from megatron_gopd.config import Config
from megatron_gopd.mcore.levers import settle

OFFLOADED = 4  # micro-batches of a replica that are worth bringing weights from the host for


def tokens_of_a_pass(config: Config, world: int) -> int:
    """Tokens of a chunk, of all teachers, that give every replica of every scorer whole micro-batches: one for each
    pipeline stage, more where its weights come from the host. 0: none scores in this job, and servers fill up alone.

    Args:
        world: ranks of the job.
    """
    found = 0
    for who, settings in config.scorers().items():
        if settings.engine == "megatron":
            layout = settings.layout
            replicas = len(layout.span(world, who)) // (layout.tp * layout.pp * layout.cp)
            each = max(layout.pp, OFFLOADED if settle(settings).offload else 1)
            found = max(found, replicas * each * config.training.max_tokens_per_micro_batch)
    return found * max(1, len(config.teachers))
