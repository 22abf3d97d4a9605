"""The HTTP front of our scorer, without a model behind it."""

from __future__ import annotations

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.servers.scorer_service import ScorerService


def test_an_empty_token_is_none():
    with pytest.raises(UserError, match="--host 0.0.0.0 lets other machines in; set .* MEGATRON_GOPD_TOKEN"):
        ScorerService("0.0.0.0", 0, about={}, vocab_size=1, token="")
