"""What algorithm.gradient: top_k leaves in host memory: a few numbers of every token, on every rank."""

from __future__ import annotations

from megatron_gopd.config import Config
from megatron_gopd.plan.workload import Workload
from megatron_gopd.policies.support import ID_BYTES, LOGPROB_BYTES


def supports_bytes(config: Config, work: Workload) -> float:
    """Of the whole batch, on a rank: as scorers gave them, and once more as the update has laid them end to end."""
    if config.algorithm.READS != "top log-probs":
        return 0.0
    of_entry = ID_BYTES + LOGPROB_BYTES * (2 if config.extrapolates() else 1)
    return 2.0 * work.response_tokens * (1 + config.algorithm.top_k) * of_entry
