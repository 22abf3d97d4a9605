"""The few tokens at each prefix of which a coarse distribution knows the log-prob."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from megatron_gopd.servers.top_logprobs import NOBODY, Scored

ID_BYTES = LOGPROB_BYTES = 4  # of an entry: its id, and its log-prob to teacher and reference


class Support(NamedTuple):
    """Of one response: in the first column the sampled token, in the others what its teacher held most likely."""

    ids: np.ndarray  # [response, 1 + k] int32, each once; NOBODY: it is there already, or a model has no row for it
    teacher: np.ndarray  # [response, 1 + k] float32 log-probs, nats
    reference: np.ndarray | None = None  # the same; None where lambda = 1 does not need it

    @classmethod
    def of(cls, response_tokens: np.ndarray, scored: Scored, rows: int) -> Self:
        """rows: of vocabulary that every model has; ids from there on are left to the tail."""
        sampled = np.asarray(response_tokens, dtype=np.int32)[:, None]
        left_out = (scored.top_ids == sampled) | (scored.top_ids >= rows)
        ids = np.concatenate([sampled, np.where(left_out, NOBODY, scored.top_ids)], axis=1)
        return cls(ids, np.concatenate([scored.logprobs[:, None], scored.top_logprobs], axis=1))
