"""A run goes on only with an engine that samples with the student's weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from megatron_gopd.config.schema import Rollout
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.training.agreement import refuse_disagreement
from tests.rollout.sample_on_ranks import prompts

OURS = np.array([-1.0, -2.0, -0.5], dtype=np.float32)
DECODER = SimpleNamespace(decode=lambda ids: f"<{ids[0]}>")


def compare(by: list[float], **rollout) -> None:
    """Against an engine whose log-probs are off by `by` nats."""
    sampled = Trajectory(
        prompts(1)[0], 0, np.array([7, 8, 9], np.int32), OURS + np.array(by, dtype=np.float32), "stop", 3
    )
    settings = Rollout.model_validate({"engine": "sglang"} | rollout)
    refuse_disagreement([sampled], SimpleNamespace(logprobs=[OURS]), settings, DECODER)


def test_an_engine_with_other_weights_is_refused_with_the_worst_token():
    shown = r"disagree by 0.7 nats a token.* response token 1 \('<8>', id 8\) of prompt 'p0': -0.4000 by the engine"
    with pytest.raises(UserError, match=shown):
        compare([0.2, 1.6, -0.3])


def test_what_precision_does_is_no_reason_to_stop():
    compare([0.05, 1.2, -0.1])


@pytest.mark.parametrize(
    "rollout", [{"engine": "transformers"}, {"sglang": {"verify_every": 0}}], ids=["here", "never"]
)
def test_only_servers_that_are_to_be_verified_are(rollout):
    compare([0.2, 1.6, -0.3], **rollout)
