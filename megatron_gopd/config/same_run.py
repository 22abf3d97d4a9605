"""Whether two configurations describe the same run, so that one can continue the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

# how a run is placed, watched or how long it is, not what it computes: these may change from attempt to attempt
MAY_CHANGE = re.compile(
    r"run\.(folder|steps|device)|sandbox\.(workers|isolation)"
    r"|(checkpoint|logging)(\..*)?|(.+\.)?layout\..*|(.+\.)?(offload|recompute|overlap_communication)"
    r"|training\.(max_tokens_per_micro_batch|logprob|lm_head_gib|hidden_states_gib)"
    r"|rollout\.(max_batch_size|(max|start)_logprob_abs_diff)"
    r"|(rollout\.sglang|.+\.server)\.(urls|token_variable|nodes|count|gpus|.*_s|sync|sync_folder|bucket_bytes"
    r"|verify_every|colocated)"
)
ABSENT = object()


def differences(there: object, here: object, key: tuple[str, ...] = ()) -> Iterator[str]:
    """`KEY: there A, here B` for every value of two resolved configurations that makes them different runs."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in dict.fromkeys([*there, *here]):
            yield from differences(there.get(name, ABSENT), here.get(name, ABSENT), (*key, str(name)))
    elif there != here and not MAY_CHANGE.fullmatch(".".join(key)):
        yield f"{'.'.join(key)}: there {_shown(there)}, here {_shown(here)}"


def _shown(value: object) -> str:
    return "absent" if value is ABSENT else json.dumps(value, ensure_ascii=False, default=str)
