"""Whether two configurations describe the same run, so that one can continue the other."""

from __future__ import annotations

import copy
import json
import operator
import re
from collections.abc import Iterator
from functools import reduce

from pydantic import ValidationError

from megatron_gopd.config.schema import Config

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
Key = tuple[str, ...]


def differences(there: dict, here: dict) -> Iterator[str]:
    """`KEY: there A, here B` for every value of two resolved configurations that makes them different runs.

    A key that `there`, of an earlier version, does not have and that has its default `here` makes none.
    """
    for key, one, other in _unequal(there, here, ()):
        if not MAY_CHANGE.fullmatch(".".join(key)) and not (one is ABSENT and _is_default(here, key)):
            yield f"{'.'.join(key)}: there {_shown(one)}, here {_shown(other)}"


def _unequal(there: object, here: object, key: Key) -> Iterator[tuple[Key, object, object]]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in dict.fromkeys([*there, *here]):
            yield from _unequal(there.get(name, ABSENT), here.get(name, ABSENT), (*key, str(name)))
    elif there != here:
        yield key, there, here


def _is_default(tree: dict, key: Key) -> bool:
    """Whether a resolved configuration would be the same if it did not name the key."""
    without = copy.deepcopy(tree)
    del reduce(operator.getitem, key[:-1], without)[key[-1]]
    try:
        completed = Config.model_validate(without).model_dump(mode="json", by_alias=True)
        return reduce(operator.getitem, key, completed) == reduce(operator.getitem, key, tree)
    except (ValidationError, KeyError):  # it must be named; or is an entry of the user's own
        return False


def _shown(value: object) -> str:
    return "absent" if value is ABSENT else json.dumps(value, ensure_ascii=False, default=str)
